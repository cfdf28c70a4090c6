//! Packets that are translated and left to the stack: pods' own, and those from outside to a backend on this node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{FlowAction, Hook, Protocol, Reason};

use super::{CLIENT_PORT, Case, NODE_PORT, PORT, TARGET, at};
use crate::packets::{FlowEntry, Interface, Packet, Place, Row, Tables, TestService, Verdict};

pub(super) fn rows(case: Case) -> Vec<Row> {
    let mut rows = from_pods(case);
    rows.extend(from_outside(case));
    rows.extend(not_ours(case));
    rows.extend(for_another_host(case));
    rows
}

/// What a promiscuous device hears: the stack drops it, and nobody must be answered or served twice. The ports of a bridge
/// hear so what pods send to the bridge, too.
fn for_another_host(case: Case) -> Vec<Row> {
    let other = |packet: Packet| packet.between([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 9]);
    let first = case.first(case.client(), case.load_balancer());
    let unserved = |sentence: &str, tables| {
        case.row(sentence, tables).untouched(Hook::UplinkIngress, other(first.clone())).flows([])
    };
    let bridged = case.row("what a pod sends to a bridge is given a backend", case.one_local());
    let to_bridge = other(case.first(case.pod(), case.cluster_ip()));
    let known = case.row("a packet of a known flow for another host is left to the stack", case.one_local());
    let later = other(case.later(case.client(), case.load_balancer()));
    vec![
        unserved("a packet for another host is not given a backend here", case.one_local()),
        unserved("a packet for another host is not sent on", case.one_remote()),
        unserved("a packet for another host is not refused", Tables::new([case.service()])),
        known
            .packet(Hook::UplinkIngress, &first, Verdict::Next, first.clone().to(case.local()))
            .untouched(Hook::UplinkIngress, &later),
        bridged.packet(Hook::PodIngress, &to_bridge, Verdict::Next, to_bridge.clone().to(case.local())),
    ]
}

/// A flow through the stack, all of it: request, answer and a later packet, with the flow table after each.
pub(super) fn whole_flow(
    row: Row,
    case: Case,
    hooks: (Hook, Hook),
    client: std::net::SocketAddr,
    frontend: std::net::SocketAddr,
    backend: std::net::SocketAddr,
) -> Row {
    let (request_hook, reply_hook) = hooks;
    let (tcp, protocol) = (case.protocol == Protocol::Tcp, case.protocol);
    let request = FlowEntry::new(request_hook, FlowAction::Stack, protocol, (client, frontend), (client, backend));
    let reply = FlowEntry::new(reply_hook, FlowAction::Stack, protocol, (backend, client), (frontend, client));
    let first_seen = |entry: FlowEntry| if tcp { entry.syn() } else { entry };
    let (first, answer, later) =
        (case.first(client, frontend), case.answer(backend, client), case.later(client, frontend));
    row.packet(request_hook, &first, Verdict::Next, first.clone().to(backend))
        .flows([first_seen(request), reply])
        .packet(reply_hook, &answer, Verdict::Next, answer.clone().from(frontend))
        .flows([first_seen(request), first_seen(reply)])
        .packet(request_hook, &later, Verdict::Next, later.clone().to(backend))
        .flows([first_seen(request).established(), first_seen(reply)])
}

