//! Says no: the packet is turned into the answer that its sender understands, and sent back by where it came from.
//!
//! TCP gets a RST (RFC 9293 §3.5.2), UDP an ICMP port unreachable (RFC 792) or its `ICMPv6` counterpart (RFC 4443
//! §3.1), from the address that was asked. Answers are never larger than 110 bytes: an ICMP error carries the IP
//! header and the first 8 bytes after it, which is what the sender needs to find the socket.

use lb_common::{
    abi::{Protocol, Reason},
    checksum,
};

use crate::{
    family::Family,
    hook::{PacketContext, Verdict},
    packet::{self, ETHERNET, IPV4, IPV6, Mac, Packet, TCP, UDP, tcp},
};

/// TTL and hop limit of answers, as Linux sends them (`net.ipv4.ip_default_ttl`).
const TTL: u8 = 64;
const ICMP: usize = 8;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;
/// Destination unreachable, port unreachable.
const ICMP_TYPE_CODE: u16 = 0x0303;
const ICMPV6_TYPE_CODE: u16 = 0x0104;
/// What an ICMP error repeats of the packet beyond its IP header.
const QUOTED: usize = 8;

/// Answers `packet`.
#[inline(always)]
pub fn answer<C: PacketContext, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Result<Verdict, Reason> {
    // Answers are built with a plain header in the same place: options, extension headers and tags would need room or
    // answers of their own.
    let ip = if F::V6 { IPV6 } else { IPV4 };
    if packet.l3() != ETHERNET || packet.l4() != ETHERNET + ip || ctx.has_vlan_tag() {
        return Err(Reason::Unanswerable);
    }
    let checksum: u16 = packet::read(ctx, packet.checksum().offset)?;
    let partial = ctx.is_checksum_partial(packet.checksum())?;
    match (packet.protocol(), F::V6) {
        (Protocol::Tcp, false) => reset_v4(ctx, packet.tcp_flags, partial)?,
        (Protocol::Tcp, true) => reset_v6(ctx, packet.tcp_flags, partial)?,
        (Protocol::Udp, false) => unreachable_v4(ctx, checksum)?,
        (Protocol::Udp, true) => unreachable_v6(ctx, checksum, partial)?,
    }
    let [dst, src]: [Mac; 2] = packet::read(ctx, 0)?;
    packet::set_macs(ctx, src, dst)?;
    ctx.redirect(ctx.interface())
}

/// An IPv4 header without options, in 16-bit words as they lie in the packet.
type Ipv4Words = [u16; IPV4 / 2];
type Ipv6Words = [u16; IPV6 / 2];
type TcpWords = [u16; TCP / 2];
/// A UDP header.
type UdpWords = [u16; UDP / 2];

/// A RST, as it lies in the packet. (The fields of a tuple may lie in any order.)
#[repr(C)]
struct Reset<I> {
    ip: I,
    tcp: TcpWords,
}

/// An ICMP or `ICMPv6` error, likewise.
#[repr(C)]
struct Unreachable<I> {
    ip: I,
    icmp: [u16; ICMP / 2],
    quoted_ip: I,
    quoted: UdpWords,
}

#[inline(always)]
fn sum<const N: usize>(words: &[u16; N]) -> u64 {
    let mut sum = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum
}

/// The header of an answer to a packet with this one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
fn answer_v4(request: &Ipv4Words, protocol: u8, payload: usize) -> Ipv4Words {
    let [_, _, _, _, _, _, src0, src1, dst0, dst1] = *request;
    let length = ((IPV4 + payload) as u16).to_be();
    let ttl_protocol = u16::from_ne_bytes([TTL, protocol]);
    let mut header = [0x4500_u16.to_be(), length, 0, 0x4000_u16.to_be(), ttl_protocol, 0, dst0, dst1, src0, src1];
    header[5] = !checksum::fold(sum(&header));
    header
}

/// The sum of an IPv4 pseudo header (RFC 9293 §3.1).
#[inline(always)]
fn pseudo_v4(header: &Ipv4Words, protocol: u8, length: usize) -> u64 {
    let [.., a, b, c, d] = *header;
    u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d) + pseudo_rest(protocol, length)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
fn pseudo_rest(protocol: u8, length: usize) -> u64 {
    u64::from(u16::from(protocol).to_be()) + u64::from((length as u16).to_be())
}

/// The header of an answer to a packet with this one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "answers are short")]
fn answer_v6(request: &Ipv6Words, protocol: u8, payload: usize) -> Ipv6Words {
    let mut header = *request;
    header[0] = 0x6000_u16.to_be();
    header[1] = 0;
    header[2] = (payload as u16).to_be();
    header[3] = u16::from_ne_bytes([protocol, TTL]);
    // Words 4 to 11 are the source, 12 to 19 the destination.
    let mut word = 0;
    while word < 8 {
        header[4 + word] = request[12 + word];
        header[12 + word] = request[4 + word];
        word += 1;
    }
    header
}

/// The sum of an IPv6 pseudo header (RFC 8200 §8.1).
#[inline(always)]
fn pseudo_v6(header: &Ipv6Words, protocol: u8, length: usize) -> u64 {
    let [_, _, _, _, addresses @ ..] = header;
    sum(addresses) + pseudo_rest(protocol, length)
}

