//! Source ports: the reply's entry in the flow table is the reservation.
//!
//! A reply is found by (backend, source address, source port, protocol), so no two flows may share these. The entry is
//! inserted only where there is none; on a collision another port is tried, a bounded number of times.

use core::{
    ffi::{c_long, c_void},
    ptr,
};

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_loop};
use lb_common::{abi::Reason, hash, ports};

use crate::{
    family::Family,
    flow,
    maps::{CONFIG, Work},
    path,
};

/// Ports that are tried. With a pool that is half full for one backend, all fail for one flow in 2^8.
const ATTEMPTS: u32 = 8;
/// 2^32 divided by the golden ratio: steps that visit a range evenly (Knuth, TAOCP 3, §6.4).
const STEP: u32 = 0x9e37_79b9;
/// `-EEXIST`.
const EEXIST: i32 = -17;

/// Finds a source port for the request of `Work`, whose addresses are already in `request.to`, writes it there, and enters the
/// reply. Gives `Work`, which the search had for itself.
///
/// `keep`: the client's own port is tried first, since the client's address stays. The ports that follow are the same
/// for every packet of the flow: a flow whose request entry was evicted finds its reservation again, and takes it over.
#[inline(always)]
pub fn reserve<F: Family>(keep: bool) -> Result<&'static mut Work<F::Address>, Reason> {
    let work = path::work::<F>()?;
    work.search = Search { point: work.hash, keep: u32::from(keep), outcome: Search::EXHAUSTED };
    // SAFETY: `attempt` has the signature that the helper calls, and asks for no context.
    unsafe { bpf_loop(ATTEMPTS, attempt::<F> as *mut c_void, ptr::null_mut(), 0) };
    let work = path::work::<F>()?;
    match work.search.outcome {
        Search::FOUND => Ok(work),
        Search::FAILED => Err(Reason::FlowInsertFailed),
        _ => Err(Reason::SnatPortsExhausted),
    }
}

/// How far the search for a port has come.
///
/// Part of `Work`: the verifier walks each round of a loop of which it knows in what it differs from the one before.
#[repr(C)]
pub struct Search {
    /// Decides which port of the pool is next.
    point: u32,
    /// Whether the client's own is.
    keep: u32,
    /// One of the constants.
    outcome: u32,
}

impl Search {
    /// No port was free yet.
    const EXHAUSTED: u32 = 0;
    /// A port is reserved.
    const FOUND: u32 = 1;
    /// A reply could not be entered.
    const FAILED: u32 = 2;
}

/// Tries one port. Gives 0 for another to be tried, else 1, as `bpf_loop` takes it.
extern "C" fn attempt<F: Family>(_round: u32, _context: *mut c_void) -> c_long {
    let Ok(work) = path::work::<F>() else { return 1 };
    match try_next::<F>(work) {
        None => 0,
        Some(outcome) => {
            work.search.outcome = outcome;
            1
        }
    }
}

/// The outcome of a try, if it is the last.
#[inline(always)]
fn try_next<F: Family>(work: &mut Work<F::Address>) -> Option<u32> {
    let Some(config) = CONFIG.get(0) else { return Some(Search::FAILED) };
    let search = &mut work.search;
    let port = if search.keep != 0 {
        search.keep = 0;
        work.packet.tuple.src_port
    } else {
        let index = ((u64::from(search.point) * u64::from(config.snat_port_count)) >> 32) as u32;
        search.point = search.point.wrapping_add(STEP);
        ports::nth(config, index)?
    };
    work.request.to.src_port = port;
    work.reply_key = work.request.to.reversed();
    work.reply.owner = hash::owner(&work.reply_key);
    let entered = match F::flows().insert(&work.reply_key, &work.reply, u64::from(BPF_NOEXIST)) {
        Err(EEXIST) if is_free::<F>(work) => flow::enter::<F>(&work.reply_key, &work.reply).is_ok(),
        Err(EEXIST) => return None,
        result => result.is_ok(),
    };
    Some(if entered { Search::FOUND } else { Search::FAILED })
}

/// Whether the holder of the reply's tuple is the same flow, or none that still lives.
#[inline(always)]
fn is_free<F: Family>(work: &Work<F::Address>) -> bool {
    match F::flows().get_ptr(&work.reply_key) {
        // SAFETY: the kernel keeps the element's memory while the program runs. Should it be reused meanwhile, the
        // holder's tuple is compared with another's: the port is taken to be in use, and the next one tried.
        Some(holder) => unsafe { (*holder).to == work.reply.to || flow::is_over::<F>(&work.reply_key, &*holder) },
        // Evicted between the two calls: as good as free.
        None => true,
    }
}
