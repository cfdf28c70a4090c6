//! Says no: the packet is turned into the answer that its sender understands, and sent back by where it came from.
//!
//! TCP gets a RST (RFC 9293 §3.5.2), UDP an ICMP port unreachable (RFC 792) or its `ICMPv6` counterpart (RFC 4443
//! §3.1), from the address that was asked. An ICMP error carries the IP header, with all options and extension headers,
//! and the first 8 bytes after it, which is what the sender needs to find the socket.
//!
//! The answer stays in the request's VLAN: tags in the data are left where they are, and one outside goes with the
//! packet. Its own IP header is a plain one.

use lb_common::{
    abi::{Address, Protocol, Reason},
    checksum,
};

use crate::{
    family::Family,
    hook::{PacketContext, Verdict},
    packet::{self, ETHERNET, IPV4, IPV6, LONGEST_IPV4, LONGEST_IPV6, Mac, Packet, TCP, UDP, tcp},
};

/// TTL and hop limit of answers, as Linux sends them (`net.ipv4.ip_default_ttl`).
const TTL: u8 = 64;
const ICMP: usize = 8;

/// Answers `packet`.
#[inline(always)]
pub fn answer<C: PacketContext, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Result<Verdict, Reason> {
    match (packet.protocol(), F::V6) {
        (Protocol::Tcp, false) => reset::<C, F::Address, Ipv4Words>(ctx, packet)?,
        (Protocol::Tcp, true) => reset::<C, F::Address, Ipv6Words>(ctx, packet)?,
        (Protocol::Udp, false) => unreachable::<C, F::Address, Ipv4Words>(ctx, packet)?,
        (Protocol::Udp, true) => unreachable::<C, F::Address, Ipv6Words>(ctx, packet)?,
    }
    let [dst, src]: [Mac; 2] = packet::read(ctx, 0)?;
    packet::set_macs(ctx, src, dst)?;
    ctx.redirect(ctx.interface())
}

/// An IP header without options, in 16-bit words as they lie in the packet.
trait Header: Copy {
    /// Its length.
    const LENGTH: usize = size_of::<Self>();
    /// The longest that is answered, with options or extension headers.
    const LONGEST: usize;
    /// The family's ICMP: protocol number.
    const ICMP_PROTOCOL: u8;
    /// Type and code of "destination unreachable, port unreachable".
    const PORT_UNREACHABLE: u16;

    /// The header of an answer to a packet with this one.
    fn answer(&self, protocol: u8, payload: usize) -> Self;
    /// Bytes that follow it, says the header.
    fn payload(&self) -> usize;
    /// The sum of the addresses.
    fn addresses(&self) -> u64;
    /// The sum that an ICMP checksum has beyond the message.
    fn icmp_pseudo(&self, length: usize) -> u64;
}

type Ipv4Words = [u16; IPV4 / 2];
type Ipv6Words = [u16; IPV6 / 2];
type TcpWords = [u16; TCP / 2];
type UdpWords = [u16; UDP / 2];
type IcmpWords = [u16; ICMP / 2];

impl Header for Ipv4Words {
    const LONGEST: usize = LONGEST_IPV4;
    const ICMP_PROTOCOL: u8 = 1;
    const PORT_UNREACHABLE: u16 = 0x0303;

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "answers are short")]
    fn answer(&self, protocol: u8, payload: usize) -> Self {
        let [_, _, _, _, _, _, src0, src1, dst0, dst1] = *self;
        let length = ((IPV4 + payload) as u16).to_be();
        let ttl_protocol = u16::from_ne_bytes([TTL, protocol]);
        let mut header = [0x4500_u16.to_be(), length, 0, 0x4000_u16.to_be(), ttl_protocol, 0, dst0, dst1, src0, src1];
        header[5] = !checksum::fold(sum(&header));
        header
    }

    #[inline(always)]
    fn payload(&self) -> usize {
        usize::from(u16::from_be(self[1])).saturating_sub(IPV4)
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
    const LONGEST: usize = LONGEST_IPV6;
    const ICMP_PROTOCOL: u8 = 58;
    const PORT_UNREACHABLE: u16 = 0x0104;

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

/// A RST, as it lies in the packet. (The fields of a tuple may lie in any order.)
#[repr(C)]
struct Reset<I> {
    ip: I,
    tcp: TcpWords,
}

/// An ICMP or `ICMPv6` error, likewise, in front of what it quotes.
#[repr(C)]
struct Unreachable<I> {
    ip: I,
    icmp: IcmpWords,
}

#[inline(always)]
fn sum<const N: usize>(words: &[u16; N]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}

/// The sum of a pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
fn pseudo<I: Header>(header: &I, protocol: u8, length: usize) -> u64 {
    header.addresses() + u64::from(u16::from(protocol).to_be()) + u64::from((length as u16).to_be())
}

/// Turns a segment into the RST that answers it.
#[inline(always)]
fn reset<C: PacketContext, A: Address, I: Header>(ctx: &C, packet: &Packet<A>) -> Result<(), Reason> {
    if packet.tcp_flags & tcp::RST != 0 {
        return Err(Reason::Unanswerable);
    }
    let (l3, l4) = (packet.l3(), packet.l4());
    let partial = ctx.is_checksum_partial(packet.checksum())?;
    let request: I = packet::read(ctx, l3)?;
    let segment: TcpWords = packet::read(ctx, l4)?;
    // Options or extension headers.
    let extra = l4.saturating_sub(l3 + I::LENGTH);
    let payload = segment_length(&segment, request.payload().saturating_sub(extra));
    if extra != 0 {
        // The kernel knows where a checksum is that the device has to finish: it must be the one to move the header.
        if l3 == ETHERNET {
            ctx.remove_after_ip(extra)?;
        } else if partial {
            return Err(Reason::Unanswerable);
        }
    }
    ctx.resize(l3 + I::LENGTH + TCP)?;
    let ip = request.answer(Protocol::Tcp as u8, TCP);
    let mut tcp = reset_words(&segment, packet.tcp_flags, payload);
    let pseudo = pseudo(&ip, Protocol::Tcp as u8, TCP);
    // Finished, or only the pseudo header's sum where the device finishes it.
    tcp[8] = if partial { checksum::fold(pseudo) } else { !checksum::fold(pseudo + sum(&tcp)) };
    let out: *mut Reset<I> = packet::pointer(ctx, l3)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *out = Reset { ip, tcp } };
    Ok(())
}

