//! The walk of a packet through a TC or XDP program.

use lb_common::{
    abi::{
        AffinityKey, BackendFlags, ConfigFlags, Disposition, Event, EventKind, FlowAction, FlowDirection, Frontend,
        Hook, Interface, LocalAddressKey, Protocol, Reason, Tuple,
    },
    hash,
};

use crate::{
    balance::{self, List, Picked},
    count,
    family::{Family, Ipv4, Ipv6},
    flow::{self, Known},
    forward, fragment,
    hook::{Entrance, PacketContext, Place, Tag, Verdict},
    icmp, load,
    maps::{HASH_SEED, TAKEOVER, Work},
    monitor::{self, Stage},
    own,
    packet::{self, Link, Packet},
    refuse,
    rewrite::rewrite,
    snat, trace,
};

/// A packet that comes from a pod or reaches the node: known flows are translated, new ones are given a backend.
#[inline(always)]
pub fn ingress<C: PacketContext, P: Entrance>(ctx: &C) -> Result<Verdict, Reason> {
    // (A pod on a bridge sends to the bridge's MAC, not to that of its own link's end: that is another host's to the kernel.)
    if !P::FROM_POD && (ctx.is_for_another_host() || ctx.is_translated()) {
        return Ok(Verdict::Next);
    }
    match packet::link(ctx)? {
        Link::Ipv4(l3) => parsed::<C, P, Ipv4>(ctx, l3, request::<C, P, Ipv4>),
        Link::Ipv6(l3) => parsed::<C, P, Ipv6>(ctx, l3, request::<C, P, Ipv6>),
        Link::Other => Ok(Verdict::Next),
    }
}

/// A packet that is about to reach a pod or to leave the node: replies are translated back.
#[inline(always)]
pub fn egress<C: PacketContext, P: Place>(ctx: &C) -> Result<Verdict, Reason> {
    match packet::link(ctx)? {
        Link::Ipv4(l3) => parsed::<C, P, Ipv4>(ctx, l3, reply::<C, P, Ipv4>),
        Link::Ipv6(l3) => parsed::<C, P, Ipv6>(ctx, l3, reply::<C, P, Ipv6>),
        Link::Other => Ok(Verdict::Next),
    }
}

/// What `walk` says of a packet whose IP header is at `l3`. What is neither TCP nor UDP may be an error about such a packet,
/// and what has no ports may be a part of one.
#[inline(always)]
fn parsed<C: PacketContext, P: Place, F: Family>(
    ctx: &C,
    l3: usize,
    walk: impl FnOnce(&C, &Packet<F::Address>) -> Result<Verdict, Reason>,
) -> Result<Verdict, Reason> {
    // Not `let … else` of a reference: it copies the packet before it looks whether there is one, and Linux 6.1 lets no
    // program read stack that was never written.
    match F::parse(ctx, l3) {
        // What the kernel may have to look at itself is for the place that follows.
        Ok(Some(packet)) if C::EARLY && !packet.is_plain() => Ok(Verdict::Next),
        Ok(Some(packet)) => walk(ctx, &packet),
        Ok(None) if C::EARLY => Ok(Verdict::Next),
        Ok(None) => Ok(icmp::error::<C, P, F>(ctx, l3)),
        Err(Reason::Fragment) if !C::EARLY => Ok(fragment::follow::<C, P, F>(ctx, l3)),
        Err(reason) => Err(reason),
    }
}

/// The verdict on a packet that was not simply translated.
#[inline(always)]
pub fn conclude<C: PacketContext>(result: Result<Verdict, Reason>) -> Verdict {
    judge::<C>(result, |kind, reason| monitor::unseen::<C>(kind, reason))
}

/// As [`conclude`], where the stack is too full to tell anybody: the reason of a drop is left in `Work`, for [`told`] or
/// [`give_up`].
#[inline(always)]
pub fn settle<C: PacketContext, F: Family>(result: Result<Verdict, Reason>) -> Verdict {
    judge::<C>(result, |_, reason| {
        if let Ok(work) = work::<F>() {
            work.reason = reason as u32;
        }
    })
}

/// The verdict of [`settle`], from where the stack is low: whoever watches is told of a drop.
#[inline(always)]
pub fn told<C: PacketContext, F: Family>(ctx: &C, verdict: Verdict) -> Verdict {
    if verdict == Verdict::Drop {
        monitor::obstacle::<C, F>(ctx, Stage::Known, EventKind::Drop);
    }
    verdict
}

