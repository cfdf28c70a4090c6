//! Fragments. Only the first one of a packet has its ports (RFC 791 §3.2, RFC 8200 §4.5), and is balanced as a whole packet
//! is: its checksum, which is that of all, is updated by what changes. What became of its addresses is remembered for
//! those that follow.
//!
//! A fragment that comes before the first one of its packet, or long after, is passed on as it is, and counted. Nobody
//! waits for it: the receiver misses a part, and the sender's next attempt is a new packet.
//!
//! The first fragments of two clients that are masqueraded may have the same identification, which stays: where both are on
//! their way to one backend at once, parts are mixed up, as they are behind any masquerading router (RFC 6864 §5.3.1), and
//! the checksum tells.

use aya_ebpf::bindings::BPF_ANY;
use lb_common::{abi::Reason, hash};

use crate::{
    count,
    family::Family,
    flow, forward,
    hook::{PacketContext, Place, Verdict},
    packet::header,
    path::{settle, told, work},
};

/// For how many seconds a receiver waits for what is missing (`net.ipv4.ipfrag_time`; RFC 8200 §4.5 has 60).
const PATIENCE: u64 = 30;

/// Reads what the fragments of the packet of `Work` have in common: while it lies where it came, as one that was sent on need
/// not.
#[inline(never)]
pub fn identify<C: PacketContext, F: Family>(ctx: &C) {
    let Ok(work) = work::<F>() else { return };
    work.fragment_id = F::fragment_id(ctx, &work.packet).unwrap_or_default();
}

/// Remembers what becomes of the first fragment of `Work`: `request` says it.
#[inline(never)]
pub fn remember<P: Place, F: Family>() {
    let Ok(work) = work::<F>() else { return };
    let (tuple, id) = (&work.packet.tuple, work.fragment_id);
    work.reply_key = header::fragments(tuple.src, tuple.dst, id, work.packet.protocol() as u8);
    work.reply = work.request;
    work.reply.owner = hash::owner(&work.reply_key);
    work.reply.hooks = P::HOOK as u8;
    work.reply.last_seen = flow::now();
    // Where it fails, those that follow are counted.
    let _ = F::fragments().insert(&work.reply_key, &work.reply, u64::from(BPF_ANY));
}

/// What becomes of a fragment that is not the first, whose IP header is at `l3`.
#[inline(always)]
pub fn follow<C: PacketContext, P: Place, F: Family>(ctx: &C, l3: usize) -> Verdict {
    told::<C, F>(ctx, recall::<C, P, F>(ctx, l3).unwrap_or_else(|| send::<C, F>(ctx)))
}

#[inline(never)]
fn recall<C: PacketContext, P: Place, F: Family>(ctx: &C, l3: usize) -> Option<Verdict> {
    match try_recall::<C, P, F>(ctx, l3) {
        Ok(()) => None,
        Err(reason) => Some(settle::<C, F>(Err(reason))),
    }
}

/// Finds out what the fragment becomes.
#[inline(always)]
fn try_recall<C: PacketContext, P: Place, F: Family>(ctx: &C, l3: usize) -> Result<(), Reason> {
    let work = work::<F>()?;
    work.reply_key = header::parse_fragment::<C, F>(ctx, l3, work)?;
    let known = flow::read(&work.reply_key, F::fragments().get_ptr_mut(&work.reply_key)).ok_or(Reason::Fragment)?;
    if known.hooks != P::HOOK as u8 || known.is_older(PATIENCE) {
        return Err(Reason::Fragment);
    }
    work.request.to = known.to;
    work.request.action = known.action;
    work.request.service = known.service;
    Ok(())
}

#[inline(never)]
fn send<C: PacketContext, F: Family>(ctx: &C) -> Verdict {
    settle::<C, F>(try_send::<C, F>(ctx))
}

#[inline(always)]
fn try_send<C: PacketContext, F: Family>(ctx: &C) -> Result<Verdict, Reason> {
    let work = work::<F>()?;
    count::translated::<F>(work.request.service, (ctx.length() - work.packet.l3()) as u64);
    forward::go_on::<C, F>(ctx, work, |work, hop| {
        F::rewrite_header(ctx, &work.packet, &work.request.to, hop)?;
        if F::V6 {
            // An IPv4 header balances a change of its addresses by its own checksum.
            ctx.note_change(F::difference(&work.packet.tuple, &work.request.to));
        }
        Ok(())
    })
}
