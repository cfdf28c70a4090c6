//! The API server itself, as the other tests here rely on it.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use lb_tests::{
    apiserver::ApiServer,
    lab::{Family, Lab, ReversePathFilter, sandbox::Sandbox},
};

use crate::objects::{self, NAMESPACE};

const PORT: u16 = 6443;

pub(crate) fn a_service_is_there_after_a_restart(sandbox: Sandbox) {
    on_the_client_host(sandbox, async |mut server| {
        let wanted = objects::web("web");
        let created = services(&server.client().await).create(&PostParams::default(), &wanted).await.unwrap();
        let addresses = created.spec.as_ref().and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
        assert!(addresses[0].starts_with("10.96.") && addresses[1].starts_with("fd00:10:96::"), "{addresses:?}");

        server.stop().await;
        let refused = services(&server.client().await).list(&ListParams::default()).await;
        assert!(refused.is_err(), "a stopped server answered {refused:?}");

        server.resume().await;
        let found = services(&server.client().await).get("web").await.unwrap();
        assert_eq!((found.metadata.uid, found.spec), (created.metadata.uid, created.spec));
    });
}

/// Runs an API server, and the test, on the lab's outside client: one that the nodes can reach.
fn on_the_client_host(sandbox: Sandbox, test: impl AsyncFnOnce(ApiServer) + Send + 'static) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let address = SocketAddr::new(lab.client.address(Family::V4), PORT);
    lab.client.run(move || {
        // In memory, and gone with the sandbox.
        let directory = tempfile::tempdir_in("/run").expect("a temporary directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { test(ApiServer::start(directory.path(), address).await).await });
    });
}

fn services(client: &Client) -> Api<Service> {
    Api::namespaced(client.clone(), NAMESPACE)
}
