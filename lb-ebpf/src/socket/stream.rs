//! Connected sockets, TCP and UDP: translated once. The socket remembers what it asked for.

use aya_ebpf::programs::SockAddrContext;
use lb_common::abi::{FrontendKey, Protocol, Reason, SocketFrontend};

use super::{
    Chosen,
    address::{SocketAddress, port, set_port},
    begun, choose,
};
use crate::{family::Family as _, maps::SOCKETS};

/// Sends a `connect` to a frontend to one of its backends.
#[inline(always)]
pub fn connect<S: SocketAddress>(ctx: &SockAddrContext, protocol: Protocol) -> Result<(), Reason> {
    let key = FrontendKey::new(S::address(ctx), port(ctx), protocol as u8);
    let Some(Chosen { frontend, picked }) = choose::<S::Family>(ctx, &key, || S::bound_address(ctx))? else {
        forget::<S>(ctx);
        return Ok(());
    };
    let mut remembered = SocketFrontend {
        frontend_address: S::Family::wide(key.address),
        backend_address: S::Family::wide(picked.backend.address),
        frontend_port: key.port,
        backend_port: picked.backend.port,
        backend: picked.index,
        generation: picked.backend.generation,
        pad: 0,
    };
    let entry = SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut remembered));
    if entry.is_null() {
        return Err(Reason::SocketStateFull);
    }
    // A socket that connects again, after a failure or (UDP) to another peer, has an entry already.
    // SAFETY: the storage lives as long as the socket, which the kernel holds locked during the call.
    unsafe { *entry = remembered };
    S::set_address(ctx, picked.backend.address);
    set_port(ctx, picked.backend.port);
    begun::<S::Family>(&key, frontend.service, &picked, || S::bound_address(ctx));
    Ok(())
}

/// Shows the frontend where the kernel is about to show the backend. Whether there was anything to do.
#[inline(always)]
pub fn restore<S: SocketAddress>(ctx: &SockAddrContext) -> bool {
    let entry = SOCKETS.get_ptr_mut(ctx);
    if entry.is_null() {
        return false;
    }
    // SAFETY: the storage lives as long as the socket; a value that changes meanwhile belongs to the same socket.
    let remembered = unsafe { *entry };
    if remembered.backend_port != port(ctx) || remembered.backend_address != S::Family::wide(S::address(ctx)) {
        return false;
    }
    S::set_address(ctx, S::narrow(remembered.frontend_address));
    set_port(ctx, remembered.frontend_port);
    true
}

/// A socket that connects to something else must not go on showing the former frontend.
#[inline(always)]
fn forget<S: SocketAddress>(ctx: &SockAddrContext) {
    let entry = SOCKETS.get_ptr_mut(ctx);
    if !entry.is_null() {
        // SAFETY: as in `connect`. No peer has port 0.
        unsafe { (*entry).backend_port = 0 };
    }
}