fn from_pods(case: Case) -> Vec<Row> {
    let (pod, local, remote) = (case.pod(), case.local(), case.remote());
    let hooks = (Hook::PodIngress, Hook::PodEgress);
    let both = || case.service().endpoint(local, Place::Local).endpoint(remote, Place::Remote);
    let flow = |row, frontend, backend| whole_flow(row, case, hooks, pod, frontend, backend);
    let dying = case.first(pod, case.cluster_ip()).ttl(1);
    vec![
        flow(
            case.row("a pod reaches a ClusterIP with an endpoint on its node", case.one_local()),
            case.cluster_ip(),
            local,
        ),
        flow(
            case.row("a pod reaches a ClusterIP with an endpoint elsewhere", case.one_remote()),
            case.cluster_ip(),
            remote,
        ),
        flow(case.row("a pod reaches a load balancer's address", case.one_remote()), case.load_balancer(), remote),
        flow(case.row("a pod reaches a node port on its node", case.one_remote()), case.node_port(), remote),
        flow(
            case.row(
                "a pod reaches a node port whose external policy is Local, without an endpoint on its node",
                Tables::new([case.service().external_local().endpoint(remote, Place::Remote)]),
            ),
            case.node_port(),
            remote,
        ),
        flow(
            case.row("an internal policy of Local keeps a pod on its node", Tables::new([both().internal_local()])),
            case.cluster_ip(),
            local,
        ),
        case.row(
            "an internal policy of Local drops without an endpoint on this node",
            Tables::new([case.service().internal_local().endpoint(remote, Place::Remote)]),
        )
        .dropped(Hook::PodIngress, case.first(pod, case.cluster_ip()), Reason::NoLocalEndpoints)
        .flows([]),
        case.row("the time to live is left to the stack", case.one_local()).packet(
            Hook::PodIngress,
            &dying,
            Verdict::Next,
            dying.clone().to(local),
        ),
        same_port_twice(case),
        case.row(
            "two Services on one endpoint keep their answers apart",
            Tables::new([
                case.service().endpoint(local, Place::Local),
                TestService::new("second", case.protocol, at(case.net.second_cluster_ip, PORT))
                    .endpoint(local, Place::Local),
            ]),
        )
        .packet(Hook::PodIngress, case.first(pod, case.cluster_ip()), Verdict::Next, case.first(pod, local))
        .packet(
            Hook::PodIngress,
            case.first(at(case.net.pod, CLIENT_PORT + 1), at(case.net.second_cluster_ip, PORT)),
            Verdict::Next,
            case.first(at(case.net.pod, CLIENT_PORT + 1), local),
        )
        .packet(Hook::PodEgress, case.answer(local, pod), Verdict::Next, case.answer(case.cluster_ip(), pod))
        .packet(
            Hook::PodEgress,
            case.answer(local, at(case.net.pod, CLIENT_PORT + 1)),
            Verdict::Next,
            case.answer(at(case.net.second_cluster_ip, PORT), at(case.net.pod, CLIENT_PORT + 1)),
        ),
    ]
}

/// A client may use one port for two Services (RFC 6335 has no say in it); on an endpoint of both it would be one flow.
fn same_port_twice(case: Case) -> Row {
    let (pod, local, second) = (case.pod(), case.local(), at(case.net.second_cluster_ip, PORT));
    let other_port = at(case.net.pod, Tables::FIRST_SNAT_PORT);
    let tables = Tables::new([
        case.service().endpoint(local, Place::Local),
        TestService::new("second", case.protocol, second).endpoint(local, Place::Local),
    ]);
    case.row("a client's port in use for another Service on the same endpoint is replaced", tables)
        .packet(Hook::PodIngress, case.first(pod, case.cluster_ip()), Verdict::Next, case.first(pod, local))
        .packet(Hook::PodIngress, case.first(pod, second), Verdict::Next, case.first(other_port, local))
        .packet(Hook::PodEgress, case.answer(local, pod), Verdict::Next, case.answer(case.cluster_ip(), pod))
        .packet(Hook::PodEgress, case.answer(local, other_port), Verdict::Next, case.answer(second, pod))
}

fn from_outside(case: Case) -> Vec<Row> {
    let (client, local, remote) = (case.client(), case.local(), case.remote());
    let process = at(case.net.node, TARGET);
    let hooks = (Hook::UplinkIngress, Hook::UplinkEgress);
    let flow = |row, frontend| whole_flow(row, case, hooks, client, frontend, local);
    let local_policy = || case.service().external_local();
    vec![
        flow(case.row("outside reaches a node port, and its address is kept", case.one_local()), case.node_port()),
        flow(
            case.row("outside reaches a load balancer's address, and its address is kept", case.one_local()),
            case.load_balancer(),
        ),
        flow(case.row("outside reaches a ClusterIP routed to the node", case.one_local()), case.cluster_ip()),
        flow(
            case.row(
                "an external policy of Local keeps outside on this node",
                Tables::new([local_policy().endpoint(remote, Place::Remote).endpoint(local, Place::Local)]),
            ),
            case.node_port(),
        ),
        flow(
            case.row(
                "an external policy of Local falls back to what is terminating on this node",
                Tables::new([local_policy().endpoint(remote, Place::Remote).terminating(local, Place::Local)]),
            ),
            case.load_balancer(),
        ),
        case.row(
            "an external policy of Local drops without an endpoint on this node",
            Tables::new([local_policy().endpoint(remote, Place::Remote)]),
        )
        .dropped(Hook::UplinkIngress, case.first(client, case.node_port()), Reason::NoLocalEndpoints)
        .dropped(Hook::UplinkIngress, case.first(client, case.load_balancer()), Reason::NoLocalEndpoints)
        .flows([]),
        whole_flow(
            case.row(
                "outside reaches an endpoint at the node's own address that no node is named for",
                case.one(process, Place::Unnamed),
            ),
            case,
            hooks,
            client,
            case.node_port(),
            process,
        ),
        case.row("a node port answers on each of the node's addresses", case.one_local())
            .packet(
                Hook::UplinkIngress,
                case.first(client, at(case.net.narrow_node, NODE_PORT)),
                Verdict::Next,
                case.first(client, local),
            )
            .on(Interface::Narrow),
    ]
}

