//! Says no: the packet is turned into the answer that its sender understands, and sent back by where it came from.
//!
//! TCP gets a RST (RFC 9293 §3.5.2), UDP an ICMP port unreachable (RFC 792) or its `ICMPv6` counterpart (RFC 4443
//! §3.1), from the address that was asked. So does the sender of what is too big for the way out, with the size that fits:
//! "fragmentation needed" (RFC 1191 §4) where fragmenting is forbidden, or "packet too big" (RFC 4443 §3.2); and of what has
//! been on its way for too long, which traceroute sends on purpose: "time exceeded" (RFC 792, RFC 4443 §3.3). An ICMP
//! error carries the IP header, with all options and extension headers, and the transport header without options, which
//! is what the sender needs to find the socket.
//!
//! The answer stays in the request's VLAN: tags in the data are left where they are, and one outside goes with the
//! packet. Its own IP header is a plain one.

use core::ptr;

use aya_ebpf::helpers::bpf_csum_diff;
use lb_common::{
    abi::{Address, Protocol, Reason},
    checksum,
};

use crate::{
    family::Family,
    hook::{PacketContext, Verdict},
    maps::{Headers, Work},
    packet::{self, LONGEST_IPV6, Mac, Packet, TCP, icmp::ICMP, tcp},
};

mod header;

use header::{Header, Ipv4Words, Ipv6Words, pseudo, sum};

type TcpWords = [u16; TCP / 2];
type IcmpWords = [u16; ICMP / 2];

/// Answers the packet of `work`, which has the reason.
#[inline(always)]
pub fn answer<C: PacketContext, F: Family>(ctx: &C, work: &mut Work<F::Address>) -> Result<Verdict, Reason> {
    if F::V6 {
        turn::<C, F::Address, Ipv6Words>(ctx, work)?;
    } else {
        turn::<C, F::Address, Ipv4Words>(ctx, work)?;
    }
    if C::LINK != 0 {
        let [dst, src]: [Mac; 2] = packet::read(ctx, 0)?;
        packet::set_macs(ctx, src, dst)?;
    }
    ctx.redirect(ctx.interface())
}

/// Turns a packet into its answer.
#[inline(always)]
fn turn<C: PacketContext, A: Address, I: Header>(ctx: &C, work: &mut Work<A>) -> Result<(), Reason> {
    let Work { packet, headers, reason, route, .. } = work;
    let (type_code, mtu) = if *reason == Reason::TooBig as u32 {
        (I::TOO_BIG, route.mtu())
    } else if *reason == Reason::TtlExpired as u32 {
        (I::TIME_EXCEEDED, 0)
    } else {
        match packet.protocol() {
            Protocol::Tcp => return reset::<C, A, I>(ctx, packet),
            Protocol::Udp => (I::PORT_UNREACHABLE, 0),
        }
    };
    error::<C, A, I>(ctx, packet, headers, type_code, mtu)
}

/// A RST, as it lies in the packet. (The fields of a tuple may lie in any order.)
#[repr(C)]
struct Reset<I> {
    ip: I,
    tcp: TcpWords,
}

/// An ICMP or `ICMPv6` error, likewise, in front of what it quotes.
#[repr(C)]
struct Error<I> {
    ip: I,
    icmp: IcmpWords,
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
        if l3 == C::LINK {
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

/// Turns a packet into the ICMP error about it: its data go, and the error is put in front of the rest. `mtu` is 0 in errors
/// of other types than `TOO_BIG`.
///
/// Of TCP, all of the header but its options is quoted: a device that still has to finish its checksum finds the field.
#[inline(always)]
fn error<C: PacketContext, A: Address, I: Header>(
    ctx: &C,
    packet: &Packet<A>,
    headers: &mut Headers,
    type_code: u16,
    mtu: u16,
) -> Result<(), Reason> {
    let (l3, l4, checksum) = (packet.l3(), packet.l4(), packet.checksum());
    let request: I = packet::read(ctx, l3)?;
    if type_code == I::TOO_BIG && request.may_be_fragmented() {
        return Err(Reason::Unanswerable);
    }
    let original: u16 = packet::read(ctx, checksum.offset)?;
    let partial = ctx.is_checksum_partial(checksum)?;
    let field: *mut u16 = packet::pointer(ctx, checksum.offset)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *field = original };
    let end = l4 + packet::transport_length(packet.protocol());
    // A device that finishes a checksum finishes the one that is quoted: it sums all from the transport header on, of
    // which just that header is left, and puts the complement into the field. Whatever else is in the header, it then sums
    // to the complement of what was in the field.
    let quoted = sum_between(ctx, headers, l3, l4)?
        + if partial { u64::from(!original) } else { sum_between(ctx, headers, l4, end)? };
    ctx.resize(end)?;
    ctx.insert_before_ip(l3, I::LENGTH + ICMP)?;
    let length = ICMP + end.saturating_sub(l3);
    let ip = request.answer(I::ICMP_PROTOCOL, length);
    let mut icmp = [type_code.to_be(), 0, 0, mtu.to_be()];
    icmp[1] = !checksum::fold(ip.icmp_pseudo(length) + sum(&icmp) + quoted);
    let out: *mut Error<I> = packet::pointer(ctx, l3)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *out = Error { ip, icmp } };
    Ok(())
}

/// The sum of a part of a packet that is a multiple of 4 bytes, as are an IP header with all that follows it up to the transport
/// header in both families (RFC 791 §3.1, RFC 8200 §4), and that. By a helper: the verifier would walk every round of a loop
/// for every length.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length of headers; a sum of 32 bits")]
fn sum_between<C: PacketContext>(ctx: &C, headers: &mut Headers, start: usize, end: usize) -> Result<u64, Reason> {
    const { assert!(LONGEST_IPV6 <= size_of::<Headers>(), "what is summed fits") };
    // For the verifier: true of what has headers.
    let length = end.saturating_sub(start).clamp(size_of::<u32>(), size_of::<Headers>());
    ctx.copy(start, headers, length)?;
    // SAFETY: `headers` has as many bytes. Kernels differ in whether the sum is folded.
    let sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, headers.as_mut_ptr(), length as u32, 0) };
    Ok(u64::from(sum as u32))
}
