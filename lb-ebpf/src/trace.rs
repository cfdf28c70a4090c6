//! One line for each new flow and each packet that was refused or dropped, for the operator who asked for a packet trace
//! (`lb-agent run --trace-packets`). `AYA_LOG_LEVEL` is a constant of the loaded object: at 0, the default, the verifier
//! removes what is in here.
//!
//! Functions of their own, called where the stack is low: the fields of a line need much of it.

use aya_log_ebpf::info;
use lb_common::abi::Reason;

use crate::{family::Family, hook::PacketContext, maps::Work, path::work};

/// Bytes of a reason's name in a line: of one length, which the verifier need not reason about, and in columns.
const WIDTH: usize = 24;

static REASONS: [[u8; WIDTH]; Reason::COUNT as usize] = names();

/// The names of all reasons by number, filled up with spaces. Too long a name does not compile.
const fn names() -> [[u8; WIDTH]; Reason::COUNT as usize] {
    let mut names = [[b' '; WIDTH]; Reason::COUNT as usize];
    let mut number = 0;
    while number < names.len() {
        let name = Reason::ALL[number].name().as_bytes();
        let mut index = 0;
        while index < name.len() {
            names[number][index] = name[index];
            index += 1;
        }
        number += 1;
    }
    names
}

/// A flow that was given a backend.
#[inline(never)]
pub fn flow<C: PacketContext, F: Family>(ctx: &C) {
    let Ok(Work { packet, picked, .. }) = work::<F>() else { return };
    let (tuple, backend) = (&packet.tuple, &picked.backend);
    info!(
        ctx,
        "new flow                 {:i} port {} to {:i} port {} by {:i} port {}",
        tuple.src,
        tuple.src_port,
        tuple.dst,
        tuple.dst_port,
        backend.address,
        backend.port
    );
}

/// A packet that was refused or dropped.
#[inline(never)]
pub fn rejection<C: PacketContext, F: Family>(ctx: &C) {
    let Ok(Work { packet, reason, .. }) = work::<F>() else { return };
    let tuple = &packet.tuple;
    let Some(name) = REASONS.get(*reason as usize) else { return };
    // SAFETY: names are ASCII.
    let name = unsafe { core::str::from_utf8_unchecked(name) };
    info!(ctx, "{} {:i} port {} to {:i} port {}", name, tuple.src, tuple.src_port, tuple.dst, tuple.dst_port);
}
