//! From a frontend to a backend.

use core::sync::atomic::{Ordering, compiler_fence};

use lb_common::{
    abi::{
        Address, Backend, Frontend, FrontendFlags, FrontendKey, LocalAddressFlags, LocalAddressKey, Reason, Service,
        ServiceFlags, Slot, SlotRange,
    },
    hash,
};

use crate::{family::Family, maps::CONFIG};

/// A backend that was picked.
#[repr(C)]
pub struct Picked<A> {
    /// Index in `BACKENDS*`.
    pub index: u32,
    /// Its value, read whole.
    pub backend: Backend<A>,
}

/// Finds the frontend that an address, port and protocol name. `own_loopback`: node ports on a loopback address count,
/// because the asker is a process of the node itself.
#[inline(always)]
pub fn frontend<F: Family>(
    address: F::Address,
    port: u16,
    protocol: u8,
    own_loopback: bool,
) -> Result<Option<Frontend>, Reason> {
    // The unspecified address is the key of node ports, and nobody's destination: `connect` turns it into loopback.
    if address == F::Address::UNSPECIFIED {
        return Ok(None);
    }
    if let Some(frontend) = lookup::<F>(&FrontendKey::new(address, port, protocol))? {
        return Ok(Some(frontend));
    }
    let Some(config) = CONFIG.get(0) else { return Ok(None) };
    if port < config.node_port_min || port > config.node_port_max {
        return Ok(None);
    }
    // SAFETY: the value is one word; an element that was reused meanwhile is still an address of this node.
    let Some(own) = (unsafe { F::local_addresses().get(&LocalAddressKey { address }).copied() }) else {
        return Ok(None);
    };
    if own.flags & LocalAddressFlags::NODE_PORTS == 0 || own.flags & LocalAddressFlags::LOOPBACK != 0 && !own_loopback {
        return Ok(None);
    }
    lookup::<F>(&FrontendKey::new(F::Address::UNSPECIFIED, port, protocol))
}

#[inline(always)]
fn lookup<F: Family>(key: &FrontendKey<F::Address>) -> Result<Option<Frontend>, Reason> {
    let Some(value) = F::frontends().get_ptr(key) else { return Ok(None) };
    // SAFETY: one aligned word, read at once, whatever is written to it meanwhile.
    let frontend: Frontend = unsafe { core::mem::transmute(core::ptr::read_volatile(value.cast::<u64>())) };
    if frontend.owner == hash::frontend_owner(key) { Ok(Some(frontend)) } else { Err(Reason::FrontendRaced) }
}

/// Times that a service is read again when its backend went away under the reader's eyes.
const ATTEMPTS: usize = 2;

/// Picks a backend by a hash of the flow or the socket. `inside`: the asker is a pod or the node.
///
/// The agent may publish a new set between the steps; a backend that is gone by the time it is read sends the reader
/// back to the service, which by then names the new set.
#[inline(always)]
pub fn pick<F: Family>(frontend: Frontend, inside: bool, hash: u32) -> Result<Picked<F::Address>, Reason> {
    for _ in 0..ATTEMPTS {
        let service = F::services().get_ptr(frontend.service).ok_or(Reason::TablesInconsistent)?;
        let local =
            frontend.flags & FrontendFlags::LOCAL != 0 && !(inside && frontend.flags & FrontendFlags::EXTERNAL != 0);
        let Some(slot) = slots(service, local).pick(hash) else {
            // SAFETY: array elements live as long as the map.
            let has_endpoints = unsafe { (*service).flags } & ServiceFlags::HAS_ENDPOINTS != 0;
            return Err(if has_endpoints { Reason::NoLocalEndpoints } else { Reason::NoEndpoints });
        };
        let Slot { backend: index } = *F::slots().get(slot).ok_or(Reason::TablesInconsistent)?;
        if let Some(backend) = backend::<F>(index) {
            return Ok(Picked { index, backend });
        }
    }
    Err(Reason::TablesInconsistent)
}

/// One of a service's ranges: one aligned word, read at once.
#[inline(always)]
fn slots(service: *const Service, local: bool) -> SlotRange {
    // SAFETY: array elements live as long as the map; `SlotRange` is 8 aligned bytes without padding.
    unsafe {
        let range = if local { &raw const (*service).local } else { &raw const (*service).cluster };
        core::mem::transmute(core::ptr::read_volatile(range.cast::<u64>()))
    }
}

/// Reads a backend whole: see [`Backend`] for the order in which it is written.
#[inline(always)]
fn backend<F: Family>(index: u32) -> Option<Backend<F::Address>> {
    let element = F::backends().get_ptr(index)?;
    // SAFETY: array elements live as long as the map.
    unsafe {
        let before = core::ptr::read_volatile(&raw const (*element).generation);
        compiler_fence(Ordering::SeqCst);
        let backend = *element;
        compiler_fence(Ordering::SeqCst);
        let after = core::ptr::read_volatile(&raw const (*element).generation);
        (before != 0 && before == after).then_some(Backend { generation: before, ..backend })
    }
}
