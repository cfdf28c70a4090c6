//! What agents tell others of a cluster: Events on objects, health checks of Services, metrics.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    api::{core::v1::Service, events::v1::Event},
    jiff::Timestamp,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use lb_tests::lab::{
    Family, Host, Node,
    cluster::{eventually, eventually_within},
    path::paths,
    sandbox::Sandbox,
};
use serde_json::json;

use crate::{
    cluster::{Cluster, wait_until_reached},
    objects::{self, NAMESPACE, object, ready},
};

/// An address that nobody has.
const EXTERNAL: &str = "203.0.113.77";
/// Longer than the pause before a port is tried again.
const TRIED_AGAIN: Duration = Duration::from_secs(12);

/// What a server answers to a host; empty where nobody listens.
fn get(host: &Host, to: SocketAddr, path: &'static str) -> String {
    host.run(move || {
        let mut answer = String::new();
        let asked = TcpStream::connect_timeout(&to, Duration::from_secs(1)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
            stream.read_to_string(&mut answer)
        });
        asked.map(|_| answer).unwrap_or_default()
    })
}

/// Reason, object, note, and how often each Event was written, in order.
fn events(cluster: &Cluster) -> Vec<(String, String, String, String)> {
    let events = cluster.with_client(async move |client| {
        Api::<Event>::namespaced(client, NAMESPACE).list(&ListParams::default()).await.expect("list Events").items
    });
    let ours = events.into_iter().filter(|event| event.reporting_controller.as_deref() == Some("lb-agent"));
    let mut told: Vec<_> = ours
        .map(|event| {
            let version = event.resource_version().unwrap_or_default();
            let regarding = event.regarding.expect("every Event is of an object");
            assert!(regarding.uid.is_some(), "kubectl describe does not show it: {regarding:?}");
            let object = format!("{}/{}", regarding.kind.unwrap_or_default(), regarding.name.unwrap_or_default());
            (event.reason.unwrap_or_default(), object, event.note.unwrap_or_default(), version)
        })
        .collect();
    told.sort();
    told
}

fn with_external_ip(name: &str) -> Service {
    let port = json!({ "name": "http", "port": 4711 });
    object(json!({
        "metadata": { "name": name },
        "spec": { "externalIPs": [EXTERNAL], "ports": [port] },
    }))
}

