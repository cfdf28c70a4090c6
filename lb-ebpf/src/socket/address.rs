//! The address of a socket call, in its three forms.

use aya_ebpf::{bindings::bpf_sock, programs::SockAddrContext};

use crate::family::{Family, Ipv4, Ipv6, MAPPED_PREFIX, octets, words};

/// A form of address that a socket call can have.
pub trait SocketAddress {
    /// The family that it names.
    type Family: Family;

    /// Reads the call's address.
    fn address(ctx: &SockAddrContext) -> <Self::Family as Family>::Address;

    /// Replaces the call's address.
    fn set_address(ctx: &SockAddrContext, address: <Self::Family as Family>::Address);

    /// The address that the socket is bound to; unspecified where it is not.
    fn bound_address(ctx: &SockAddrContext) -> <Self::Family as Family>::Address;

    /// The address that a datagram leaves from, bound or named with it; unspecified where there is none. For programs of
    /// `sendmsg` only: the verifier lets no others read it.
    fn message_source(ctx: &SockAddrContext) -> <Self::Family as Family>::Address;

    /// The inverse of [`Family::wide`].
    fn narrow(wide: [u8; 16]) -> <Self::Family as Family>::Address;
}

/// `AF_INET`.
pub struct Inet4;
/// `AF_INET6`.
pub struct Inet6;
/// An IPv4 address in an `AF_INET6` call (RFC 4291 §2.5.5.2).
pub struct Mapped;

// The verifier wants every access to the context as a plain load or store of one field at a constant offset; volatile
// accesses keep LLVM from merging or moving them.

impl SocketAddress for Inet4 {
    type Family = Ipv4;

    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> [u8; 4] {
        // SAFETY: the context is the one that the kernel passed in. So for all of this file.
        unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip4) }.to_ne_bytes()
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: [u8; 4]) {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, u32::from_ne_bytes(address)) }
    }

    #[inline(always)]
    fn bound_address(ctx: &SockAddrContext) -> [u8; 4] {
        // SAFETY: as above; the call's socket is never null.
        unsafe { core::ptr::read_volatile(&raw const (*socket(ctx)).src_ip4) }.to_ne_bytes()
    }

    #[inline(always)]
    fn message_source(ctx: &SockAddrContext) -> [u8; 4] {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).msg_src_ip4) }.to_ne_bytes()
    }

    #[inline(always)]
    fn narrow(wide: [u8; 16]) -> [u8; 4] {
        let [.., a, b, c, d] = wide;
        [a, b, c, d]
    }
}

impl SocketAddress for Inet6 {
    type Family = Ipv6;

    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> [u8; 16] {
        octets([word(ctx, 0), word(ctx, 1), word(ctx, 2), word(ctx, 3)])
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: [u8; 16]) {
        let [a, b, c, d] = words(address);
        set_word(ctx, 0, a);
        set_word(ctx, 1, b);
        set_word(ctx, 2, c);
        set_word(ctx, 3, d);
    }

    #[inline(always)]
    fn bound_address(ctx: &SockAddrContext) -> [u8; 16] {
        // SAFETY: as in `Inet4`; the index is a constant below 4.
        let word =
            |index| unsafe { core::ptr::read_volatile((&raw const (*socket(ctx)).src_ip6).cast::<u32>().add(index)) };
        octets([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    fn message_source(ctx: &SockAddrContext) -> [u8; 16] {
        // SAFETY: as above; the index is a constant below 4.
        let word = |index| unsafe {
            core::ptr::read_volatile((&raw const (*ctx.sock_addr).msg_src_ip6).cast::<u32>().add(index))
        };
        octets([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    fn narrow(wide: [u8; 16]) -> [u8; 16] {
        wide
    }
}

impl Mapped {
    /// Whether the call's address is an IPv4-mapped one.
    #[inline(always)]
    pub fn applies(ctx: &SockAddrContext) -> bool {
        word(ctx, 0) == 0 && word(ctx, 1) == 0 && word(ctx, 2) == MAPPED_PREFIX
    }
}

impl SocketAddress for Mapped {
    type Family = Ipv4;

    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> [u8; 4] {
        word(ctx, 3).to_ne_bytes()
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: [u8; 4]) {
        // The prefix stays.
        set_word(ctx, 3, u32::from_ne_bytes(address));
    }

    #[inline(always)]
    fn bound_address(ctx: &SockAddrContext) -> [u8; 4] {
        // `inet6_bind` notes the IPv4 address of an IPv4-mapped one where IPv4 sockets have it.
        Inet4::bound_address(ctx)
    }

    #[inline(always)]
    fn message_source(ctx: &SockAddrContext) -> [u8; 4] {
        Inet4::message_source(ctx)
    }

    #[inline(always)]
    fn narrow(wide: [u8; 16]) -> [u8; 4] {
        Inet4::narrow(wide)
    }
}

/// The socket of the call.
#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: as above.
    unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).__bindgen_anon_1.sk) }
}

#[inline(always)]
fn word(ctx: &SockAddrContext, index: usize) -> u32 {
    // SAFETY: as above; `index` is a constant below 4.
    unsafe { core::ptr::read_volatile((&raw const (*ctx.sock_addr).user_ip6).cast::<u32>().add(index)) }
}

#[inline(always)]
fn set_word(ctx: &SockAddrContext, index: usize, word: u32) {
    // SAFETY: as above; `index` is a constant below 4.
    unsafe { core::ptr::write_volatile((&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>().add(index), word) }
}

/// The call's port.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a 16-bit port in a 32-bit field")]
pub fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: as above.
    u16::from_be(unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_port) } as u16)
}

/// Replaces the call's port.
#[inline(always)]
pub fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(port.to_be())) }
}