/// The one place where a reason becomes a verdict. `tell` is for whoever watches.
#[inline(always)]
fn judge<C: PacketContext>(result: Result<Verdict, Reason>, tell: impl FnOnce(EventKind, Reason)) -> Verdict {
    match result {
        Ok(verdict) => verdict,
        // What cannot be finished here; unless half of it is done, or it would be in vain there, too.
        Err(reason) if C::EARLY && !matches!(reason, Reason::SnatPortsExhausted | Reason::FlowInsertFailed) => {
            Verdict::Next
        }
        Err(reason) => {
            count::reason(reason);
            // What is refused has been answered by `refuse`; the packet itself ends here all the same.
            let kind = match reason.disposition() {
                Disposition::Pass | Disposition::Translate => return Verdict::Next,
                Disposition::Refuse => EventKind::Refusal,
                Disposition::Drop => EventKind::Drop,
            };
            tell(kind, reason);
            Verdict::Drop
        }
    }
}

#[inline(always)]
fn request<C: PacketContext, P: Entrance, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Result<Verdict, Reason> {
    match flow::lookup::<F>(&packet.tuple) {
        Some(known) if known.hooks & P::HOOK as u8 != 0 && !known.is_stale::<F>(packet) => {
            translate::<C, P, F>(ctx, packet, &known)
        }
        // A reply on its way to where it is translated. (A request that was entered elsewhere is not ours to let pass:
        // the device may have changed its role.)
        Some(known) if known.direction == FlowDirection::Reply as u8 && !known.is_given_up(packet) => Ok(Verdict::Next),
        _ => Ok(new_flow::<C, P, F>(ctx, packet)),
    }
}

#[inline(always)]
fn reply<C: PacketContext, P: Place, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Result<Verdict, Reason> {
    if let Some(known) = flow::lookup::<F>(&packet.tuple)
        && known.hooks & P::HOOK as u8 != 0
    {
        if !known.is_foreign::<F>(packet) {
            return translate::<C, P, F>(ctx, packet, &known);
        }
        flow::give_way::<F>(packet);
    }
    if own::may_begin(packet) && hand_over::<F>(packet).is_some() {
        begin_own::<F>();
    }
    Ok(Verdict::Next)
}

/// The packet of `Work` leaves, and is answered.
#[inline(never)]
fn begin_own<F: Family>() {
    if let Ok(work) = work::<F>() {
        own::enter::<F>(work);
    }
}

/// A packet of a known flow.
#[inline(always)]
fn translate<C: PacketContext, P: Place, F: Family>(
    ctx: &C,
    packet: &Packet<F::Address>,
    known: &Known<F::Address>,
) -> Result<Verdict, Reason> {
    if C::EARLY {
        return translate_early::<C, F>(ctx, packet, known);
    }
    if known.action == FlowAction::Forward as u8 && is_of_vlan::<C, F>(ctx, packet) {
        return Err(Reason::VlanForward);
    }
    note::<C, F>(ctx, packet, known);
    if packet.is_first_fragment()
        && let Some(work) = hand_over::<F>(packet)
    {
        work.request.to = known.to;
        work.request.action = known.action;
        work.request.service = known.service;
        fragment::identify::<C, F>(ctx);
        fragment::remember::<P, F>();
    }
    if known.action == FlowAction::Forward as u8 {
        return match hand_over::<F>(packet) {
            Some(work) => {
                work.request.to = known.to;
                Ok(forward_known::<C, F>(ctx).unwrap_or_else(|| give_up::<C, F>(ctx, Stage::Known)))
            }
            None => Err(Reason::TablesInconsistent),
        };
    }
    rewrite::<C, F>(ctx, packet, &known.to, false)?;
    Ok(Verdict::Translated)
}

/// As [`translate`], where the packet may have to be left as it is.
#[inline(always)]
fn translate_early<C: PacketContext, F: Family>(
    ctx: &C,
    packet: &Packet<F::Address>,
    known: &Known<F::Address>,
) -> Result<Verdict, Reason> {
    let verdict = if known.action == FlowAction::Forward as u8 {
        let work = hand_over::<F>(packet).ok_or(Reason::TablesInconsistent)?;
        work.request.to = known.to;
        forward_known::<C, F>(ctx).unwrap_or(Verdict::Next)
    } else {
        ctx.mark_translated()?;
        rewrite::<C, F>(ctx, packet, &known.to, false)?;
        Verdict::Translated
    };
    if verdict != Verdict::Next {
        note::<C, F>(ctx, packet, known);
    }
    Ok(verdict)
}

/// Notes that a packet of a flow passes.
#[inline(always)]
fn note<C: PacketContext, F: Family>(ctx: &C, packet: &Packet<F::Address>, known: &Known<F::Address>) {
    known.seen::<F>(packet);
    count::translated::<F>(known.service, (ctx.length() - packet.l3()) as u64);
}

