//! From a packet's bytes to plain values, once; and back. No other module touches packet memory.
//!
//! Every read goes through [`pointer`], which checks bounds where the verifier sees it. Nothing keeps a pointer across
//! a call that may move the packet.

pub mod header;
pub mod icmp;

use lb_common::{
    abi::{Address, Protocol, Reason, Tuple},
    checksum::Diff,
};

use crate::{
    family::{Family, octets, words},
    hook::{L4Checksum, PacketContext},
};

/// Length of an Ethernet header (IEEE 802.3 §3.1).
pub const ETHERNET: usize = 14;
/// Length of an IPv4 header without options (RFC 791 §3.1).
pub const IPV4: usize = 20;
/// Length of the IPv6 header (RFC 8200 §3).
pub const IPV6: usize = 40;
/// Length of a TCP header without options (RFC 9293 §3.1).
pub const TCP: usize = 20;
/// Length of a UDP header (RFC 768).
pub const UDP: usize = 8;

/// Ethertypes (IEEE 802 numbers), as read in host order.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
/// VLAN tags in the data that are followed: a customer's in a provider's (IEEE 802.1ad).
const MAX_VLAN_TAGS: usize = 2;
/// IPv6 extension headers that are followed. RFC 8200 §4.1 recommends an order in which each occurs once, destination
/// options twice; more than this many before a transport header are not seen in practice.
const MAX_EXTENSION_HEADERS: usize = 4;
/// An IPv6 header with all extension headers that are followed. With an Ethernet header, 512 bytes.
pub const LONGEST_IPV6: usize = 498;
/// An Ethernet header with all tags that are followed.
const LONGEST_LINK: usize = ETHERNET + 4 * MAX_VLAN_TAGS;
/// Covers every offset of a header. The verifier, which knows nothing of a value that comes out of a map, takes a masked
/// one for bounded; elsewhere the compiler removes the mask.
const OFFSET_MASK: u16 = 1023;

/// More fragments bit and fragment offset of an IPv4 header.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// The latter alone.
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;

/// IPv6's fragment header (RFC 8200 §4.5).
const FRAGMENT_HEADER: u8 = 44;

/// TCP flags (RFC 9293 §3.1).
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// RFC 791 §3.1. Addresses are words, so that they are read and written in one access each.
#[repr(C)]
struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    total_length: u16,
    id: u16,
    fragment: u16,
    ttl_protocol: u16,
    checksum: u16,
    src: u32,
    dst: u32,
}

/// RFC 8200 §3.
#[repr(C)]
struct Ipv6Header {
    version_class_flow: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    src: [u32; 4],
    dst: [u32; 4],
}

/// A TCP or UDP packet, as far as it matters here.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Packet<A> {
    /// Its 5-tuple.
    pub tuple: Tuple<A>,
    /// See [`Self::l3`].
    l3: u16,
    /// See [`Self::l4`].
    l4: u16,
    /// TCP flags; 0 for UDP.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// 1 for the first fragment of a packet, which others follow; else 0.
    pub first_fragment: u8,
}

/// What the link layer says.
pub enum Link {
    /// An IPv4 packet whose header starts at this offset.
    Ipv4(usize),
    /// An IPv6 packet, likewise.
    Ipv6(usize),
    /// Anything else.
    Other,
}

/// A pointer to a `T` in the packet.
///
/// # Safety of what it returns
/// The pointer is valid for reads and writes of a `T` until the next call that takes the packet's context mutably in
/// the kernel's eyes: `pull`, `resize`, or any checksum helper.
#[inline(always)]
pub fn pointer<C: PacketContext, T>(ctx: &C, offset: usize) -> Result<*mut T, Reason> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return Err(Reason::Malformed);
    }
    Ok(start as *mut T)
}

