//! The lab itself: routing without any Service, which all other tests rely on.

use std::net::SocketAddr;

use lb_tests::lab::{
    Family, Lab, ReversePathFilter,
    capture::Capture,
    client::{Ask, Conversation, Outcome, Transport, ways},
    sandbox::Sandbox,
    server::{ECHO_PORT, HTTP_PORT},
};

pub(crate) fn all_hosts_reach_all_pods_without_services(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let _servers = lab.start_servers();
    for (family, transport) in ways() {
        let port = if transport == Transport::Http { HTTP_PORT } else { ECHO_PORT };
        for client in lab.hosts() {
            for pod in lab.all_pods() {
                let to = SocketAddr::new(pod.address(family), port);
                let path = format!("{} to {} over {transport}", client.name(), pod.name());
                let answer = Ask::new(transport, to).from(client).answer(&path);
                assert_eq!(answer.backend, pod.name(), "{path}");
                assert_eq!(answer.client_seen, SocketAddr::new(client.address(family), answer.local.port()), "{path}");
                assert_eq!(answer.peer, to, "{path}");
            }
        }
    }
}

pub(crate) fn wires_carry_full_checksums_and_pod_interfaces_do_not(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let _servers = lab.start_servers();
    let [node1, node2] = &lab.nodes;
    let (client, server) = (&node1.pods[0], &node2.pods[0]);
    let wire = Capture::start(&lab.router, node1.host.name());
    let pod_interface = Capture::start(&node1.host, client.name());
    for (family, transport) in ways().filter(|(_, transport)| *transport != Transport::Http) {
        let to = SocketAddr::new(server.address(family), ECHO_PORT);
        let answer = Ask::new(transport, to).from(client).answer(format_args!("{family} {transport}"));
        let request = (Some((answer.local.port(), ECHO_PORT)), server.address(family));
        let on_wire = wire.wait_for("request", |packet| (packet.ports, packet.destination) == request);
        let from_pod = pod_interface.wait_for("request", |packet| (packet.ports, packet.destination) == request);
        assert_eq!(on_wire.source, client.address(family));
        assert!(!from_pod.checksums_hold, "{family} {transport}: {from_pod:?}");
    }
    let broken: Vec<_> = wire.packets().into_iter().filter(|packet| !packet.checksums_hold).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

pub(crate) fn a_refusal_and_a_silence_are_told_apart(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let pod = &lab.nodes[0].pods[0];
    for (family, transport) in ways() {
        let closed = Ask::new(transport, SocketAddr::new(pod.address(family), ECHO_PORT));
        assert_eq!(closed.from(&lab.client), Outcome::Refused, "{family} {transport}");
    }
    // A pod whose packets are lost on the way: the node has a blackhole for it (ip-route(8)).
    lab.nodes[0].host.run(|| {
        let lost = std::process::Command::new("ip").args(["route", "replace", "blackhole", "10.1.1.1/32"]).status();
        assert!(lost.expect("run ip").success());
    });
    let lost = SocketAddr::new(pod.address(Family::V4), ECHO_PORT);
    for transport in [Transport::Tcp, Transport::Udp] {
        let outcome = Ask::new(transport, lost).from(&lab.client);
        assert_eq!(outcome, Outcome::TimedOut, "{transport}");
    }
}

pub(crate) fn large_transfers_and_fragments_arrive_whole(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let _servers = lab.start_servers();
    let server = &lab.nodes[1].pods[0];
    for family in Family::BOTH {
        let to = SocketAddr::new(server.address(family), ECHO_PORT);
        for client in [&lab.client, &lab.nodes[0].pods[0]] {
            Conversation::open(client, to)
                .expect("the server listens")
                .send_and_check(10_000_000)
                .expect("all comes back");
            for size in [1400, 4000] {
                Ask::new(Transport::Udp, to)
                    .datagram_size(size)
                    .from(client)
                    .answer(format_args!("{size} bytes to {to}"));
            }
        }
    }
}
