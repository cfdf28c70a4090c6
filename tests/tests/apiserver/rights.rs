//! What an agent must be allowed to do, and that it is all it needs: every test here runs its agents with these rights
//! only.

use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Node, Pod, Secret, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    events::v1::Event,
    networking::v1::ServiceCIDR,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client, Error, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::ClusterResourceScope,
};
use lb_tests::{
    apiserver,
    lab::{Addresses, agent, path::paths, sandbox::Sandbox},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, wait_until_reached},
    objects::{self, NAMESPACE, object, ready},
};

/// The namespace of the agents' accounts.
const SYSTEM: &str = "kube-system";
/// The role that is the same for all nodes.
const ROLE: &str = "lb-agent";

/// Creates what the agents of all nodes share.
pub(crate) async fn create_roles(client: &Client) {
    let rules = json!([
        { "apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
        { "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"] },
        { "apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": ["list", "watch"] },
    ]);
    create::<ClusterRole>(client, json!({ "metadata": { "name": ROLE }, "rules": rules })).await;
}

/// Creates the Node, an account for its agent, and the right to read this Node.
pub(crate) async fn register_node(client: &Client, name: &str, Addresses { v4, v6 }: Addresses) {
    let labels = json!({ "kubernetes.io/hostname": name });
    create::<Node>(client, json!({ "metadata": { "name": name, "labels": labels } })).await;
    let addresses = json!([{ "type": "InternalIP", "address": v4 }, { "type": "InternalIP", "address": v6 }]);
    let status = Patch::Merge(json!({ "status": { "addresses": addresses } }));
    Api::<Node>::all(client.clone())
        .patch_status(name, &PatchParams::default(), &status)
        .await
        .expect("patch the status of a Node");

    let account = account(name);
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), SYSTEM);
    let wanted = object(json!({ "metadata": { "name": account } }));
    accounts.create(&PostParams::default(), &wanted).await.expect("create an account");
    let own_node =
        json!([{ "apiGroups": [""], "resources": ["nodes"], "resourceNames": [name], "verbs": ["list", "watch"] }]);
    create::<ClusterRole>(client, json!({ "metadata": { "name": account }, "rules": own_node })).await;
    for role in [ROLE, &account] {
        let subject = json!({ "kind": "ServiceAccount", "namespace": SYSTEM, "name": account });
        let binding = json!({
            "metadata": { "name": format!("{account}-may-{role}") },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [subject],
        });
        create::<ClusterRoleBinding>(client, binding).await;
    }
}

/// A token of the account of a node's agent.
pub(crate) async fn token_of(client: &Client, node: &str) -> String {
    request_token(client, node, json!({ "audiences": [], "expirationSeconds": 3600 })).await
}

/// As [`token_of`], but valid only as long as a Secret of this name, which is made for it, exists.
pub(crate) async fn token_bound_to(client: &Client, secret: &str, node: &str) -> String {
    let secrets = Api::<Secret>::namespaced(client.clone(), SYSTEM);
    let made = secrets.create(&PostParams::default(), &object(json!({ "metadata": { "name": secret } }))).await;
    let uid = made.expect("create a Secret").metadata.uid;
    let bound = json!({ "apiVersion": "v1", "kind": "Secret", "name": secret, "uid": uid });
    let spec = json!({ "audiences": [], "expirationSeconds": 3600, "boundObjectRef": bound });
    request_token(client, node, spec).await
}

/// Ends the validity of what [`token_bound_to`] gave.
pub(crate) async fn delete_secret(client: &Client, secret: &str) {
    let secrets = Api::<Secret>::namespaced(client.clone(), SYSTEM);
    secrets.delete(secret, &DeleteParams::default()).await.expect("delete a Secret");
}

async fn request_token(client: &Client, node: &str, spec: Value) -> String {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), SYSTEM);
    let request: TokenRequest = object(json!({ "metadata": {}, "spec": spec }));
    let answer = accounts.create_token_request(&account(node), &PostParams::default(), &request).await;
    answer.expect("request a token").status.and_then(|status| status.token).expect("a token")
}

fn account(node: &str) -> String {
    format!("{ROLE}-{node}")
}

async fn create<K>(client: &Client, value: Value)
where
    K: Resource<Scope = ClusterResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let api = Api::<K>::all(client.clone());
    api.create(&PostParams::default(), &object(value))
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", K::kind(&())));
}

pub(crate) fn reading_services_slices_and_its_own_node_and_creating_events_is_all_that_an_agent_needs(
    sandbox: Sandbox,
) {
    let cluster = Cluster::start(sandbox);
    let [node1, node2] = cluster.nodes();
    let web = cluster.create(objects::web("web"));
    cluster.set_endpoints("web", &ready(&[&node1.pods[1], &node2.pods[0]]));
    for path in paths(&cluster.lab) {
        wait_until_reached(&path, &web);
    }
    for node in [node1, node2] {
        let log = agent::log(node);
        assert!(!log.contains("forbidden") && log.contains("first synchronization done"), "{log}");
    }

    // That the API server indeed keeps the agent of node1 from all else.
    let kubeconfig = cluster.kubeconfigs[0].clone();
    cluster.with_client(async move |_| {
        let reader = apiserver::client(&kubeconfig).await;
        let all = ListParams::default();
        Api::<Service>::all(reader.clone()).list(&all).await.expect("list Services");
        Api::<EndpointSlice>::all(reader.clone()).list(&all).await.expect("list slices");
        Api::<ServiceCIDR>::all(reader.clone()).list(&all).await.expect("list ranges of cluster IPs");
        let node_objects = Api::<Node>::all(reader.clone());
        let own =
            node_objects.list(&ListParams::default().fields("metadata.name=node1")).await.expect("list one's Node");
        assert_eq!(own.items.len(), 1);

        let services = Api::<Service>::namespaced(reader.clone(), NAMESPACE);
        let patch = Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } }));
        assert_forbidden("list all Nodes", &node_objects.list(&all).await);
        assert_forbidden("list another Node", &node_objects.list(&all.clone().fields("metadata.name=node2")).await);
        assert_forbidden("change a Service", &services.patch("web", &PatchParams::default(), &patch).await);
        assert_forbidden("change a Node", &node_objects.patch_status("node1", &PatchParams::default(), &patch).await);
        assert_forbidden("list Events", &Api::<Event>::all(reader.clone()).list(&all).await);
        assert_forbidden("list Secrets", &Api::<Secret>::all(reader.clone()).list(&all).await);
        assert_forbidden("list Pods", &Api::<Pod>::all(reader).list(&all).await);
    });
}

fn assert_forbidden<T: std::fmt::Debug>(what: &str, result: &Result<T, Error>) {
    assert!(matches!(result, Err(Error::Api(status)) if status.code == 403), "{what}: {result:?}");
}
