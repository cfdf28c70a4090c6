//! The packet that is asked about.

use std::net::IpAddr;

use anyhow::{Result, bail};
use etherparse::PacketBuilder;
use lb_agent::model::Family;
use lb_common::abi::{Protocol, Tuple};

/// A locally administered address (IEEE 802 §8.4): of nobody's device.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// What Linux sends (`net.ipv4.ip_default_ttl`).
const TIME_TO_LIVE: u8 = 64;

/// An Ethernet frame for the device with this address: a datagram without data, the SYN that opens a connection, or an ACK
/// of one that is open.
pub(super) fn frame<A: Family>(device: [u8; 6], tuple: &Tuple<A>, opens: bool) -> Result<Vec<u8>> {
    let link = PacketBuilder::ethernet2(SENDER, device);
    let internet = match (tuple.src.to_ip(), tuple.dst.to_ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => link.ipv4(source.octets(), destination.octets(), TIME_TO_LIVE),
        (IpAddr::V6(source), IpAddr::V6(destination)) => link.ipv6(source.octets(), destination.octets(), TIME_TO_LIVE),
        _ => bail!("addresses of two families: {} and {}", tuple.src.to_ip(), tuple.dst.to_ip()),
    };
    let mut frame = Vec::new();
    if tuple.protocol == Protocol::Udp as u32 {
        internet.udp(tuple.src_port, tuple.dst_port).write(&mut frame, &[])?;
    } else {
        let segment = internet.tcp(tuple.src_port, tuple.dst_port, 1, u16::MAX);
        let segment = if opens { segment.syn() } else { segment.ack(1) };
        segment.write(&mut frame, &[])?;
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_what_a_host_would_send() {
        for (protocol, length) in [(Protocol::Tcp, 20), (Protocol::Udp, 8)] {
            let v4 = Tuple::new([10, 1, 1, 1], 40000, [10, 96, 0, 1], 80, protocol as u8);
            let bytes = frame([2, 0, 0, 0, 0, 9], &v4, true).expect("written");
            assert_eq!(bytes.len(), 14 + 20 + length);
            assert_eq!(bytes[..14], [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0]);
            assert_eq!(bytes[26..38], [10, 1, 1, 1, 10, 96, 0, 1, 0x9c, 0x40, 0, 80]);
            let v6 = Tuple::new([0xfd; 16], 40000, [0xfe; 16], 80, protocol as u8);
            let bytes = frame([2, 0, 0, 0, 0, 9], &v6, false).expect("written");
            assert_eq!(bytes.len(), 14 + 40 + length);
            assert_eq!((&bytes[22..38], &bytes[38..54]), (&[0xfd; 16][..], &[0xfe; 16][..]));
        }
        let tcp = Tuple::new([10, 1, 1, 1], 1, [10, 96, 0, 1], 2, Protocol::Tcp as u8);
        let flags = |opens| frame([0; 6], &tcp, opens).expect("written")[14 + 20 + 13];
        assert_eq!([flags(true), flags(false)], [2, 16], "SYN, ACK");
    }
}