pub(crate) fn an_operator_finds_events_on_what_is_not_served_and_each_once(sandbox: Sandbox) {
    let cluster = Cluster::start(sandbox);
    cluster.create(with_external_ip("older"));
    // Creation times are whole seconds; among equal ones the name decides, which is the same order.
    cluster.create(with_external_ip("younger"));
    let sctp = json!({ "name": "sctp", "port": 7, "protocol": "SCTP" });
    cluster.create(object(json!({ "metadata": { "name": "mixed" }, "spec": { "ports": [sctp] } })));

    // Two agents see the same, and write it once.
    let both = |told: &Vec<(String, String, String, String)>| told.len() == 2;
    let told = eventually_within(Duration::from_secs(10), "two Events", || events(&cluster), both);
    let [(rejected, mixed, sctp, _), (conflict, younger, address, _)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((rejected.as_str(), mixed.as_str()), ("FieldRejected", "Service/mixed"));
    assert!(sctp.starts_with("spec.ports[0].protocol: is \"SCTP\""), "{sctp}");
    assert_eq!((conflict.as_str(), younger.as_str()), ("FrontendConflict", "Service/younger"));
    assert_eq!(*address, format!("{EXTERNAL}:4711/TCP of default/younger:http/TCP belongs to default/older:http/TCP"));

    // Every change of the object is rejected again, and told no more.
    for number in 0..20 {
        cluster.patch("mixed", json!({ "metadata": { "labels": { "number": number.to_string() } } }));
    }
    // The last change shows that the agents have seen the others.
    let tcp = json!({ "name": "tcp", "port": 8, "protocol": "TCP" });
    let sctp = json!({ "name": "sctp", "port": 7, "protocol": "SCTP" });
    cluster.patch("mixed", json!({ "spec": { "ports": [sctp, tcp] } }));
    for node in cluster.nodes() {
        let served = || lb_tests::lab::agent::log(node).contains("added service=default/mixed:tcp/TCP");
        eventually("every change was seen", served, |seen| *seen);
        let log = lb_tests::lab::agent::log(node);
        assert_eq!(log.matches("Service default/mixed: spec.ports[0].protocol").count(), 1, "{log}");
    }
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(events(&cluster), told);
}

pub(crate) fn a_service_without_room_is_told_once_a_node_and_keeps_nobody_from_being_served(sandbox: Sandbox) {
    // Of IPv4: 2 of the API server's own Service, 7 of "web", 2 and one an external IP of the others.
    let mut cluster = Cluster::start_configured(sandbox, &["--frontend-table-size", "16"]);
    cluster.create(objects::web("web"));
    let with_external_ips = |name: &str, addresses: &[String]| {
        object(json!({
            "metadata": { "name": name },
            "spec": { "externalIPs": addresses, "ports": [{ "name": "http", "port": 4711 }] },
        }))
    };
    let many: Vec<_> = (1..=10).map(|number| format!("203.0.113.{number}")).collect();
    let has = |node: &Node, line: &str| lb_tests::lab::agent::log(node).contains(line);
    for node in cluster.nodes() {
        eventually("web has its place", || has(node, "added service=default/web:http/TCP"), |seen| *seen);
    }
    cluster.create(with_external_ips("large", &many));

    let both = |told: &Vec<(String, String, String, String)>| told.len() == 2;
    let told = eventually_within(Duration::from_secs(10), "an Event of each node", || events(&cluster), both);
    for (node, (reason, object, note, _)) in ["node1", "node2"].into_iter().zip(&told) {
        assert_eq!((reason.as_str(), object.as_str()), ("TableFull", "Service/large"));
        let full = "default/large:http/TCP: table FRONTENDS4 is full; the former state stays in force";
        assert_eq!(*note, format!("node {node}: {full}"));
    }

    // One that came later and fits is served, and one that was there goes on.
    cluster.create(with_external_ips("small", &["203.0.113.20".to_owned()]));
    for node in cluster.nodes() {
        eventually("small has its place", || has(node, "added service=default/small:http/TCP"), |seen| *seen);
    }
    let web = cluster.patch("web", json!({ "metadata": { "labels": { "changed": "yes" } } }));
    cluster.set_endpoints("web", &ready(&[&cluster.nodes()[0].pods[0], &cluster.nodes()[1].pods[0]]));
    for path in paths(&cluster.lab) {
        wait_until_reached(&path, &web);
    }
    // It is tried again and again, and told no more.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(events(&cluster), told);
    for node in cluster.nodes() {
        assert!(!has(node, "added service=default/large:http/TCP"));
    }
    cluster.patch("large", json!({ "spec": { "externalIPs": many[..2] } }));
    for node in cluster.nodes() {
        eventually("large has its place", || has(node, "added service=default/large:http/TCP"), |seen| *seen);
    }
    assert_eq!(events(&cluster), told);
    // Both agents live.
    cluster.wait_until_ready();
}

/// A load balancer with policy `Local` and this port for health checks.
fn checked(name: &str, port: u16) -> Service {
    let mut service = objects::web(name);
    let spec = service.spec.as_mut().expect("it has one");
    spec.type_ = Some("LoadBalancer".to_owned());
    spec.external_traffic_policy = Some("Local".to_owned());
    spec.health_check_node_port = Some(port.into());
    service
}

pub(crate) fn load_balancers_learn_which_node_has_endpoints(sandbox: Sandbox) {
    const PORT: u16 = 31_999;
    let cluster = Cluster::start(sandbox);
    let [node1, node2] = cluster.nodes();
    let outside = &cluster.lab.client;
    let taken = node1.host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("a free port"));

    cluster.create(checked("web", PORT));
    cluster.set_endpoints("web", &ready(&[&node1.pods[0], &node1.pods[1]]));
    for family in Family::BOTH {
        let to = SocketAddr::new(node2.host.address(family), PORT);
        let answer = eventually("node2 says no", || get(outside, to, "/"), |a| a.starts_with("HTTP/1.1 503 "));
        assert!(answer.contains("X-Load-Balancing-Endpoint-Weight: 0\r\n"), "{answer}");
    }
    let told = eventually("an Event", || events(&cluster), |told| !told.is_empty());
    let [(reason, object, note, _)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((reason.as_str(), object.as_str()), ("FailedToStartServiceHealthcheck", "Service/web"));
    assert!(note.starts_with("node node1 failed to start healthcheck \"default/web\" on port 31999: "), "{note}");

    drop(taken);
    for family in Family::BOTH {
        let to = SocketAddr::new(node1.host.address(family), PORT);
        let good = |answer: &String| answer.starts_with("HTTP/1.1 200 OK\r\n");
        let answer = eventually_within(TRIED_AGAIN, "node1 says yes", || get(outside, to, "/"), good);
        assert!(answer.contains("X-Load-Balancing-Endpoint-Weight: 2\r\n"), "{answer}");
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                    \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
    }
    // A pod that goes is served while there is no other, and the load balancer looks elsewhere already.
    cluster.set_endpoints("web", &[(&node1.pods[0], objects::State::Terminating)]);
    let to = SocketAddr::new(node1.host.address(Family::V4), PORT);
    eventually("node1 says no", || get(outside, to, "/"), |answer| answer.starts_with("HTTP/1.1 503 "));
    cluster.patch("web", json!({ "spec": { "externalTrafficPolicy": "Cluster" } }));
    eventually("nobody listens", || get(outside, to, "/"), String::is_empty);
}

pub(crate) fn the_time_from_a_change_of_endpoints_to_the_maps_is_measured(sandbox: Sandbox) {
    const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
    let cluster = Cluster::start(sandbox);
    let [node1, node2] = cluster.nodes();
    cluster.create(objects::web("web"));
    let set = |pods: &[&Host], seconds_ago: u64| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let at = Timestamp::from_second((now - seconds_ago).try_into().expect("before the end of time"));
        let [mut slice, _] = objects::slices("web", &ready(pods));
        let annotation = "endpoints.kubernetes.io/last-change-trigger-time".to_owned();
        slice.metadata.annotations = Some([(annotation, at.expect("in range").to_string())].into());
        cluster.apply_slices([slice]);
    };
    let sum_and_count = || {
        let text = get(&node1.host, METRICS, "/metrics");
        let number = |name: &str| {
            let name = format!("kubeproxy_network_programming_duration_seconds_{name}{{ip_family=\"IPv4\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse::<f64>().expect("a number")
        };
        (number("sum"), number("count"))
    };
    // Before the agents' start, which is not theirs to answer for.
    set(&[&node1.pods[1]], 600);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(sum_and_count(), (0.0, 0.0));
    set(&[&node2.pods[0]], 1);
    let (sum, _) = eventually("one change", sum_and_count, |(_, count)| (*count - 1.0).abs() < 0.5);
    assert!((1.0..10.0).contains(&sum), "{sum} s");

    // What it asked of the API server: a watch of each kind at least, all of which were answered.
    let text = get(&node1.host, METRICS, "/metrics");
    let requests = text.lines().find_map(|line| line.strip_prefix("rest_client_requests_total{code=\"200\",host=\""));
    let (host, count) = requests.and_then(|rest| rest.split_once("\",method=\"GET\"} ")).expect("requests are counted");
    assert!(host.ends_with(":6443") && count.parse::<u32>().expect("a number") >= 4, "{host}: {count}");
}
