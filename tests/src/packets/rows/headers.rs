//! Everything that may stand before, in and after the headers that are rewritten.

use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpNumber, Ipv6RawExtHeader, Ipv6RoutingExtensions};
use lb_common::abi::{Hook, Protocol, Reason};

use super::{CLIENT_PORT, Case, PORT, TARGET, at};
use crate::packets::{Net, Packet, Row, Verdict};

const IN: Hook = Hook::PodIngress;

/// A packet to the cluster IP becomes one to the endpoint and is otherwise the same.
fn translated(case: Case, sentence: &str, packet: &Packet) -> Row {
    case.row(sentence, case.one_local()).packet(IN, packet, Verdict::Next, packet.clone().to(case.local()))
}

pub(super) fn rows(case: Case) -> Vec<Row> {
    let (pod, frontend) = (case.pod(), case.cluster_ip());
    let (first, later) = (case.first(pod, frontend), case.later(pod, frontend));
    let mut rows = vec![
        translated(case, "one VLAN tag in the data is stepped over", &later.clone().vlans(&[100])),
        translated(case, "two VLAN tags in the data are stepped over", &later.clone().vlans(&[100, 200])),
        translated(case, "a packet without data", &later.clone().payload(b"")),
        translated(case, "one byte of data", &later.clone().payload(b"x")),
        translated(case, "a full frame", &later.clone().payload(&[0xa5; 1400])),
        case.row("padding of a short frame stays", case.one_local()).packet(
            IN,
            later.bytes_with(|frame| frame.extend([0xaa; 13])),
            Verdict::Next,
            later.clone().to(case.local()).bytes_with(|frame| frame.extend([0xaa; 13])),
        ),
        case.row("a wrong checksum stays as wrong as it was", case.one_local()).packet(
            IN,
            with_wrong_checksum(&later, case.protocol),
            Verdict::Next,
            with_wrong_checksum(&later.clone().to(case.local()), case.protocol),
        ),
        case.row("a packet that still has to be segmented", case.one_local())
            .packet(IN, &later, Verdict::Next, later.clone().to(case.local()))
            .gso_size(16),
    ];
    match case.protocol {
        Protocol::Tcp => rows.push(translated(
            case,
            "all flags, the urgent pointer and options stay",
            &first.clone().tcp_header(|tcp| {
                (tcp.ns, tcp.fin, tcp.psh, tcp.ack, tcp.urg, tcp.ece, tcp.cwr) =
                    (true, true, true, true, true, true, true);
                tcp.urgent_pointer = 7;
                tcp.set_options_raw(&[1; 40]).expect("40 bytes at most");
            }),
        )),
        Protocol::Udp => {
            let zero = sums_to_zero(&later.clone().to(case.local()));
            rows.push(translated(
                case,
                "a checksum that comes out as zero is written as its other form",
                &zero.clone().to(frontend),
            ));
            let zero = sums_to_zero(&later);
            rows.push(translated(case, "a checksum in the other form of zero is one like any other", &zero));
        }
    }
    if case.net.pod.is_ipv4() {
        rows.extend(ipv4(case, &later));
    } else {
        rows.extend(ipv6(case, &later));
    }
    rows
}

/// The packet with data that make its checksum come out as zero, which is written 0xffff (RFC 768).
fn sums_to_zero(packet: &Packet) -> Packet {
    let checksum = packet.transport_offset() + 6;
    (0..=u16::MAX)
        .map(|word| packet.clone().payload(&word.to_be_bytes()))
        .find(|packet| packet.bytes()[checksum..][..2] == [0xff, 0xff])
        .expect("one word decides the sum")
}

/// The packet with its checksum off by one, in one's complement.
fn with_wrong_checksum(packet: &Packet, protocol: Protocol) -> bytes::Bytes {
    // Offsets of the checksum in the headers of RFC 9293 and RFC 768.
    let offset = packet.transport_offset()
        + match protocol {
            Protocol::Tcp => 16,
            Protocol::Udp => 6,
        };
    packet.bytes_with(|frame| {
        let right = u16::from_be_bytes([frame[offset], frame[offset + 1]]);
        // One's complement has no other value between 0xffff and 1.
        let wrong = if right >= 0xfffe { right - 0xfffe + 1 } else { right + 1 };
        frame[offset..][..2].copy_from_slice(&wrong.to_be_bytes());
    })
}

