//! Objects that the API server accepts and this proxy must leave alone, wholly or in part.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Service;
use lb_tests::lab::{
    Family, agent,
    client::{Ask, Outcome, Transport},
    cluster::eventually,
    path::{Path, paths},
    sandbox::Sandbox,
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, ask, wait_until_reached},
    objects::{self, NAMESPACE, object, ready},
};

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The Services in the maps of node1 with their ports, in order; those of the namespace that the tests use.
fn served(cluster: &Cluster) -> Vec<String> {
    let list = agent::list_services(&cluster.lab.nodes[0]);
    let names = list.iter().filter(|service| service["namespace"] == NAMESPACE && service["name"] != "kubernetes");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let mut names: Vec<String> =
        names.map(|service| format!("{} {}", text(&service["service"]), text(&service["family"]))).collect();
    names.sort();
    names
}

/// What [`served`] shows of an [`objects::web`].
fn all_ports_of(service: &str) -> Vec<String> {
    let ports = ["echo-tcp/TCP", "echo-udp/UDP", "http/TCP"];
    let lines =
        ports.iter().flat_map(|port| Family::BOTH.map(|family| format!("{NAMESPACE}/{service}:{port} {family}")));
    lines.collect()
}

pub(crate) fn what_is_not_for_this_proxy_is_left_alone_and_the_rest_is_served(sandbox: Sandbox) {
    let cluster = Cluster::start(sandbox);
    let [node1, node2] = cluster.nodes();
    let pods = [&node1.pods[1], &node2.pods[0]];

    let external_name = json!({ "type": "ExternalName", "externalName": "db.example.com" });
    cluster.create(object(json!({ "metadata": { "name": "elsewhere" }, "spec": external_name })));
    let headless = json!({ "clusterIP": "None", "ports": [{ "name": "http", "port": 80 }] });
    cluster.create(object(json!({ "metadata": { "name": "headless" }, "spec": headless })));
    cluster.set_endpoints("headless", &ready(&pods));
    let mut other = objects::web("other");
    other.metadata.labels = Some([(PROXY_NAME.to_owned(), "another".to_owned())].into());
    let other = cluster.create(other);
    cluster.set_endpoints("other", &ready(&pods));
    // Nobody knows whose endpoints these are.
    let [mut stray, _] = objects::slices("stray", &ready(&pods));
    stray.metadata.labels = None;
    cluster.apply_slices([stray]);
    let mut mixed = objects::web("mixed");
    let ports = mixed.spec.as_mut().and_then(|spec| spec.ports.as_mut()).expect("it has ports");
    ports.push(object(json!({ "name": "sctp", "protocol": "SCTP", "port": 7 })));
    let mixed = cluster.create(mixed);
    let [mut v4, v6] = objects::slices("mixed", &ready(&pods));
    v4.ports.get_or_insert_default().push(object(json!({ "name": "sctp", "protocol": "SCTP", "port": 7 })));
    cluster.apply_slices([v4, v6]);

    // What came last is there: what came before would be, too.
    for path in paths(&cluster.lab) {
        wait_until_reached(&path, &mixed);
    }
    assert_eq!(served(&cluster), all_ports_of("mixed"));
    let log = agent::log(node1);
    for rejection in
        ["Service default/mixed: spec.ports[3].protocol", "EndpointSlice default/stray-ipv4: metadata.labels"]
    {
        assert!(log.contains(rejection), "no {rejection:?} in\n{log}");
    }
    for path in paths(&cluster.lab).filter(|path| path.transport == Transport::Http) {
        assert_unreached(&path, &other);
    }

    a_label_comes_and_goes(&cluster, &other);
    a_service_becomes_a_name(&cluster, &mixed);
}

/// Without the label of another proxy the Service is ours, and with it no longer.
fn a_label_comes_and_goes(cluster: &Cluster, other: &Service) {
    cluster.patch("other", json!({ "metadata": { "labels": { PROXY_NAME: null } } }));
    for path in paths(&cluster.lab) {
        wait_until_reached(&path, other);
    }
    cluster.patch("other", json!({ "metadata": { "labels": { PROXY_NAME: "" } } }));
    eventually("only mixed is served", || served(cluster), |names| *names == all_ports_of("mixed"));
    for path in paths(&cluster.lab).filter(|path| path.transport == Transport::Http) {
        assert_unreached(&path, other);
    }
}

/// A Service that becomes an `ExternalName` loses its addresses.
fn a_service_becomes_a_name(cluster: &Cluster, mixed: &Service) {
    let spec = json!({
        "type": "ExternalName", "externalName": "db.example.com", "clusterIP": null, "clusterIPs": null,
        "ipFamilies": null, "ipFamilyPolicy": null, "ports": null,
    });
    cluster.patch("mixed", json!({ "spec": spec }));
    eventually("nothing is served", || served(cluster), Vec::is_empty);
    let [node1, _] = cluster.nodes();
    for family in Family::BOTH {
        let to = SocketAddr::new(objects::cluster_ip(mixed, family), 80);
        let outcome = Ask::new(Transport::Http, to).from(&node1.pods[0]);
        assert!(!matches!(outcome, Outcome::Reached(_)), "{to}: {outcome:?}");
    }
}

fn assert_unreached(path: &Path, service: &Service) {
    let outcome = ask(path, service);
    assert!(!matches!(outcome, Outcome::Reached(_)), "{path}: {outcome:?}");
}
