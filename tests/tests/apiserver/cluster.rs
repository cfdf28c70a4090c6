//! A lab whose agents follow a real API server, which runs on the router, and read it with the least of rights.

use std::{ffi::OsString, fs, net::SocketAddr, path::PathBuf, process::Command, sync::Arc};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use lb_tests::{
    apiserver::ApiServer,
    lab::{
        Family, Host, Lab, Node, ReversePathFilter,
        agent::Agent,
        client::{Ask, Outcome},
        cluster::eventually,
        path::Path,
        sandbox::Sandbox,
        server::Server,
    },
};
use serde_json::Value;
use tokio::runtime::{self, Runtime};

use crate::{
    objects::{self, NAMESPACE, State},
    rights,
};

const PORT: u16 = 6443;
/// In memory, and gone with the sandbox.
const DIRECTORY: &str = "/run/apiserver";
/// Who writes what is applied.
const MANAGER: &str = "lb-test";

/// A running cluster.
pub(crate) struct Cluster {
    /// Shared, so that hosts can be named while agents or servers are started and killed.
    pub(crate) lab: Arc<Lab>,
    /// The agents of node1 and node2; `None` while one is down.
    pub(crate) agents: [Option<Agent>; 2],
    /// What each agent logs in with.
    pub(crate) kubeconfigs: [PathBuf; 2],
    /// What each agent is started with besides.
    arguments: Vec<OsString>,
    api: ApiHost,
    server: Option<ApiServer>,
    _servers: Vec<Server>,
}

impl Cluster {
    /// Starts servers in all pods, the API server, and then the agents.
    pub(crate) fn start(sandbox: Sandbox) -> Self {
        Self::start_configured(sandbox, &[])
    }

    /// As [`start`](Self::start), with more arguments for the agents.
    pub(crate) fn start_configured(sandbox: Sandbox, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(OsString::from).collect();
        let lab = Arc::new(Lab::new(sandbox, ReversePathFilter::Strict));
        let servers = lab.start_servers();
        let api = ApiHost::new(&lab.router);
        let address = SocketAddr::new(lab.router.address(Family::V4), PORT);
        let nodes = lab.nodes.each_ref().map(|node| (node.host.name().to_owned(), node.host.addresses()));
        let (server, kubeconfigs) = api.run(&lab.router, async move || {
            fs::create_dir_all(DIRECTORY).expect("mkdir in /run");
            let server = ApiServer::start(DIRECTORY.as_ref(), address).await;
            let client = server.client().await;
            rights::create_roles(&client).await;
            let mut kubeconfigs = Vec::new();
            for (name, addresses) in nodes {
                rights::register_node(&client, &name, addresses).await;
                kubeconfigs.push(server.write_kubeconfig(&name, &rights::token_of(&client, &name).await));
            }
            (server, kubeconfigs.try_into().expect("two nodes"))
        });
        let (agents, server) = ([None, None], Some(server));
        let mut cluster = Self { lab, agents, kubeconfigs, arguments, api, server, _servers: servers };
        cluster.start_agents();
        cluster
    }

    /// node1 and node2.
    pub(crate) fn nodes(&self) -> [&Node; 2] {
        self.lab.nodes.each_ref()
    }

    /// Starts the agents that are down, and waits until both are ready.
    pub(crate) fn start_agents(&mut self) {
        self.start_agents_without_waiting();
        self.wait_until_ready();
    }

    /// Starts the agents that are down.
    pub(crate) fn start_agents_without_waiting(&mut self) {
        for ((node, kubeconfig), agent) in self.lab.nodes.iter().zip(&self.kubeconfigs).zip(&mut self.agents) {
            agent.get_or_insert_with(|| Agent::start_configured(node, kubeconfig, &self.arguments));
        }
    }

    /// Waits for the agents that run.
    pub(crate) fn wait_until_ready(&mut self) {
        for (node, agent) in self.lab.nodes.iter().zip(&mut self.agents) {
            if let Some(agent) = agent {
                agent.wait_ready(node);
            }
        }
    }

    /// Kills the agents with `SIGKILL`.
    pub(crate) fn kill_agents(&mut self) {
        self.agents.iter_mut().filter_map(Option::take).for_each(Agent::kill);
    }

    /// Where the API server listens, and the certificate that it is to be trusted by.
    pub(crate) fn server(&self) -> (SocketAddr, PathBuf) {
        let server = self.server.as_ref().expect("the server is there");
        (server.address(), server.certificate_authority())
    }