/// Whether a packet is of a VLAN of the device that it came by. We do not forward those here: the route to take is that of
/// the VLAN's device, which sees the packet next, without its tag.
#[inline(always)]
pub fn is_of_vlan<C: PacketContext, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> bool {
    packet.l3() != C::LINK || ctx.tag() == Tag::Vlan
}

/// A packet of no known flow: one step after the other from here, where the stack is low. 512 bytes must do for a whole
/// chain of calls.
#[inline(always)]
fn new_flow<C: PacketContext, P: Entrance, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Verdict {
    if matches!(packet.protocol(), Protocol::Tcp)
        && (packet.accepts_connection() || TAKEOVER.load() != 0 && !packet.opens_connection())
    {
        return Verdict::Next;
    }
    if hand_over::<F>(packet).is_none() {
        return conclude::<C>(Err(Reason::TablesInconsistent));
    }
    match choose::<C, P, F>() {
        Choice::NotOurs => Verdict::Next,
        Choice::Backend if C::EARLY => {
            let verdict = connect::<C, P, F>(ctx).unwrap_or_else(|| give_up::<C, F>(ctx, Stage::New));
            if verdict != Verdict::Next {
                begun::<C, F>(ctx);
            }
            verdict
        }
        Choice::Backend => {
            begun::<C, F>(ctx);
            if packet.is_first_fragment() {
                fragment::identify::<C, F>(ctx);
            }
            let Some(verdict) = connect::<C, P, F>(ctx) else { return give_up::<C, F>(ctx, Stage::New) };
            if packet.is_first_fragment() {
                fragment::remember::<P, F>();
            }
            verdict
        }
        // Answers are given by the place that follows.
        Choice::Refuse if C::EARLY => Verdict::Next,
        Choice::Refuse => {
            turned_away::<C, F>(ctx, EventKind::Refusal);
            refuse::<C, F>(ctx)
        }
        Choice::Drop => {
            turned_away::<C, F>(ctx, EventKind::Drop);
            Verdict::Drop
        }
    }
}

/// Traces and tells a packet that gets no backend. It was counted.
#[inline(always)]
fn turned_away<C: PacketContext, F: Family>(ctx: &C, kind: EventKind) {
    trace::rejection::<C, F>(ctx);
    monitor::rejection::<C, F>(ctx, kind);
}

/// Counts, traces and tells a new flow.
#[inline(always)]
fn begun<C: PacketContext, F: Family>(ctx: &C) {
    if let Ok(work) = work::<F>() {
        count::new_flow::<F>(work.service);
    }
    trace::flow::<C, F>(ctx);
    monitor::flow::<C, F>(ctx);
}

/// This CPU's place for what the functions below work on.
#[inline(always)]
pub fn work<F: Family>() -> Result<&'static mut Work<F::Address>, Reason> {
    // SAFETY: this CPU's element, which one function uses after the other; hooks of one CPU do not interrupt each other.
    F::scratch().get_ptr_mut(0).map(|work| unsafe { &mut *work }).ok_or(Reason::TablesInconsistent)
}

/// Puts a packet where the functions that are not inlined find it.
///
/// Not on the stack: verifiers before Linux 6.8 lose track of constants there that a called function reads through a
/// pointer, and take branches for decided that are not (kernel commit 41f6f64e6999, "bpf: support non-r10 register
/// spill/fill to/from stack in precision tracking"). What comes out of a map is unknown to all of them.
#[inline(always)]
fn hand_over<F: Family>(packet: &Packet<F::Address>) -> Option<&'static mut Work<F::Address>> {
    let work = work::<F>().ok()?;
    work.packet = *packet;
    Some(work)
}

/// What becomes of a packet that was to go on. `None` is for the caller to [`give_up`], from where the stack is low.
#[inline(always)]
fn conclude_sending<C: PacketContext, F: Family>(result: Result<Verdict, Reason>) -> Option<Verdict> {
    match result {
        Ok(verdict) => Some(verdict),
        result => Some(settle::<C, F>(result)).filter(|verdict| *verdict != Verdict::Drop),
    }
}

/// Whether the sender of a packet that cannot be sent on, for the reason of this number, can do something about it.
#[inline(always)]
const fn is_answered(reason: u32) -> bool {
    reason == Reason::TooBig as u32 || reason == Reason::TtlExpired as u32
}

