//! Session affinity: a client's new flows go where its last one went.
//!
//! Only new flows ask, and only new flows keep an affinity alive; an established flow never looks here. A client whose
//! entry the table had to give up for others is picked for anew.

use aya_ebpf::bindings::BPF_ANY;
use lb_common::abi::{Affinity, AffinityKey};

use crate::{
    balance::{self, List, Picked},
    family::Family,
    flow,
};

/// The backend of a client's last new flow, if that was at most so many seconds ago and the backend is in the list. This
/// flow is the last one from now on.
///
/// `client.list` names the list whose entry is asked; it need not be `list`.
///
/// The value may be another client's by the time it is read (elements are handed out again at once). Index and
/// generation are one word, so they belong together; a backend of another service is refused, and one of the same
/// service is as good as any. The stamp that such another client is given is about now, as is its own.
#[inline(always)]
pub fn find<F: Family>(client: &AffinityKey<F::Address>, seconds: u32, list: List) -> Option<Picked<F::Address>> {
    let entry = F::affinity().get_ptr_mut(client)?;
    // SAFETY: the kernel keeps the element's memory while the program runs; both are one aligned word.
    let ([index, generation], last_used): ([u32; 2], u64) = unsafe {
        (core::mem::transmute::<u64, [u32; 2]>(core::ptr::read_volatile(entry.cast::<u64>())), (*entry).last_used)
    };
    if flow::is_older(last_used, u64::from(seconds)) {
        return None;
    }
    let backend = balance::backend::<F>(index)?;
    if backend.generation != generation || backend.service != client.service || backend.flags & list.mark() == 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { (*entry).last_used = flow::now() };
    Some(Picked { index, backend })
}

/// Notes where a client's new flow went.
#[inline(always)]
pub fn enter<F: Family>(client: &AffinityKey<F::Address>, picked: &Picked<F::Address>) {
    let affinity = Affinity { backend: picked.index, generation: picked.backend.generation, last_used: flow::now() };
    // Where there is no room for it, the flow has its backend all the same.
    let _: Result<(), i32> = F::affinity().insert(client, &affinity, u64::from(BPF_ANY));
}
