//! The flow table.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_jiffies64};
use lb_common::{
    abi::{Address, BackendFlags, Flow, FlowDirection, Protocol, Reason, TcpState, Tuple},
    hash, lifetime,
};

use crate::{
    balance,
    family::Family,
    maps::TICKS_PER_SECOND,
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
    read(tuple, F::flows().get_ptr_mut(tuple))
}

/// Reads what a table has for a tuple.
#[inline(always)]
pub fn read<A: Address>(tuple: &Tuple<A>, entry: Option<*mut Flow<A>>) -> Option<Known<A>> {
    let entry = entry?;
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

/// Whether something that was last seen then has been quiet for more than this many seconds.
#[inline(always)]
pub fn is_older(last_seen: u64, seconds: u64) -> bool {
    now().wrapping_sub(last_seen) > seconds * u64::from(TICKS_PER_SECOND.load())
}

impl<A: Address> Known<A> {
    /// Notes that a packet of the flow passed.
    ///
    /// If the element was given to another flow since `lookup`, that flow's stamp or state is touched instead: the
    /// stamp is about now anyway, and the state is a set of bits that only ever makes a flow look older. Two CPUs that
    /// see packets of one flow at once may lose one of two bits; the next packet sets it.
    #[inline(always)]
    pub fn seen<F: Family<Address = A>>(&self, packet: &Packet<A>) {
        let now = now();
        // SAFETY: as in `lookup`; the fields are plain integers. Unchanged values are not stored: the cache line stays
        // shared between CPUs.
        unsafe {
            if self.last_seen != now {
                (*self.entry).last_seen = now;
            }
            if matches!(packet.protocol(), Protocol::Udp) {
                return;
            }
            let seen = tcp_state(packet.tcp_flags);
            // A SYN begins anew: what an earlier connection on the same tuple left does not count.
            let state = if packet.tcp_flags & tcp::SYN != 0 { seen } else { self.tcp_state | seen };
            if self.tcp_state == state {
                return;
            }
            (*self.entry).tcp_state = state;
            if seen & TcpState::RST != 0
                && let Some(other) = F::flows().get_ptr_mut(&self.to.reversed())
            {
                // A RST is answered by nothing: the other direction has to be told.
                (*other).tcp_state |= TcpState::RST;
            }
        }
    }

    /// Whether it was seen last more than this many seconds ago.
    #[inline(always)]
    pub fn is_older(&self, seconds: u64) -> bool {
        is_older(self.last_seen, seconds)
    }

    /// Whether it was quiet for so long that a datagram begins another exchange.
    #[inline(always)]
    pub fn is_silent(&self) -> bool {
        self.is_older(lifetime::UDP)
    }

    /// Whether neither side of a UDP exchange has sent for so long that the next datagram is of another one.
    #[inline(always)]
    fn is_abandoned<F: Family<Address = A>>(&self, packet: &Packet<A>) -> bool {
        self.is_silent() && !talks_the_other_way::<F>(&packet.tuple, &self.to)
    }

    /// Whether the flow must be given a backend again.
    ///
    /// A UDP exchange ends when its endpoint is gone. A TCP connection is never moved (kube-proxy does not touch them
    /// either): only a new one on the same tuple is picked for again, when the former has ended or its backend takes
    /// none any more.
    #[inline(always)]
    pub fn is_stale<F: Family<Address = A>>(&self, packet: &Packet<A>) -> bool {
        if self.direction != FlowDirection::Request as u8 {
            return false;
        }
        match packet.protocol() {
            // What begins after a silence is another exchange, and the former's port may be another's by now.
            Protocol::Udp => {
                self.is_abandoned::<F>(packet) || balance::current::<F>(self.backend, self.generation).is_none()
            }
            Protocol::Tcp => {
                packet.opens_connection()
                    && (self.tcp_state & (TcpState::FIN | TcpState::RST) != 0
                        || balance::current::<F>(self.backend, self.generation)
                            .is_none_or(|backend| backend.flags & BackendFlags::SELECTABLE == 0))
            }
        }
    }

    /// Whether a packet that has the tuple of this reply belongs to something else: the endpoint answers a client that
    /// reached it by itself, from a port that it had used for the Service before. A new handshake cannot be of a
    /// connection that has ended, since its own SYN would have entered another flow; a datagram cannot be of an exchange
    /// that was silent for so long that a server forgets it.
    #[inline(always)]
    pub fn is_foreign<F: Family<Address = A>>(&self, packet: &Packet<A>) -> bool {
        match packet.protocol() {
            Protocol::Udp => self.is_abandoned::<F>(packet),
            Protocol::Tcp => packet.tcp_flags & tcp::SYN != 0 && self.has_ended(),
        }
    }

    /// Whether this direction of a connection was closed or reset, or is older than a connection gets in its state.
    #[inline(always)]
    fn has_ended(&self) -> bool {
        self.tcp_state & (TcpState::FIN | TcpState::RST) != 0
            || is_quiet(self.last_seen, Protocol::Tcp as u32, self.tcp_state)
    }
}

/// Forgets the entry of a reply whose tuple another connection has now: no flag of what follows its handshake tells.
#[inline(always)]
pub fn give_way<F: Family>(packet: &Packet<F::Address>) {
    if matches!(packet.protocol(), Protocol::Tcp) {
        // It may have been evicted meanwhile.
        let _: Result<(), i32> = F::flows().remove(&packet.tuple);
    }
}

/// Whether a direction that was last seen then, in this state, has been quiet for longer than its lifetime.
#[inline(always)]
fn is_quiet(last_seen: u64, protocol: u32, state: u8) -> bool {
    is_older(last_seen, lifetime::of(protocol, state))
}

/// Whether datagrams of a UDP exchange still come the other way: one side may only send, the other only listen. `tuple` is
/// that of an entry, `to` what it makes of its datagrams.
#[inline(always)]
fn talks_the_other_way<F: Family>(tuple: &Tuple<F::Address>, to: &Tuple<F::Address>) -> bool {
    match F::flows().get_ptr(&to.reversed()) {
        // SAFETY: the kernel keeps the element's memory while the program runs. Should it be reused meanwhile, its
        // tuple is compared with another's: the other side is taken to be silent.
        Some(other) => unsafe { (*other).to == tuple.reversed() && !is_older((*other).last_seen, lifetime::UDP) },
        None => false,
    }
}

/// Whether the flow that the entry of a reply belongs to has ended, so that another may take its tuple.
#[inline(always)]
pub fn is_over<F: Family>(reply: &Tuple<F::Address>, flow: &Flow<F::Address>) -> bool {
    is_quiet(flow.last_seen, flow.to.protocol, flow.tcp_state)
        && !(flow.to.protocol == Protocol::Udp as u32 && talks_the_other_way::<F>(reply, &flow.to))
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