/// A packet that cannot go on, for `Work::reason`: it is answered, where its sender can do something about it, or dropped.
/// Counted already.
#[inline(always)]
fn give_up<C: PacketContext, F: Family>(ctx: &C, stage: Stage) -> Verdict {
    // Answers are given by the place that follows.
    let is_answered = !C::EARLY && work::<F>().is_ok_and(|work| is_answered(work.reason));
    monitor::obstacle::<C, F>(ctx, stage, if is_answered { EventKind::Refusal } else { EventKind::Drop });
    if is_answered { refuse::<C, F>(ctx) } else { Verdict::Drop }
}

#[inline(never)]
fn forward_known<C: PacketContext, F: Family>(ctx: &C) -> Option<Verdict> {
    conclude_sending::<C, F>(try_forward_known::<C, F>(ctx))
}

#[inline(always)]
fn try_forward_known<C: PacketContext, F: Family>(ctx: &C) -> Result<Verdict, Reason> {
    let Work { packet, request, route, .. } = work::<F>()?;
    route.look_up::<C, F>(ctx, packet, &request.to)?;
    if C::EARLY && !forward::is_possible::<C, F>(ctx, packet, route) {
        return Ok(Verdict::Next);
    }
    forward::send::<C, F>(ctx, packet, &request.to, route)
}

/// A packet that is to be answered, for `Work::reason`.
#[inline(always)]
fn refuse<C: PacketContext, F: Family>(ctx: &C) -> Verdict {
    told::<C, F>(ctx, answer::<C, F>(ctx))
}

#[inline(never)]
fn answer<C: PacketContext, F: Family>(ctx: &C) -> Verdict {
    settle::<C, F>(work::<F>().and_then(|work| refuse::answer::<C, F>(ctx, work)))
}

/// What a packet of no known flow is for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Choice {
    /// No frontend.
    NotOurs,
    /// A frontend, and `Work` names the backend.
    Backend,
    /// A frontend without endpoints.
    Refuse,
    /// A frontend that must not answer. Counted.
    Drop,
}

/// Finds the frontend and picks a backend for a packet of no known flow. Most such packets are none of our business.
#[inline(never)]
fn choose<C: PacketContext, P: Entrance, F: Family>() -> Choice {
    let Ok(work) = work::<F>() else { return Choice::NotOurs };
    let tuple = &work.packet.tuple;
    let frontend = match balance::frontend::<F>(tuple.dst, tuple.dst_port, work.packet.protocol() as u8, false) {
        Ok(Some(frontend)) => frontend,
        Ok(None) => return Choice::NotOurs,
        Err(reason) => {
            work.service = Event::NOTHING;
            return rejected::<C, _>(work, reason);
        }
    };
    work.service = frontend.service;
    work.hash = hash::flow(tuple, HASH_SEED.load());
    match backend::<P, F>(frontend, tuple, work.hash) {
        Ok(picked) => {
            work.picked = picked;
            Choice::Backend
        }
        Err(reason) => {
            let choice = rejected::<C, _>(work, reason);
            if choice == Choice::Drop || !C::EARLY && choice == Choice::Refuse {
                count::rejected::<F>(frontend.service);
            }
            choice
        }
    }
}

/// The backend of a new flow. Who may not ask is dropped before anything else is said of the service.
#[inline(always)]
fn backend<P: Entrance, F: Family>(
    frontend: Frontend,
    tuple: &Tuple<F::Address>,
    hash: u32,
) -> Result<Picked<F::Address>, Reason> {
    if balance::is_restricted(frontend) && !balance::is_allowed::<F>(frontend, tuple.src) {
        return Err(Reason::SourceNotAllowed);
    }
    let list = List::of(frontend, |config| {
        P::FROM_POD && config.flags & ConfigFlags::PODS_BY_INTERFACE != 0
            || config.flags & ConfigFlags::PODS_BY_ADDRESS != 0 && F::pods(config).contains(tuple.src)
    });
    let client = || AffinityKey { namespace: [0; 2], client: tuple.src, service: frontend.service, list: 0 };
    balance::pick::<F>(frontend, list, hash, client)
}

#[inline(always)]
fn rejected<C: PacketContext, A>(work: &mut Work<A>, reason: Reason) -> Choice {
    // Answers, and their counting, are for the place that follows. (The choice is named all the same: were it "not ours",
    // LLVM would join this path with that of no frontend, and copy one that was never read before it asks whether there is
    // one. The verifier reads nothing that was not written.)
    if !C::EARLY || matches!(reason.disposition(), Disposition::Drop) {
        work.reason = reason as u32;
        count::reason(reason);
    }
    match reason.disposition() {
        Disposition::Pass | Disposition::Translate => Choice::NotOurs,
        Disposition::Refuse => Choice::Refuse,
        Disposition::Drop => Choice::Drop,
    }
}

