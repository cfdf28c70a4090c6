//! The rendered objects in a real API server that writes down what it is asked, and the rendered agent on a node of the lab.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    authorization::v1::SelfSubjectAccessReview,
    core::v1::{Node as NodeObject, Service, ServiceAccount},
    events::v1::Event,
    rbac::v1::ClusterRole,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use lb_tests::{
    apiserver::{self, ApiServer},
    lab::{
        Family, LOG, Lab, Node, ReversePathFilter,
        agent::Agent,
        cluster::eventually,
        sandbox::{self, Sandbox},
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::{self, Runtime};

use crate::{
    accepted,
    render::{self, container, of_kind},
    rights::{Permission, rules},
    variants,
};

/// In memory, and gone with the sandbox.
const DIRECTORY: &str = "/run/apiserver";
/// Of the API server, in its directory.
const AUDIT_LOG: &str = "audit.log";
const PORT: u16 = 6443;
const NAMESPACE: &str = "kube-system";
const NAME: &str = "lb-agent";
/// Where every pod has its account. Fixed in all clients of Kubernetes.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A node of the lab, and an API server on its router that has all rendered objects.
pub(crate) struct Installed {
    lab: Arc<Lab>,
    runtime: Runtime,
    server: ApiServer,
    pub(crate) objects: Vec<Value>,
}

/// Runs a test on the API server's host. `streams`: whether the API server sends lists as the beginning of a watch
/// (`WatchList`), which agents ask for first.
pub(crate) fn with_installed(sandbox: Sandbox, streams: bool, test: impl FnOnce(&Installed) + Send + 'static) {
    sandbox::own_var_run();
    let lab = Arc::new(Lab::new(sandbox, ReversePathFilter::Strict));
    let shared = Arc::clone(&lab);
    lab.router.run(move || test(&Installed::set_up(shared, streams)));
}

impl Installed {
    fn set_up(lab: Arc<Lab>, streams: bool) -> Self {
        fs::create_dir(DIRECTORY).expect("mkdir in /run");
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "rules": [{ "level": "Metadata", "omitStages": ["RequestReceived"] }],
        });
        fs::write(Path::new(DIRECTORY).join("audit.yaml"), policy.to_string()).expect("write in /run");
        let arguments = vec![
            "--audit-policy-file=audit.yaml".to_owned(),
            format!("--audit-log-path={AUDIT_LOG}"),
            format!("--feature-gates=WatchList={streams}"),
        ];
        let address = SocketAddr::new(lab.router.address(Family::V4), PORT);
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let server = runtime.block_on(ApiServer::start_with(DIRECTORY.as_ref(), address, arguments));

        let mut objects = render::kustomize(&variants::usual());
        let map = objects.iter_mut().find(|object| object["kind"] == "ConfigMap").expect("there is one");
        map["data"]["apiServerHost"] = json!(address.ip());
        map["data"]["apiServerPort"] = json!(address.port().to_string());
        accepted::create(&server.kubeconfig(), &objects).expect("created");
        let this = Self { lab, runtime, server, objects };
        this.register_node();
        this.write_account();
        this
    }

    pub(crate) fn node(&self) -> &Node {
        &self.lab.nodes[0]
    }

    /// Runs something as the user who may do everything.
    fn with_client<R>(&self, work: impl AsyncFnOnce(Client) -> R) -> R {
        self.runtime.block_on(async { work(apiserver::client(&self.server.kubeconfig()).await).await })
    }

    fn register_node(&self) {
        let (name, addresses) = (self.node().host.name(), self.node().host.addresses());
        self.with_client(async |client| {
            let nodes = Api::<NodeObject>::all(client);
            let node = object(json!({ "metadata": { "name": name } }));
            nodes.create(&PostParams::default(), &node).await.expect("create a Node");
            let internal = [addresses.v4.to_string(), addresses.v6.to_string()]
                .map(|address| json!({ "type": "InternalIP", "address": address }));
            let status = Patch::Merge(json!({ "status": { "addresses": internal } }));
            nodes.patch_status(name, &PatchParams::default(), &status).await.expect("patch a Node");
        });
    }

    /// What kubelet would put into the pod.
    fn write_account(&self) {
        let token = self.with_client(async |client| {
            let accounts = Api::<ServiceAccount>::namespaced(client, NAMESPACE);
            let request: TokenRequest = object(json!({ "metadata": {}, "spec": { "audiences": [] } }));
            let answer = accounts.create_token_request(NAME, &PostParams::default(), &request).await;
            answer.expect("request a token").status.and_then(|status| status.token).expect("a token")
        });
        fs::create_dir_all(ACCOUNT).expect("mkdir below /run");
        let authority = fs::read(self.server.certificate_authority()).expect("the server made it");
        for (name, content) in
            [("token", token.as_bytes()), ("ca.crt", &authority), ("namespace", NAMESPACE.as_bytes())]
        {
            fs::write(Path::new(ACCOUNT).join(name), content).expect("write below /run");
        }
        self.server.write_kubeconfig(NAME, &token);
    }

    /// Starts the agent as the rendered container is started: these arguments and variables and no others, with the paths
    /// of its mounts replaced by what is mounted there.
    pub(crate) fn start_agent(&self) -> Agent {
        let node = self.node();
        let data = &of_kind(&self.objects, "ConfigMap")["data"];
        let configuration = node.directory().join("kube-proxy");
        fs::create_dir_all(&configuration).expect("mkdir in /run");
        let text = data["config.conf"].as_str().expect("a configuration");
        fs::write(configuration.join("config.conf"), text).expect("write in /run");

        let container = container(&self.objects);
        let list = |key: &str| container[key].as_array().unwrap_or_else(|| panic!("no {key}")).iter();
        let mounts: Vec<(&str, PathBuf)> = list("volumeMounts")
            .map(|mount| match (mount["name"].as_str(), mount["mountPath"].as_str()) {
                (Some("bpf"), Some(path)) => (path, node.bpffs()),
                (Some("cgroup"), Some(path)) => (path, node.cgroup().to_owned()),
                (Some("config"), Some(path)) => (path, configuration.clone()),
                _ => panic!("what is there to be? {mount}"),
            })
            .collect();
        let outside = |text: &str| {
            let mounted = mounts.iter().find_map(|(path, there)| Some((text.strip_prefix(path)?, there)));
            mounted.map_or_else(|| text.to_owned(), |(rest, there)| format!("{}{rest}", there.display()))
        };
        let arguments: Vec<OsString> =
            list("args").map(|argument| outside(argument.as_str().expect("text")).into()).collect();
        let environment: Vec<(String, String)> = list("env")
            .map(|variable| {
                let from = &variable["valueFrom"];
                let value = match (&variable["value"], &from["fieldRef"]["fieldPath"], &from["configMapKeyRef"]["key"])
                {
                    (Value::String(value), _, _) => outside(value),
                    (_, Value::String(field), _) if field == "spec.nodeName" => node.host.name().to_owned(),
                    (_, _, Value::String(key)) => data[key].as_str().expect("the ConfigMap has it").to_owned(),
                    _ => panic!("how is its value found? {variable}"),
                };
                (variable["name"].as_str().expect("a name").to_owned(), value)
            })
            .collect();
        // The log of one run.
        let _ = fs::remove_file(node.directory().join(LOG));
        Agent::start_as_told(node, &arguments, &environment)
    }

    /// Gives the account these permissions and no others, and waits until the API server goes by them.
    pub(crate) fn grant(&self, permissions: &BTreeSet<Permission>, probe: &Permission) {
        let kubeconfig = Path::new(DIRECTORY).join(format!("{NAME}.kubeconfig"));
        let is_allowed = permissions.contains(probe);
        self.with_client(async |client| {
            let patch = Patch::Merge(json!({ "rules": rules(permissions) }));
            let roles = Api::<ClusterRole>::all(client);
            roles.patch(NAME, &PatchParams::default(), &patch).await.expect("patch the role");
        });
        let Permission { group, resource, verb } = probe;
        let review: SelfSubjectAccessReview = object(json!({
            "metadata": {},
            "spec": { "resourceAttributes": { "group": group, "resource": resource, "verb": verb } },
        }));
        let answer = || {
            self.runtime.block_on(async {
                let reviews = Api::<SelfSubjectAccessReview>::all(apiserver::client(&kubeconfig).await);
                let answer = reviews.create(&PostParams::default(), &review).await.expect("everybody may ask");
                answer.status.expect("an answer").allowed
            })
        };
        eventually("the role is in force", answer, |allowed| *allowed == is_allowed);
    }

    /// What the agent asked for, and whether it was allowed to, since the audit log had this length.
    pub(crate) fn asked(&self, since: usize) -> BTreeSet<(Permission, bool)> {
        let log = fs::read_to_string(Path::new(DIRECTORY).join(AUDIT_LOG)).expect("the API server writes it");
        let account = format!("system:serviceaccount:{NAMESPACE}:{NAME}");
        let entries =
            log[since..].lines().map(|line| serde_json::from_str::<Value>(line).expect("a line is an object"));
        let entries = entries.filter(|entry| entry["user"]["username"] == account.as_str());
        // Who may ask what one may is everybody.
        let entries = entries.filter(|entry| entry["objectRef"]["apiGroup"] != "authorization.k8s.io");
        entries
            .map(|entry| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let object = &entry["objectRef"];
                assert!(object.is_object(), "something other than an object: {entry}");
                let permission = Permission {
                    group: text(&object["apiGroup"]),
                    resource: text(&object["resource"]),
                    verb: text(&entry["verb"]),
                };
                if permission.resource == "nodes" {
                    let uri = entry["requestURI"].as_str().expect("an address");
                    assert!(
                        uri.contains(&format!("fieldSelector=metadata.name%3D{}", self.node().host.name())),
                        "{uri}"
                    );
                }
                (permission, entry["annotations"]["authorization.k8s.io/decision"] == "allow")
            })
            .collect()
    }

    /// A Service with something that each agent tells by an Event.
    pub(crate) fn create_faulty_service(&self) {
        let port = json!({ "name": "sctp", "port": 7, "protocol": "SCTP" });
        let service: Service = object(json!({ "metadata": { "name": "mixed" }, "spec": { "ports": [port] } }));
        self.with_client(async |client| {
            let services = Api::namespaced(client, "default");
            services.create(&PostParams::default(), &service).await.expect("create a Service");
        });
    }

    pub(crate) fn events(&self) -> usize {
        self.with_client(async |client| {
            let events = Api::<Event>::namespaced(client, "default").list(&ListParams::default()).await;
            let events = events.expect("list Events").items;
            events.iter().filter(|event| event.reporting_controller.as_deref() == Some(NAME)).count()
        })
    }
}

/// How much has been written down so far, in bytes.
pub(crate) fn audit_log_length() -> usize {
    let log = fs::metadata(Path::new(DIRECTORY).join(AUDIT_LOG)).expect("the API server writes it");
    usize::try_from(log.len()).expect("it fits into memory")
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("a valid object")
}
