//! A node that kube-proxy serves, then the agent, by the same API server.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use lb_tests::{
    differential::{
        api::ApiHost,
        kube_proxy::{KubeProxy, Mode},
        relay,
        scenario::Scenario,
    },
    lab::{
        Family, Host, Lab, Node, ReversePathFilter,
        agent::{self, Agent},
        client::{Conversation, Transport},
        cluster::eventually_within,
        lone_host,
        manifest::Service,
        path::{Path, paths},
        sandbox::Sandbox,
        server::Server,
    },
};
use serde_json::{Map, Value};

/// Where the API server listens, and its relay on the node.
const API_SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
/// How long a proxy may take to start on a loaded machine.
const START: Duration = Duration::from_secs(40);
/// Ports of the Service in both families: what is in force when all are.
const SERVICE_PORTS: usize = 6;

/// node1 of a lab.
pub(crate) struct TakenOver {
    // The connections borrow it, and the process ends with the test.
    pub(crate) lab: &'static Lab,
    pub(crate) service: Service,
    api: ApiHost,
    kube_proxy: Option<KubeProxy>,
    agent: Option<Agent>,
    _servers: Vec<Server>,
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) output: String,
    pub(crate) error: String,
}

/// TCP connections through kube-proxy: from pods, the node and outside, in both families.
pub(crate) struct Connections(Vec<(Path<'static>, Conversation)>);

impl TakenOver {
    /// A lab with an API server, and a Service that all pods serve.
    pub(crate) fn set_up(sandbox: Sandbox) -> Self {
        let lab: &'static Lab = Box::leak(Box::new(Lab::new(sandbox, ReversePathFilter::Loose)));
        let servers = lab.start_servers();
        let api = ApiHost::start(lone_host("api"), API_SERVER, &lab.nodes);
        relay::start(api.host(), API_SERVER, [&lab.nodes[0].host]);
        // The first of the range is the API server's own.
        let service = Service::new("web", 10).with_endpoints(lab.all_pods());
        let scenario = Scenario::parse("web", &format!("{{kind: Scenario, about: one Service}}\n---\n{service}"));
        for object in &scenario.expect("YAML").steps[0].apply {
            api.apply(object).expect("apply");
        }
        Self { lab, service, api, kube_proxy: None, agent: None, _servers: servers }
    }

    fn node(&self) -> &'static Node {
        &self.lab.nodes[0]
    }

    pub(crate) fn host(&self) -> &'static Host {
        &self.node().host
    }

    /// Starts kube-proxy and waits until it has made its rules.
    pub(crate) fn start_kube_proxy(&mut self, mode: Mode) {
        self.kube_proxy = Some(KubeProxy::start(self.node(), mode, &self.api.kubeconfig(), &Map::new()));
        // Each family's rules come in one transaction.
        let addresses =
            Family::BOTH.map(|family| self.service.cluster_address(family, Transport::Tcp).ip().to_string());
        let serves = |rules: &String| addresses.iter().all(|address| rules.contains(address));
        let list = || super::rules::shell(self.host(), "nft list ruleset");
        eventually_within(START, "kube-proxy's rules", list, serves);
    }

    /// Kills it; its rules stay.
    pub(crate) fn stop_kube_proxy(&mut self) {
        self.kube_proxy = None;
    }

    /// Starts the agent and waits until it serves the Service.
    pub(crate) fn start_agent(&mut self) {
        self.agent = Some(Agent::start_with_kubeconfig(self.node(), &self.api.kubeconfig()));
        // Not its health, which is asked at a port that kube-proxy has.
        let serves = |services: &Option<usize>| *services >= Some(SERVICE_PORTS);
        eventually_within(START, "the agent serves", || self.services().map(|services| services.len()), serves);
    }

    /// The ports of the Service `web` that have endpoints; `None` while there are no maps.
    fn services(&self) -> Option<Vec<Value>> {
        let bpffs = self.node().bpffs();
        let run = agent::command(self.node(), &["service", "list", "-o", "json", "--bpffs", bpffs.to_str()?]);
        let list: Value = serde_json::from_slice(&run.stdout).ok()?;
        let of_web = |service: &&Value| {
            service["name"] == "web" && service["endpoints"].as_array().is_some_and(|endpoints| endpoints.len() == 6)
        };
        Some(list["items"].as_array()?.iter().filter(of_web).cloned().collect())
    }

    fn flows(&self) -> u64 {
        let services = self.services().expect("the maps are there");
        services.iter().map(|service| service["flows"].as_u64().expect("a number")).sum()
    }

    /// Shows that each new exchange is served, and counted by the agent.
    pub(crate) fn assert_new_connections_are_the_agents(&self) {
        for path in paths(self.lab) {
            let before = self.flows();
            path.ask(&self.service).answer(path);
            assert_eq!(self.flows(), before + 1, "{path}: not by the agent");
        }
    }

    /// Runs `lb-agent cleanup-kube-proxy`.
    pub(crate) fn cleanup_kube_proxy(&self, arguments: &[&str]) -> Run {
        let run = agent::command(self.node(), &[&["cleanup-kube-proxy"], arguments].concat());
        Run {
            code: run.status.code().expect("it exits"),
            output: String::from_utf8(run.stdout).expect("text"),
            error: String::from_utf8(run.stderr).expect("text"),
        }
    }

    /// Stops the agent and removes its data plane.
    pub(crate) fn stop_agent_and_clean_up(&mut self) {
        let status = self.agent.take().expect("it runs").terminate();
        assert!(status.success(), "{status}");
        agent::ask(self.node(), &["cleanup"]);
    }

    /// Opens connections, which kube-proxy serves.
    pub(crate) fn open_connections(&self) -> Connections {
        let paths = paths(self.lab).filter(|path| path.transport == Transport::Tcp);
        let open = |path: Path<'static>| {
            let opened = Conversation::open(path.client, path.address(&self.service));
            (path, opened.unwrap_or_else(|outcome| panic!("{path}: {outcome:?}")))
        };
        Connections(paths.map(open).collect())
    }
}

impl Connections {
    /// Uses each, twice.
    pub(crate) fn go_on(&mut self, when: &str) {
        for (path, conversation) in &mut self.0 {
            for line in ["still", "here"] {
                conversation.say(line).unwrap_or_else(|error| panic!("{path}, {when}: {error}"));
            }
        }
    }

    /// The first one gets no answer any more.
    pub(crate) fn first_ends(&mut self) {
        let (path, conversation) = &mut self.0[0];
        assert!(conversation.say("still here?").is_err(), "{path} goes on");
    }
}