    /// Kills the API server and etcd with `SIGKILL`.
    pub(crate) fn kill_api_server(&mut self) {
        self.server.as_mut().expect("the server is there").kill();
    }

    /// Starts both again, with their data.
    pub(crate) fn resume_api_server(&mut self) {
        let mut server = self.server.take().expect("the server is there");
        self.server = Some(self.api.run(&self.lab.router, async move || {
            server.resume().await;
            server
        }));
    }

    /// Runs something against the API server, from its own host, as the user who may do everything.
    pub(crate) fn with_client<R: Send + 'static>(&self, work: impl AsyncFnOnce(Client) -> R + Send + 'static) -> R {
        let kubeconfig = self.server.as_ref().expect("the server is there").kubeconfig();
        // A new client each time: connections of an earlier one may have ended with the server.
        self.api.run(&self.lab.router, async move || work(lb_tests::apiserver::client(&kubeconfig).await).await)
    }

    /// Creates a Service, and gives it as the API server completed it.
    pub(crate) fn create(&self, service: Service) -> Service {
        self.with_client(async move |client| {
            let api = Api::namespaced(client, NAMESPACE);
            api.create(&PostParams::default(), &service).await.expect("create a Service")
        })
    }

    /// Changes a Service by a merge patch.
    pub(crate) fn patch(&self, name: &str, patch: Value) -> Service {
        let name = name.to_owned();
        self.with_client(async move |client| {
            let api = Api::<Service>::namespaced(client, NAMESPACE);
            api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("patch a Service")
        })
    }

    /// Deletes a Service, and then its slices as the garbage collector would.
    pub(crate) fn delete(&self, name: &str) {
        let (name, slices) = (name.to_owned(), objects::slices(name, &[]));
        self.with_client(async move |client| {
            let api = Api::<Service>::namespaced(client.clone(), NAMESPACE);
            api.delete(&name, &DeleteParams::default()).await.expect("delete a Service");
            for slice in slices {
                let name = slice.metadata.name.expect("it has a name");
                let api = Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE);
                api.delete(&name, &DeleteParams::default()).await.expect("delete a slice");
            }
        });
    }

    /// Creates or replaces the slices of a Service.
    pub(crate) fn set_endpoints(&self, service: &str, pods: &[(&Host, State)]) {
        self.apply_slices(objects::slices(service, pods));
    }

    /// Creates or replaces slices.
    pub(crate) fn apply_slices(&self, slices: impl IntoIterator<Item = EndpointSlice> + Send + 'static) {
        self.with_client(async move |client| {
            let api = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
            for slice in slices {
                let name = slice.metadata.name.as_deref().expect("it has a name");
                api.patch(name, &PatchParams::apply(MANAGER), &Patch::Apply(&slice)).await.expect("apply a slice");
            }
        });
    }

    /// Runs `ip` with these arguments on the API server's host.
    pub(crate) fn ip_at_api_server(&self, arguments: &str) {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let status = self.lab.router.run(move || Command::new("ip").args(arguments).status());
        assert!(status.expect("run ip").success());
    }

    /// Lets nothing that the API server sends leave its host.
    pub(crate) fn cut_api_server_off(&self) {
        self.ip_at_api_server(&format!("rule add from {} blackhole", self.lab.router.address(Family::V4)));
    }

    /// Ends what [`cut_api_server_off`](Self::cut_api_server_off) began.
    pub(crate) fn reconnect_api_server(&self) {
        self.ip_at_api_server(&format!("rule del from {} blackhole", self.lab.router.address(Family::V4)));
    }
}

/// One exchange with a Service of the API server.
pub(crate) fn ask(path: &Path<'_>, service: &Service) -> Outcome {
    Ask::new(path.transport, objects::address(service, path)).from(path.client)
}

/// Waits until a client reaches a Service of the API server on a path.
pub(crate) fn wait_until_reached(path: &Path<'_>, service: &Service) {
    let reached = |outcome: &Outcome| matches!(outcome, Outcome::Reached(_));
    eventually(&path.to_string(), || ask(path, service), reached);
}

/// A runtime whose connections belong to one host: one thread at a time drives it, of that host.
struct ApiHost {
    runtime: Arc<Runtime>,
}

impl ApiHost {
    fn new(host: &Host) -> Self {
        let build = || runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime: Arc::new(host.run(build)) }
    }

    fn run<R: Send + 'static>(&self, host: &Host, work: impl AsyncFnOnce() -> R + Send + 'static) -> R {
        let runtime = Arc::clone(&self.runtime);
        host.run(move || runtime.block_on(work()))
    }
}
