//! The cgroup socket hooks: the address is replaced in the socket call, and packets need nothing more.
//!
//! TCP is translated for every process of the cgroup. UDP is for processes in the node's own network namespace only:
//! a pod's datagrams are translated one by one at its interface, where an endpoint that leaves is noticed at once.

mod address;
mod datagram;
mod stream;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_netns_cookie, bpf_set_retval},
    programs::SockAddrContext,
};
use lb_common::abi::{Disposition, Protocol, Reason};

use self::address::{Inet4, Inet6, Mapped, SocketAddress};
use crate::{count, maps::NODE_NETNS_COOKIE};

/// What the kernel expects of a socket program: go on with the call.
const PROCEED: i32 = 1;
/// Or let it fail, with `EPERM` or what `bpf_set_retval` said.
const FAIL: i32 = 0;

const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

pub fn connect4(ctx: &SockAddrContext) -> i32 {
    conclude(connect::<Inet4>(ctx))
}

pub fn connect6(ctx: &SockAddrContext) -> i32 {
    conclude(if Mapped::applies(ctx) { connect::<Mapped>(ctx) } else { connect::<Inet6>(ctx) })
}

pub fn getpeername4(ctx: &SockAddrContext) -> i32 {
    stream::restore::<Inet4>(ctx);
    PROCEED
}

pub fn getpeername6(ctx: &SockAddrContext) -> i32 {
    let _: bool = if Mapped::applies(ctx) { stream::restore::<Mapped>(ctx) } else { stream::restore::<Inet6>(ctx) };
    PROCEED
}

pub fn sendmsg4(ctx: &SockAddrContext) -> i32 {
    conclude(send::<Inet4>(ctx))
}

pub fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    // An IPv4-mapped destination never gets here: `udpv6_sendmsg` hands it to `udp_sendmsg`, and so to `sendmsg4`.
    conclude(send::<Inet6>(ctx))
}

pub fn recvmsg4(ctx: &SockAddrContext) -> i32 {
    receive::<Inet4>(ctx);
    PROCEED
}

pub fn recvmsg6(ctx: &SockAddrContext) -> i32 {
    if Mapped::applies(ctx) {
        receive::<Mapped>(ctx);
    } else {
        receive::<Inet6>(ctx);
    }
    PROCEED
}

#[inline(always)]
fn connect<S: SocketAddress>(ctx: &SockAddrContext) -> Result<(), Reason> {
    match protocol(ctx) {
        Some(Protocol::Tcp) => stream::connect::<S>(ctx, Protocol::Tcp),
        Some(Protocol::Udp) if in_node_namespace(ctx) => stream::connect::<S>(ctx, Protocol::Udp),
        _ => Ok(()),
    }
}

#[inline(always)]
fn send<S: SocketAddress>(ctx: &SockAddrContext) -> Result<(), Reason> {
    match protocol(ctx) {
        Some(Protocol::Udp) if in_node_namespace(ctx) => datagram::send::<S>(ctx),
        _ => Ok(()),
    }
}

#[inline(always)]
fn receive<S: SocketAddress>(ctx: &SockAddrContext) {
    if in_node_namespace(ctx) && !stream::restore::<S>(ctx) {
        datagram::receive::<S>(ctx);
    }
}

/// The protocol of the socket.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<Protocol> {
    // SAFETY: the context is the one that the kernel passed in.
    match unsafe { (*ctx.sock_addr).protocol } {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        _ => None,
    }
}

/// Whether the socket lives in the node's own network namespace.
#[inline(always)]
fn in_node_namespace(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is the one that the kernel passed in.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) == NODE_NETNS_COOKIE.load() }
}

/// From outcome to the call's result.
#[inline(always)]
fn conclude(result: Result<(), Reason>) -> i32 {
    let Err(reason) = result else { return PROCEED };
    count::reason(reason);
    let errno = match reason.disposition() {
        Disposition::Pass => return PROCEED,
        Disposition::Refuse => ECONNREFUSED,
        // A packet would be dropped and the call would time out; there is no point in waiting for that.
        Disposition::Drop => EHOSTUNREACH,
    };
    // SAFETY: no pointers are passed.
    unsafe { bpf_set_retval(-errno) };
    FAIL
}
