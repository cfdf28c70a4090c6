//! What clients meet on each way to a Service is what was explained.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use lb_tests::lab::{
    Family, Host, Lab, ReversePathFilter, agent,
    client::{Ask, Outcome, Transport},
    cluster::Cluster,
    manifest::Service,
    path::{Path, paths},
    sandbox::Sandbox,
    server::ECHO_PORT,
};
use serde_json::{Value, json};

use super::{assert_met, deciding, endpoint, endpoints, explain, explain_path, without_a_trace};
use crate::xdp;

pub(crate) fn what_is_explained_is_what_clients_meet(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let everywhere = Service::new("everywhere", 1).with_endpoints(lab.all_pods());
    let remote = Service::new("remote", 2).with_endpoints([&lab.nodes[1].pods[0]]);
    let nowhere = Service::new("nowhere", 3);
    let elsewhere = Service::new("elsewhere", 4)
        .internal_policy_local()
        .external_policy_local()
        .with_endpoints([&lab.nodes[1].pods[0]]);
    let cluster = Cluster::start(lab, [&everywhere, &remote, &nowhere, &elsewhere]);
    let (lab, node) = (&cluster.lab, cluster.nodes()[0]);
    // Where nobody answers, half of the ways will do.
    let paths = |all: bool| {
        paths(lab).filter(move |path| match path.transport {
            Transport::Tcp => all || path.family == Family::V4,
            Transport::Udp => all || path.family == Family::V6,
            Transport::Http | Transport::UdpConnected => false,
        })
    };

    let mut reached = Vec::new();
    for (service, count, reason) in [
        (&everywhere, 6, None),
        (&remote, 1, None),
        (&nowhere, 0, Some("no_endpoints")),
        (&elsewhere, 0, Some("no_local_endpoints")),
    ] {
        let explained: Vec<_> = without_a_trace(node, || {
            paths(count > 0).map(|path| (path, explain_path(node, path, service, None))).collect()
        });
        for (path, explanation) in explained {
            let context = format!("{path}, {}", service.name());
            let way = deciding(&explanation, node, path.client);
            let protocol = if path.transport == Transport::Tcp { "TCP" } else { "UDP" };
            let name = format!("lab/{}:echo-{}/{protocol}", service.name(), protocol.to_lowercase());
            assert_eq!((&explanation["service"], &way["reason"]), (&json!(name), &json!(reason)), "{context}: {way}");
            let from = [("client", "outside"), (node.host.name(), "node")];
            let from = from.iter().find(|(name, _)| *name == path.client.name()).map_or("pod", |(_, from)| from);
            assert_eq!(explanation["from"], from, "{context}");
            assert_eq!(endpoints(way).len(), count, "{context}: {way}");
            for (_, probability) in endpoints(way) {
                assert!((probability * f64::from(u32::try_from(count).expect("few")) - 1.0).abs() < 1e-9, "{context}");
            }
            let outcome = path.ask(service);
            assert_met(lab, way, &outcome, path.family, &context);
            match outcome {
                Outcome::Reached(answer) if way["asker"] == "packet" => reached.push((path, service, answer)),
                _ => {}
            }
        }
    }

    // Of a packet whose port is told, the very endpoint and the very source are explained: while its flow is known, and of a
    // new one in its place.
    // Of two Services in both families: datagrams of the pod; what the VM and the client outside send, by TCP and UDP.
    assert_eq!(reached.len(), 2 * 2 * (1 + 2 + 2));
    let assert_exact = |is_known: bool| {
        for (path, service, answer) in &reached {
            let context = format!("{path}, {}, known: {is_known}", service.name());
            let explanation = explain_path(node, *path, service, Some(answer.local.port()));
            let way = deciding(&explanation, node, path.client);
            assert_eq!(way["knownFlow"], is_known, "{context}: {way}");
            assert_eq!(way["endpoint"], json!(endpoint(lab, answer, path.family)), "{context}: {way}");
            assert_eq!(way["endpointSees"], json!(answer.client_seen), "{context}: {way}");
            let client = path.client.address(path.family);
            assert_eq!(way["masquerade"], answer.client_seen.ip() != client, "{context}: {way}");
            assert_eq!((&explanation["attachedBuild"], &way["foundBy"]), (&json!(true), &json!("run")), "{context}");
        }
    };
    without_a_trace(node, || assert_exact(true));
    agent::ask(node, &["flow", "flush", "--all"]);
    without_a_trace(node, || assert_exact(false));
}

