//! Unconnected UDP sockets: every datagram names its peer.

use aya_ebpf::{bindings::BPF_ANY, programs::SockAddrContext};
use lb_common::abi::{FrontendKey, PeerDirection, Protocol, Reason, SocketPeer, SocketPeerKey};

use super::{
    Chosen,
    address::{SocketAddress, port, set_port},
    begun, choose, cookie, halves,
};
use crate::{balance, family::Family};

type Address<S> = <<S as SocketAddress>::Family as Family>::Address;

#[inline(always)]
fn peer_key<S: SocketAddress>(
    cookie: u64,
    address: Address<S>,
    port: u16,
    direction: PeerDirection,
) -> SocketPeerKey<Address<S>> {
    SocketPeerKey { cookie: halves(cookie), address, port, direction: direction as u8, pad: 0 }
}

/// Sends a datagram for a frontend to one of its backends: the same one as before, while it exists.
#[inline(always)]
pub fn send<S: SocketAddress>(ctx: &SockAddrContext) -> Result<(), Reason> {
    let (address, port) = (S::address(ctx), port(ctx));
    let cookie = cookie(ctx);
    let send = peer_key::<S>(cookie, address, port, PeerDirection::Send);
    // SAFETY: a value that is reused meanwhile belongs to another exchange; its generation belongs to another backend,
    // or it is a backend of another service: one datagram of UDP, which may go astray, in a race of two writers.
    if let Some(peer) = unsafe { S::Family::socket_peers().get(&send).copied() }
        && balance::current::<S::Family>(peer.backend, peer.generation).is_some()
    {
        S::set_address(ctx, peer.address);
        set_port(ctx, peer.port);
        return Ok(());
    }
    let asked = FrontendKey::new(address, port, Protocol::Udp as u8);
    let Some(Chosen { frontend, picked }) = choose::<S::Family>(ctx, &asked, || S::message_source(ctx))? else {
        return Ok(());
    };
    let (backend, generation) = (picked.index, picked.backend.generation);
    let (to, to_port) = (picked.backend.address, picked.backend.port);
    let receive = peer_key::<S>(cookie, to, to_port, PeerDirection::Receive);
    for (key, peer) in [
        (receive, SocketPeer { address, port, pad: 0, backend, generation }),
        (send, SocketPeer { address: to, port: to_port, pad: 0, backend, generation }),
    ] {
        S::Family::socket_peers().insert(&key, &peer, u64::from(BPF_ANY)).map_err(|_| Reason::SocketStateFull)?;
    }
    S::set_address(ctx, to);
    set_port(ctx, to_port);
    begun::<S::Family>(&asked, frontend.service, &picked, || S::message_source(ctx));
    Ok(())
}

/// Shows the frontend as the source of a datagram that one of its backends sent.
#[inline(always)]
pub fn receive<S: SocketAddress>(ctx: &SockAddrContext) {
    let key = peer_key::<S>(cookie(ctx), S::address(ctx), port(ctx), PeerDirection::Receive);
    // SAFETY: as in `send`.
    if let Some(peer) = unsafe { S::Family::socket_peers().get(&key).copied() } {
        S::set_address(ctx, peer.address);
        set_port(ctx, peer.port);
    }
}
