//! Events for whoever watches (`lb-agent monitor`): a record of `EVENTS` for each new flow, refusal and drop, or for one in so
//! many.
//!
//! Nobody watches, mostly: then each of them costs the look at `MONITOR` of [`is_watched`], and packets of known flows that are
//! translated as they should be cost nothing, for they never come here. A watcher puts the end of its watch off again and again,
//! so that one that was killed is soon nobody.
//!
//! Functions of their own: what they write goes to the ring buffer and not to the stack, which is nearly full where they are
//! called.

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_ringbuf_reserve, bpf_ringbuf_submit,
};
use lb_common::abi::{Event, EventKind, EventPlace, FlowDirection, FrontendKey, Reason, Tuple};

use crate::{
    family::Family,
    flow,
    hook::PacketContext,
    maps::{EVENT_COUNTS, EVENTS, MONITOR, TICKS_PER_SECOND, Work},
    packet::Packet,
    path::work,
};

/// Whether anybody watches.
#[inline(always)]
pub fn is_watched() -> bool {
    let Some(monitor) = MONITOR.get_ptr(0) else { return false };
    // SAFETY: array elements live as long as the map; one aligned word, whatever is written to it meanwhile.
    let until = unsafe { core::ptr::read_volatile(&raw const (*monitor).until) };
    until != 0 && flow::now() < until
}

/// Room for an event of a kind that is asked for, all zero but for what every event has; if it is the turn of one.
#[inline(always)]
fn begin(kind: EventKind, place: EventPlace) -> Option<*mut Event> {
    let monitor = MONITOR.get_ptr(0)?;
    let counts = EVENT_COUNTS.get_ptr_mut(0)?;
    // SAFETY: array elements live as long as the map. What a watcher writes meanwhile may be read half: one event more or
    // less. The counts are this CPU's own, and may lose one to an interrupt.
    unsafe {
        if (*monitor).kinds & kind as u32 == 0 {
            return None;
        }
        let one_in = u64::from((*monitor).sample);
        // Multiply-shift: below `one_in`, evenly; no division.
        if one_in > 1 && (u64::from(bpf_get_prandom_u32()) * one_in) >> 32 != 0 {
            return None;
        }
        let now = flow::now();
        if now.wrapping_sub((*counts).since) >= u64::from(TICKS_PER_SECOND.load()) {
            (*counts).since = now;
            (*counts).written = 0;
        }
        if (*counts).written >= u64::from((*monitor).rate) {
            (*counts).over_rate = (*counts).over_rate.wrapping_add(1);
            return None;
        }
        let event = bpf_ringbuf_reserve((&raw const EVENTS).cast_mut().cast(), size_of::<Event>() as u64, 0);
        if event.is_null() {
            (*counts).no_room = (*counts).no_room.wrapping_add(1);
            return None;
        }
        (*counts).written = (*counts).written.wrapping_add(1);
        let event = event.cast::<Event>();
        event.write_bytes(0, 1);
        (*event).time = bpf_ktime_get_ns();
        (*event).kind = kind as u8;
        (*event).place = place as u8;
        (*event).service = Event::NOTHING;
        (*event).reason = Event::NOTHING;
        Some(event)
    }
}

/// Shows an event to the watcher.
#[inline(always)]
fn end(event: *mut Event) {
    // SAFETY: what `begin` reserved.
    unsafe { bpf_ringbuf_submit(event.cast(), 0) }
}

/// Who asks for what.
#[inline(always)]
fn ends<F: Family>(event: *mut Event, asked: &Tuple<F::Address>) {
    // SAFETY: `begin` reserved it.
    unsafe {
        (*event).client = F::wide(asked.src);
        (*event).client_port = asked.src_port;
        (*event).frontend = F::wide(asked.dst);
        (*event).frontend_port = asked.dst_port;
    }
}

/// Who answers.
#[inline(always)]
fn answerer<F: Family>(event: *mut Event, address: F::Address, port: u16) {
    // SAFETY: `begin` reserved it.
    unsafe {
        (*event).backend = F::wide(address);
        (*event).backend_port = port;
    }
}

/// What is known of a packet.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "protocol numbers")]
fn packet<C: PacketContext, F: Family>(event: *mut Event, ctx: &C, tuple: &Tuple<F::Address>) {
    // SAFETY: `begin` reserved it.
    unsafe {
        (*event).family = F::NUMBER;
        (*event).protocol = tuple.protocol as u8;
        (*event).interface = ctx.interface();
    }
}

/// The place where packets meet a context.
#[inline(always)]
const fn place<C: PacketContext>() -> EventPlace {
    if C::EARLY { EventPlace::Xdp } else { EventPlace::Tc }
}

/// The packet of `Work` begins a flow, which was given a backend.
#[inline(always)]
pub fn flow<C: PacketContext, F: Family>(ctx: &C) {
    if is_watched() {
        tell_flow::<C, F>(ctx);
    }
}

#[inline(never)]
fn tell_flow<C: PacketContext, F: Family>(ctx: &C) {
    let Ok(work) = work::<F>() else { return };
    let Some(event) = begin(EventKind::NewFlow, place::<C>()) else { return };
    let Work { packet: Packet { tuple, .. }, picked, service, .. } = &*work;
    packet::<C, F>(event, ctx, tuple);
    ends::<F>(event, tuple);
    answerer::<F>(event, picked.backend.address, picked.backend.port);
    // SAFETY: `begin` reserved it.
    unsafe { (*event).service = *service };
    end(event);
}

