//! The IP header of an answer, and what the two families' errors differ in.

use lb_common::checksum;

use crate::packet::{IPV4, IPV6};

/// TTL and hop limit of answers, as Linux sends them (`net.ipv4.ip_default_ttl`).
const TTL: u8 = 64;
/// The flag of an IPv4 header (RFC 791 §3.1), in the word that it shares with the fragment offset.
const DONT_FRAGMENT: u16 = 0x4000;

/// An IP header without options, in 16-bit words as they lie in the packet.
pub trait Header: Copy {
    /// Its length.
    const LENGTH: usize = size_of::<Self>();
    /// The family's ICMP: protocol number.
    const ICMP_PROTOCOL: u8;
    /// Type and code of "destination unreachable, port unreachable".
    const PORT_UNREACHABLE: u16;
    /// Type and code of "fragmentation needed and DF set", or of "packet too big". Both end with the MTU.
    const TOO_BIG: u16;
    /// Type and code of "time to live exceeded in transit", or "hop limit exceeded".
    const TIME_EXCEEDED: u16;

    /// The header of an answer to a packet with this one.
    fn answer(&self, protocol: u8, payload: usize) -> Self;
    /// Bytes that follow it, says the header.
    fn payload(&self) -> usize;
    /// Whether its sender leaves it to routers to cut the packet up.
    fn may_be_fragmented(&self) -> bool;
    /// The sum of the addresses.
    fn addresses(&self) -> u64;
    /// The sum that an ICMP checksum has beyond the message.
    fn icmp_pseudo(&self, length: usize) -> u64;
}

pub type Ipv4Words = [u16; IPV4 / 2];
pub type Ipv6Words = [u16; IPV6 / 2];

impl Header for Ipv4Words {
    const ICMP_PROTOCOL: u8 = 1;
    const PORT_UNREACHABLE: u16 = 0x0303;
    const TOO_BIG: u16 = 0x0304;
    const TIME_EXCEEDED: u16 = 0x0b00;

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "answers are short")]
    fn answer(&self, protocol: u8, payload: usize) -> Self {
        let [_, _, _, _, _, _, src0, src1, dst0, dst1] = *self;
        let length = ((IPV4 + payload) as u16).to_be();
        let ttl_protocol = u16::from_ne_bytes([TTL, protocol]);
        let mut header =
            [0x4500_u16.to_be(), length, 0, DONT_FRAGMENT.to_be(), ttl_protocol, 0, dst0, dst1, src0, src1];
        header[5] = !checksum::fold(sum(&header));
        header
    }

    #[inline(always)]
    fn payload(&self) -> usize {
        usize::from(u16::from_be(self[1])).saturating_sub(IPV4)
    }

    #[inline(always)]
    fn may_be_fragmented(&self) -> bool {
        self[3] & DONT_FRAGMENT.to_be() == 0
    }

    #[inline(always)]
    fn addresses(&self) -> u64 {
        let [.., a, b, c, d] = *self;
        u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d)
    }

    /// RFC 792: the message alone.
    #[inline(always)]
    fn icmp_pseudo(&self, _length: usize) -> u64 {
        0
    }
}

impl Header for Ipv6Words {
    const ICMP_PROTOCOL: u8 = 58;
    const PORT_UNREACHABLE: u16 = 0x0104;
    const TOO_BIG: u16 = 0x0200;
    const TIME_EXCEEDED: u16 = 0x0300;

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "answers are short")]
    fn answer(&self, protocol: u8, payload: usize) -> Self {
        let mut header = *self;
        header[0] = 0x6000_u16.to_be();
        header[1] = 0;
        header[2] = (payload as u16).to_be();
        header[3] = u16::from_ne_bytes([protocol, TTL]);
        // Words 4 to 11 are the source, 12 to 19 the destination.
        let mut word = 0;
        while word < 8 {
            header[4 + word] = self[12 + word];
            header[12 + word] = self[4 + word];
            word += 1;
        }
        header
    }

    #[inline(always)]
    fn payload(&self) -> usize {
        usize::from(u16::from_be(self[2]))
    }

    /// RFC 8200 §5.
    #[inline(always)]
    fn may_be_fragmented(&self) -> bool {
        false
    }

    #[inline(always)]
    fn addresses(&self) -> u64 {
        let [_, _, _, _, addresses @ ..] = self;
        sum(addresses)
    }

    /// RFC 4443 §2.3.
    #[inline(always)]
    fn icmp_pseudo(&self, length: usize) -> u64 {
        pseudo(self, Self::ICMP_PROTOCOL, length)
    }
}

/// The sum of words.
#[inline(always)]
pub fn sum<const N: usize>(words: &[u16; N]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}

/// The sum of a pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
pub fn pseudo<I: Header>(header: &I, protocol: u8, length: usize) -> u64 {
    header.addresses() + u64::from(u16::from(protocol).to_be()) + u64::from((length as u16).to_be())
}
