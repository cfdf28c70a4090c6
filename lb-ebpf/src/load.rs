//! How many flows a backend has, for services that select by it ([`ServiceFlags::LEAST_CONN`]).
//!
//! What begins is counted here; what ends is not: no packet of a known flow comes here, and of most ends no program hears
//! (a silence, an eviction, a socket that is closed). The agent counts what lives and writes that into `LOADS*` every few
//! seconds (`lb-agent/src/dataplane/recount.rs`), so what is lost or counted twice here is so until then.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::abi::{Load, LoadKey, ServiceFlags};

use crate::family::Family;

/// Counts a flow that a backend of a service was given, if the service selects by that.
#[inline(always)]
pub fn began<F: Family>(service: u32, backend: u32, generation: u32) {
    if F::services().get(service).is_some_and(|service| service.flags & ServiceFlags::LEAST_CONN != 0) {
        add::<F>(backend, generation);
    }
}

#[inline(never)]
fn add<F: Family>(backend: u32, generation: u32) {
    let key = LoadKey { backend, generation };
    if let Some(load) = F::loads().get_ptr_mut(&key) {
        // SAFETY: the kernel keeps the element's memory while the program runs. Should it be given to another backend
        // meanwhile, that one has a flow too many until the agent counts.
        unsafe { increment(&raw mut (*load).flows) };
    } else {
        // Where another CPU was first, or there is no room, the flow is not counted until the agent counts.
        let _: Result<(), i32> = F::loads().insert(&key, &Load { flows: 1 }, u64::from(BPF_NOEXIST));
    }
}

/// Adds one, whatever other CPUs do: the instruction for which this target has no function.
///
/// # Safety
///
/// `number` is a number in a map, aligned.
#[inline(always)]
unsafe fn increment(number: *mut u64) {
    // SAFETY: the caller says so.
    unsafe {
        asm!(
            "lock *(u64 *)({number} + 0) += {one}",
            number = in(reg) number,
            one = in(reg) 1_u64,
            options(nostack),
        );
    }
}

/// Whether the second of two backends has fewer flows than the first.
#[inline(never)]
pub fn is_second_less<F: Family>(first: u32, second: u32) -> bool {
    flows::<F>(second) < flows::<F>(first)
}

/// The flows of the backend at an index. One that is gone has the most: what finds it begins anew.
#[inline(always)]
fn flows<F: Family>(backend: u32) -> u64 {
    let Some(generation) = F::backends().get(backend).map(|backend| backend.generation) else { return u64::MAX };
    match F::loads().get_ptr(&LoadKey { backend, generation }) {
        // SAFETY: as in `add`; one aligned word.
        Some(load) => unsafe { core::ptr::read_volatile(&raw const (*load).flows) },
        None if generation == 0 => u64::MAX,
        None => 0,
    }
}
