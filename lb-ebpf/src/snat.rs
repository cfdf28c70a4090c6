//! Source ports: the reply's entry in the flow table is the reservation.
//!
//! A reply is found by (backend, source address, source port, protocol), so no two flows may share these. The entry is
//! inserted only where there is none; on a collision another port is tried, a bounded number of times.

use aya_ebpf::bindings::BPF_NOEXIST;
use lb_common::{abi::Reason, hash, ports};

use crate::{
    family::Family,
    flow,
    maps::{CONFIG, Work},
};

/// Ports that are tried. With a pool that is half full for one backend, all fail for one flow in 2^8.
const ATTEMPTS: u32 = 8;
/// 2^32 divided by the golden ratio: steps that visit a range evenly (Knuth, TAOCP 3, §6.4).
const STEP: u32 = 0x9e37_79b9;
/// `-EEXIST`.
const EEXIST: i32 = -17;

/// Finds a source port for a request whose addresses are already in `work.request.to`, writes it there, and enters the
/// reply.
///
/// `keep`: the client's own port is tried first, since the client's address stays. The ports that follow are the same
/// for every packet of the flow: a flow whose request entry was evicted finds its reservation again, and takes it over.
#[inline(always)]
pub fn reserve<F: Family>(work: &mut Work<F::Address>, keep: bool) -> Result<(), Reason> {
    let config = CONFIG.get(0).ok_or(Reason::TablesInconsistent)?;
    let mut point = work.hash;
    for attempt in 0..ATTEMPTS {
        let port = if keep && attempt == 0 {
            work.packet.tuple.src_port
        } else {
            let index = ((u64::from(point) * u64::from(config.snat_port_count)) >> 32) as u32;
            point = point.wrapping_add(STEP);
            let Some(port) = ports::nth(config, index) else { continue };
            port
        };
        work.request.to.src_port = port;
        work.reply_key = work.request.to.reversed();
        work.reply.owner = hash::owner(&work.reply_key);
        match F::flows().insert(&work.reply_key, &work.reply, u64::from(BPF_NOEXIST)) {
            Ok(()) => return Ok(()),
            Err(EEXIST) if is_free::<F>(work) => {
                return flow::enter::<F>(&work.reply_key, &work.reply);
            }
            Err(EEXIST) => {}
            Err(_) => return Err(Reason::FlowInsertFailed),
        }
    }
    Err(Reason::SnatPortsExhausted)
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
