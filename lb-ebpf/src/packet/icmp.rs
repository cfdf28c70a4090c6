//! ICMP and `ICMPv6` errors: an IP header, the error's own, and the start of the packet that it is about, which it quotes.

use lb_common::abi::{Protocol, Reason, Tuple};

use super::{
    IPV4, IPV4_FRAGMENT, IPV6, Ipv4Header, Ipv6Header, Packet, ensure, pointer, read, skip_extension_headers,
    transport_length,
};
use crate::{
    family::{Family, octets},
    hook::PacketContext,
    maps::Work,
};

/// Length of the header of an error (RFC 792, RFC 4443 §2.1).
pub const ICMP: usize = 8;
/// Where its checksum is.
pub const ICMP_CHECKSUM: usize = 2;
/// Bytes of a transport header that are quoted at least: the ports (RFC 792 asks for 8).
const PORTS: usize = 4;

/// Fragment offset of an IPv4 header.
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;

/// An IP header, and where the packet goes on behind it.
pub struct Header<A> {
    src: A,
    dst: A,
    /// What follows the header and its options or extension headers.
    protocol: u8,
    ttl: u8,
    /// More fragments bit and fragment offset of IPv4; 0 in IPv6, where the fragment header is what follows.
    fragment: u16,
    /// Offset of what follows.
    next: usize,
    /// Offset of the packet's end, as the header says it.
    end: usize,
}

/// Reads the IPv4 header at `l3`.
#[inline(always)]
pub fn ipv4<C: PacketContext>(ctx: &C, l3: usize) -> Result<Header<[u8; 4]>, Reason> {
    ensure(ctx, l3 + IPV4)?;
    let header: *mut Ipv4Header = pointer(ctx, l3)?;
    // SAFETY: `pointer` checked the bounds; see `read` for alignment.
    let (version_ihl, total_length, fragment, ttl_protocol, src, dst) = unsafe {
        (
            (*header).version_ihl,
            usize::from(u16::from_be((*header).total_length)),
            u16::from_be((*header).fragment) & IPV4_FRAGMENT,
            (*header).ttl_protocol,
            (*header).src.to_ne_bytes(),
            (*header).dst.to_ne_bytes(),
        )
    };
    let length = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || length < IPV4 {
        return Err(Reason::Malformed);
    }
    let [ttl, protocol] = ttl_protocol.to_ne_bytes();
    Ok(Header { src, dst, protocol, ttl, fragment, next: l3 + length, end: l3 + total_length })
}

/// Reads the IPv6 header at `l3`, and the extension headers that follow it.
#[inline(always)]
pub fn ipv6<C: PacketContext>(ctx: &C, l3: usize) -> Result<Header<[u8; 16]>, Reason> {
    ensure(ctx, l3 + IPV6)?;
    let header: *mut Ipv6Header = pointer(ctx, l3)?;
    // SAFETY: `pointer` checked the bounds; see `read` for alignment.
    let (version, payload_length, next_header, ttl, src, dst) = unsafe {
        (
            u32::from_be((*header).version_class_flow) >> 28,
            usize::from(u16::from_be((*header).payload_length)),
            (*header).next_header,
            (*header).hop_limit,
            octets((*header).src),
            octets((*header).dst),
        )
    };
    if version != 6 {
        return Err(Reason::Malformed);
    }
    let (protocol, next) = skip_extension_headers(ctx, next_header, l3 + IPV6)?;
    Ok(Header { src, dst, protocol, ttl, fragment: 0, next, end: l3 + IPV6 + payload_length })
}

/// Reads the headers of an error, the IP header at `l3`, into `work`. False for any other packet.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "offsets")]
pub fn parse<C: PacketContext, F: Family>(ctx: &C, l3: usize, work: &mut Work<F::Address>) -> Result<bool, Reason> {
    let header = F::header(ctx, l3)?;
    if header.protocol != F::ICMP || header.fragment != 0 {
        return Ok(false);
    }
    ensure(ctx, header.next + ICMP)?;
    if !F::is_icmp_error(read(ctx, header.next)?) {
        return Ok(false);
    }
    if header.end > ctx.length() {
        return Err(Reason::Malformed);
    }
    let tuple = Tuple::new(header.src, 0, header.dst, 0, F::ICMP);
    work.packet = Packet { tuple, l3: l3 as u16, l4: header.next as u16, tcp_flags: 0, ttl: header.ttl };
    work.end = header.end as u32;
    Ok(true)
}

/// Reads what the error of `work` quotes. False where that is no TCP or UDP packet, or has no ports.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "offsets of headers")]
pub fn parse_quoted<C: PacketContext, F: Family>(ctx: &C, work: &mut Work<F::Address>) -> Result<bool, Reason> {
    let l3 = work.packet.l4() + ICMP;
    let header = F::header(ctx, l3)?;
    let Some(protocol) = Protocol::from_number(header.protocol) else { return Ok(false) };
    if header.fragment & IPV4_FRAGMENT_OFFSET != 0 {
        return Ok(false);
    }
    let end = work.end as usize;
    if end < header.next + PORTS {
        return Err(Reason::Malformed);
    }
    // With the checksum, where that is quoted.
    ensure(ctx, end.min(header.next + transport_length(protocol)))?;
    let [src_port, dst_port]: [u16; 2] = read(ctx, header.next)?;
    let tuple = Tuple::new(header.src, u16::from_be(src_port), header.dst, u16::from_be(dst_port), protocol as u8);
    work.quoted = Packet { tuple, l3: l3 as u16, l4: header.next as u16, tcp_flags: 0, ttl: header.ttl };
    Ok(true)
}