/// The RST that answers a segment, without its checksum; RFC 9293 §3.10.7.1.
#[inline(always)]
fn reset(request: &TcpWords, flags: u8, payload: u32) -> TcpWords {
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

/// The checksum field of a RST: finished, or only the pseudo header's sum where the device finishes it.
#[inline(always)]
fn reset_checksum(segment: &TcpWords, pseudo: u64, partial: bool) -> u16 {
    if partial { checksum::fold(pseudo) } else { !checksum::fold(pseudo + sum(segment)) }
}

#[inline(always)]
fn reset_v4<C: PacketContext>(ctx: &C, flags: u8, partial: bool) -> Result<(), Reason> {
    if flags & tcp::RST != 0 {
        return Err(Reason::Unanswerable);
    }
    let request: Ipv4Words = packet::read(ctx, ETHERNET)?;
    let segment: TcpWords = packet::read(ctx, ETHERNET + IPV4)?;
    let payload = segment_length(&segment, usize::from(u16::from_be(request[1])).saturating_sub(IPV4));
    ctx.resize(ETHERNET + IPV4 + TCP)?;
    let header = answer_v4(&request, Protocol::Tcp as u8, TCP);
    let mut answer = reset(&segment, flags, payload);
    answer[8] = reset_checksum(&answer, pseudo_v4(&header, Protocol::Tcp as u8, TCP), partial);
    let out: *mut Reset<Ipv4Words> = packet::pointer(ctx, ETHERNET)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *out = Reset { ip: header, tcp: answer } };
    Ok(())
}

#[inline(always)]
fn reset_v6<C: PacketContext>(ctx: &C, flags: u8, partial: bool) -> Result<(), Reason> {
    if flags & tcp::RST != 0 {
        return Err(Reason::Unanswerable);
    }
    let request: Ipv6Words = packet::read(ctx, ETHERNET)?;
    let segment: TcpWords = packet::read(ctx, ETHERNET + IPV6)?;
    let payload = segment_length(&segment, usize::from(u16::from_be(request[2])));
    ctx.resize(ETHERNET + IPV6 + TCP)?;
    let header = answer_v6(&request, Protocol::Tcp as u8, TCP);
    let mut answer = reset(&segment, flags, payload);
    answer[8] = reset_checksum(&answer, pseudo_v6(&header, Protocol::Tcp as u8, TCP), partial);
    let out: *mut Reset<Ipv6Words> = packet::pointer(ctx, ETHERNET)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *out = Reset { ip: header, tcp: answer } };
    Ok(())
}

/// The layer-4 checksum of a UDP datagram is where an ICMP message has an unused word: a device that finishes a partial
/// checksum writes there. Over all of an ICMP message whose own checksum is right it computes 0 or its other form,
/// which changes no sum: nothing needs to be done about it.
#[inline(always)]
fn unreachable_v4<C: PacketContext>(ctx: &C, udp_checksum: u16) -> Result<(), Reason> {
    let request: Ipv4Words = packet::read(ctx, ETHERNET)?;
    let [src, dst, length, _]: UdpWords = packet::read(ctx, ETHERNET + IPV4)?;
    let quoted = [src, dst, length, udp_checksum];
    ctx.resize(ETHERNET + IPV4 + ICMP + IPV4 + QUOTED)?;
    let header = answer_v4(&request, PROTOCOL_ICMP, ICMP + IPV4 + QUOTED);
    let type_code = ICMP_TYPE_CODE.to_be();
    let checksum = !checksum::fold(u64::from(type_code) + sum(&request) + sum(&quoted));
    let out: *mut Unreachable<Ipv4Words> = packet::pointer(ctx, ETHERNET)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *out = Unreachable { ip: header, icmp: [type_code, checksum, 0, 0], quoted_ip: request, quoted } };
    Ok(())
}

/// As [`unreachable_v4`], but an `ICMPv6` checksum covers a pseudo header that the device does not: where it finishes
/// the checksum, the unused word starts as the pseudo header's sum, and what the device writes there is the checksum,
/// in another place than usual but right for the sum of the whole.
#[inline(always)]
fn unreachable_v6<C: PacketContext>(ctx: &C, udp_checksum: u16, partial: bool) -> Result<(), Reason> {
    let request: Ipv6Words = packet::read(ctx, ETHERNET)?;
    let [src, dst, length, _]: UdpWords = packet::read(ctx, ETHERNET + IPV6)?;
    let quoted = [src, dst, length, udp_checksum];
    ctx.resize(ETHERNET + IPV6 + ICMP + IPV6 + QUOTED)?;
    let header = answer_v6(&request, PROTOCOL_ICMPV6, ICMP + IPV6 + QUOTED);
    let type_code = ICMPV6_TYPE_CODE.to_be();
    let pseudo = pseudo_v6(&header, PROTOCOL_ICMPV6, ICMP + IPV6 + QUOTED);
    let (checksum, unused) = if partial {
        (0, checksum::fold(pseudo))
    } else {
        (!checksum::fold(pseudo + u64::from(type_code) + sum(&request) + sum(&quoted)), 0)
    };
    let out: *mut Unreachable<Ipv6Words> = packet::pointer(ctx, ETHERNET)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *out = Unreachable { ip: header, icmp: [type_code, checksum, 0, unused], quoted_ip: request, quoted } };
    Ok(())
}

const _: () = assert!(UDP == QUOTED, "the quoted part of a datagram is its header");
