//! The API server itself, as the other tests here rely on it.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta},
};
use lb_tests::{
    apiserver::{self, ApiServer},
    lab::{Family, Host, Lab, ReversePathFilter, sandbox::Sandbox},
};

const PORT: u16 = 6443;

pub(crate) fn a_service_is_there_after_a_restart(sandbox: Sandbox) {
    on_the_client_host(sandbox, async |mut server| {
        let created =
            apiserver::create_services(&server.client().await, [service("web", "RequireDualStack")], 1).await.unwrap();
        let addresses = created[0].spec.as_ref().and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
        assert!(addresses[0].starts_with("10.96.") && addresses[1].starts_with("fd00:10:96::"), "{addresses:?}");

        server.stop().await;
        let refused = services(&server.client().await).list(&ListParams::default()).await;
        assert!(refused.is_err(), "a stopped server answered {refused:?}");

        server.resume().await;
        let found = services(&server.client().await).get("web").await.unwrap();
        assert_eq!((found.metadata.uid, found.spec), (created[0].metadata.uid.clone(), created[0].spec.clone()));
    });
}

/// Runs an API server, and the test, on the lab's outside client: one that the nodes can reach.
fn on_the_client_host(sandbox: Sandbox, test: impl AsyncFnOnce(ApiServer) + Send + 'static) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let address = SocketAddr::new(lab.client.address(Family::V4), PORT);
    block_on(&lab.client, async move || {
        let directory = tempfile::tempdir().expect("a temporary directory");
        test(ApiServer::start(directory.path(), address).await).await;
    });
}

fn block_on(host: &Host, work: impl AsyncFnOnce() + Send + 'static) {
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work());
    });
}

fn services(client: &Client) -> Api<Service> {
    Api::namespaced(client.clone(), "default")
}

fn service(name: &str, families: &str) -> Service {
    Service {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: Some(ServiceSpec {
            ip_family_policy: Some(families.to_owned()),
            ports: Some(vec![ServicePort { port: 80, ..ServicePort::default() }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
