//! ICMP errors about a Service's packets: who sent them hears of them.

use std::net::{IpAddr, SocketAddr};

use lb_tests::lab::{
    Family, Host, Lab, Node, ReversePathFilter,
    client::{
        Ask, Conversation, Outcome, Transport,
        hops::{self, Kind, Told},
    },
    cluster::Cluster,
    manifest::Service,
    sandbox::Sandbox,
};

use crate::node_port::{counted, forget_routes, run};

pub(crate) fn a_closed_port_behind_a_service_refuses_its_clients(sandbox: Sandbox) {
    assert_refused(Lab::new(sandbox, ReversePathFilter::Strict));
}

pub(crate) fn xdp_leaves_the_errors_to_those_who_can(sandbox: Sandbox) {
    assert_refused(Lab::with_xdp(sandbox, ReversePathFilter::Strict));
}

/// The kind of a cluster that these tests are about: a Service with a backend on node1, one with a backend on node2, and one
/// whose backend is its own client.
pub(crate) fn start(lab: Lab) -> (Cluster, [Service; 3]) {
    let services = [
        Service::new("on-node1", 1).with_endpoints([&lab.nodes[0].pods[0]]),
        Service::new("on-node2", 2).with_endpoints([&lab.nodes[1].pods[0]]),
        Service::new("itself", 3).with_endpoints([&lab.nodes[0].vm]),
    ];
    (Cluster::start(lab, &services), services)
}

/// Every way from a client to a Service on which packets are translated.
pub(crate) fn ways<'a>(cluster: &'a Cluster, services: &[Service; 3], family: Family) -> Vec<(&'a Host, SocketAddr)> {
    let [node1, _] = cluster.nodes();
    let [local, remote, itself] = services;
    let (client, vm) = (&cluster.lab.client, &node1.vm);
    vec![
        (client, local.node_port_address(&node1.host, family, Transport::Udp)),
        // Masqueraded.
        (client, remote.node_port_address(&node1.host, family, Transport::Udp)),
        (vm, local.cluster_address(family, Transport::Udp)),
        (vm, remote.cluster_address(family, Transport::Udp)),
        // Masqueraded.
        (vm, itself.cluster_address(family, Transport::Udp)),
    ]
}

fn assert_refused(lab: Lab) {
    let (mut cluster, services) = start(lab);
    // The ports are closed from here on, and the Services know nothing of it.
    cluster.stop_servers();
    let before = counted(cluster.nodes()[0], "icmp_error");
    let mut asked = 0;
    for family in Family::BOTH {
        for (client, to) in ways(&cluster, &services, family) {
            for transport in [Transport::Udp, Transport::UdpConnected] {
                let outcome = Ask::new(transport, to).from(client);
                assert_eq!(outcome, Outcome::Refused, "{} to {to} over {transport}", client.name());
                asked += 1;
            }
        }
    }
    assert_eq!(counted(cluster.nodes()[0], "icmp_error") - before, asked);
}

pub(crate) fn every_hop_to_a_backend_answers(sandbox: Sandbox) {
    let (mut cluster, services) = start(Lab::new(sandbox, ReversePathFilter::Strict));
    cluster.stop_servers();
    let [node1, node2] = cluster.nodes();
    let [_, remote, _] = &services;
    let (client, vm) = (&cluster.lab.client, &node1.vm);
    for family in Family::BOTH {
        // By the router and node1, which masquerades, and node2.
        let to = remote.node_port_address(&node1.host, family, Transport::Udp);
        let hops = [
            (cluster.lab.gateway_of_the_client(family), Kind::TimeExceeded),
            (to.ip(), Kind::TimeExceeded),
            (node2.host.address(family), Kind::TimeExceeded),
            (to.ip(), Kind::PortUnreachable),
        ];
        assert_hops(client, to, &hops.map(|(by, kind)| (Some(by), kind)));
        // By node1, which has no address on that interface and takes another, and node2.
        let to = remote.cluster_address(family, Transport::Udp);
        let hops = [
            (None, Kind::TimeExceeded),
            (Some(node2.host.address(family)), Kind::TimeExceeded),
            (Some(to.ip()), Kind::PortUnreachable),
        ];
        assert_hops(vm, to, &hops);
    }
}

