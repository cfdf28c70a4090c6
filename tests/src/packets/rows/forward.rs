//! Packets from outside to a backend elsewhere: both addresses replaced, sent on by the program itself.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Type, Icmpv6Type, icmpv4, icmpv6};
use lb_common::abi::{FlowAction, Hook, Protocol, Reason};

use super::{CLIENT_PORT, Case, PORT, TARGET, at, too_big};
use crate::packets::{
    FlowEntry, Interface, Packet, Place, Row, Tables, TestService, Verdict,
    world::{NARROW_GATEWAY_MAC, OTHER_NODE_MAC, POD_MAC, ROUTER_MAC},
};

const IN: Hook = Hook::UplinkIngress;

/// A request as it goes on to the other node.
fn request_out(packet: &Packet, case: Case) -> Packet {
    packet.clone().from(case.masqueraded()).to(case.remote()).forwarded(Interface::Uplink.mac(), OTHER_NODE_MAC)
}

pub(super) fn rows(case: Case) -> Vec<Row> {
    let (client, remote, masqueraded) = (case.client(), case.remote(), case.masqueraded());
    let mut rows: Vec<_> = [
        ("a node port", case.node_port()),
        ("a load balancer's address", case.load_balancer()),
        ("a ClusterIP routed to the node", case.cluster_ip()),
    ]
    .into_iter()
    .map(|(what, frontend)| {
        let protocol = case.protocol;
        let request = FlowEntry::new(IN, FlowAction::Forward, protocol, (client, frontend), (masqueraded, remote));
        let reply =
            FlowEntry::new(IN, FlowAction::Forward, protocol, (remote, masqueraded), (frontend, client)).at_entrances();
        let first_seen = |entry: FlowEntry| if protocol == Protocol::Tcp { entry.syn() } else { entry };
        let (first, answer, later) =
            (case.first(client, frontend), case.answer(remote, masqueraded), case.later(client, frontend));
        let answer_out = answer.clone().from(frontend).to(client).forwarded(Interface::Uplink.mac(), ROUTER_MAC);
        case.row(&format!("outside reaches {what} with an endpoint elsewhere, masqueraded"), case.one_remote())
            .packet(IN, &first, Verdict::Redirect, request_out(&first, case))
            .flows([first_seen(request), reply])
            .packet(IN, &answer, Verdict::Redirect, answer_out)
            .flows([first_seen(request), first_seen(reply)])
            .packet(IN, &later, Verdict::Redirect, request_out(&later, case))
            .flows([first_seen(request).established(), first_seen(reply)])
    })
    .collect();
    rows.push(unnamed(case));
    rows.extend(ways_out(case));
    rows.extend(masquerading(case));
    rows
}

/// What the node says of a packet that came from `to` and asked `from`.
fn time_exceeded(case: Case, packet: &Packet, from: SocketAddr, to: SocketAddr) -> Packet {
    let (from, to) = (from.ip(), to.ip());
    let error = if from.is_ipv4() {
        Packet::icmp4(from, to, Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit))
    } else {
        Packet::icmp6(from, to, Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded))
    };
    too_big::about(case, error, packet)
}

/// An endpoint without `nodeName`, as they are made by hand, that is a pod of this node: its answers come in where pods are.
fn unnamed(case: Case) -> Row {
    let (client, pod, masqueraded) = (case.client(), at(case.net.pod, TARGET), case.masqueraded());
    let (first, answer) = (case.first(client, case.node_port()), case.answer(pod, masqueraded));
    let answer_out = answer.clone().from(case.node_port()).to(client).forwarded(Interface::Uplink.mac(), ROUTER_MAC);
    case.row(
        "outside reaches a pod of this node that is not said to be here, masqueraded",
        case.one(pod, Place::Remote),
    )
    .packet(
        IN,
        &first,
        Verdict::Redirect,
        first.clone().from(masqueraded).to(pod).forwarded(Interface::Pod.mac(), POD_MAC),
    )
    .packet(Hook::PodIngress, &answer, Verdict::Redirect, answer_out)
}

