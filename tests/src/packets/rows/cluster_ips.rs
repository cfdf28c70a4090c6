//! Ports that a cluster IP does not have, and addresses that no Service has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{Hook, Protocol, Reason};

use super::{Case, NODE_PORT, PORT, at, refuse::refusal};
use crate::packets::{Dataplane, Row, Tables, TestService, Verdict, tables::network};

const UPLINK: Hook = Hook::UplinkIngress;
const POD: Hook = Hook::PodIngress;

pub(super) fn rows(case: Case) -> Vec<Row> {
    let (pod, client, net) = (case.pod(), case.client(), case.net);
    let undefined = at(net.cluster_ip, PORT + 1);
    let unallocated = at(net.second_cluster_ip, PORT);
    let bits = if net.pod.is_ipv4() { 16 } else { 64 };
    let with_cidr = || Tables { service_cidrs: vec![network(net.cluster_ip, bits)], ..case.one_local() };
    // What holds both its cluster IP and the other Service's holds every address.
    let far = || TestService::new("far", case.protocol, at(with_first_bit_flipped(net.cluster_ip), PORT));
    let everything = |mut tables: Tables| {
        tables.services.push(far());
        tables
    };
    let other = Case { protocol: if case.protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp }, ..case };
    let refused = |row: Row, case: Case, hook, from, to| {
        let packet = case.first(from, to);
        row.packet(hook, &packet, Verdict::Redirect, refusal(case, &packet, from, to)).counted(Reason::UndefinedPort)
    };
    let mut rows = vec![
        refused(
            case.row("a port that a ClusterIP does not have is refused", case.one_local()),
            case,
            POD,
            pod,
            undefined,
        )
        .flows([]),
        refused(
            case.row("a port that a ClusterIP does not have is refused to outside, too", case.one_local()),
            case,
            UPLINK,
            client,
            undefined,
        )
        .flows([]),
        refused(
            case.row("another protocol on a ClusterIP's port is refused", case.one_local()),
            other,
            POD,
            pod,
            case.cluster_ip(),
        ),
        case.row("an address of a ServiceCIDR that no Service has is dropped", with_cidr())
            .dropped(POD, case.first(pod, unallocated), Reason::UnallocatedClusterIp)
            .dropped(UPLINK, case.first(client, unallocated), Reason::UnallocatedClusterIp)
            .flows([]),
        case.row(
            "an address of a ServiceCIDR that the node itself has is the node's",
            Tables { service_cidrs: vec![network(net.node, bits)], ..case.one_local() },
        )
        .untouched(POD, case.first(pod, at(net.node, PORT)))
        .untouched(UPLINK, case.first(client, at(net.node, PORT)))
        .flows([]),
        refused(
            case.row("a ServiceCIDR changes nothing for an address that a Service has", with_cidr()),
            case,
            POD,
            pod,
            undefined,
        ),
        case.row("an address that no Service has and no ServiceCIDR passes", everything(case.one_local()))
            .untouched(POD, case.first(pod, unallocated))
            .untouched(UPLINK, case.first(client, unallocated))
            .flows([]),
        case.row(
            "a network of cluster IPs that holds everything keeps nothing else from passing",
            everything(with_cidr()),
        )
        .untouched(POD, case.first(pod, at(net.stranger, PORT)))
        .untouched(POD, case.first(pod, at(net.node, PORT)))
        .packet(
            UPLINK,
            case.first(client, at(net.node, NODE_PORT)),
            Verdict::Next,
            case.first(client, case.local()),
        ),
        case.row("cluster IPs are looked for within their network only", with_cidr())
            .spoil("saying that there is no such network", Dataplane::forget_cluster_ip_networks)
            .untouched(POD, case.first(pod, undefined))
            .untouched(POD, case.first(pod, unallocated)),
        case.row("egress refuses no port and drops no address", with_cidr())
            .untouched(Hook::PodEgress, case.first(client, undefined))
            .untouched(Hook::UplinkEgress, case.first(pod, unallocated)),
    ];
    if case.protocol == Protocol::Tcp {
        rows.push(
            case.row("a RST to a port that a ClusterIP does not have is not answered", case.one_local())
                .dropped(POD, case.first(pod, undefined).tcp_header(|tcp| tcp.rst = true), Reason::UndefinedPort)
                .counted(Reason::Unanswerable),
        );
    }
    rows
}

fn with_first_bit_flipped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() ^ (1 << 31)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() ^ (1 << 127)).into(),
    }
}
