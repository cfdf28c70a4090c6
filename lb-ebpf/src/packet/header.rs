//! IP headers as values, of packets that are neither TCP nor UDP, or have no ports of their own.

use lb_common::abi::{Address, Reason, Tuple};

use super::{
    FRAGMENT_HEADER, IPV4, IPV4_FRAGMENT, IPV4_FRAGMENT_OFFSET, IPV6, Ipv4Header, Ipv6Header, Packet, ensure, pointer,
    read, skip_extension_headers,
};
use crate::{
    family::{Family, octets},
    hook::PacketContext,
    maps::Work,
};

/// An IP header, and where the packet goes on behind it.
pub struct Header<A> {
    pub src: A,
    pub dst: A,
    /// What follows the header and its options or extension headers.
    pub protocol: u8,
    pub ttl: u8,
    /// More fragments bit and fragment offset, as IPv4 has them.
    pub fragment: u16,
    /// What the fragments of a packet have in common. 0 in IPv6 where there is no fragment header.
    pub id: u32,
    /// Offset of what follows.
    pub next: usize,
    /// Offset of the packet's end, as the header says it.
    pub end: usize,
}

/// Reads the IPv4 header at `l3`.
#[inline(always)]
pub fn ipv4<C: PacketContext>(ctx: &C, l3: usize) -> Result<Header<[u8; 4]>, Reason> {
    ensure(ctx, l3 + IPV4)?;
    let header: *mut Ipv4Header = pointer(ctx, l3)?;
    // SAFETY: `pointer` checked the bounds; see `read` for alignment.
    let (version_ihl, total_length, id, fragment, ttl_protocol, src, dst) = unsafe {
        (
            (*header).version_ihl,
            usize::from(u16::from_be((*header).total_length)),
            u32::from((*header).id),
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
    Ok(Header { src, dst, protocol, ttl, fragment, id, next: l3 + length, end: l3 + total_length })
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
    let (mut protocol, mut next) = skip_extension_headers(ctx, next_header, l3 + IPV6)?;
    let (mut fragment, mut id) = (0, 0);
    if protocol == FRAGMENT_HEADER {
        let header = ipv6_fragment(ctx, next)?;
        (fragment, id, protocol) = (header.fragment, header.id, header.protocol);
        next += FRAGMENT;
    }
    Ok(Header { src, dst, protocol, ttl, fragment, id, next, end: l3 + IPV6 + payload_length })
}

/// Length of IPv6's fragment header.
pub const FRAGMENT: usize = 8;

/// What IPv6's fragment header says (RFC 8200 §4.5).
pub struct Ipv6Fragment {
    /// What follows it.
    pub protocol: u8,
    /// See [`Header::fragment`].
    pub fragment: u16,
    /// See [`Header::id`].
    pub id: u32,
}

/// Reads the fragment header at `at`.
#[inline(always)]
pub fn ipv6_fragment<C: PacketContext>(ctx: &C, at: usize) -> Result<Ipv6Fragment, Reason> {
    ensure(ctx, at + FRAGMENT)?;
    let [protocol, _]: [u8; 2] = read(ctx, at)?;
    let offset_more = u16::from_be(read(ctx, at + 2)?);
    // The offset is in the upper 13 bits, "more fragments" in the lowest.
    let fragment = offset_more >> 3 | (offset_more & 1) << 13;
    Ok(Ipv6Fragment { protocol, fragment, id: read(ctx, at + 4)? })
}

/// What the fragments of one packet are known by: in place of ports their identification, and a protocol of their own.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "two halves")]
pub fn fragments<A: Address>(src: A, dst: A, id: u32, protocol: u8) -> Tuple<A> {
    Tuple::new(src, (id >> 16) as u16, dst, id as u16, protocol)
}

/// Reads a fragment that is not the first, whose IP header is at `l3`, into `work`, and says what its packet is known by.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "offsets of headers")]
pub fn parse_fragment<C: PacketContext, F: Family>(
    ctx: &C,
    l3: usize,
    work: &mut Work<F::Address>,
) -> Result<Tuple<F::Address>, Reason> {
    let Header { src, dst, protocol, ttl, fragment, id, next, .. } = F::header(ctx, l3)?;
    if fragment & IPV4_FRAGMENT_OFFSET == 0 {
        return Err(Reason::Fragment);
    }
    let tuple = Tuple::new(src, 0, dst, 0, protocol);
    work.packet = Packet { tuple, l3: l3 as u16, l4: next as u16, tcp_flags: 0, ttl, first_fragment: 0 };
    Ok(fragments(src, dst, id, protocol))
}