/// What the route to the backend makes of a packet.
fn ways_out(case: Case) -> Vec<Row> {
    let (client, net, frontend) = (case.client(), case.net, case.node_port());
    let first = case.first(client, frontend);
    let to = |backend: IpAddr| case.one(at(backend, TARGET), Place::Remote);
    let narrow_out = |packet: &Packet| {
        packet
            .clone()
            .from(at(net.narrow_node, Tables::FIRST_SNAT_PORT))
            .to(at(net.narrow_backend, TARGET))
            .forwarded(Interface::Narrow.mac(), NARROW_GATEWAY_MAC)
    };
    let unresolved = first.clone().from(case.masqueraded()).to(at(net.unresolved_backend, TARGET)).ttl(63);
    let (last, last_answer) = (first.clone().ttl(1), case.answer(case.remote(), case.masqueraded()).ttl(1));
    vec![
        case.row("another way out has another address to masquerade with", to(net.narrow_backend)).packet(
            IN,
            &first,
            Verdict::Redirect,
            narrow_out(&first),
        ),
        case.row("a neighbour that is not known yet is left to the kernel to find", to(net.unresolved_backend))
            .packet(IN, &first, Verdict::Redirect, unresolved)
            .whatever_its_macs(),
        case.row("no route drops", to(net.unrouted_backend)).dropped(IN, &first, Reason::NoRoute),
        case.row("a blackhole drops", to(net.blackholed_backend)).dropped(IN, &first, Reason::RouteForbids),
        case.row("who sends a packet that ends its life here is told so", case.one_remote())
            .packet(IN, &last, Verdict::Redirect, time_exceeded(case, &last, case.node_port(), case.client()))
            .counted(Reason::TtlExpired)
            .packet(IN, &first, Verdict::Redirect, request_out(&first, case))
            .packet(IN, &last, Verdict::Redirect, time_exceeded(case, &last, case.node_port(), case.client()))
            .counted(Reason::TtlExpired),
        case.row("who answers with a packet that ends its life here is told so", case.one_remote())
            .packet(IN, &first, Verdict::Redirect, request_out(&first, case))
            .packet(
                IN,
                &last_answer,
                Verdict::Redirect,
                time_exceeded(case, &last_answer, case.masqueraded(), case.remote()),
            )
            .counted(Reason::TtlExpired),
        case.row("the last hop but one is forwarded", case.one_remote()).packet(
            IN,
            first.clone().ttl(2),
            Verdict::Redirect,
            request_out(&first.clone().ttl(2), case),
        ),
        case.row("a tagged packet to forward is left to the hook of its VLAN device", case.one_remote())
            .untouched(IN, first.clone().vlans(&[100]))
            .counted(Reason::VlanForward),
    ]
}

/// The source ports of the node.
fn masquerading(case: Case) -> Vec<Row> {
    let (client, frontend) = (case.client(), case.node_port());
    let second_client = at(case.net.client, CLIENT_PORT + 1);
    let second_frontend = at(case.net.second_cluster_ip, PORT);
    let second_backend = at(case.net.second_remote_backend, TARGET);
    let first = case.first(client, frontend);
    let without_addresses = Tables { node_addresses: false, ..case.one_remote() };
    let two_services = Tables::new([
        case.service().endpoint(case.remote(), Place::Remote),
        TestService::new("second", case.protocol, second_frontend).endpoint(second_backend, Place::Remote),
    ]);
    let to_second = case.first(second_client, second_frontend);
    vec![
        case.row("a node without addresses cannot masquerade", without_addresses).dropped(
            IN,
            &first,
            Reason::NoNodeAddress,
        ),
        case.row("a port that a backend sees already is not given to another flow", case.one_remote())
            .packet(IN, &first, Verdict::Redirect, request_out(&first, case))
            .dropped(IN, case.first(second_client, frontend), Reason::SnatPortsExhausted)
            .packet(IN, &first, Verdict::Redirect, request_out(&first, case)),
        case.row("another backend may see the same port", two_services)
            .packet(IN, &first, Verdict::Redirect, request_out(&first, case))
            .packet(
                IN,
                &to_second,
                Verdict::Redirect,
                to_second
                    .clone()
                    .from(case.masqueraded())
                    .to(second_backend)
                    .forwarded(Interface::Uplink.mac(), OTHER_NODE_MAC),
            ),
        case.row("a packet from a pool's port that nobody was given passes", case.one_remote())
            .untouched(IN, case.answer(case.remote(), case.masqueraded()))
            .flows([]),
    ]
}
