//! The flow table.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_jiffies64};
use lb_common::{
    abi::{Address, Backend, BackendFlags, Flow, FlowDirection, Protocol, Reason, TcpState, Tuple},
    hash,
};

use crate::{
    family::Family,
    packet::{Packet, tcp},
};

/// An entry that was found: a copy of what decides about the packet, and the place to note what was seen.
pub struct Known<A> {
    /// The tuple that replaces the packet's.
    pub to: Tuple<A>,
    /// See [`Flow`].
    pub backend: u32,
    pub generation: u32,
    pub service: u32,
    pub action: u8,
    pub hooks: u8,
    pub direction: u8,
    tcp_state: u8,
    last_seen: u64,
    entry: *mut Flow<A>,
}

/// The time that entries are stamped with, in the kernel's ticks since boot: the one clock that costs nothing to read
/// (the verifier replaces the call by a load).
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() }
}

/// Looks a packet's tuple up.
#[inline(always)]
pub fn lookup<F: Family>(tuple: &Tuple<F::Address>) -> Option<Known<F::Address>> {
    let entry = F::flows().get_ptr_mut(tuple)?;
    // SAFETY: the kernel keeps the element's memory while the program runs. It may be given to another flow meanwhile:
    // the first word, which has the owner and is written first, is read last and tells.
    let (to, backend, generation, service, last_seen, head) = unsafe {
        let Flow { to, backend, generation, service, last_seen, .. } = *entry;
        compiler_fence(Ordering::SeqCst);
        (to, backend, generation, service, last_seen, core::ptr::read_volatile(entry.cast::<u64>()))
    };
    #[expect(clippy::cast_possible_truncation, reason = "the first field")]
    let owner = head as u32;
    let [_, _, _, _, action, hooks, tcp_state, direction] = head.to_ne_bytes();
    (owner == hash::owner(tuple)).then_some(Known {
        to,
        backend,
        generation,
        service,
        action,
        hooks,
        direction,
        tcp_state,
        last_seen,
        entry,
    })
}

impl<A: Address> Known<A> {
    /// Notes that a packet of the flow passed.
    ///
    /// If the element was given to another flow since `lookup`, that flow's stamp or state is touched instead: the
    /// stamp is about now anyway, and the state is a set of bits that only ever makes a flow look older. Two CPUs that
    /// see packets of one flow at once may lose one of two bits; the next packet sets it.
    #[inline(always)]
    pub fn seen(&self, packet: &Packet<A>) {
        let now = now();
        let state = self.tcp_state | tcp_state(packet.tcp_flags);
        // Unchanged values are not stored: the cache line stays shared between CPUs.
        // SAFETY: as in `lookup`; the fields are plain integers.
        unsafe {
            if self.last_seen != now {
                (*self.entry).last_seen = now;
            }
            if matches!(packet.protocol(), Protocol::Tcp) && self.tcp_state != state {
                (*self.entry).tcp_state = state;
            }
        }
    }

    /// Whether the flow must be given a backend again.
    ///
    /// A UDP exchange ends when its endpoint is gone. A TCP connection is never moved (kube-proxy does not touch them
    /// either): only a new one on the same tuple is, when its former backend takes none any more.
    #[inline(always)]
    pub fn is_stale<F: Family<Address = A>>(&self, packet: &Packet<A>) -> bool {
        if self.direction != FlowDirection::Request as u8 {
            return false;
        }
        match packet.protocol() {
            Protocol::Udp => current_backend::<F>(self.backend, self.generation).is_none(),
            Protocol::Tcp => {
                packet.opens_connection()
                    && current_backend::<F>(self.backend, self.generation)
                        .is_none_or(|backend| backend.flags & BackendFlags::SELECTABLE == 0)
            }
        }
    }
}

/// The flow's backend, if its index has not been given to another endpoint since.
#[inline(always)]
fn current_backend<F: Family>(index: u32, generation: u32) -> Option<&'static Backend<F::Address>> {
    F::backends().get(index).filter(|backend| backend.generation == generation)
}

/// Whether the connection that an entry belongs to has ended, so that its tuple can be taken by another.
#[inline(always)]
pub fn is_over<F: Family>(flow: &Flow<F::Address>) -> bool {
    flow.tcp_state & (TcpState::FIN | TcpState::RST) != 0
        || current_backend::<F>(flow.backend, flow.generation).is_none()
}

/// The bits of [`TcpState`] that a segment's flags mean.
#[inline(always)]
pub fn tcp_state(flags: u8) -> u8 {
    let mut state = if flags & tcp::SYN != 0 { TcpState::SYN } else { TcpState::ESTABLISHED };
    if flags & tcp::FIN != 0 {
        state |= TcpState::FIN;
    }
    if flags & tcp::RST != 0 {
        state |= TcpState::RST;
    }
    state
}

/// Enters one direction of a flow, over whatever was there.
#[inline(always)]
pub fn enter<F: Family>(tuple: &Tuple<F::Address>, flow: &Flow<F::Address>) -> Result<(), Reason> {
    F::flows().insert(tuple, flow, u64::from(BPF_ANY)).map_err(|_| Reason::FlowInsertFailed)
}
