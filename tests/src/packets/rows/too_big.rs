//! Packets that are larger than the way out takes: their senders are told what fits, as routers tell them.

use std::net::SocketAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, icmpv4};
use lb_common::abi::{Hook, Protocol, Reason};

use super::{CLIENT_PORT, Case, NODE_PORT, TARGET, at, headers::wrapped, refuse};
use crate::packets::{
    Interface, Packet, Place, Row, Tables, Verdict,
    world::{NARROW_GATEWAY_MAC, NARROW_MTU, OTHER_NODE_MAC},
};

const IN: Hook = Hook::UplinkIngress;
/// MTU of a veth as it comes, and so of the pod's interface (IEEE 802.3).
const POD_MTU: u32 = 1500;

/// The packet, its data such that all of the IP packet is as long as an MTU, and then some.
fn fitting(packet: &Packet, mtu: u32, excess: usize) -> Packet {
    packet.clone().payload(&vec![0x5a; data_that_fits(packet, mtu) + excess])
}

/// Bytes of data with which the IP packet is as long as an MTU.
fn data_that_fits(packet: &Packet, mtu: u32) -> usize {
    mtu as usize - (packet.clone().payload(b"").bytes().len() - packet.ip_offset())
}

/// What the node says of a packet that came from `to` and asked `from`.
fn too_big(case: Case, packet: &Packet, mtu: u32, from: SocketAddr, to: SocketAddr) -> Packet {
    let (from, to) = (from.ip(), to.ip());
    let error = if case.net.pod.is_ipv4() {
        let next_hop_mtu = mtu.try_into().expect("16 bits");
        let header = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
        Packet::icmp4(from, to, Icmpv4Type::DestinationUnreachable(header))
    } else {
        Packet::icmp6(from, to, Icmpv6Type::PacketTooBig { mtu })
    };
    about(case, error, packet)
}

/// An error of the node about a packet.
pub(super) fn about(case: Case, error: Packet, packet: &Packet) -> Packet {
    // The transport header without options (RFC 9293 §3.1, RFC 768).
    let quoted = match case.protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
    };
    let quoted = packet.bytes()[packet.ip_offset()..packet.transport_offset() + quoted].to_vec();
    refuse::own(error.payload(&quoted), case.net.pod.is_ipv4())
}

