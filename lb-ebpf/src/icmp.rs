//! ICMP and `ICMPv6` errors about packets of translated flows.
//!
//! Whoever cannot deliver or forward a packet sees it as it is on that leg of its way, translated or not yet, and quotes
//! it so. Its sender would not know it again: an error that passes where the packet's answers are translated is
//! translated as they are, and what it quotes as the packet itself was, backwards (RFC 5508 §4.2). So path-MTU discovery,
//! "port unreachable" and traceroute work through a Service.
//!
//! The flow's entry for answers says all that is needed. An error changes nothing in it: it may be forged, and a
//! connection outlives it.
//!
//! Of what is quoted of the transport header, ports are replaced, and the checksum where it is quoted. A host that quotes
//! a packet of its own, which a device has yet to finish, quotes an unfinished checksum: that comes out wrong. Nobody
//! needs it; the error's own checksum is right.

use lb_common::abi::{FlowAction, FlowDirection, Protocol, Reason, Tuple};

use crate::{
    count,
    family::Family,
    flow, forward,
    hook::{PacketContext, Place, Verdict},
    maps::Work,
    packet::{self, icmp::ICMP_CHECKSUM},
    path::{is_of_vlan, settle, told, work},
};

/// What becomes of a packet that is neither TCP nor UDP, whose IP header is at `l3`. One step after the other from here, where
/// the stack is low; each returns the verdict where it is the last.
#[inline(always)]
pub fn error<C: PacketContext, P: Place, F: Family>(ctx: &C, l3: usize) -> Verdict {
    let verdict = read::<C, F>(ctx, l3)
        .or_else(|| read_quoted::<C, F>(ctx))
        .or_else(|| relate::<C, P, F>(ctx))
        .unwrap_or_else(|| send::<C, F>(ctx));
    told::<C, F>(ctx, verdict)
}

#[inline(never)]
fn read<C: PacketContext, F: Family>(ctx: &C, l3: usize) -> Option<Verdict> {
    go_on::<C, F>(work::<F>().and_then(|work| packet::icmp::parse::<C, F>(ctx, l3, work)))
}

#[inline(never)]
fn read_quoted<C: PacketContext, F: Family>(ctx: &C) -> Option<Verdict> {
    go_on::<C, F>(work::<F>().and_then(|work| packet::icmp::parse_quoted::<C, F>(ctx, work)))
}

/// `None` where `read` says that it may be ours.
#[inline(always)]
fn go_on<C: PacketContext, F: Family>(read: Result<bool, Reason>) -> Option<Verdict> {
    match read {
        Ok(true) => None,
        Ok(false) => Some(Verdict::Next),
        Err(reason) => Some(settle::<C, F>(Err(reason))),
    }
}

/// Finds out what the error of `Work` becomes, if it is about a flow that is translated here.
#[inline(never)]
fn relate<C: PacketContext, P: Place, F: Family>(ctx: &C) -> Option<Verdict> {
    let work = work::<F>().ok()?;
    let Work { packet, quoted, request, original, .. } = work;
    let answer = quoted.answer();
    let Some(known) = flow::lookup::<F>(&answer.tuple) else { return Some(Verdict::Next) };
    // It is elsewhere on its way; or not for the sender of what it quotes.
    if known.hooks & P::HOOK as u8 == 0 || packet.tuple.dst != quoted.tuple.src {
        return Some(Verdict::Next);
    }
    // Of the tuple of answers, another flow may have become the owner.
    let is_request = known.direction == FlowDirection::Request as u8;
    if if is_request { known.is_stale::<F>(&answer) } else { known.is_foreign::<F>(&answer) } {
        return Some(Verdict::Next);
    }
    let forwards = known.action == FlowAction::Forward as u8;
    if forwards && is_of_vlan::<C, F>(ctx, packet) {
        return Some(settle::<C, F>(Err(Reason::VlanForward)));
    }
    // From the other end it comes from who its receiver takes that to be. A router on the way is named as it is; but a
    // backend elsewhere hears from this node of what is behind it, as it hears of clients.
    let is_from_the_end = packet.tuple.src == quoted.tuple.dst;
    let src = if is_from_the_end || forwards && is_request { known.to.src } else { packet.tuple.src };
    request.to = Tuple { src, dst: known.to.dst, ..packet.tuple };
    request.action = known.action;
    *original = known.to.reversed();
    None
}

#[inline(never)]
fn send<C: PacketContext, F: Family>(ctx: &C) -> Verdict {
    settle::<C, F>(try_send::<C, F>(ctx))
}

#[inline(always)]
fn try_send<C: PacketContext, F: Family>(ctx: &C) -> Result<Verdict, Reason> {
    forward::go_on::<C, F>(ctx, work::<F>()?, |work, hop| {
        rewrite::<C, F>(ctx, work, hop)?;
        count::reason(Reason::IcmpError);
        Ok(())
    })
}

/// Makes the error of `work` one about the original of what it quotes, with the addresses of `request.to`. With `hop`, it is
/// forwarded by us and loses one of its time to live.
#[inline(always)]
fn rewrite<C: PacketContext, F: Family>(ctx: &C, work: &Work<F::Address>, hop: bool) -> Result<(), Reason> {
    let Work { packet, quoted, end, original, request, .. } = work;
    F::rewrite_header(ctx, quoted, original, false)?;
    let ports = quoted.rewrite_ports(ctx, original)?;
    let addresses = F::difference(&quoted.tuple, original);
    let mut changes = ports;
    let checksum = quoted.checksum();
    if checksum.offset + size_of::<u16>() <= *end as usize {
        let field: *mut u16 = packet::pointer(ctx, checksum.offset)?;
        // SAFETY: `pointer` checked the bounds.
        let old = unsafe { *field };
        if old != 0 || checksum.v6 || matches!(checksum.protocol, Protocol::Tcp) {
            let new = checksum.stored(addresses.and(ports).apply(old));
            // SAFETY: as above.
            unsafe { *field = new };
            changes = changes.word16(old, new);
        }
    }
    if F::V6 {
        // An IPv4 header balances a change of its addresses by its own checksum, and ICMP sums no pseudo header.
        changes = changes.and(addresses).and(F::difference(&packet.tuple, &request.to));
    }
    let field: *mut u16 = packet::pointer(ctx, packet.l4() + ICMP_CHECKSUM)?;
    // SAFETY: `pointer` checked the bounds. No sum that the device made of the packet, and no checksum that it has yet to
    // finish, is touched by what comes out even, and the kernel finishes ICMP checksums itself.
    unsafe { *field = changes.apply(*field) };
    F::rewrite_header(ctx, packet, &request.to, hop)
}
