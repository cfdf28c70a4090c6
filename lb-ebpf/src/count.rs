//! Counters. Each CPU has its own, and adds to it as to any number: what no other CPU writes needs no atomic addition, which
//! costs more (`load.rs` has one, for numbers that all CPUs share and that decide something).

use lb_common::abi::Reason;

use crate::{family::Family, maps::COUNTERS};

/// Counts a packet or a call that was not simply translated.
#[inline(always)]
pub fn reason(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's element, and programs of one CPU do not interrupt each other at this address long enough
        // to matter: a socket hook that a softirq interrupts between load and store can lose that one count.
        unsafe { (*counter).count = (*counter).count.wrapping_add(1) };
    }
}

/// Counts a packet that was translated for a service.
#[inline(always)]
pub fn translated<F: Family>(service: u32, bytes: u64) {
    if let Some(stats) = F::service_stats().get_ptr_mut(service) {
        // SAFETY: as in `reason`.
        unsafe {
            (*stats).packets = (*stats).packets.wrapping_add(1);
            (*stats).bytes = (*stats).bytes.wrapping_add(bytes);
        }
    }
}

/// Counts a flow that was given a backend of a service.
#[inline(always)]
pub fn new_flow<F: Family>(service: u32) {
    if let Some(stats) = F::service_stats().get_ptr_mut(service) {
        // SAFETY: as in `reason`.
        unsafe { (*stats).flows = (*stats).flows.wrapping_add(1) };
    }
}

/// How many flows this CPU has given a backend of a service; what does not fit falls off.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "wraps")]
pub fn flows<F: Family>(service: u32) -> u32 {
    match F::service_stats().get_ptr(service) {
        // SAFETY: as in `reason`.
        Some(stats) => unsafe { (*stats).flows as u32 },
        None => 0,
    }
}

/// Counts a flow that a service refused or dropped.
#[inline(always)]
pub fn rejected<F: Family>(service: u32) {
    if let Some(stats) = F::service_stats().get_ptr_mut(service) {
        // SAFETY: as in `reason`.
        unsafe { (*stats).rejected = (*stats).rejected.wrapping_add(1) };
    }
}
