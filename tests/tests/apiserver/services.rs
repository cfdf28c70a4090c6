//! Services come, change and go while clients use them.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use lb_tests::lab::{
    Host, Lab,
    client::{Conversation, DatagramSocket, Outcome, Transport},
    cluster::eventually,
    load::Load,
    path::{Path, paths},
    sandbox::Sandbox,
};
use serde_json::json;

use crate::{
    cluster::{Cluster, ask, wait_until_reached},
    objects::{self, State, ready},
};

/// Asks until each of these pods has answered and checks whom each saw. None of them is a client.
fn assert_each_sees_the_client(path: &Path, service: &Service, pods: &[&Host]) {
    let mut waited_for: BTreeSet<&str> = pods.iter().map(|pod| pod.name()).collect();
    // With three pods, one is missed by chance once in 10^17 times.
    for _ in 0..100 {
        let answer = ask(path, service).answer(path);
        let pod = answer.backend.as_str();
        assert!(pods.iter().any(|expected| expected.name() == pod), "{path}: {pod} answered");
        assert_eq!(answer.peer, objects::address(service, path), "{path}: what the client believes it talked to");
        let masqueraded_by = path.node_port_of.filter(|node| !pod.starts_with(node.name()));
        let seen = masqueraded_by.unwrap_or(path.client).address(path.family);
        assert_eq!(answer.client_seen.ip(), seen, "{path}: whom {pod} saw");
        if masqueraded_by.is_none() {
            // The port is the client's own, or one of the pool where the same client's port reached the same backend by
            // another frontend a moment ago: `Load` asks by all of them, UDP has no end, and a TCP connection keeps its
            // port for a minute after it (docs/architecture.md).
            let (seen, own) = (answer.client_seen.port(), answer.local.port());
            let pool = (1024..30_000).contains(&seen) || seen >= 61_000;
            assert!(seen == own || pool, "{path}: {pod} saw port {seen}, the client has {own}");
        }
        waited_for.remove(pod);
        if waited_for.is_empty() {
            return;
        }
    }
    panic!("{path}: {waited_for:?} never answered");
}

fn load<'a>(paths: impl Iterator<Item = Path<'a>>, service: &Service) -> Load {
    Load::start_on(paths.map(|path| (path, objects::address(service, &path))))
}

pub(crate) fn endpoints_come_and_go_under_traffic_and_nobody_notices(sandbox: Sandbox) {
    let cluster = Cluster::start(sandbox);
    let [node1, node2] = cluster.nodes();
    let [a, b, c] = [&node1.pods[1], &node2.pods[0], &node2.vm];
    let web = cluster.create(objects::web("web"));
    cluster.set_endpoints("web", &ready(&[a, b]));
    for path in paths(&cluster.lab) {
        wait_until_reached(&path, &web);
        assert_each_sees_the_client(&path, &web, &[a, b]);
    }

    let mut load = load(paths(&cluster.lab), &web);
    for (change, endpoints, expected) in [
        ("an endpoint is added", ready(&[a, b, c]), &[a, b, c][..]),
        ("one is deleted", vec![(a, State::Ready), (b, State::Terminating), (c, State::Ready)], &[a, c]),
        ("it is gone", ready(&[a, c]), &[a, c]),
        ("the others are deleted, too", vec![(a, State::Terminating), (c, State::Terminating)], &[a, c]),
        ("and there are new ones", ready(&[b]), &[b]),
    ] {
        cluster.set_endpoints("web", &endpoints);
        load.wait_until_answered_by(expected);
        load.assert_unharmed(change);
    }
    drop(load);

    cluster.set_endpoints("web", &[]);
    for path in paths(&cluster.lab) {
        let refused = |outcome: &Outcome| *outcome == Outcome::Refused;
        eventually(&format!("{path} without endpoints"), || ask(&path, &web), refused);
    }
}