pub(crate) fn xdp_is_what_answers_where_it_is_attached(sandbox: Sandbox) {
    let (cluster, services) = xdp::start(sandbox);
    let (lab, node) = (&cluster.lab, cluster.nodes()[0]);
    let mut answered = Vec::new();
    for (service, family) in services.iter().flat_map(|service| Family::BOTH.map(|family| (service, family))) {
        let path = Path { client: &lab.client, node_port_of: Some(&node.host), family, transport: Transport::Udp };
        // The neighbour may have to be found first, which is TC's to do.
        path.ask(service).answer(path);
        answered.push((path, service, path.ask(service).answer(path)));
    }
    let assert_exact = |is_known: bool| {
        for (path, service, answer) in &answered {
            let context = format!("{path}, {}, known: {is_known}", service.name());
            let explanation = explain_path(node, *path, service, Some(answer.local.port()));
            let way = deciding(&explanation, node, path.client);
            assert_eq!(way["hooks"], json!(["uplinkXdp"]), "{context}: {way}");
            assert_eq!(way["knownFlow"], is_known, "{context}: {way}");
            assert_eq!(way["endpoint"], json!(endpoint(lab, answer, path.family)), "{context}: {way}");
            assert_eq!(way["endpointSees"], json!(answer.client_seen), "{context}: {way}");
        }
    };
    without_a_trace(node, || assert_exact(true));
    agent::ask(node, &["flow", "flush", "--all"]);
    without_a_trace(node, || assert_exact(false));
}

/// Questions that lead to no frontend, to none of this port, or to one by the node's own loopback address; and pods that ask
/// external frontends of policy `Local`.
pub(crate) fn what_no_service_answers_is_explained_as_well(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).external_policy_local().with_endpoints([&lab.nodes[1].pods[0]]);
    let cluster = Cluster::start(lab, [&service]);
    let (lab, node) = (&cluster.lab, cluster.nodes()[0]);
    let mut questions = Vec::new();
    for family in Family::BOTH {
        let cluster_ip = service.cluster_address(family, Transport::Tcp).ip();
        let node_port = service.node_port_address(&node.host, family, Transport::Tcp);
        let loopback = match family {
            Family::V4 => IpAddr::from(Ipv4Addr::LOCALHOST),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        for (client, to, reason) in [
            (&node.host, SocketAddr::new(loopback, node_port.port()), None),
            (&node.pods[0], SocketAddr::new(cluster_ip, 9), Some("undefined_port")),
            (&node.vm, SocketAddr::new(cluster_ip, 9), Some("undefined_port")),
            (&node.pods[0], node_port, Some("no_local_endpoints")),
            (&node.vm, node_port, Some("no_local_endpoints")),
            (&node.host, node_port, None),
            (&lab.client, node_port, Some("no_local_endpoints")),
            (&node.vm, SocketAddr::new(lab.nodes[1].pods[1].address(family), ECHO_PORT), None),
        ] {
            questions.push((family, client, to, reason));
        }
    }
    let explanations: Vec<_> = without_a_trace(node, || {
        let explain = |(family, client, to, _): &(Family, &Host, SocketAddr, Option<&str>)| {
            let is_node = client.name() == node.host.name();
            let source = if is_node { "node".to_owned() } else { client.address(*family).to_string() };
            explain(node, &source, &to.to_string(), &[])
        };
        questions.iter().map(explain).collect()
    });
    for ((family, client, to, reason), explanation) in questions.into_iter().zip(explanations) {
        let context = format!("{} to {to}", client.name());
        let way = deciding(&explanation, node, client);
        let outcome = Ask::new(Transport::Tcp, to).from(client);
        if explanation["frontend"].is_null() {
            assert_eq!((&way["verdict"], &explanation["service"]), (&json!("pass"), &Value::Null), "{context}: {way}");
            assert_eq!(outcome.answer(&context).backend, lab.nodes[1].pods[1].name());
            continue;
        }
        // Who is inside depends on how pods are told from others, which is what the programs do.
        let is_inside = reason == Some("no_local_endpoints") && way["list"] == "cluster";
        assert_eq!(way["reason"], if is_inside { Value::Null } else { json!(reason) }, "{context}: {way}");
        assert_met(lab, way, &outcome, family, &context);
    }
}

/// A VM that asks one endpoint from one port by two frontends is seen from two ports: which the second one is, is told before
/// it asks.
pub(crate) fn a_port_that_is_lent_already_is_not_promised(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints([&lab.nodes[1].pods[0]]);
    let cluster = Cluster::start(lab, [&service]);
    let node = cluster.nodes()[0];
    for family in Family::BOTH {
        let first = service.cluster_address(family, Transport::Udp);
        let second = service.node_port_address(&node.host, family, Transport::Udp);
        let from = SocketAddr::new(node.vm.address(family), 7777);
        let socket = node.vm.run(move || UdpSocket::bind(from)).expect("nobody has the port");
        socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a time");
        let seen_by = |to: SocketAddr| -> SocketAddr {
            socket.send_to(&[b'?'; 64], to).unwrap_or_else(|error| panic!("{to}: {error}"));
            let mut answer = [0; 512];
            let length = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{to}: {error}"));
            let answer = String::from_utf8_lossy(&answer[..length]);
            let seen = answer.split("client=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            seen.unwrap_or_else(|| panic!("{to}: {answer}"))
        };
        assert_eq!(seen_by(first), from);
        let explained = || explain(node, &from.to_string(), &second.to_string(), &["-p", "udp"]);
        let explanation = without_a_trace(node, explained);
        let way = deciding(&explanation, node, &node.vm);
        let seen = seen_by(second);
        assert_ne!(seen, from);
        assert_eq!((&way["endpointSees"], &way["masquerade"]), (&json!(seen), &json!(false)), "{way}");
    }
}
