//! The packet that is asked about.

use std::net::IpAddr;

use lb_agent::model::Family;
use lb_common::{
    abi::{Protocol, Tuple},
    checksum,
};

/// A locally administered address (IEEE 802 §8.4): of nobody's device.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// What Linux sends (`net.ipv4.ip_default_ttl`).
const TIME_TO_LIVE: u8 = 64;

/// An Ethernet frame for the device with this address: a datagram without data, the SYN that opens a connection, or an ACK
/// of one that is open.
pub(super) fn frame<A: Family>(device: [u8; 6], tuple: &Tuple<A>, opens: bool) -> Vec<u8> {
    let (source, destination) = (octets(tuple.src), octets(tuple.dst));
    let protocol = tuple.protocol.to_be_bytes()[3];
    let mut transport = [tuple.src_port, tuple.dst_port].map(u16::to_be_bytes).concat();
    let checksum_at = if protocol == Protocol::Tcp as u8 {
        let (sequence, acknowledged) = (1_u32, u32::from(!opens));
        transport.extend([sequence, acknowledged].map(u32::to_be_bytes).concat());
        // Five words of header; SYN or ACK (RFC 9293 §3.1); the largest window; checksum; no urgent data.
        transport.extend([5 << 4, if opens { 0x02 } else { 0x10 }, 0xff, 0xff, 0, 0, 0, 0]);
        16
    } else {
        // Length; checksum.
        transport.extend([0, 8, 0, 0]);
        6
    };
    let length = u16::try_from(transport.len()).unwrap_or_default().to_be_bytes();
    let pseudo = [&source[..], &destination, &[0, protocol], &length].concat();
    let sum = !checksum::fold(words(&pseudo) + words(&transport));
    // RFC 768: 0 says that there is none.
    let sum = if sum == 0 && protocol == Protocol::Udp as u8 { 0xffff } else { sum };
    transport.splice(checksum_at..checksum_at + 2, sum.to_be_bytes());

    let mut frame = [device, SENDER].concat();
    if A::BITS == u32::BITS {
        frame.extend([0x08, 0x00]);
        let total = u16::try_from(20 + transport.len()).unwrap_or_default().to_be_bytes();
        // RFC 791: version and length; total length; identification; "don't fragment"; time to live; protocol; checksum.
        let mut header = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, TIME_TO_LIVE, protocol, 0, 0];
        header.extend([source, destination].concat());
        let sum = !checksum::fold(words(&header));
        header.splice(10..12, sum.to_be_bytes());
        frame.extend(header);
    } else {
        frame.extend([0x86, 0xdd]);
        // RFC 8200: version; payload length; next header; hop limit.
        frame.extend([0x60, 0, 0, 0, length[0], length[1], protocol, TIME_TO_LIVE]);
        frame.extend([source, destination].concat());
    }
    frame.extend(transport);
    frame
}

fn octets<A: Family>(address: A) -> Vec<u8> {
    match address.to_ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The sum of big-endian words (RFC 1071), of an even number of bytes.
fn words(bytes: &[u8]) -> u64 {
    bytes.as_chunks().0.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums that a receiver makes: all ones.
    fn assert_sums(frame: &[u8], ip: usize, addresses: usize) {
        let segment = &frame[14 + ip..];
        let pseudo = [&frame[14 + ip - addresses..14 + ip], &[0, if segment.len() == 8 { 17 } else { 6 }]].concat();
        let length = u64::try_from(segment.len()).expect("short");
        assert_eq!(checksum::fold(words(&pseudo) + length + words(segment)), 0xffff, "{frame:02x?}");
    }

    #[test]
    fn a_frame_is_what_a_host_would_send() {
        for (protocol, length) in [(Protocol::Tcp, 20), (Protocol::Udp, 8)] {
            let v4 = Tuple::new([10, 1, 1, 1], 40000, [10, 96, 0, 1], 80, protocol as u8);
            let bytes = frame([2, 0, 0, 0, 0, 9], &v4, true);
            assert_eq!(bytes.len(), 14 + 20 + length);
            assert_eq!(checksum::fold(words(&bytes[14..34])), 0xffff);
            assert_eq!(bytes[26..38], [10, 1, 1, 1, 10, 96, 0, 1, 0x9c, 0x40, 0, 80]);
            assert_sums(&bytes, 20, 8);
            let v6 = Tuple::new([0xfd; 16], 40000, [0xfe; 16], 80, protocol as u8);
            let bytes = frame([2, 0, 0, 0, 0, 9], &v6, false);
            assert_eq!(bytes.len(), 14 + 40 + length);
            assert_sums(&bytes, 40, 32);
        }
        let flags = |opens| frame([0; 6], &Tuple::new([10, 1, 1, 1], 1, [10, 96, 0, 1], 2, 6), opens)[14 + 20 + 13];
        assert_eq!([flags(true), flags(false)], [2, 16]);
    }
}
