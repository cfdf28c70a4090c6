//! The cgroup socket hooks: the address is replaced in the socket call, and packets need nothing more.
//!
//! TCP is translated for every process of the cgroup. UDP is for processes in the node's own network namespace only:
//! a pod's datagrams are translated one by one at its interface, where an endpoint that leaves is noticed at once.
//!
//! A call of a pod's process to a frontend that only some clients may use is left alone: the socket has no address yet,
//! its packets have, and are translated at the pod's interface.

mod address;
mod datagram;
pub mod live;
mod stream;

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_socket_cookie,
        generated::{bpf_get_netns_cookie, bpf_set_retval},
    },
    programs::SockAddrContext,
};
use lb_common::{
    abi::{
        Address, AffinityKey, ConfigFlags, Disposition, Event, EventKind, Frontend, FrontendKey, Interface,
        LocalAddressKey, Protocol, Reason,
    },
    hash,
};

use self::address::{Inet4, Inet6, Mapped, SocketAddress, port};
use crate::{
    balance::{self, List, Picked},
    count,
    family::Family,
    load,
    maps::{HASH_SEED, NODE_NETNS_COOKIE},
    monitor,
};

/// What the kernel expects of a socket program: go on with the call.
const PROCEED: i32 = 1;
/// Or let it fail, with `EPERM` or what `bpf_set_retval` said.
const FAIL: i32 = 0;

const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

pub fn connect4(ctx: &SockAddrContext) -> i32 {
    conclude_connect::<Inet4>(ctx)
}

pub fn connect6(ctx: &SockAddrContext) -> i32 {
    if Mapped::applies(ctx) { conclude_connect::<Mapped>(ctx) } else { conclude_connect::<Inet6>(ctx) }
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
    conclude_send::<Inet4>(ctx)
}

pub fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    // An IPv4-mapped destination never gets here: `udpv6_sendmsg` hands it to `udp_sendmsg`, and so to `sendmsg4`.
    conclude_send::<Inet6>(ctx)
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
    namespace(ctx) == NODE_NETNS_COOKIE.load()
}

/// Cookie of the socket's network namespace.
#[inline(always)]
fn namespace(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the one that the kernel passed in.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The socket's cookie: a number that no other socket has while the machine runs.
#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the one that the kernel passed in.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// A number as the two words in which keys hold it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "two halves")]
fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

/// What [`choose`] found for a call.
struct Chosen<A> {
    frontend: Frontend,
    picked: Picked<A>,
}

/// Finds the frontend that a call names, and picks a backend. `None`: the call is not for us to change. `source` is the
/// address that the socket sends from, unspecified where the kernel is yet to choose it.
#[inline(always)]
fn choose<F: Family>(
    ctx: &SockAddrContext,
    key: &FrontendKey<F::Address>,
    source: impl FnOnce() -> F::Address,
) -> Result<Option<Chosen<F::Address>>, Reason> {
    let own = in_node_namespace(ctx);
    let Some(frontend) = balance::frontend::<F>(key.address, key.port, key.protocol, own)? else { return Ok(None) };
    if balance::is_restricted(frontend) {
        if !own {
            return Ok(None);
        }
        if !balance::is_allowed::<F>(frontend, sender::<F>(source(), key.address)?) {
            count::rejected::<F>(frontend.service);
            return Err(Reason::SourceNotAllowed);
        }
    }
    // A pod's address is of the pods' network, if its family has one.
    let list = List::of(frontend, |config| {
        own || config.flags & ConfigFlags::PODS_BY_INTERFACE != 0
            || config.flags & ConfigFlags::PODS_BY_ADDRESS != 0 && !F::pods(config).is_nothing()
    });
    let client = || AffinityKey {
        namespace: halves(namespace(ctx)),
        client: F::Address::UNSPECIFIED,
        service: frontend.service,
        list: 0,
    };
    let hash = hash::socket(cookie(ctx), key, HASH_SEED.load());
    let picked =
        balance::pick::<F>(frontend, list, hash, client).inspect_err(|_| count::rejected::<F>(frontend.service))?;
    Ok(Some(Chosen { frontend, picked }))
}

/// The address that a process of the node sends from: where none was asked for, its own if that is what it sends to, and
/// else the one that the node has towards the other nodes.
#[inline(always)]
fn sender<F: Family>(source: F::Address, destination: F::Address) -> Result<F::Address, Reason> {
    if source != F::Address::UNSPECIFIED {
        return Ok(source);
    }
    if F::local_addresses().get_ptr(&LocalAddressKey { address: destination }).is_some() {
        return Ok(destination);
    }
    // SAFETY: the element changes only when the node's addresses do; one that was reused is such an address, too.
    let own = unsafe { F::node_addresses().get(&Interface { interface: 0 }) };
    own.map(|own| own.address).ok_or(Reason::NoNodeAddress)
}

/// Counts and tells a call that was given a backend.
#[inline(always)]
fn begun<F: Family>(
    key: &FrontendKey<F::Address>,
    service: u32,
    picked: &Picked<F::Address>,
    source: impl FnOnce() -> F::Address,
) {
    count::new_flow::<F>(service);
    load::began::<F>(service, picked.index, picked.backend.generation);
    let describe = |event| monitor::asked::<F>(event, source(), key, service);
    monitor::call::<F>(describe, picked.backend.address, picked.backend.port);
}

#[inline(always)]
fn conclude_connect<S: SocketAddress>(ctx: &SockAddrContext) -> i32 {
    conclude::<S>(ctx, connect::<S>(ctx), || S::bound_address(ctx))
}

#[inline(always)]
fn conclude_send<S: SocketAddress>(ctx: &SockAddrContext) -> i32 {
    conclude::<S>(ctx, send::<S>(ctx), || S::message_source(ctx))
}

/// From outcome to the call's result. What failed has changed nothing of the call: it still names the frontend.
#[inline(always)]
fn conclude<S: SocketAddress>(
    ctx: &SockAddrContext,
    result: Result<(), Reason>,
    source: impl FnOnce() -> <S::Family as Family>::Address,
) -> i32 {
    let Err(reason) = result else { return PROCEED };
    count::reason(reason);
    let (errno, kind) = match reason.disposition() {
        Disposition::Pass | Disposition::Translate => return PROCEED,
        Disposition::Refuse => (ECONNREFUSED, EventKind::Refusal),
        // A packet would be dropped and the call would time out; there is no point in waiting for that.
        Disposition::Drop => (EHOSTUNREACH, EventKind::Drop),
    };
    let describe = |event| {
        let protocol = protocol(ctx).unwrap_or(Protocol::Tcp) as u8;
        let key = FrontendKey::new(S::address(ctx), port(ctx), protocol);
        // Asked again, since only a watcher wants to know it.
        let frontend = balance::frontend::<S::Family>(key.address, key.port, key.protocol, in_node_namespace(ctx));
        let service = match frontend {
            Ok(Some(frontend)) => frontend.service,
            _ => Event::NOTHING,
        };
        monitor::asked::<S::Family>(event, source(), &key, service);
    };
    monitor::refused_call(describe, kind, reason);
    // SAFETY: no pointers are passed.
    unsafe { bpf_set_retval(-errno) };
    FAIL
}