/// The packet of `Work` is of no known flow, and is refused or dropped.
#[inline(always)]
pub fn rejection<C: PacketContext, F: Family>(ctx: &C, kind: EventKind) {
    if is_watched() {
        tell_rejection::<C, F>(ctx, kind);
    }
}

#[inline(never)]
fn tell_rejection<C: PacketContext, F: Family>(ctx: &C, kind: EventKind) {
    let Ok(work) = work::<F>() else { return };
    let Some(event) = begin(kind, place::<C>()) else { return };
    let Work { packet: Packet { tuple, .. }, service, reason, .. } = &*work;
    packet::<C, F>(event, ctx, tuple);
    ends::<F>(event, tuple);
    // SAFETY: `begin` reserved it.
    unsafe {
        (*event).service = *service;
        (*event).reason = *reason;
    }
    end(event);
}

/// How far the packet of `Work` came that cannot be sent on.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stage {
    /// It is to begin a flow, and was given a backend.
    New,
    /// It is of a known flow, or of none that can be found.
    Known,
}

/// The packet of `Work` cannot be sent on, or not be answered, for `Work::reason`.
#[inline(always)]
pub fn obstacle<C: PacketContext, F: Family>(ctx: &C, stage: Stage, kind: EventKind) {
    if is_watched() {
        tell_obstacle::<C, F>(ctx, stage, kind);
    }
}

#[inline(never)]
fn tell_obstacle<C: PacketContext, F: Family>(ctx: &C, stage: Stage, kind: EventKind) {
    let Ok(work) = work::<F>() else { return };
    let reason = work.reason;
    let Some(event) = begin(kind, place::<C>()) else { return };
    let Work { packet: Packet { tuple, .. }, picked, service, .. } = &*work;
    packet::<C, F>(event, ctx, tuple);
    // SAFETY: `begin` reserved it.
    unsafe { (*event).reason = reason };
    if stage == Stage::New {
        ends::<F>(event, tuple);
        answerer::<F>(event, picked.backend.address, picked.backend.port);
        // SAFETY: as above.
        unsafe { (*event).service = *service };
    } else {
        known::<F>(event, tuple);
    }
    end(event);
}

/// What the flow table knows of a packet's flow.
#[inline(always)]
fn known<F: Family>(event: *mut Event, tuple: &Tuple<F::Address>) {
    let Some(flow) = F::flows().get_ptr(tuple) else { return ends::<F>(event, tuple) };
    // SAFETY: `begin` reserved the event. The kernel keeps the flow's memory while the program runs; should it be given to
    // another flow meanwhile, that one is named.
    unsafe {
        (*event).service = (*flow).service;
        (*event).direction = (*flow).direction;
        let to = &(*flow).to;
        if (*flow).direction == FlowDirection::Reply as u8 {
            ends::<F>(event, &to.reversed());
            answerer::<F>(event, tuple.src, tuple.src_port);
        } else {
            ends::<F>(event, tuple);
            answerer::<F>(event, to.dst, to.dst_port);
        }
    }
}

/// A packet is dropped of which there is nothing to say but why.
#[inline(always)]
pub fn unseen<C: PacketContext>(kind: EventKind, reason: Reason) {
    if is_watched() {
        tell_unseen(kind, place::<C>(), reason as u32);
    }
}

#[inline(never)]
fn tell_unseen(kind: EventKind, place: EventPlace, reason: u32) {
    let Some(event) = begin(kind, place) else { return };
    // SAFETY: `begin` reserved it.
    unsafe { (*event).reason = reason };
    end(event);
}

/// A socket call was given a backend. `describe` is [`asked`], with what only a watcher wants to know.
#[inline(always)]
pub fn call<F: Family>(describe: impl FnOnce(*mut Event), backend: F::Address, port: u16) {
    if is_watched()
        && let Some(event) = begin(EventKind::NewFlow, EventPlace::Socket)
    {
        describe(event);
        answerer::<F>(event, backend, port);
        end(event);
    }
}

/// A socket call is refused, or fails. `describe` as in [`call`].
#[inline(always)]
pub fn refused_call(describe: impl FnOnce(*mut Event), kind: EventKind, reason: Reason) {
    if is_watched()
        && let Some(event) = begin(kind, EventPlace::Socket)
    {
        describe(event);
        // SAFETY: `begin` reserved it.
        unsafe { (*event).reason = reason as u32 };
        end(event);
    }
}

/// What a socket call asks for: `source` is the address that the socket sends from, unspecified where the kernel is yet to
/// choose it, and `service` the index in `SERVICES*`.
#[inline(always)]
pub fn asked<F: Family>(event: *mut Event, source: F::Address, key: &FrontendKey<F::Address>, service: u32) {
    // SAFETY: `begin` reserved it; the helper takes no arguments.
    unsafe {
        (*event).client = F::wide(source);
        (*event).frontend = F::wide(key.address);
        (*event).frontend_port = key.port;
        (*event).protocol = key.protocol;
        (*event).family = F::NUMBER;
        (*event).service = service;
        (*event).process = (bpf_get_current_pid_tgid() >> 32) as u32;
    }
}
