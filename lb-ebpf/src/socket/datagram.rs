//! Unconnected UDP sockets: every datagram names its peer.

use aya_ebpf::{bindings::BPF_ANY, programs::SockAddrContext};
use lb_common::{
    abi::{FrontendKey, PeerDirection, Protocol, Reason, SocketPeer, SocketPeerKey},
    lifetime,
};

use super::{
    Chosen,
    address::{SocketAddress, port, set_port},
    begun, choose, cookie, halves,
};
use crate::{balance, family::Family, flow, maps::TICKS_PER_SECOND};

type Address<S> = <<S as SocketAddress>::Family as Family>::Address;
type Key<S> = SocketPeerKey<Address<S>>;
type Peer<S> = SocketPeer<Address<S>>;

#[inline(always)]
fn key<S: SocketAddress>(cookie: u64, address: Address<S>, port: u16, direction: PeerDirection) -> Key<S> {
    SocketPeerKey { cookie: halves(cookie), address, port, direction: direction as u8, pad: 0 }
}

/// The time in which entries are stamped: the low half of the flows' clock, whose wrap (weeks) is far from any lifetime.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half")]
fn now() -> u32 {
    flow::now() as u32
}

/// Whether no datagram passed for so long that the next one begins another exchange.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a few minutes")]
fn is_silent<A>(peer: &SocketPeer<A>) -> bool {
    now().wrapping_sub(peer.last_seen) > lifetime::UDP as u32 * TICKS_PER_SECOND.load()
}

/// Reads an entry, and its place to note in that a datagram passed.
#[inline(always)]
fn read<S: SocketAddress>(key: &Key<S>) -> Option<(Peer<S>, *mut Peer<S>)> {
    let entry = S::Family::socket_peers().get_ptr_mut(key)?;
    // SAFETY: a value that is reused meanwhile belongs to another exchange; its generation belongs to another backend,
    // or it is a backend of another service: one datagram of UDP, which may go astray, in a race of two writers.
    Some((unsafe { *entry }, entry))
}

/// Notes that a datagram passed.
#[inline(always)]
fn seen<A>(peer: &SocketPeer<A>, entry: *mut SocketPeer<A>) {
    let now = now();
    if peer.last_seen != now {
        // SAFETY: the kernel keeps the element's memory while the program runs. Should it be given to another exchange
        // meanwhile, that one's stamp is about now anyway.
        unsafe { (*entry).last_seen = now };
    }
}

#[inline(always)]
fn enter<S: SocketAddress>(key: &Key<S>, peer: &Peer<S>) -> Result<(), Reason> {
    S::Family::socket_peers().insert(key, peer, u64::from(BPF_ANY)).map_err(|_| Reason::SocketStateFull)
}

/// Sends a datagram for a frontend to one of its backends: the same one as before, while it exists and the two talk.
#[inline(always)]
pub fn send<S: SocketAddress>(ctx: &SockAddrContext) -> Result<(), Reason> {
    let (address, port) = (S::address(ctx), port(ctx));
    let cookie = cookie(ctx);
    let send = key::<S>(cookie, address, port, PeerDirection::Send);
    if let Some((peer, entry)) = read::<S>(&send)
        && balance::current::<S::Family>(peer.backend, peer.generation).is_some()
    {
        let receive = key::<S>(cookie, peer.address, peer.port, PeerDirection::Receive);
        // As this frontend's: they may be another's, or the endpoint's own.
        let answers = read::<S>(&receive)
            .map(|(answers, _)| answers)
            .filter(|answers| answers.address == address && answers.port == port);
        if !is_silent(&peer) || answers.is_some_and(|answers| !is_silent(&answers)) {
            seen(&peer, entry);
            if answers.is_none() {
                enter::<S>(&receive, &Peer::<S> { address, port, last_seen: now(), ..peer })?;
            }
            S::set_address(ctx, peer.address);
            set_port(ctx, peer.port);
            return Ok(());
        }
    }
    let asked = FrontendKey::new(address, port, Protocol::Udp as u8);
    let Some(Chosen { frontend, picked }) = choose::<S::Family>(ctx, &asked, || S::message_source(ctx))? else {
        forget::<S>(&key::<S>(cookie, address, port, PeerDirection::Receive));
        return Ok(());
    };
    let (backend, generation) = (picked.index, picked.backend.generation);
    let (to, to_port) = (picked.backend.address, picked.backend.port);
    let receive = key::<S>(cookie, to, to_port, PeerDirection::Receive);
    let peer = |address, port| SocketPeer { address, port, pad: 0, backend, generation, last_seen: now() };
    enter::<S>(&receive, &peer(address, port))?;
    enter::<S>(&send, &peer(to, to_port))?;
    S::set_address(ctx, to);
    set_port(ctx, to_port);
    begun::<S::Family>(&asked, frontend.service, &picked, || S::message_source(ctx));
    Ok(())
}

/// Whom a socket asks by its own address is to answer by that.
#[inline(always)]
fn forget<S: SocketAddress>(receive: &Key<S>) {
    if read::<S>(receive).is_some() {
        // It may have been evicted meanwhile.
        let _: Result<(), i32> = S::Family::socket_peers().remove(receive);
    }
}

/// Shows the frontend as the source of a datagram that one of its backends sent.
#[inline(always)]
pub fn receive<S: SocketAddress>(ctx: &SockAddrContext) {
    let key = key::<S>(cookie(ctx), S::address(ctx), port(ctx), PeerDirection::Receive);
    if let Some((peer, entry)) = read::<S>(&key) {
        seen(&peer, entry);
        S::set_address(ctx, peer.address);
        set_port(ctx, peer.port);
    }
}