/// A packet of a client outside to the node port becomes one to the endpoint and is otherwise the same; XDP leaves it.
fn from_outside(case: Case, sentence: &str, change: impl FnOnce(Packet) -> Packet) -> Row {
    let packet = change(case.later(case.client(), case.node_port()));
    let sentence = format!("from outside to a node port, {sentence}");
    case.row(&sentence, case.one_local()).packet(
        Hook::UplinkIngress,
        &packet,
        Verdict::Next,
        packet.clone().to(case.local()),
    )
}

fn ipv4(case: Case, packet: &Packet) -> Vec<Row> {
    let with_options = |bytes: &[u8]| {
        packet.clone().ipv4(|ip| ip.options = bytes.try_into().expect("a multiple of 4 bytes, 40 at most"))
    };
    let mut rows = vec![
        // RFC 2113.
        translated(case, "a router alert option", &with_options(&[148, 4, 0, 0])),
        translated(case, "as many IPv4 options as there can be", &with_options(&[1; 40])),
        translated(case, "IPv4 options behind a VLAN tag", &with_options(&[1; 12]).vlans(&[7])),
        translated(
            case,
            "congestion marks and code points stay",
            &packet.clone().ipv4(|ip| {
                ip.dscp = etherparse::IpDscp::try_new(46).expect("6 bits");
                ip.ecn = etherparse::IpEcn::try_new(3).expect("2 bits");
            }),
        ),
        translated(case, "a packet that may be fragmented later", &packet.clone().ipv4(|ip| ip.dont_fragment = false)),
        from_outside(case, "with options", |packet| packet.ipv4(|ip| ip.options = [148, 4, 0, 0].into())),
        from_outside(case, "behind a VLAN tag", |packet| packet.vlans(&[7])),
    ];
    if case.protocol == Protocol::Udp {
        rows.push(translated(case, "no checksum stays no checksum", &packet.clone().without_checksum()));
    }
    rows
}

/// An options header of 8 times `units` bytes: one `PadN` option (RFC 8200 §4.2).
fn options(units: usize) -> Ipv6RawExtHeader {
    let mut payload = vec![0; 8 * units - 2];
    (payload[0], payload[1]) = (1, u8::try_from(payload.len() - 2).expect("short"));
    Ipv6RawExtHeader::new_raw(IpNumber(0), &payload).expect("6 bytes and a multiple of 8")
}

/// A routing header whose route is done (RFC 8754 type 4, no segments left).
fn route() -> Ipv6RoutingExtensions {
    let mut payload = [0; 22];
    payload[0] = 4;
    Ipv6RoutingExtensions {
        routing: Ipv6RawExtHeader::new_raw(IpNumber(0), &payload).expect("6 bytes and a multiple of 8"),
        final_destination_options: None,
    }
}

fn ipv6(case: Case, packet: &Packet) -> Vec<Row> {
    vec![
        translated(
            case,
            "a hop-by-hop options header",
            &packet.clone().ipv6(|_, extensions| {
                extensions.hop_by_hop_options = Some(options(1));
            }),
        ),
        translated(
            case,
            "a long destination options header",
            &packet.clone().ipv6(|_, extensions| {
                extensions.destination_options = Some(options(8));
            }),
        ),
        translated(
            case,
            "a routing header at its end",
            &packet.clone().ipv6(|_, extensions| {
                extensions.routing = Some(route());
            }),
        ),
        translated(
            case,
            "hop-by-hop options, destination options and a routing header behind a VLAN tag",
            &packet.clone().vlans(&[7]).ipv6(|_, extensions| {
                extensions.hop_by_hop_options = Some(options(2));
                extensions.destination_options = Some(options(1));
                extensions.routing = Some(route());
            }),
        ),
        from_outside(case, "with a hop-by-hop options header", |packet| {
            packet.ipv6(|_, extensions| extensions.hop_by_hop_options = Some(options(1)))
        }),
        from_outside(case, "behind a VLAN tag", |packet| packet.vlans(&[7])),
        translated(case, "the traffic class stays", &packet.clone().ipv6(|ip, _| ip.traffic_class = 0xbb)),
        case.row("a chain of extension headers without end passes", case.one_local())
            .untouched(IN, chained(packet, 40))
            .counted(Reason::ExtensionHeaders)
            .flows([]),
        case.row("a chain of a few extension headers is followed", case.one_local()).packet(
            IN,
            chained(packet, 3),
            Verdict::Next,
            chained(&packet.clone().to(case.local()), 3),
        ),
    ]
}