/// Copies a `T` out of the packet. `T` has only integers in it.
#[inline(always)]
pub fn read<C: PacketContext, T: Copy>(ctx: &C, offset: usize) -> Result<T, Reason> {
    // SAFETY: `pointer` checked the bounds. Headers are aligned to 2 bytes at least, and every target that the kernel
    // runs these programs on reads integers at any alignment (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`).
    Ok(unsafe { *pointer(ctx, offset)? })
}

/// Stores words one by one. Copied as a whole they would become a call of `memmove`, a loop over bytes.
///
/// # Safety
/// `to` is valid for writes.
#[inline(always)]
unsafe fn write<T: Copy, const N: usize>(to: *mut [T; N], words: [T; N]) {
    for (index, word) in words.into_iter().enumerate() {
        // SAFETY: `index` is below `N`.
        unsafe { core::ptr::write_volatile(to.cast::<T>().add(index), word) };
    }
}

/// A MAC address as three words, at the alignment that it has in a packet.
pub type Mac = [u16; 3];

/// Replaces both MAC addresses.
#[inline(always)]
pub fn set_macs<C: PacketContext>(ctx: &C, dst: Mac, src: Mac) -> Result<(), Reason> {
    let macs: *mut [Mac; 2] = pointer(ctx, 0)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe {
        write(macs.cast(), dst);
        write(macs.cast::<Mac>().add(1), src);
    }
    Ok(())
}

/// Puts an Ethernet header in front of a packet that came without one: a device that is sent such a packet wants it, or the
/// kernel takes it off again (`__bpf_redirect` in `net/core/filter.c`).
#[inline(always)]
pub fn frame<C: PacketContext, F: Family>(ctx: &C) -> Result<(), Reason> {
    if C::LINK != 0 {
        return Ok(());
    }
    ctx.insert_ethernet()?;
    let ethertype: *mut u16 = pointer(ctx, ETHERNET - size_of::<u16>())?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { *ethertype = F::ETHERTYPE.to_be() };
    Ok(())
}

/// Brings the link layer's header, tags included, to the start of a packet that has had `room` bytes put in front of it.
/// What it copies beyond a header with fewer tags is for the caller to write over.
#[inline(always)]
pub fn bring_link_forward<C: PacketContext>(ctx: &C, room: usize) -> Result<(), Reason> {
    let header: [u16; LONGEST_LINK / 2] = read(ctx, room)?;
    let start = pointer(ctx, 0)?;
    // SAFETY: `pointer` checked the bounds.
    unsafe { write(start, header) };
    Ok(())
}

/// Reads the link layer.
#[inline(always)]
pub fn link<C: PacketContext>(ctx: &C) -> Result<Link, Reason> {
    let mut l3 = C::LINK;
    // Most packets lie in one piece, their headers at least. Where not even this much does, it is fetched.
    if ctx.data() + C::LINK + IPV4 + UDP > ctx.data_end() {
        if ctx.length() < C::LINK + IPV4 + UDP {
            return Ok(Link::Other);
        }
        ctx.pull(C::LINK + IPV4 + UDP)?;
    }
    if C::LINK == 0 {
        // The version of either header is where that of the other is (RFC 791 §3.1, RFC 8200 §3).
        return Ok(match read::<_, u8>(ctx, l3)? >> 4 {
            4 => Link::Ipv4(l3),
            6 => Link::Ipv6(l3),
            _ => Link::Other,
        });
    }
    for _ in 0..=MAX_VLAN_TAGS {
        match u16::from_be(read(ctx, l3 - 2)?) {
            ETHERTYPE_IPV4 => return Ok(Link::Ipv4(l3)),
            ETHERTYPE_IPV6 => return Ok(Link::Ipv6(l3)),
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => l3 += 4,
            _ => return Ok(Link::Other),
        }
    }
    Ok(Link::Other)
}

/// Makes `length` bytes directly accessible, where the packet has that many.
#[inline(always)]
fn ensure<C: PacketContext>(ctx: &C, length: usize) -> Result<(), Reason> {
    if ctx.data() + length <= ctx.data_end() {
        return Ok(());
    }
    if ctx.length() < length {
        return Err(Reason::Malformed);
    }
    ctx.pull(length)
}