/// The RST that answers a segment, without its checksum; RFC 9293 §3.10.7.1.
#[inline(always)]
fn reset_words(request: &TcpWords, flags: u8, payload: u32) -> TcpWords {
    let [src, dst, seq0, seq1, ack0, ack1, ..] = *request;
    let (seq, ack, answer) = if flags & tcp::ACK != 0 {
        ([ack0, ack1], [0, 0], tcp::RST)
    } else {
        let length = payload + u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
        let seq = u32::from(u16::from_be(seq0)) << 16 | u32::from(u16::from_be(seq1));
        let ack = seq.wrapping_add(length);
        #[expect(clippy::cast_possible_truncation, reason = "two halves")]
        let ack = [((ack >> 16) as u16).to_be(), (ack as u16).to_be()];
        ([0, 0], ack, tcp::RST | tcp::ACK)
    };
    // Five words of header, no window.
    [dst, src, seq[0], seq[1], ack[0], ack[1], u16::from_ne_bytes([0x50, answer]), 0, 0, 0]
}

/// Length of the payload of a TCP segment, from what its IP header says (`ip_payload`) and its data offset.
#[inline(always)]
fn segment_length(request: &TcpWords, ip_payload: usize) -> u32 {
    let [.., offset_flags, _, _, _] = *request;
    let [offset, _] = offset_flags.to_ne_bytes();
    #[expect(clippy::cast_possible_truncation, reason = "below 64 KiB")]
    let length = ip_payload.saturating_sub(usize::from(offset >> 4) * 4) as u32;
    length
}

/// Turns a datagram into the port unreachable that answers it: its data go, and the error is put in front of the rest.
#[inline(always)]
fn unreachable<C: PacketContext, A: Address, I: Header>(ctx: &C, packet: &Packet<A>) -> Result<(), Reason> {
    let (l3, l4, checksum) = (packet.l3(), packet.l4(), packet.checksum());
    let request: I = packet::read(ctx, l3)?;
    let udp: UdpWords = packet::read(ctx, l4)?;
    let partial = ctx.is_checksum_partial(checksum)?;
    let field: *mut u16 = packet::pointer(ctx, checksum.offset)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *field = udp[3] };
    // A device that finishes a checksum finishes the one that is quoted: it sums all from the UDP header on, of which
    // just that header is left, and puts the complement into the field. Whatever else is in the header, it then sums to
    // the complement of what was in the field.
    let quoted = if partial { u64::from(!udp[3]) } else { sum(&udp) } + sum_between::<C, I>(ctx, l3, l4)?;
    ctx.resize(l4 + UDP)?;
    ctx.insert_before_ip(l3, I::LENGTH + ICMP)?;
    let length = ICMP + l4.saturating_sub(l3) + UDP;
    let ip = request.answer(I::ICMP_PROTOCOL, length);
    let type_code = I::PORT_UNREACHABLE.to_be();
    let icmp = [type_code, !checksum::fold(ip.icmp_pseudo(length) + u64::from(type_code) + quoted), 0, 0];
    let out: *mut Unreachable<I> = packet::pointer(ctx, l3)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *out = Unreachable { ip, icmp } };
    Ok(())
}

/// The sum of an IP header with all that is between it and the transport header: a multiple of 4 bytes in both families
/// (RFC 791 §3.1, RFC 8200 §4).
#[inline(always)]
fn sum_between<C: PacketContext, I: Header>(ctx: &C, l3: usize, l4: usize) -> Result<u64, Reason> {
    let mut sum = 0;
    let mut at = 0;
    while at < I::LONGEST && l3 + at < l4 {
        sum += u64::from(packet::read::<_, u32>(ctx, l3 + at)?);
        at += 4;
    }
    Ok(sum)
}
