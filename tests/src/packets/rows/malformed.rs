//! Packets that are cut short or contradict themselves: passed on as they are, and counted.

use lb_common::abi::{Hook, Protocol, Reason};

use super::{Case, Row, fragments::fragment};
use crate::packets::{Net, Verdict, packet::ETHERNET};

const IN: Hook = Hook::PodIngress;

/// Length of the shortest packets that could be ours: UDP without data over IPv4. Others are not looked at.
const SHORTEST: usize = ETHERNET + 20 + 8;

fn counted(case: Case, sentence: &str, packet: impl Into<bytes::Bytes>, reason: Reason) -> Row {
    let packet = packet.into();
    let long_enough = packet.len() >= SHORTEST;
    let row = case.row(sentence, case.one_local()).untouched(IN, packet);
    if long_enough { row.counted(reason).flows([]) } else { row.flows([]) }
}

pub(super) fn rows(case: Case) -> Vec<Row> {
    let packet = case.later(case.pod(), case.cluster_ip());
    let (ip, transport) = (packet.ip_offset(), packet.transport_offset());
    let cut = |length: usize| packet.bytes_with(|frame| frame.truncate(length));
    let set =
        |offset: usize, bytes: &[u8]| packet.bytes_with(|frame| frame[offset..][..bytes.len()].copy_from_slice(bytes));
    let bad = |sentence: &str, packet: bytes::Bytes| counted(case, sentence, packet, Reason::Malformed);
    // Fields that nothing here depends on.
    let receivers = |sentence: &str, offset: usize, bytes: &[u8]| {
        let spoil = |frame: &mut Vec<u8>| frame[offset..][..bytes.len()].copy_from_slice(bytes);
        case.row(sentence, case.one_local()).packet(
            IN,
            packet.bytes_with(spoil),
            Verdict::Next,
            packet.clone().to(case.local()).bytes_with(spoil),
        )
    };
    let mut rows = vec![
        bad("a first fragment without a whole transport header passes", {
            let first = fragment(&packet, 1, 0, true);
            let length = first.transport_offset() + 7;
            first.bytes_with(|frame| frame.truncate(length))
        }),
        // The kernel runs no program on an untagged packet without a whole IP header.
        bad(
            "an IP header that is cut short passes",
            packet.clone().vlans(&[7]).bytes_with(|frame| frame.truncate(ip + 4 + 19)),
        ),
        bad("a packet without a transport header passes", cut(transport)),
        bad("a transport header that is cut short passes", cut(transport + 7)),
        bad("an IP version that the Ethernet type denies passes", set(ip, &[0x75])),
    ];
    if case.net.pod.is_ipv4() {
        rows.extend([
            bad("an IPv4 header length below 20 passes", set(ip, &[0x44])),
            bad(
                "an IPv4 header longer than its packet passes",
                packet.clone().payload(b"").bytes_with(|frame| frame[ip] = 0x4f),
            ),
            bad(
                "an IPv4 total length without room for the transport header passes",
                set(ip + 2, &25_u16.to_be_bytes()),
            ),
            bad("an IPv4 total length beyond the end of the frame passes", set(ip + 2, &9000_u16.to_be_bytes())),
        ]);
    } else {
        rows.extend([
            bad(
                "an IPv6 payload length without room for the transport header passes",
                set(ip + 4, &5_u16.to_be_bytes()),
            ),
            bad("an IPv6 payload length beyond the end of the frame passes", set(ip + 4, &9000_u16.to_be_bytes())),
            bad(
                "an extension header that is cut short passes",
                packet.bytes_with(|frame| {
                    frame[ip + 6] = 60;
                    frame.truncate(transport + 1);
                }),
            ),
            bad(
                "an extension header longer than its packet passes",
                packet.bytes_with(|frame| {
                    frame[ip + 6] = 60;
                    frame[transport..][..2].copy_from_slice(&[6, 20]);
                }),
            ),
            counted(
                case,
                "an extension header longer than any that is followed passes",
                packet.bytes_with(|frame| {
                    frame[ip + 6] = 60;
                    frame[transport..][..2].copy_from_slice(&[6, 200]);
                }),
                Reason::ExtensionHeaders,
            ),
        ]);
    }
    match case.protocol {
        Protocol::Tcp => rows.extend([
            bad("a TCP header that is cut short in its fixed part passes", cut(transport + 19)),
            receivers("a TCP data offset below 20 bytes is the receiver's to judge", transport + 12, &[0x40]),
            receivers("a TCP data offset beyond the segment is the receiver's to judge", transport + 12, &[0xf0]),
        ]),
        Protocol::Udp => rows.extend([
            receivers("a UDP length below 8 is the receiver's to judge", transport + 4, &7_u16.to_be_bytes()),
            receivers(
                "a UDP length beyond the packet is the receiver's to judge",
                transport + 4,
                &2000_u16.to_be_bytes(),
            ),
        ]),
    }
    rows
}

/// What holds for a family as a whole.
pub(super) fn of_one_family() -> Vec<Row> {
    let mut rows = Vec::new();
    for (net, kind) in [(&Net::V4, [0x08, 0x00]), (&Net::V6, [0x86, 0xdd])] {
        let case = Case { net, protocol: Protocol::Tcp };
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 7];
        frame.extend(kind);
        let mut rubbish = frame.clone();
        rubbish.extend([0xff; 3]);
        let row = |sentence: &str, frame: Vec<u8>| {
            Row::new(format!("{}: {sentence}", net.name), case.one_local()).untouched(IN, frame)
        };
        rows.push(row("a tagged Ethernet header alone passes", frame));
        rows.push(row("three bytes of rubbish pass", rubbish));
    }
    rows
}