impl Packet<[u8; 4]> {
    /// Parses an IPv4 packet. `None` for what is neither TCP nor UDP; [`Reason::Fragment`] for what has no ports.
    #[inline(always)]
    pub fn parse_ipv4<C: PacketContext>(ctx: &C, l3: usize) -> Result<Option<Self>, Reason> {
        let header: *mut Ipv4Header = pointer(ctx, l3)?;
        // SAFETY: `pointer` checked the bounds; see `read` for alignment. So for all of this function.
        let (version_ihl, fragment, ttl_protocol) =
            unsafe { ((*header).version_ihl, (*header).fragment, (*header).ttl_protocol) };
        let [ttl, protocol] = ttl_protocol.to_ne_bytes();
        let Some(protocol) = Protocol::from_number(protocol) else { return Ok(None) };
        let fragment = u16::from_be(fragment) & IPV4_FRAGMENT;
        if fragment & IPV4_FRAGMENT_OFFSET != 0 {
            return Err(Reason::Fragment);
        }
        let header_length = usize::from(version_ihl & 0x0f) * 4;
        if version_ihl >> 4 != 4 || header_length < IPV4 {
            return Err(Reason::Malformed);
        }
        // SAFETY: as above.
        let (src, dst, total_length) =
            unsafe { ((*header).src.to_ne_bytes(), (*header).dst.to_ne_bytes(), u16::from_be((*header).total_length)) };
        let l4_length = transport_length(protocol);
        // A total length of 0 marks a segmentation offload packet above 64 KiB (kernel commit b1a78b9b9886,
        // "net: add support for ipv4 big tcp").
        if total_length != 0
            && (usize::from(total_length) < header_length + l4_length || l3 + usize::from(total_length) > ctx.length())
        {
            return Err(Reason::Malformed);
        }
        Self::parse_transport(ctx, src, dst, protocol, [l3, l3 + header_length], ttl, fragment).map(Some)
    }

    /// Replaces both addresses; with `hop`, takes one off the TTL.
    #[inline(always)]
    pub fn rewrite_ipv4<C: PacketContext>(&self, ctx: &C, to: &Tuple<[u8; 4]>, hop: bool) -> Result<(), Reason> {
        let header: *mut Ipv4Header = pointer(ctx, self.l3())?;
        let mut diff = Diff::NONE.ipv4(self.tuple.src, to.src).ipv4(self.tuple.dst, to.dst);
        // SAFETY: as in `parse_ipv4`.
        unsafe {
            (*header).src = u32::from_ne_bytes(to.src);
            (*header).dst = u32::from_ne_bytes(to.dst);
            if hop {
                let old = (*header).ttl_protocol;
                let [ttl, protocol] = old.to_ne_bytes();
                let new = u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]);
                diff = diff.word16(old, new);
                (*header).ttl_protocol = new;
            }
            (*header).checksum = diff.apply((*header).checksum);
        }
        Ok(())
    }
}

