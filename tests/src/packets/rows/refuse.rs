//! Services without any endpoint: clients are told at once.

use etherparse::{Icmpv4Type, Icmpv6Type, TcpHeader, icmpv4, icmpv6};
use lb_common::abi::{Hook, Protocol, Reason};

use super::{Case, Row, headers::wrapped};
use crate::packets::{
    Packet, Place, Tables, Verdict,
    packet::{ETHERNET, THE_INTERFACE},
};
use std::net::SocketAddr;

/// Time to live of what the node itself sends (RFC 1700, "IP time to live").
const OWN_TTL: u8 = 64;
/// Bytes of a datagram that an ICMP error quotes beyond the IP header, its UDP header: what RFC 792 asks for. RFC 1812 §4.3.2.3 and
/// RFC 4443 §2.4 (c) want as much as fits into 576 and 1280 bytes; the programs keep to the least that tells the sender
/// which socket is meant.
const QUOTED: usize = 8;

pub(super) fn rows(case: Case) -> Vec<Row> {
    match case.protocol {
        Protocol::Tcp => resets(case),
        Protocol::Udp => unreachables(case),
    }
}

fn empty(case: Case) -> Tables {
    Tables::new([case.service()])
}

/// What comes back from a node by itself, without the traits of the input's IP header.
pub(super) fn own(packet: Packet, family_is_v4: bool) -> Packet {
    let packet = packet.between(THE_INTERFACE, [2, 0, 0, 0, 0, 1]).ttl(OWN_TTL);
    if family_is_v4 {
        packet.ipv4(|ip| ip.identification = 0)
    } else {
        packet.ipv6(|ip, _| ip.flow_label = etherparse::Ipv6FlowLabel::ZERO)
    }
}

/// What refuses the first packet of a flow from a client to a frontend.
pub(super) fn refusal(case: Case, packet: &Packet, client: SocketAddr, frontend: SocketAddr) -> Packet {
    match case.protocol {
        Protocol::Tcp => reset(case, frontend, client, |tcp| {
            tcp.ack = true;
            tcp.acknowledgment_number = 0x0102_0305;
        }),
        Protocol::Udp => unreachable(case, frontend, client, &packet.bytes()),
    }
}

/// A RST as the node builds it.
fn reset(case: Case, from: SocketAddr, to: SocketAddr, change: impl FnOnce(&mut TcpHeader)) -> Packet {
    let packet = Packet::tcp(from, to).payload(b"").tcp_header(|tcp| {
        *tcp = TcpHeader::new(from.port(), to.port(), 0, 0);
        tcp.rst = true;
        change(tcp);
    });
    own(packet, case.net.pod.is_ipv4())
}

fn resets(case: Case) -> Vec<Row> {
    // Of `Packet::tcp` and `Packet::syn`.
    let (sequence, acknowledgment) = (0x0102_0304, 0xa0b0_c0d0);
    let (pod, client, frontend) = (case.pod(), case.client(), case.cluster_ip());
    let to_syn = |from, to, length: u32| {
        reset(case, from, to, |tcp| {
            tcp.ack = true;
            tcp.acknowledgment_number = sequence + length;
        })
    };
    let syn = case.first(pod, frontend);
    let data = case.later(pod, frontend);
    let refused_in = |sentence: &str, tables, hook, packet: bytes::Bytes, answer: Packet| {
        case.row(sentence, tables)
            .packet(hook, packet, Verdict::Redirect, answer)
            .counted(Reason::NoEndpoints)
            .flows([])
    };
    let refused = |sentence: &str, hook, packet, answer| refused_in(sentence, empty(case), hook, packet, answer);
    let padded =
        |packet: &Packet, length: usize| packet.bytes_with(|frame| frame.resize(length.max(frame.len()), 0xaa));
    let mut rows = vec![
        refused("a pod's SYN is refused", Hook::PodIngress, syn.bytes(), to_syn(frontend, pod, 1)),
        refused(
            "a SYN from outside is refused",
            Hook::UplinkIngress,
            case.first(client, case.node_port()).bytes(),
            to_syn(case.node_port(), client, 1),
        ),
        refused_in(
            "a policy of Local without any endpoint anywhere refuses, too",
            Tables::new([case.service().external_local().internal_local()]),
            Hook::UplinkIngress,
            case.first(client, case.node_port()).bytes(),
            to_syn(case.node_port(), client, 1),
        ),
        refused(
            "a SYN with data counts its data and itself",
            Hook::PodIngress,
            syn.clone().payload(b"fast open").bytes(),
            to_syn(frontend, pod, 10),
        ),
        refused(
            "a SYN with a FIN counts both",
            Hook::PodIngress,
            syn.clone().tcp_header(|tcp| tcp.fin = true).bytes(),
            to_syn(frontend, pod, 2),
        ),
        refused(
            "padding of a short frame is no data",
            Hook::PodIngress,
            padded(&syn.clone().tcp_header(|tcp| tcp.options = etherparse::TcpOptions::default()), 100),
            to_syn(frontend, pod, 1),
        ),
        refused(
            "a segment with ACK is refused in its own sequence",
            Hook::PodIngress,
            data.bytes(),
            reset(case, frontend, pod, |tcp| tcp.sequence_number = acknowledgment),
        ),
        case.row("a RST is never answered", empty(case))
            .dropped(Hook::PodIngress, syn.clone().tcp_header(|tcp| tcp.rst = true), Reason::NoEndpoints)
            .counted(Reason::Unanswerable)
            .dropped(Hook::PodIngress, data.clone().tcp_header(|tcp| tcp.rst = true), Reason::NoEndpoints)
            .counted(Reason::Unanswerable)
            .flows([]),
        case.row("egress never refuses", empty(case))
            .untouched(Hook::PodEgress, case.first(client, frontend))
            .untouched(Hook::UplinkEgress, case.first(pod, frontend))
            .flows([]),
        case.row("an endpoint that comes back ends the refusals", empty(case))
            .packet(Hook::PodIngress, &syn, Verdict::Redirect, to_syn(frontend, pod, 1))
            .counted(Reason::NoEndpoints)
            .then(case.one(case.local(), Place::Local))
            .packet(Hook::PodIngress, &syn, Verdict::Next, syn.clone().to(case.local())),
    ];
    for (what, syn) in wrapped(&syn) {
        // The IP header of a RST is a plain one; its tags are the segment's.
        let tags = syn.tags().to_vec();
        rows.push(refused(
            &format!("a SYN with {what} is refused"),
            Hook::PodIngress,
            syn.clone().bytes(),
            to_syn(frontend, pod, 1).vlans(&tags),
        ));
        rows.push(refused(
            &format!("data of a SYN with {what} are counted, and its padding is not"),
            Hook::UplinkIngress,
            padded(&syn.from(client).to(case.node_port()).payload(b"fast open"), 700),
            to_syn(case.node_port(), client, 10).vlans(&tags),
        ));
    }
    for (what, data) in wrapped(&data) {
        let tags = data.tags().to_vec();
        rows.push(refused(
            &format!("a large segment with {what} is refused in its own sequence"),
            Hook::PodIngress,
            data.payload(&[0x77; 900]).bytes(),
            reset(case, frontend, pod, |tcp| tcp.sequence_number = acknowledgment).vlans(&tags),
        ));
    }
    rows
}

