//! What is in the API server: Services with ten endpoints each, every one of which answers, and one Service with a
//! single endpoint, which moves.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use futures::{StreamExt, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::{self, Runtime};

use super::ground::Side;
use crate::{apiserver, differential::api::ApiHost, lab::server::ECHO_PORT};

/// Endpoints of each Service but the one that moves.
pub(super) const ENDPOINTS: u32 = 10;
/// Requests to the API server that are under way at once.
const CONCURRENCY: usize = 50;
const NAMESPACE: &str = "default";
const PORT: u16 = 80;
/// The Service that moves.
const MOVING: &str = "moving";
/// The cluster IP of it, and that of the first of the others.
const MOVING_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 15, 1);
const FIRST_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 16, 0);
/// Which address of either side is its endpoint: one far above those of the others.
const MOVING_ENDPOINT: u32 = 1 << 20;

/// The objects, and who writes them.
pub(super) struct Population<'a> {
    api: &'a ApiHost,
    runtime: Arc<Runtime>,
    client: Client,
    services: u32,
    moving_to: Side,
}

impl<'a> Population<'a> {
    /// The Service that moves, and nothing else.
    pub(super) fn start(api: &'a ApiHost) -> Self {
        let build = || runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let runtime = Arc::new(api.host().run(build));
        let (shared, kubeconfig): (_, PathBuf) = (Arc::clone(&runtime), api.kubeconfig());
        let client = api.host().run(move || shared.block_on(apiserver::client(&kubeconfig)));
        let this = Self { api, runtime, client, services: 1, moving_to: Side::Near };
        this.run(async |client| {
            create(&client, MOVING, MOVING_IP, vec![moving_endpoint(Side::Near)]).await;
        });
        this
    }

    /// Creates what is missing to so many Services, the one that moves among them.
    pub(super) fn grow_to(&mut self, services: u32) {
        let missing = self.services - 1..services - 1;
        self.run(async move |client| {
            let client = &client;
            stream::iter(missing)
                .for_each_concurrent(CONCURRENCY, async |number| {
                    create(client, &format!("web-{number}"), cluster_ip(number), endpoints(number)).await;
                })
                .await;
        });
        self.services = services;
    }

    /// How many there are.
    pub(super) fn services(&self) -> u32 {
        self.services
    }

    /// Where these Services answer: that which moves where there is no other, else the others.
    pub(super) fn frontend(&self, number: u32) -> SocketAddr {
        let ip = if self.services == 1 { MOVING_IP } else { cluster_ip(number) };
        SocketAddr::new(ip.into(), PORT)
    }

    /// Services that [`frontend`](Self::frontend) knows.
    pub(super) fn frontends(&self) -> u32 {
        (self.services - 1).max(1)
    }

    /// Where the Service that moves answers.
    pub(super) fn moving_frontend() -> SocketAddr {
        SocketAddr::new(MOVING_IP.into(), PORT)
    }

    /// Where its endpoint is.
    pub(super) fn moving_to(&self) -> Side {
        self.moving_to
    }

    /// Moves its endpoint, and gives when the write was sent and when the API server had acknowledged it.
    pub(super) fn move_to(&mut self, side: Side) -> [Instant; 2] {
        self.moving_to = side;
        let patch = Patch::Merge(json!({ "endpoints": [moving_endpoint(side)] }));
        self.run(async move |client| {
            let slices = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
            let sent = Instant::now();
            slices.patch(MOVING, &PatchParams::default(), &patch).await.expect("patch a slice");
            [sent, Instant::now()]
        })
    }

    fn run<R: Send + 'static>(&self, work: impl AsyncFnOnce(Client) -> R + Send + 'static) -> R {
        let (runtime, client) = (Arc::clone(&self.runtime), self.client.clone());
        self.api.host().run(move || runtime.block_on(work(client)))
    }
}

fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_IP.to_bits() + number)
}

/// Its endpoints, in turns on either side.
fn endpoints(number: u32) -> Vec<Value> {
    let endpoint = |index| endpoint(Side::BOTH[index as usize % 2], number * ENDPOINTS + index);
    (0..ENDPOINTS).map(endpoint).collect()
}

fn moving_endpoint(side: Side) -> Value {
    endpoint(side, MOVING_ENDPOINT)
}

fn endpoint(side: Side, number: u32) -> Value {
    let address = Ipv4Addr::from_bits(side.base().to_bits() + number);
    json!({ "addresses": [address], "nodeName": side.node(), "conditions": { "ready": true } })
}

/// Creates a Service with its address, which the API server would take longer to choose than all else, and its slice.
async fn create(client: &Client, name: &str, cluster_ip: Ipv4Addr, endpoints: Vec<Value>) {
    let service: Service = object(json!({
        "metadata": { "name": name },
        "spec": { "clusterIP": cluster_ip, "ports": [{ "name": "echo", "port": PORT, "targetPort": ECHO_PORT }] },
    }));
    let slice: EndpointSlice = object(json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4",
        "ports": [{ "name": "echo", "port": ECHO_PORT }],
        "endpoints": endpoints,
    }));
    let parameters = PostParams::default();
    Api::namespaced(client.clone(), NAMESPACE).create(&parameters, &service).await.expect("create a Service");
    Api::namespaced(client.clone(), NAMESPACE).create(&parameters, &slice).await.expect("create a slice");
}

fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("a valid object")
}