/// Enters both directions of a flow to the backend that `choose` picked, and sends its first packet on.
#[inline(never)]
fn connect<C: PacketContext, P: Entrance, F: Family>(ctx: &C) -> Option<Verdict> {
    conclude_sending::<C, F>(try_connect::<C, P, F>(ctx))
}

#[inline(always)]
fn try_connect<C: PacketContext, P: Entrance, F: Family>(ctx: &C) -> Result<Verdict, Reason> {
    let work = work::<F>()?;
    let Work { packet, picked, request, .. } = &mut *work;
    let (tuple, backend) = (&packet.tuple, &picked.backend);
    request.to = Tuple { dst: backend.address, dst_port: backend.port, ..*tuple };
    // A pod that reaches itself must not see its own address as the client's; a backend on another node must answer
    // through this one. Everyone else keeps the client's address.
    let mut masquerade =
        if P::FROM_POD { backend.address == tuple.src } else { backend.flags & BackendFlags::LOCAL == 0 };
    if masquerade {
        if is_of_vlan::<C, F>(ctx, packet) {
            return Err(Reason::VlanForward);
        }
        match work.route.look_up::<C, F>(ctx, &work.packet, &work.request.to) {
            Ok(()) => work.request.to.src = node_address::<F>(work.route.interface())?,
            // The kernel forwards nothing to itself: an address of this node that no `nodeName` says to be on it (a
            // process of the node, an endpoint made by hand).
            Err(Reason::NoRoute) if is_own::<F>(work.request.to.dst) => masquerade = false,
            Err(reason) => return Err(reason),
        }
    }
    // Of no return: from here on something is entered.
    if C::EARLY {
        if !masquerade {
            ctx.mark_translated()?;
        } else if !forward::is_possible::<C, F>(ctx, &work.packet, &work.route) {
            return Ok(Verdict::Next);
        }
    }
    describe::<P, F>(work, masquerade);
    let work = snat::reserve::<F>(!masquerade)?;
    flow::enter::<F>(&work.packet.tuple, &work.request)?;

    load::began::<F>(work.service, work.picked.index, work.picked.backend.generation);
    count::translated::<F>(work.service, (ctx.length() - work.packet.l3()) as u64);
    if masquerade {
        return forward::send::<C, F>(ctx, &work.packet, &work.request.to, &work.route);
    }
    rewrite::<C, F>(ctx, &work.packet, &work.request.to, false)?;
    Ok(Verdict::Translated)
}

/// Where packets come from: bits of [`Hook`].
const ENTRANCES: u8 = Hook::PodIngress as u8 | Hook::UplinkIngress as u8;

/// Fills in both directions of the flow; where the request goes to is known already, its source port aside.
#[inline(always)]
fn describe<P: Entrance, F: Family>(work: &mut Work<F::Address>, masquerade: bool) {
    let Work { packet, picked, service, request, reply, .. } = work;
    let tuple = &packet.tuple;
    request.owner = hash::owner(tuple);
    request.action = if masquerade { FlowAction::Forward } else { FlowAction::Stack } as u8;
    request.hooks = P::HOOK as u8;
    request.tcp_state = match packet.protocol() {
        Protocol::Tcp => flow::tcp_state(packet.tcp_flags),
        Protocol::Udp => 0,
    };
    request.direction = FlowDirection::Request as u8;
    request.backend = picked.index;
    request.generation = picked.backend.generation;
    request.service = *service;
    request.pad2 = 0;
    request.last_seen = flow::now();

    *reply = *request;
    // A reply that is forwarded comes in from another node, from the pod that answers itself, or from a pod of this node
    // that no `nodeName` says to be here: an endpoint made by hand.
    reply.hooks = if masquerade { ENTRANCES } else { P::REPLY_HOOK as u8 };
    reply.tcp_state = 0;
    reply.direction = FlowDirection::Reply as u8;
    reply.to = tuple.reversed();
}

/// Whether an address is one of this node's.
#[inline(always)]
fn is_own<F: Family>(address: F::Address) -> bool {
    F::local_addresses().get_ptr(&LocalAddressKey { address }).is_some()
}

/// The address that packets masqueraded by this node leave a device with.
#[inline(always)]
fn node_address<F: Family>(interface: u32) -> Result<F::Address, Reason> {
    let addresses = F::node_addresses();
    // SAFETY: elements change only when the node's addresses do; one that was reused meanwhile is such an address, too.
    let own = unsafe { addresses.get(&Interface { interface }).or_else(|| addresses.get(&Interface { interface: 0 })) };
    own.map(|own| own.address).ok_or(Reason::NoNodeAddress)
}