impl Packet<[u8; 16]> {
    /// Parses an IPv6 packet. `None` for what is neither TCP nor UDP; [`Reason::Fragment`] for what has no ports.
    #[inline(always)]
    pub fn parse_ipv6<C: PacketContext>(ctx: &C, l3: usize) -> Result<Option<Self>, Reason> {
        ensure(ctx, l3 + IPV6)?;
        let header: *mut Ipv6Header = pointer(ctx, l3)?;
        // SAFETY: `pointer` checked the bounds; see `read` for alignment. So for all of this function.
        let (version, hop_limit, payload_length) = unsafe {
            (
                u32::from_be((*header).version_class_flow) >> 28,
                (*header).hop_limit,
                usize::from(u16::from_be((*header).payload_length)),
            )
        };
        // SAFETY: as above.
        let (src, dst, next) = unsafe { (octets((*header).src), octets((*header).dst), (*header).next_header) };
        // A payload length of 0 marks a jumbogram (RFC 2675) or a segmentation offload packet above 64 KiB.
        if version != 6 || (payload_length != 0 && l3 + IPV6 + payload_length > ctx.length()) {
            return Err(Reason::Malformed);
        }
        let (mut next, mut l4) = skip_extension_headers(ctx, next, l3 + IPV6)?;
        let mut fragment = 0;
        if next == FRAGMENT_HEADER {
            // Atomic fragments (RFC 6946) are whole packets.
            let header = header::ipv6_fragment(ctx, l4)?;
            if header.fragment & IPV4_FRAGMENT_OFFSET != 0 {
                return Err(Reason::Fragment);
            }
            (next, fragment) = (header.protocol, header.fragment);
            l4 += header::FRAGMENT;
        }
        let Some(protocol) = Protocol::from_number(next) else { return Ok(None) };
        if payload_length != 0 && l3 + IPV6 + payload_length < l4 + transport_length(protocol) {
            return Err(Reason::Malformed);
        }
        Self::parse_transport(ctx, src, dst, protocol, [l3, l4], hop_limit, fragment).map(Some)
    }

    /// Replaces both addresses; with `hop`, takes one off the hop limit.
    #[inline(always)]
    pub fn rewrite_ipv6<C: PacketContext>(&self, ctx: &C, to: &Tuple<[u8; 16]>, hop: bool) -> Result<(), Reason> {
        let header: *mut Ipv6Header = pointer(ctx, self.l3())?;
        // SAFETY: as in `parse_ipv6`.
        unsafe {
            write(&raw mut (*header).src, words(to.src));
            write(&raw mut (*header).dst, words(to.dst));
            if hop {
                let old = (*header).hop_limit;
                (*header).hop_limit = old.wrapping_sub(1);
                let word = |hop_limit| u16::from_ne_bytes([0, hop_limit]);
                ctx.note_change(Diff::NONE.word16(word(old), word(old.wrapping_sub(1))));
            }
        }
        Ok(())
    }
}

/// What follows the IPv6 extension headers that begin with one of type `next` at `at`, and where.
#[inline(always)]
fn skip_extension_headers<C: PacketContext>(ctx: &C, mut next: u8, mut at: usize) -> Result<(u8, usize), Reason> {
    for _ in 0..=MAX_EXTENSION_HEADERS {
        match next {
            // Hop-by-hop options, routing, destination options (RFC 8200 §4.3, §4.4, §4.6): a length in units of 8 bytes
            // without the first.
            0 | 43 | 60 => {
                ensure(ctx, at + 8)?;
                let [following, length]: [u8; 2] = read(ctx, at)?;
                next = following;
                at += (usize::from(length) + 1) * 8;
                if at > C::LINK + LONGEST_IPV6 {
                    return Err(Reason::ExtensionHeaders);
                }
            }
            _ => return Ok((next, at)),
        }
    }
    Err(Reason::ExtensionHeaders)
}