pub(crate) fn datagram_flows_leave_an_endpoint_that_another_service_still_has(sandbox: Sandbox) {
    let cluster = Cluster::start(sandbox);
    let [node1, node2] = cluster.nodes();
    let [leaves, stays] = [&node1.pods[1], &node2.pods[0]];
    cluster.create(objects::web("another"));
    cluster.set_endpoints("another", &ready(&[leaves, stays]));
    datagram_flows_move(&cluster, (leaves, stays), &ready(&[stays]));
}

pub(crate) fn datagram_flows_leave_an_endpoint_that_does_not_serve_any_more(sandbox: Sandbox) {
    let cluster = Cluster::start(sandbox);
    let [node1, node2] = cluster.nodes();
    let [leaves, stays] = [&node1.pods[1], &node2.pods[0]];
    // TCP connections to it go on, those of the same port number included.
    datagram_flows_move(&cluster, (leaves, stays), &[(leaves, State::Down), (stays, State::Ready)]);
}

/// Opens sockets on every path to a Service of two pods, changes its endpoints, and wants all answered by the one.
fn datagram_flows_move(cluster: &Cluster, (leaves, stays): (&Host, &Host), endpoints: &[(&Host, State)]) {
    let web = cluster.create(objects::web("web"));
    cluster.set_endpoints("web", &ready(&[leaves, stays]));
    let udp = || paths(&cluster.lab).filter(|path| path.transport == Transport::Udp);
    udp().for_each(|path| wait_until_reached(&path, &web));
    let open = |path: &Path| DatagramSocket::open(path.client, path.transport, objects::address(&web, path));
    // Of 8 sockets on a path none is given the pod that leaves once in 256 times; on all 8 paths, never.
    let sockets: Vec<_> = udp().flat_map(|path| (0..8).map(move |_| path)).map(|path| (path, open(&path))).collect();
    let ask_all = || -> Vec<_> {
        let ask = |(path, socket): &(Path, DatagramSocket)| (path.to_string(), socket.ask().answer(path).backend);
        sockets.iter().map(ask).filter(|(_, backend)| backend == leaves.name()).collect()
    };
    assert!(!ask_all().is_empty(), "some reach {}", leaves.name());
    cluster.set_endpoints("web", endpoints);
    eventually(&format!("nobody reaches {}", leaves.name()), ask_all, Vec::is_empty);
}

pub(crate) fn services_change_and_go_under_traffic(sandbox: Sandbox) {
    let cluster = Cluster::start(sandbox);
    let [node1, node2] = cluster.nodes();
    let pods = [&node1.pods[1], &node2.pods[0]];
    let web = cluster.create(objects::web("web"));
    cluster.set_endpoints("web", &ready(&pods));
    for path in paths(&cluster.lab) {
        wait_until_reached(&path, &web);
    }

    let web = ports_change(&cluster, &web);
    let web = the_type_changes(&cluster, &web);
    it_is_deleted_and_made_anew(&cluster, &web);
}

/// The port and the node port of HTTP change; the other ports do not notice.
fn ports_change(cluster: &Cluster, web: &Service) -> Service {
    let mut load = load(paths(&cluster.lab), web);
    let mut ports = web.spec.clone().expect("a Service has a spec").ports.expect("it has ports");
    let http = ports.last_mut().expect("it has ports");
    assert_eq!(http.name.as_deref(), Some("http"));
    http.port = 8000;
    // From the part of the range that the API server does not give out by itself.
    http.node_port = Some(30_005);
    let changed = cluster.patch("web", json!({ "spec": { "ports": ports } }));
    for path in paths(&cluster.lab).filter(|path| path.transport == Transport::Http) {
        wait_until_reached(&path, &changed);
        let outcome = ask(&path, web);
        assert_eq!(outcome, Outcome::Refused, "{path}: the old port, which no Service has any more");
    }
    load.assert_unharmed("the port of HTTP changes");
    changed
}