/// Packets to leave alone, on every hook that could meet them.
fn not_ours(case: Case) -> Vec<Row> {
    let (pod, client, net) = (case.pod(), case.client(), case.net);
    let unspecified: IpAddr =
        if net.node.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let other = Case {
        protocol: match case.protocol {
            Protocol::Tcp => Protocol::Udp,
            Protocol::Udp => Protocol::Tcp,
        },
        ..case
    };
    vec![
        case.row("what is for nobody's Service passes every hook", case.one_local())
            .untouched(Hook::PodIngress, case.first(pod, at(net.stranger, PORT)))
            .untouched(Hook::UplinkIngress, case.first(client, at(net.stranger, PORT)))
            .untouched(Hook::PodEgress, case.first(client, pod))
            .untouched(Hook::UplinkEgress, case.first(pod, at(net.stranger, PORT)))
            .flows([]),
        case.row("another port of a load balancer's address passes", case.one_local())
            .untouched(Hook::PodIngress, case.first(pod, at(net.load_balancer, PORT + 1)))
            .flows([]),
        case.row("another protocol on an external port passes", case.one_local())
            .untouched(Hook::PodIngress, other.first(pod, case.load_balancer()))
            .untouched(Hook::UplinkIngress, other.first(client, case.node_port()))
            .flows([]),
        case.row("a node port on an address that is not the node's passes", case.one_local())
            .untouched(Hook::UplinkIngress, case.first(client, at(net.stranger, NODE_PORT)))
            .untouched(Hook::PodIngress, case.first(pod, at(net.stranger, NODE_PORT)))
            .flows([]),
        case.row("a node port on the loopback address is for the node's own sockets only", case.one_local())
            .untouched(Hook::UplinkIngress, case.first(client, at(net.loopback, NODE_PORT)))
            .untouched(Hook::PodIngress, case.first(pod, at(net.loopback, NODE_PORT)))
            .flows([]),
        case.row("the unspecified address, under which node ports are kept, is nobody's frontend", case.one_local())
            .untouched(Hook::UplinkIngress, case.first(client, at(unspecified, NODE_PORT)))
            .untouched(Hook::PodIngress, case.first(pod, at(unspecified, NODE_PORT)))
            .flows([]),
        case.row("an address of the node without a node port passes", case.one_local())
            .untouched(Hook::UplinkIngress, case.first(client, at(net.node, PORT)))
            .flows([]),
        case.row("egress never picks a backend", case.one_local())
            .untouched(Hook::PodEgress, case.first(client, case.cluster_ip()))
            .untouched(Hook::UplinkEgress, case.first(pod, case.cluster_ip()))
            .untouched(Hook::UplinkEgress, case.first(pod, case.node_port()))
            .flows([]),
        case.row("an answer of a flow that nobody started passes", case.one_local())
            .untouched(Hook::PodEgress, case.answer(case.local(), pod))
            .untouched(Hook::UplinkEgress, case.answer(case.local(), client))
            .flows([]),
        case.row("an answer is translated only where its flow leaves", case.one_local())
            .packet(
                Hook::UplinkIngress,
                case.first(client, case.node_port()),
                Verdict::Next,
                case.first(client, case.local()),
            )
            .untouched(Hook::PodIngress, case.answer(case.local(), client))
            .packet(
                Hook::UplinkEgress,
                case.answer(case.local(), client),
                Verdict::Next,
                case.answer(case.node_port(), client),
            ),
        case.row("tables without a Service pass everything", Tables::new([]))
            .untouched(Hook::PodIngress, case.first(pod, case.cluster_ip()))
            .untouched(Hook::UplinkIngress, case.first(client, case.node_port()))
            .flows([]),
    ]
}
