//! The API server of a session: scenarios' objects are written to it, and read back as it completed them.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::runtime::{self, Runtime};

use super::scenario::Named;
use crate::{
    apiserver::ApiServer,
    lab::{Addresses, Host, Node},
};

/// In memory, and gone with the sandbox.
const DIRECTORY: &str = "/run/apiserver";
/// Who writes what is applied.
const MANAGER: &str = "lb-test";
/// How long a write may need to be done, many times what it takes on a loaded machine.
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// The server, and a client of it.
pub struct ApiHost {
    host: Host,
    runtime: Arc<Runtime>,
    client: Client,
    server: ApiServer,
}

impl ApiHost {
    /// Starts the server on a host of its own, and registers the nodes.
    pub fn start(host: Host, address: SocketAddr, nodes: &[Node; 2]) -> Self {
        fs::create_dir_all(DIRECTORY).expect("mkdir in /run");
        let build = || runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let runtime = Arc::new(host.run(build));
        let shared = Arc::clone(&runtime);
        let (server, client) = host.run(move || {
            shared.block_on(async {
                let server = ApiServer::start(DIRECTORY.as_ref(), address).await;
                let client = server.client().await;
                (server, client)
            })
        });
        let this = Self { host, runtime, client, server };
        for (number, node) in (1..).zip(nodes) {
            this.apply(&node_object(number, node.host.name(), node.host.addresses())).expect("register a node");
        }
        this
    }

    /// Where the server runs.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The kubeconfig of a user who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.server.kubeconfig()
    }

    fn run<R: Send + 'static>(&self, work: impl AsyncFnOnce(Client) -> R + Send + 'static) -> R {
        let (runtime, client) = (Arc::clone(&self.runtime), self.client.clone());
        self.host.run(move || runtime.block_on(work(client)))
    }

    /// Applies an object, its status with it.
    pub fn apply(&self, object: &Value) -> Result<(), String> {
        let named = Named::of(object)?;
        let mut object = object.clone();
        let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
        self.run(async move |client| {
            if named.namespace != "default" {
                ensure_namespace(&client, &named.namespace).await?;
            }
            let api = api(client, &named)?;
            let params = PatchParams::apply(MANAGER).force();
            let status = status.map(|status| Patch::Merge(json!({ "status": status })));
            let write = async || -> kube::Result<()> {
                api.patch(&named.name, &params, &Patch::Apply(&object)).await?;
                if let Some(status) = &status {
                    api.patch_status(&named.name, &PatchParams::default(), status).await?;
                }
                Ok(())
            };
            let deadline = Instant::now() + WRITTEN_WITHIN;
            loop {
                match write().await {
                    Ok(()) => return Ok(()),
                    // The server may take an object for one that is there still and has gone meanwhile: its cache is
                    // behind, or the last finalizer went with this very write.
                    Err(kube::Error::Api(status)) if status.code == 404 && Instant::now() < deadline => {}
                    Err(error) => return Err(format!("apply {named}: {error}")),
                }
                tokio::time::sleep(POLL).await;
            }
        })
    }

    /// Deletes an object and waits until it is gone, or held by its finalizers alone.
    pub fn delete(&self, named: &Named) -> Result<(), String> {
        let named = named.clone();
        self.run(async move |client| {
            let api = api(client, &named)?;
            match api.delete(&named.name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
                Err(error) => return Err(format!("delete {named}: {error}")),
                Ok(_) => {}
            }
            let deadline = Instant::now() + WRITTEN_WITHIN;
            while Instant::now() < deadline {
                let left = api.get_opt(&named.name).await.map_err(|error| error.to_string())?;
                if left.is_none_or(|object| object.metadata.finalizers.is_some_and(|holders| !holders.is_empty())) {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
            Err(format!("{named} does not go away"))
        })
    }

    /// All objects of a kind, in all namespaces.
    pub fn list(&self, kind: &str) -> Vec<Value> {
        let named = Named { kind: kind.to_owned(), namespace: String::new(), name: String::new() };
        self.run(async move |client| {
            let (resource, _) = resource(&named.kind).expect("a kind of ours");
            let list = Api::<DynamicObject>::all_with(client, &resource).list(&ListParams::default()).await;
            let objects = list.expect("list").items.into_iter();
            objects.map(|object| serde_json::to_value(object).expect("an object is JSON")).collect()
        })
    }
}

async fn ensure_namespace(client: &Client, name: &str) -> Result<(), String> {
    let named = Named { kind: "Namespace".to_owned(), namespace: String::new(), name: name.to_owned() };
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    let patch = Patch::Apply(&object);
    let applied = api(client.clone(), &named)?.patch(name, &PatchParams::apply(MANAGER), &patch).await;
    applied.map(drop).map_err(|error| error.to_string())
}

fn api(client: Client, named: &Named) -> Result<Api<DynamicObject>, String> {
    let (resource, is_namespaced) = resource(&named.kind)?;
    Ok(if is_namespaced {
        Api::namespaced_with(client, &named.namespace, &resource)
    } else {
        Api::all_with(client, &resource)
    })
}

/// A kind that proxies read, and whether it belongs to namespaces.
fn resource(kind: &str) -> Result<(ApiResource, bool), String> {
    let (group, plural, is_namespaced) = match kind {
        "Service" => ("", "services", true),
        "EndpointSlice" => ("discovery.k8s.io", "endpointslices", true),
        "Node" => ("", "nodes", false),
        "Namespace" => ("", "namespaces", false),
        "ServiceCIDR" => ("networking.k8s.io", "servicecidrs", false),
        _ => return Err(format!("scenarios do not use kind {kind}")),
    };
    Ok((ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural), is_namespaced))
}

/// A Node as the kubelet and the controllers register it: each in a zone of its own.
pub fn node_object(number: u8, name: &str, addresses: Addresses) -> Value {
    let Addresses { v4, v6 } = addresses;
    let pods = [format!("10.1.{number}.0/24"), format!("fd00:10:1:{number:x}::/64")];
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": { "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone{number}") },
        },
        "spec": { "podCIDR": pods[0], "podCIDRs": pods },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": v4 }, { "type": "InternalIP", "address": v6 }],
        },
    })
}