/// To `ClusterIP` and back: the cluster IP does not notice, and the node port is closed meanwhile.
fn the_type_changes(cluster: &Cluster, web: &Service) -> Service {
    let inside = || paths(&cluster.lab).filter(|path| path.node_port_of.is_none());
    let outside = || paths(&cluster.lab).filter(|path| path.node_port_of.is_some());
    let mut load = load(inside(), web);
    let cluster_ip = cluster.patch("web", json!({ "spec": { "type": "ClusterIP" } }));
    assert!(objects::port(&cluster_ip, Transport::Http).node_port.is_none(), "{cluster_ip:?}");
    for path in outside() {
        // Nobody else listens there.
        let refused = |outcome: &Outcome| *outcome == Outcome::Refused;
        eventually(&format!("{path} as ClusterIP"), || ask(&path, web), refused);
    }
    load.assert_unharmed("NodePort becomes ClusterIP");
    let web = cluster.patch("web", json!({ "spec": { "type": "NodePort" } }));
    for path in outside() {
        wait_until_reached(&path, &web);
    }
    load.assert_unharmed("ClusterIP becomes NodePort");
    web
}

fn it_is_deleted_and_made_anew(cluster: &Cluster, old: &Service) {
    let connect = |path: Path| {
        let opened = Conversation::open(path.client, objects::address(old, &path));
        (path.to_string(), opened.unwrap_or_else(|outcome| panic!("{path}: {outcome:?}")))
    };
    let mut conversations: Vec<_> =
        paths(&cluster.lab).filter(|path| path.transport == Transport::Tcp).map(connect).collect();
    cluster.delete("web");
    for path in told(&cluster.lab) {
        let gone = |outcome: &Outcome| !matches!(outcome, Outcome::Reached(_));
        let outcome = eventually(&format!("{path} is gone"), || ask(&path, old), gone);
        assert_nobody(&path, &outcome, "a deleted Service");
    }
    for (path, conversation) in &mut conversations {
        conversation.say("after the end").unwrap_or_else(|error| panic!("{path}, open connection: {error}"));
    }

    let mut anew = objects::web("web");
    // From the part of the ranges that the API server does not give out by itself: another one for sure.
    let spec = anew.spec.as_mut().expect("it has a spec");
    spec.cluster_ips = Some(vec!["10.96.0.77".to_owned(), "fd00:10:96::77".to_owned()]);
    spec.cluster_ip = Some("10.96.0.77".to_owned());
    let anew = cluster.create(anew);
    let [node1, node2] = cluster.nodes();
    let pods = [&node1.pods[1], &node2.pods[0]];
    cluster.set_endpoints("web", &ready(&pods));
    for path in paths(&cluster.lab) {
        wait_until_reached(&path, &anew);
        assert_each_sees_the_client(&path, &anew, &pods);
    }
    // The API server may give the node ports out again.
    for path in told(&cluster.lab).filter(|path| path.node_port_of.is_none()) {
        assert_nobody(&path, &ask(&path, old), "the Service's former address");
    }
}

/// The paths whose clients are told when nobody is there: a connected UDP socket is not told of a network that cannot
/// be reached (udp(7)), and would wait.
fn told(lab: &Lab) -> impl Iterator<Item = Path<'_>> {
    paths(lab).filter(|path| path.transport != Transport::UdpConnected)
}

/// What a client sees where no Service is: a node port that nobody listens on, or an address from the API server's
/// ranges that no Service has, which is dropped; a socket hook says so at once.
fn assert_nobody(path: &Path, outcome: &Outcome, what: &str) {
    let unreachable = |text: &String| text.contains("No route to host");
    let expected = match path.node_port_of {
        Some(_) => *outcome == Outcome::Refused,
        None => *outcome == Outcome::TimedOut || matches!(outcome, Outcome::Failed(text) if unreachable(text)),
    };
    assert!(expected, "{path}: {what}: {outcome:?}");
}