/// Length of the transport header that must be there: without a TCP header's options.
#[inline(always)]
pub const fn transport_length(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

impl<A: Address> Packet<A> {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "offsets of headers")]
    fn parse_transport<C: PacketContext>(
        ctx: &C,
        src: A,
        dst: A,
        protocol: Protocol,
        [l3, l4]: [usize; 2],
        ttl: u8,
        fragment: u16,
    ) -> Result<Self, Reason> {
        ensure(ctx, l4 + transport_length(protocol))?;
        let [src_port, dst_port]: [u16; 2] = read(ctx, l4)?;
        let tcp_flags = match protocol {
            Protocol::Tcp => read(ctx, l4 + 13)?,
            Protocol::Udp => 0,
        };
        let tuple = Tuple::new(src, u16::from_be(src_port), dst, u16::from_be(dst_port), protocol as u8);
        // Both are below `OFFSET_MASK`: see `link`, `parse_ipv4` and `parse_ipv6`.
        Ok(Self { tuple, l3: l3 as u16, l4: l4 as u16, tcp_flags, ttl, first_fragment: u8::from(fragment != 0) })
    }

    /// Offset of the IP header.
    #[inline(always)]
    pub fn l3(&self) -> usize {
        usize::from(self.l3 & OFFSET_MASK)
    }

    /// Offset of the transport header.
    #[inline(always)]
    pub fn l4(&self) -> usize {
        usize::from(self.l4 & OFFSET_MASK)
    }

    /// Offset of what takes these many bytes before the transport header. (Masked afterwards: of a difference that cannot be
    /// negative, LLVM would make a pointer and take the length off that, which the verifier does not allow.)
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "length of a header")]
    pub fn before_l4(&self, length: usize) -> usize {
        usize::from(self.l4.wrapping_sub(length as u16) & OFFSET_MASK)
    }

    /// Whether it is whole, and nothing but an Ethernet header and an IP header without options or extension headers is in
    /// front of the transport header.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        let ip = if size_of::<A>() == 16 { IPV6 } else { IPV4 };
        usize::from(self.l3) == ETHERNET && usize::from(self.l4) == ETHERNET + ip && !self.is_first_fragment()
    }

    /// Whether fragments follow that have no ports.
    #[inline(always)]
    pub fn is_first_fragment(&self) -> bool {
        self.first_fragment != 0
    }

    /// A packet that answers this one, of which nothing but the tuple matters.
    #[inline(always)]
    pub fn answer(&self) -> Self {
        Self { tuple: self.tuple.reversed(), tcp_flags: 0, ..*self }
    }

    /// The transport protocol.
    #[inline(always)]
    pub fn protocol(&self) -> Protocol {
        if self.tuple.protocol == Protocol::Tcp as u32 { Protocol::Tcp } else { Protocol::Udp }
    }

    /// Whether this packet asks for a new TCP connection.
    #[inline(always)]
    pub fn opens_connection(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// Whether it is a TCP segment that answers one which opens a connection: nobody's request.
    #[inline(always)]
    pub fn accepts_connection(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) == tcp::SYN | tcp::ACK
    }

    /// Length of the transport header with its options.
    #[inline(always)]
    pub fn transport_header_length<C: PacketContext>(&self, ctx: &C) -> Result<usize, Reason> {
        match self.protocol() {
            // The data offset, in units of 4 bytes (RFC 9293 §3.1).
            Protocol::Tcp => Ok(usize::from(read::<_, u8>(ctx, self.l4() + 12)? >> 4) * 4),
            Protocol::Udp => Ok(UDP),
        }
    }

    /// Where the transport checksum is.
    #[inline(always)]
    pub fn checksum(&self) -> L4Checksum {
        let protocol = self.protocol();
        let offset = match protocol {
            Protocol::Tcp => 16,
            Protocol::Udp => 6,
        };
        L4Checksum { offset: self.l4() + offset, protocol, v6: size_of::<A>() == 16 }
    }

    /// Replaces the ports and says what that means for the checksum.
    #[inline(always)]
    pub fn rewrite_ports<C: PacketContext>(&self, ctx: &C, to: &Tuple<A>) -> Result<Diff, Reason> {
        if self.tuple.src_port == to.src_port && self.tuple.dst_port == to.dst_port {
            return Ok(Diff::NONE);
        }
        let ports: *mut [u16; 2] = pointer(ctx, self.l4())?;
        let (src, dst) = (to.src_port.to_be(), to.dst_port.to_be());
        // SAFETY: `pointer` checked the bounds.
        unsafe { *ports = [src, dst] };
        Ok(Diff::NONE.word16(self.tuple.src_port.to_be(), src).word16(self.tuple.dst_port.to_be(), dst))
    }
}