/// Each hop of a datagram says what is expected of it.
fn assert_hops(from: &Host, to: SocketAddr, expected: &[(Option<IpAddr>, Kind)]) {
    for (hops, (by, kind)) in (1..).zip(expected) {
        let path = format!("{hops} hops from {} to {to}", from.name());
        let told = hops::expire(from, to, hops).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(told, Told { by: by.unwrap_or(told.by), kind: *kind }, "{path}");
    }
}

/// Bytes of an IP packet that the narrow routes take.
const NARROW: &str = "1400";

/// The way to the client is narrow behind node1, and so are the ways to pods, on both nodes: whose packets do not fit hear of
/// it from routers that know them translated.
pub(crate) fn who_sends_what_does_not_fit_beyond_the_node_is_told_what_does(sandbox: Sandbox) {
    assert_told_what_fits(Lab::new(sandbox, ReversePathFilter::Strict));
}

pub(crate) fn who_sends_what_does_not_fit_beyond_the_node_is_told_with_xdp(sandbox: Sandbox) {
    assert_told_what_fits(Lab::with_xdp(sandbox, ReversePathFilter::Strict));
}

fn assert_told_what_fits(lab: Lab) {
    let (cluster, services) = start(lab);
    let [node1, node2] = cluster.nodes();
    narrow_ways_to_pods(node1);
    narrow_ways_to_pods(node2);
    let client = &cluster.lab.client;
    let addresses = Family::BOTH.map(|family| client.address(family).to_string());
    cluster.lab.router.run(move || {
        for address in &addresses {
            run("ip", &["route", "add", address, "dev", "client", "mtu", "lock", NARROW]);
        }
    });
    let too_long = Outcome::Failed(std::io::Error::from(nix::errno::Errno::EMSGSIZE).to_string());
    for family in Family::BOTH {
        // (What a pod sends to itself meets no route that is narrow.)
        for (from, to) in ways(&cluster, &services, family).into_iter().take(4) {
            let path = format!("a datagram from {} to {to}", from.name());
            // What was learned holds for all that goes to that address.
            forget_routes(from);
            let outcome = Ask::new(Transport::UdpConnected, to).datagram_size(1452).from(from);
            assert_eq!(outcome, too_long, "{path}");
        }
    }
    let pods = [&node1.pods[0], &node2.pods[0]];
    [client, &node1.vm].into_iter().chain(pods).for_each(forget_routes);
    for family in Family::BOTH {
        for (from, to) in ways(&cluster, &services, family).into_iter().take(4) {
            let before = counted(node1, "icmp_error");
            let path = format!("{} to {to}", from.name());
            let opened = Conversation::open(from, to);
            let conversation = opened.unwrap_or_else(|outcome| panic!("{path}: {outcome:?}"));
            conversation.send_and_check(1_000_000).unwrap_or_else(|error| panic!("{path}: {error}"));
            let told = counted(node1, "icmp_error") - before;
            // Outside, the answer does not fit either.
            let at_least = if from.name() == client.name() { 2 } else { 1 };
            assert!(told >= at_least, "{path}: told {told} times");
            [from].into_iter().chain(pods).for_each(forget_routes);
        }
    }
}

/// Makes the routes from a node to its own pods narrow.
fn narrow_ways_to_pods(node: &Node) {
    let pods: Vec<_> = node.pods.iter().map(|pod| (pod.name().to_owned(), pod.addresses())).collect();
    node.host.run(move || {
        for (device, addresses) in pods {
            for address in [addresses.v4.to_string(), addresses.v6.to_string()] {
                run("ip", &["route", "change", &address, "dev", &device, "mtu", "lock", NARROW]);
            }
        }
    });
}
