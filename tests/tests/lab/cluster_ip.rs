//! Clients inside the cluster, and cluster IPs.

use std::net::SocketAddr;

use lb_tests::lab::{
    Family, Host, Lab, Node, ReversePathFilter, agent,
    client::{Ask, Conversation, Outcome, Transport, ways},
    cluster::Cluster,
    manifest::Service,
    sandbox::Sandbox,
    server::ECHO_PORT,
};

/// A Service with one endpoint, so that a client knows who must answer.
fn service_of(number: u8, pod: &Host) -> Service {
    Service::new(&format!("only-{}", pod.name()), number).with_endpoints([pod])
}

/// Asks a Service of one pod by its cluster IP, in every way. The client must find the pod, must believe that it
/// talked to the Service, and must be seen by the pod under its own address and port.
fn reaches_transparently(client: &Host, service: &Service, pod: &Host) {
    for (family, transport) in ways() {
        let path = format!("{} to {} over {family} {transport}", client.name(), service.name());
        let to = service.cluster_address(family, transport);
        let answer = Ask::new(transport, to).from(client).answer(&path);
        assert_eq!(answer.backend, pod.name(), "{path}");
        assert_eq!(answer.peer, to, "{path}: what the client believes it talked to");
        let client = SocketAddr::new(client.address(family), answer.local.port());
        assert_eq!(answer.client_seen, client, "{path}: what the pod saw of the client");
    }
}

pub(crate) fn pods_and_nodes_reach_local_and_remote_backends_and_are_seen_as_themselves(sandbox: Sandbox) {
    assert_transparent(Lab::new(sandbox, ReversePathFilter::Strict), everybody);
}

pub(crate) fn a_loose_reverse_path_filter_makes_no_difference(sandbox: Sandbox) {
    assert_transparent(Lab::new(sandbox, ReversePathFilter::Loose), everybody);
}

/// A pod by the socket hooks, a pod by the packet path, and a process of the node itself.
fn everybody(node: &Node) -> Vec<&Host> {
    vec![&node.pods[0], &node.vm, &node.host]
}

/// Clients on node1 reach backends on both nodes, and are seen as themselves.
pub(crate) fn assert_transparent(lab: Lab, clients: fn(&Node) -> Vec<&Host>) {
    let [local, remote] = [service_of(1, &lab.nodes[0].pods[1]), service_of(2, &lab.nodes[1].pods[1])];
    let cluster = Cluster::start(lab, [&local, &remote]);
    let [node1, node2] = cluster.nodes();
    for client in clients(node1) {
        reaches_transparently(client, &local, &node1.pods[1]);
        reaches_transparently(client, &remote, &node2.pods[1]);
    }
}

pub(crate) fn a_pod_reaches_itself_through_its_service(sandbox: Sandbox) {
    assert_reaches_itself(Lab::new(sandbox, ReversePathFilter::Strict));
}

/// Pods reach themselves, and see the node or themselves.
pub(crate) fn assert_reaches_itself(lab: Lab) {
    let [of_pod, of_vm] = [service_of(1, &lab.nodes[0].pods[0]), service_of(2, &lab.nodes[0].vm)];
    let cluster = Cluster::start(lab, [&of_pod, &of_vm]);
    let [node1, _] = cluster.nodes();
    for (client, service) in [(&node1.pods[0], &of_pod), (&node1.vm, &of_vm)] {
        for (family, transport) in ways() {
            let path = format!("{} to itself over {family} {transport}", client.name());
            let to = service.cluster_address(family, transport);
            let answer = Ask::new(transport, to).from(client).answer(&path);
            assert_eq!(answer.backend, client.name(), "{path}");
            assert_eq!(answer.peer, to, "{path}");
            // A packet whose addresses are both the pod's own could not leave it: the node lends its address. The
            // socket hooks let the pod connect to itself without leaving it.
            let by_socket_hook = client.name() != node1.vm.name() && is_tcp(transport);
            let seen = if by_socket_hook { client } else { &node1.host };
            assert_eq!(answer.client_seen.ip(), seen.address(family), "{path}");
        }
    }
}

fn is_tcp(transport: Transport) -> bool {
    matches!(transport, Transport::Tcp | Transport::Http)
}

pub(crate) fn a_service_without_endpoints_refuses_everybody_at_once(sandbox: Sandbox) {
    assert_refused(Lab::new(sandbox, ReversePathFilter::Strict));
}