/// A port unreachable about `original`, which has a plain header, as the node builds it.
fn unreachable(case: Case, from: SocketAddr, to: SocketAddr, original: &[u8]) -> Packet {
    let header = if case.net.pod.is_ipv4() { 20 } else { 40 };
    unreachable_quoting(case, from, to, &original[ETHERNET..ETHERNET + header + QUOTED])
}

/// A port unreachable with this quotation.
fn unreachable_quoting(case: Case, from: SocketAddr, to: SocketAddr, quoted: &[u8]) -> Packet {
    let (from, to) = (from.ip(), to.ip());
    let packet = if case.net.pod.is_ipv4() {
        Packet::icmp4(from, to, Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port))
    } else {
        Packet::icmp6(from, to, Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port))
    }
    .payload(quoted);
    own(packet, case.net.pod.is_ipv4())
}

fn unreachables(case: Case) -> Vec<Row> {
    let (pod, client, frontend) = (case.pod(), case.client(), case.cluster_ip());
    let refused = |sentence: &str, hook, packet: bytes::Bytes, from, to, about: &[u8]| {
        case.row(sentence, empty(case))
            .packet(hook, packet, Verdict::Redirect, unreachable(case, from, to, about))
            .counted(Reason::NoEndpoints)
            .flows([])
    };
    let small = case.first(pod, frontend).bytes();
    let large = case.first(pod, frontend).payload(&[0x77; 1400]).bytes();
    let outside = case.first(client, case.node_port()).bytes();
    let short = case.first(pod, frontend).payload(b"").bytes();
    let mut padded = short.to_vec();
    padded.resize(short.len() + 18, 0xaa);
    let mut rows = vec![
        refused("a pod's datagram is refused", Hook::PodIngress, small.clone(), frontend, pod, &small),
        refused(
            "a datagram from outside is refused",
            Hook::UplinkIngress,
            outside.clone(),
            case.node_port(),
            client,
            &outside,
        ),
        refused(
            "a large datagram is quoted up to its transport header",
            Hook::PodIngress,
            large.clone(),
            frontend,
            pod,
            &large,
        ),
        refused("padding of a short frame is not quoted", Hook::PodIngress, padded.into(), frontend, pod, &short),
        case.row("egress never refuses", empty(case))
            .untouched(Hook::PodEgress, case.first(client, frontend))
            .untouched(Hook::UplinkEgress, case.first(pod, frontend))
            .flows([]),
    ];
    if pod.is_ipv4() {
        let unsummed = case.first(pod, frontend).without_checksum().bytes();
        let sentence = "a datagram without a checksum is quoted without one";
        rows.push(refused(sentence, Hook::PodIngress, unsummed.clone(), frontend, pod, &unsummed));
    }
    for (what, packet) in wrapped(&case.first(pod, frontend)) {
        for (size, payload) in [("", vec![]), ("large ", vec![0x77; 900])] {
            let packet = packet.clone().payload(&payload);
            let bytes = packet.bytes();
            // The IP header is quoted with all that belongs to it.
            let quoted = &bytes[packet.ip_offset()..packet.transport_offset() + QUOTED];
            let answer = unreachable_quoting(case, frontend, pod, quoted).vlans(packet.tags());
            rows.push(
                case.row(&format!("a {size}datagram with {what} is refused, its headers quoted"), empty(case))
                    .packet(Hook::PodIngress, bytes.clone(), Verdict::Redirect, answer)
                    .counted(Reason::NoEndpoints)
                    .flows([]),
            );
        }
    }
    rows
}
