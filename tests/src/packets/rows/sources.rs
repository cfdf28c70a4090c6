//! Load-balancer addresses that only some clients may use.

use std::net::IpAddr;

use lb_common::abi::{Hook, Reason};

use super::{CLIENT_PORT, Case, PORT, at, refuse::refusal};
use crate::packets::{Place, Row, Tables, TestService, Verdict};

const UPLINK: Hook = Hook::UplinkIngress;
const POD: Hook = Hook::PodIngress;

/// Bits of the clients' subnet, and of a single address.
fn bits(case: Case) -> (u8, u8) {
    if case.net.client.is_ipv4() { (24, 32) } else { (64, 128) }
}

/// The address beside the client's that differs in the last bit only.
fn neighbour(case: Case) -> IpAddr {
    match case.net.client {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() ^ 1).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() ^ 1).into()),
    }
}

/// With an endpoint on this node.
fn local(case: Case) -> TestService {
    case.service().endpoint(case.local(), Place::Local)
}

pub(super) fn rows(case: Case) -> Vec<Row> {
    let (subnet, host) = bits(case);
    let (client, pod, target, frontend) = (case.client(), case.pod(), case.local(), case.load_balancer());
    let first = case.first(client, frontend);
    let from_pod = case.first(pod, frontend);
    let next_door = case.first(at(neighbour(case), CLIENT_PORT), frontend);
    let of_subnet = || Tables::new([local(case).source_range(client.ip(), subnet)]);
    let of_client = |service: TestService| service.source_range(client.ip(), host);
    let reached = |row: Row, hook, packet: &crate::packets::Packet| {
        row.packet(hook, packet, Verdict::Next, packet.clone().to(target))
    };
    let mut rows = vec![
        reached(
            reached(case.row("a client within the source ranges is served", of_subnet()), UPLINK, &first),
            UPLINK,
            &next_door,
        ),
        case.row("a client outside the source ranges is dropped, and pods are no exception", of_subnet())
            .dropped(UPLINK, case.first(at(case.net.stranger, CLIENT_PORT), frontend), Reason::SourceNotAllowed)
            .dropped(POD, &from_pod, Reason::SourceNotAllowed)
            .flows([]),
        reached(
            case.row("a pod within the source ranges is served", {
                Tables::new([local(case).source_range(pod.ip(), subnet)])
            }),
            POD,
            &from_pod,
        ),
        reached(case.row("a range of one address ends there", Tables::new([of_client(local(case))])), UPLINK, &first)
            .dropped(UPLINK, &next_door, Reason::SourceNotAllowed),
        reached(
            reached(
                case.row(
                    "a range within another takes nothing from it",
                    Tables::new([of_client(local(case)).source_range(client.ip(), subnet)]),
                ),
                UPLINK,
                &first,
            ),
            UPLINK,
            &next_door,
        ),
        other_frontends(case, of_subnet()),
        case.row(
            "a client outside the source ranges is dropped also where there is no endpoint",
            Tables::new([of_client(case.service())]),
        )
        .dropped(UPLINK, &next_door, Reason::SourceNotAllowed)
        .packet(UPLINK, &first, Verdict::Redirect, refusal(case, &first, client, frontend))
        .counted(Reason::NoEndpoints)
        .flows([]),
        case.row(
            "who may ask is settled before who answers",
            Tables::new([of_client(case.service()).external_local().endpoint(case.remote(), Place::Remote)]),
        )
        .dropped(UPLINK, &next_door, Reason::SourceNotAllowed)
        .dropped(UPLINK, &first, Reason::NoLocalEndpoints),
    ];
    rows.extend(changes(case, &of_subnet()));
    rows
}

/// Source ranges are those of the load balancer's addresses alone.
fn other_frontends(case: Case, tables: Tables) -> Row {
    let (target, stranger) = (case.local(), |port| at(case.net.stranger, port));
    let row = case.row("node port and ClusterIP have no source ranges", tables);
    [
        (UPLINK, stranger(CLIENT_PORT), case.node_port()),
        (UPLINK, stranger(CLIENT_PORT + 1), case.cluster_ip()),
        (POD, case.pod(), case.cluster_ip()),
    ]
    .into_iter()
    .fold(row, |row, (hook, from, to)| {
        let packet = case.first(from, to);
        row.packet(hook, &packet, Verdict::Next, packet.clone().to(target))
    })
}

/// Ranges that change, and ranges of another Service.
fn changes(case: Case, of_subnet: &Tables) -> [Row; 3] {
    let (client, frontend, target) = (case.client(), case.load_balancer(), case.local());
    let (first, later) = (case.first(client, frontend), case.later(client, frontend));
    let second_flow = case.first(at(client.ip(), CLIENT_PORT + 1), frontend);
    let elsewhere = Tables::new([local(case).source_range(case.net.stranger, bits(case).1)]);
    let other = TestService::new("second", case.protocol, at(case.net.second_cluster_ip, PORT + 2))
        .load_balancer(case.net.stranger)
        .source_range(case.net.pod, bits(case).1)
        .endpoint(target, Place::Local);
    let two = Tables::new([of_subnet.services[0].clone(), other]);
    let heir = TestService::new("heir", case.protocol, at(case.net.second_cluster_ip, PORT))
        .load_balancer(frontend.ip())
        .source_range(case.net.stranger, bits(case).1)
        .endpoint(target, Place::Local);
    let stranger = case.first(at(case.net.stranger, CLIENT_PORT), frontend);
    let to_other = case.first(case.pod(), at(case.net.stranger, PORT + 2));
    [
        case.row("a flow outlives a change of the source ranges", of_subnet.clone())
            .packet(UPLINK, &first, Verdict::Next, first.clone().to(target))
            .then(elsewhere)
            .packet(UPLINK, &later, Verdict::Next, later.clone().to(target))
            .dropped(UPLINK, &second_flow, Reason::SourceNotAllowed)
            .packet(UPLINK, &stranger, Verdict::Next, stranger.clone().to(target)),
        case.row("an address that another Service gets has the source ranges of that", of_subnet.clone())
            .dropped(UPLINK, &stranger, Reason::SourceNotAllowed)
            .then(Tables::new([heir]))
            .packet(UPLINK, &stranger, Verdict::Next, stranger.clone().to(target))
            .dropped(UPLINK, &second_flow, Reason::SourceNotAllowed),
        case.row("source ranges of one Service are not another's", two)
            .packet(POD, &to_other, Verdict::Next, to_other.clone().to(target))
            .dropped(POD, case.first(case.pod(), frontend), Reason::SourceNotAllowed)
            .dropped(UPLINK, case.first(client, at(case.net.stranger, PORT + 2)), Reason::SourceNotAllowed),
    ]
}