pub(super) fn rows(case: Case) -> Vec<Row> {
    let (net, client, frontend) = (case.net, case.client(), case.node_port());
    let to_narrow = || case.one(at(net.narrow_backend, TARGET), Place::Remote);
    let out = |packet: &Packet| {
        packet
            .clone()
            .from(at(net.narrow_node, Tables::FIRST_SNAT_PORT))
            .to(at(net.narrow_backend, TARGET))
            .forwarded(Interface::Narrow.mac(), NARROW_GATEWAY_MAC)
    };
    let (first, later) = (case.first(client, frontend), case.later(client, frontend));
    let fits = |excess| fitting(&later, NARROW_MTU, excess);
    let told = |packet: &Packet| too_big(case, packet, NARROW_MTU, frontend, client);
    // Segments of this much data are as long as the narrow uplink takes.
    let segment = data_that_fits(&later, NARROW_MTU).try_into().expect("16 bits");
    let mut rows = vec![
        case.row("what just fits the way out is sent", to_narrow()).packet(
            IN,
            fits(0),
            Verdict::Redirect,
            out(&fits(0)),
        ),
        case.row("who sends what does not fit the way out is told what does", to_narrow())
            .packet(IN, fits(1), Verdict::Redirect, told(&fits(1)))
            .counted(Reason::TooBig)
            .flows([]),
        case.row("a flow whose packets grow is told what fits, and goes on", to_narrow())
            .packet(IN, &first, Verdict::Redirect, out(&first))
            .packet(IN, fits(200), Verdict::Redirect, told(&fits(200)))
            .counted(Reason::TooBig)
            .packet(IN, fits(0), Verdict::Redirect, out(&fits(0))),
        case.row("what will be cut into segments that just fit is sent", to_narrow())
            .packet(IN, fits(100), Verdict::Redirect, out(&fits(100)))
            .gso_size(segment),
        case.row("what will be cut into segments that do not fit is told so", to_narrow())
            .packet(IN, fits(100), Verdict::Redirect, told(&fits(100)))
            .gso_size(segment + 1)
            .counted(Reason::TooBig)
            .flows([]),
        answer_that_does_not_fit(case),
        pod_that_reaches_itself(case),
    ];
    for (what, packet) in wrapped(&later).into_iter().filter(|(_, packet)| packet.tags().is_empty()) {
        let packet = fitting(&packet, NARROW_MTU, 1);
        rows.push(
            case.row(&format!("what is too big with {what} is quoted with it"), to_narrow())
                .packet(IN, &packet, Verdict::Redirect, told(&packet))
                .counted(Reason::TooBig)
                .flows([]),
        );
    }
    match case.protocol {
        Protocol::Tcp => {
            let with_options = |excess| {
                let packet = later.clone().tcp_header(|tcp| tcp.set_options_raw(&[1; 40]).expect("40 bytes at most"));
                fitting(&packet, NARROW_MTU, excess)
            };
            let with_most = segment - 40;
            rows.push(
                case.row("TCP options are part of what must fit, in each segment", to_narrow())
                    .packet(IN, with_options(0), Verdict::Redirect, out(&with_options(0)))
                    .packet(IN, with_options(1), Verdict::Redirect, told(&with_options(1)))
                    .counted(Reason::TooBig)
                    .packet(IN, with_options(100), Verdict::Redirect, out(&with_options(100)))
                    .gso_size(with_most)
                    .packet(IN, with_options(100), Verdict::Redirect, told(&with_options(100)))
                    .gso_size(with_most + 1)
                    .counted(Reason::TooBig),
            );
        }
        Protocol::Udp if net.pod.is_ipv4() => {
            let unsummed = fits(1).without_checksum();
            rows.push(
                case.row("what is too big and has no checksum is quoted without one", to_narrow())
                    .packet(IN, &unsummed, Verdict::Redirect, told(&unsummed))
                    .counted(Reason::TooBig),
            );
        }
        Protocol::Udp => {}
    }
    if net.pod.is_ipv4() {
        // Not cut up, and RFC 1191 has no answer for who did not forbid it.
        let fragmentable = |packet: Packet| packet.ipv4(|ip| ip.dont_fragment = false);
        rows.push(
            case.row("what does not fit and may be cut up is dropped", to_narrow())
                .dropped(IN, fragmentable(fits(1)), Reason::TooBig)
                .counted(Reason::Unanswerable)
                .packet(IN, fragmentable(fits(0)), Verdict::Redirect, out(&fragmentable(fits(0)))),
        );
    }
    rows
}

/// A client behind the narrow uplink: its requests fit, and their answers do not.
fn answer_that_does_not_fit(case: Case) -> Row {
    let net = case.net;
    let (client, frontend) = (at(net.narrow_backend, CLIENT_PORT), at(net.narrow_node, NODE_PORT));
    let first = case.first(client, frontend);
    let answer = fitting(&case.later(case.remote(), case.masqueraded()), NARROW_MTU, 1);
    let told = too_big(case, &answer, NARROW_MTU, case.masqueraded(), case.remote());
    case.row("a backend whose answer does not fit the way to the client is told what does", case.one_remote())
        .packet(
            IN,
            &first,
            Verdict::Redirect,
            first.clone().from(case.masqueraded()).to(case.remote()).forwarded(Interface::Uplink.mac(), OTHER_NODE_MAC),
        )
        .on(Interface::Narrow)
        .packet(IN, &answer, Verdict::Redirect, told)
        .counted(Reason::TooBig)
}

/// A pod that reaches itself by a way that its own interface is too wide for.
fn pod_that_reaches_itself(case: Case) -> Row {
    let (pod, frontend) = (case.pod(), case.cluster_ip());
    let packet = fitting(&case.later(pod, frontend), POD_MTU, 1);
    let told = too_big(case, &packet, POD_MTU, frontend, pod);
    case.row(
        "a pod whose packet to itself does not fit its interface is told what does",
        case.one(at(pod.ip(), TARGET), Place::Local),
    )
    .packet(Hook::PodIngress, &packet, Verdict::Redirect, told)
    .counted(Reason::TooBig)
    .flows([])
}
