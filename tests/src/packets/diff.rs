//! What differs between two packets, for people.

use std::fmt::Write as _;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// The checksums of a packet that do not verify, by name; empty when all do. A UDP checksum of zero over IPv4 is none.
pub fn wrong_checksums(frame: &[u8]) -> Vec<&'static str> {
    let mut wrong = Vec::new();
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return wrong };
    let Some(net) = packet.net else { return wrong };
    if let NetSlice::Ipv4(ip) = &net
        && ip.header().header_checksum() != ip.header().to_header().calc_header_checksum()
    {
        wrong.push("IPv4 header checksum");
    }
    let transport_is_wrong = match (&net, &packet.transport) {
        (NetSlice::Ipv4(ip), Some(TransportSlice::Tcp(tcp))) => {
            tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()) != Ok(tcp.checksum())
        }
        (NetSlice::Ipv6(ip), Some(TransportSlice::Tcp(tcp))) => {
            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()) != Ok(tcp.checksum())
        }
        (NetSlice::Ipv4(ip), Some(TransportSlice::Udp(udp))) => {
            udp.checksum() != 0
                && udp.to_header().calc_checksum_ipv4_raw(
                    ip.header().source(),
                    ip.header().destination(),
                    udp.payload(),
                ) != Ok(udp.checksum())
        }
        (NetSlice::Ipv6(ip), Some(TransportSlice::Udp(udp))) => {
            udp.to_header().calc_checksum_ipv6_raw(ip.header().source(), ip.header().destination(), udp.payload())
                != Ok(udp.checksum())
        }
        (_, Some(TransportSlice::Icmpv4(icmp))) => icmp.icmp_type().calc_checksum(icmp.payload()) != icmp.checksum(),
        (NetSlice::Ipv6(ip), Some(TransportSlice::Icmpv6(icmp))) => {
            !icmp.is_checksum_valid(ip.header().source(), ip.header().destination())
        }
        _ => false,
    };
    if transport_is_wrong {
        wrong.push("transport checksum");
    }
    wrong
}

/// Adds each field that `Debug` shows, one a line. Brackets within a field (octets, options) stay together.
fn add_fields(lines: &mut Vec<String>, header: &str, debug: &str) {
    let inside = debug.split_once('{').map_or(debug, |(_, rest)| rest.trim_end_matches([' ', '}']));
    let (mut depth, mut field) = (0_i32, String::new());
    for character in inside.chars() {
        match character {
            '[' | '(' | '{' => depth += 1,
            ']' | ')' | '}' => depth -= 1,
            ',' if depth == 0 => {
                lines.push(format!("{header}{}", field.trim()));
                field.clear();
                continue;
            }
            _ => {}
        }
        field.push(character);
    }
    lines.push(format!("{header}{}", field.trim()));
}

/// The fields of a packet, one a line, and which of its checksums are wrong.
fn fields(frame: &[u8]) -> Vec<String> {
    let mut lines = vec![format!("length: {}", frame.len())];
    match SlicedPacket::from_ethernet(frame) {
        Ok(packet) => {
            if let Some(link) = packet.link {
                add_fields(&mut lines, "link ", &format!("{:02x?}", link.to_header()));
            }
            for extension in &packet.link_exts {
                lines.push(format!("tag: {:?}", extension.to_header()));
            }
            match &packet.net {
                Some(NetSlice::Ipv4(ip)) => {
                    let header = ip.header();
                    lines.push(format!("addresses: {} > {}", header.source_addr(), header.destination_addr()));
                    add_fields(&mut lines, "IPv4 ", &format!("{:?}", header.to_header()));
                }
                Some(NetSlice::Ipv6(ip)) => {
                    let header = ip.header();
                    lines.push(format!("addresses: {} > {}", header.source_addr(), header.destination_addr()));
                    add_fields(&mut lines, "IPv6 ", &format!("{:?}", header.to_header()));
                    lines.push(format!("IPv6 extensions {:?}", ip.extensions()));
                }
                Some(NetSlice::Arp(arp)) => lines.push(format!("ARP: {arp:?}")),
                None => {}
            }
            match &packet.transport {
                Some(TransportSlice::Tcp(tcp)) => add_fields(&mut lines, "TCP ", &format!("{:?}", tcp.to_header())),
                Some(TransportSlice::Udp(udp)) => add_fields(&mut lines, "UDP ", &format!("{:?}", udp.to_header())),
                Some(other) => lines.push(format!("transport: {other:?}")),
                None => {}
            }
        }
        Err(error) => lines.push(format!("etherparse does not parse it: {error}")),
    }
    lines.extend(wrong_checksums(frame).into_iter().map(|name| format!("WRONG {name}")));
    lines
}

/// The bytes, 16 a line, those that differ from `other` in brackets.
fn hex(frame: &[u8], other: &[u8]) -> String {
    let mut text = String::new();
    for (index, byte) in frame.iter().enumerate() {
        if index % 16 == 0 {
            let _ = write!(text, "\n  {index:04x} ");
        }
        let _ = match other.get(index) {
            Some(same) if same == byte => write!(text, " {byte:02x} "),
            _ => write!(text, "[{byte:02x}]"),
        };
    }
    text
}

/// `None` if both are the same, else the fields that differ and all bytes.
pub fn difference(expected: &[u8], actual: &[u8]) -> Option<String> {
    if expected == actual {
        return None;
    }
    let (expected_fields, actual_fields) = (fields(expected), fields(actual));
    let mut text = String::new();
    for line in &expected_fields {
        if !actual_fields.contains(line) {
            let _ = writeln!(text, "- {line}");
        }
    }
    for line in &actual_fields {
        if !expected_fields.contains(line) {
            let _ = writeln!(text, "+ {line}");
        }
    }
    let _ = write!(text, "expected:{}\nactual:{}", hex(expected, actual), hex(actual, expected));
    Some(text)
}