/// The packet with `count` destination options headers of 8 bytes: more than etherparse builds.
fn chained(packet: &Packet, count: u8) -> bytes::Bytes {
    const DESTINATION_OPTIONS: u8 = 60;
    packet.bytes_with(|frame| {
        let ip = packet.ip_offset();
        let last = frame[ip + 6];
        frame[ip + 6] = DESTINATION_OPTIONS;
        let length = u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]) + 8 * u16::from(count);
        frame[ip + 4..][..2].copy_from_slice(&length.to_be_bytes());
        let chain = (1..=count).flat_map(|index| {
            let next = if index == count { last } else { DESTINATION_OPTIONS };
            [next, 0, 1, 4, 0, 0, 0, 0]
        });
        let after = packet.transport_offset();
        frame.splice(after..after, chain);
    })
}

/// A packet in all that may stand before its transport header beyond an Ethernet and a plain IP header, and what that is.
pub(super) fn wrapped(packet: &Packet) -> Vec<(&'static str, Packet)> {
    let tagged = |tags: &[u16]| packet.clone().vlans(tags);
    let mut packets = vec![("a VLAN tag", tagged(&[100])), ("two VLAN tags", tagged(&[100, 200]))];
    if packet.is_ipv4() {
        let with = |bytes: &[u8], tags: &[u16]| {
            tagged(tags).ipv4(|ip| ip.options = bytes.try_into().expect("a multiple of 4 bytes, 40 at most"))
        };
        packets.extend(vec![
            ("a router alert option", with(&[148, 4, 0, 0], &[])),
            ("as many IPv4 options as there can be", with(&[1; 40], &[])),
            ("IPv4 options behind a VLAN tag", with(&[1; 12], &[7])),
            ("IPv4 options behind two VLAN tags", with(&[1; 40], &[7, 8])),
        ]);
    } else {
        let with = |units: [usize; 2], tags: &[u16]| {
            tagged(tags).ipv6(|_, extensions| {
                extensions.hop_by_hop_options = Some(options(units[0]));
                extensions.destination_options = Some(options(units[1]));
            })
        };
        packets.extend(vec![
            ("two IPv6 extension headers", with([1, 1], &[])),
            // Up to offset 510: the programs look for no transport header beyond 512.
            ("IPv6 extension headers as long as are followed", with([32, 25], &[])),
            ("IPv6 extension headers behind a VLAN tag", with([3, 1], &[7])),
            ("long IPv6 extension headers behind two VLAN tags", with([32, 24], &[7, 8])),
        ]);
    }
    packets
}

/// What is neither TCP nor UDP.
pub(super) fn of_one_family() -> Vec<Row> {
    let mut rows = Vec::new();
    for net in [&Net::V4, &Net::V6] {
        let case = Case { net, protocol: Protocol::Tcp };
        let (pod, service) = (net.pod, net.cluster_ip);
        let row = |sentence: &str| Row::new(format!("{}: {sentence}", net.name), case.one_local());
        let echo = IcmpEchoHeader { id: 1, seq: 2 };
        let echo = if pod.is_ipv4() {
            Packet::icmp4(pod, service, Icmpv4Type::EchoRequest(echo))
        } else {
            Packet::icmp6(pod, service, Icmpv6Type::EchoRequest(echo))
        };
        rows.push(row("an echo request to a ClusterIP passes").untouched(IN, echo).flows([]));
        // SCTP, ESP, UDP-Lite, GRE and "no next header" (IANA's protocol numbers).
        for protocol in [132, 50, 136, 47, 59] {
            rows.push(
                row(&format!("protocol {protocol} passes"))
                    .untouched(IN, Packet::other(pod, service, protocol))
                    .untouched(Hook::UplinkIngress, Packet::other(net.client, service, protocol))
                    .flows([]),
            );
        }
    }
    let tables = Case { net: &Net::V4, protocol: Protocol::Tcp }.one_local();
    let frame = |kind: u16, payload: &[u8]| {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        frame
    };
    // ARP, LLDP, MPLS, a length of IEEE 802.3.
    for (name, kind) in [("ARP", 0x0806), ("LLDP", 0x88cc), ("MPLS", 0x8847), ("an IEEE 802.3 frame", 60)] {
        rows.push(
            Row::new(format!("{name} passes"), tables.clone())
                .untouched(IN, frame(kind, &[0x45; 60]))
                .untouched(Hook::UplinkIngress, frame(kind, &[0x45; 60])),
        );
    }
    let cross = Case { net: &Net::V4, protocol: Protocol::Tcp };
    rows.push(
        Row::new("a Service of one family leaves the other alone", cross.one_local())
            .untouched(IN, Packet::syn(at(Net::V6.pod, CLIENT_PORT), at(Net::V6.cluster_ip, PORT)))
            .untouched(IN, Packet::syn(at(Net::V6.pod, CLIENT_PORT), at(Net::V6.local_backend, TARGET))),
    );
    rows
}