/// Whoever asks at a Service without endpoints hears at once that there are none.
pub(crate) fn assert_refused(lab: Lab) {
    let empty = Service::new("empty", 1);
    let cluster = Cluster::start(lab, [&empty]);
    let [node1, node2] = cluster.nodes();
    for (family, transport) in ways() {
        let by_cluster_ip = empty.cluster_address(family, transport);
        let by_node_port = empty.node_port_address(&node1.host, family, transport);
        let clients = [
            (&node1.pods[0], by_cluster_ip),
            (&node1.vm, by_cluster_ip),
            (&node1.host, by_cluster_ip),
            (&node1.vm, by_node_port),
            (&node2.pods[0], by_node_port),
            (&cluster.lab.client, by_node_port),
        ];
        for (client, to) in clients {
            let outcome = Ask::new(transport, to).from(client);
            assert_eq!(outcome, Outcome::Refused, "{} to {to} over {transport}", client.name());
        }
        // From an interface whose checksums are yet to be finished, and from a wire. (The socket hooks change no options.)
        for (client, to) in [(&node1.vm, by_cluster_ip), (&cluster.lab.client, by_node_port)] {
            let outcome = Ask::new(transport, to).with_ip_options().from(client);
            assert_eq!(outcome, Outcome::Refused, "{} to {to} over {transport}, with IP options", client.name());
        }
    }
}

pub(crate) fn every_refusal_is_counted_under_its_reason(sandbox: Sandbox) {
    const REFUSED: u64 = 10;
    let empty = Service::new("empty", 1);
    let cluster = Cluster::start(Lab::new(sandbox, ReversePathFilter::Strict), [&empty]);
    let [node1, _] = cluster.nodes();
    let counted = || {
        let status: serde_json::Value =
            serde_json::from_str(&agent::ask(node1, &["status", "-o", "json"])).expect("JSON");
        let counters = status["counters"].as_array().expect("a list of counters").clone();
        let of_reason = counters.iter().find(|counter| counter["reason"] == "no_endpoints");
        of_reason.map_or(0, |counter| counter["count"].as_u64().expect("a number"))
    };
    assert_eq!(counted(), 0);
    // Datagrams: a refused TCP SYN is sent once, too, but nothing keeps the kernel from trying again.
    for client in [&node1.pods[0], &node1.vm, &node1.host] {
        let before = counted();
        for _ in 0..REFUSED {
            let to = empty.cluster_address(Family::V6, Transport::Udp);
            assert_eq!(Ask::new(Transport::Udp, to).from(client), Outcome::Refused, "{}", client.name());
        }
        assert_eq!(counted() - before, REFUSED, "{}", client.name());
    }
}

pub(crate) fn large_transfers_through_a_service_arrive_whole(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let [local, remote] = [service_of(1, &lab.nodes[0].pods[1]), service_of(2, &lab.nodes[1].pods[1])];
    let cluster = Cluster::start(lab, [&local, &remote]);
    let [node1, _] = cluster.nodes();
    for family in Family::BOTH {
        for (client, service) in [(&node1.pods[0], &remote), (&node1.vm, &local), (&node1.vm, &remote)] {
            let path = format!("{} to {} over {family}", client.name(), service.name());
            let opened = Conversation::open(client, service.cluster_address(family, Transport::Tcp));
            let conversation = opened.unwrap_or_else(|outcome| panic!("{path}: {outcome:?}"));
            conversation.send_and_check(10_000_000).unwrap_or_else(|error| panic!("{path}: {error}"));
            // As much as fits into a packet of 1500 bytes with the headers of IPv6, and nearly nothing.
            for size in [1452, 1] {
                let ask = Ask::new(Transport::Udp, service.cluster_address(family, Transport::Udp));
                ask.datagram_size(size).from(client).answer(format_args!("{path}: {size} bytes"));
            }
        }
    }
}

pub(crate) fn fragments_that_are_for_no_service_pass(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = service_of(1, &lab.nodes[1].pods[1]);
    let cluster = Cluster::start(lab, [&service]);
    let [node1, node2] = cluster.nodes();
    for family in Family::BOTH {
        let to = SocketAddr::new(node2.pods[0].address(family), ECHO_PORT);
        for client in [&node1.pods[0], &node1.vm, &node1.host, &cluster.lab.client] {
            Ask::new(Transport::Udp, to).datagram_size(4000).from(client).answer(client.name());
        }
    }
}
