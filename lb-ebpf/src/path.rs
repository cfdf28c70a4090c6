//! The walk of a packet through a TC or XDP program.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::info;
use lb_common::{
    abi::{BackendFlags, Disposition, FlowAction, FlowDirection, Protocol, Reason, Tuple},
    hash,
};

use crate::{
    balance, count,
    family::{Family, Ipv4, Ipv6},
    flow::{self, Known},
    forward,
    hook::{PacketContext, Place, Verdict},
    maps::{HASH_SEED, NewFlow},
    packet::{self, Link, Packet},
    refuse,
    rewrite::rewrite,
    snat,
};

/// A packet that comes from a pod or reaches the node: known flows are translated, new ones are given a backend.
#[inline(always)]
pub fn ingress<C: PacketContext, P: Place>(ctx: &C) -> Result<Verdict, Reason> {
    match packet::link(ctx)? {
        Link::Ipv4(l3) => match Packet::parse_ipv4(ctx, l3)? {
            Some(packet) => request::<C, P, Ipv4>(ctx, &packet),
            None => Ok(Verdict::Next),
        },
        Link::Ipv6(l3) => match Packet::parse_ipv6(ctx, l3)? {
            Some(packet) => request::<C, P, Ipv6>(ctx, &packet),
            None => Ok(Verdict::Next),
        },
        Link::Other => Ok(Verdict::Next),
    }
}

/// A packet that is about to reach a pod or to leave the node: replies are translated back.
#[inline(always)]
pub fn egress<C: PacketContext, P: Place>(ctx: &C) -> Result<Verdict, Reason> {
    match packet::link(ctx)? {
        Link::Ipv4(l3) => match Packet::parse_ipv4(ctx, l3)? {
            Some(packet) => reply::<C, P, Ipv4>(ctx, &packet),
            None => Ok(Verdict::Next),
        },
        Link::Ipv6(l3) => match Packet::parse_ipv6(ctx, l3)? {
            Some(packet) => reply::<C, P, Ipv6>(ctx, &packet),
            None => Ok(Verdict::Next),
        },
        Link::Other => Ok(Verdict::Next),
    }
}

/// The verdict on a packet that was not simply translated: the one place where a reason becomes a verdict.
#[inline(always)]
pub fn conclude(result: Result<Verdict, Reason>) -> Verdict {
    match result {
        Ok(verdict) => verdict,
        Err(reason) => {
            count::reason(reason);
            match reason.disposition() {
                Disposition::Pass => Verdict::Next,
                // What is refused has been answered by `refuse`; the packet itself ends here all the same.
                Disposition::Refuse | Disposition::Drop => Verdict::Drop,
            }
        }
    }
}

#[inline(always)]
fn request<C: PacketContext, P: Place, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Result<Verdict, Reason> {
    match flow::lookup::<F>(&packet.tuple) {
        Some(known) if known.hooks & P::HOOK as u8 == 0 => Ok(Verdict::Next),
        Some(known) if !known.is_stale::<F>(packet) => translate::<C, F>(ctx, packet, &known),
        // One after the other from here, where the stack is low: 512 bytes must do for the whole chain of calls.
        _ => Ok(match choose::<C, P, F>(ctx, packet) {
            Choice::NotOurs => Verdict::Next,
            Choice::Backend => connect::<C, P, F>(ctx, packet),
            Choice::Refuse => refuse::<C, F>(ctx, packet),
            Choice::Drop => Verdict::Drop,
        }),
    }
}

#[inline(always)]
fn reply<C: PacketContext, P: Place, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Result<Verdict, Reason> {
    match flow::lookup::<F>(&packet.tuple) {
        Some(known) if known.hooks & P::HOOK as u8 != 0 => translate::<C, F>(ctx, packet, &known),
        _ => Ok(Verdict::Next),
    }
}

/// A packet of a known flow.
#[inline(always)]
fn translate<C: PacketContext, F: Family>(
    ctx: &C,
    packet: &Packet<F::Address>,
    known: &Known<F::Address>,
) -> Result<Verdict, Reason> {
    known.seen(packet);
    count::translated::<F>(known.service, (ctx.length() - packet.l3) as u64);
    if known.action == FlowAction::Forward as u8 {
        return Ok(forward_known::<C, F>(ctx, packet, &known.to));
    }
    rewrite::<C, F>(ctx, packet, &known.to, false)?;
    Ok(Verdict::Next)
}

/// Not inlined: the stack frame of the common path stays small, and the verifier checks this once per caller.
#[inline(never)]
fn forward_known<C: PacketContext, F: Family>(ctx: &C, packet: &Packet<F::Address>, to: &Tuple<F::Address>) -> Verdict {
    conclude(forward_to::<C, F>(ctx, packet, to))
}

#[inline(always)]
fn forward_to<C: PacketContext, F: Family>(
    ctx: &C,
    packet: &Packet<F::Address>,
    to: &Tuple<F::Address>,
) -> Result<Verdict, Reason> {
    let route = &mut scratch::<F>().ok_or(Reason::TablesInconsistent)?.route;
    route.look_up::<C, F>(ctx, to)?;
    forward::send::<C, F>(ctx, packet, to, route)
}

/// A packet that is to be answered.
#[inline(never)]
fn refuse<C: PacketContext, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Verdict {
    conclude(refuse::answer::<C, F>(ctx, packet))
}

/// What a packet of no known flow is for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Choice {
    /// No frontend.
    NotOurs,
    /// A frontend, and `NewFlow` names the backend.
    Backend,
    /// A frontend without endpoints.
    Refuse,
    /// A frontend that must not answer. Counted.
    Drop,
}

/// Finds the frontend and picks a backend for a packet of no known flow. Most such packets are none of our business.
#[inline(never)]
fn choose<C: PacketContext, P: Place, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Choice {
    let (tuple, protocol) = (&packet.tuple, packet.protocol() as u8);
    let frontend = match balance::frontend::<F>(tuple.dst, tuple.dst_port, protocol, false) {
        Ok(Some(frontend)) => frontend,
        Ok(None) => return Choice::NotOurs,
        Err(reason) => return rejected(reason),
    };
    let Some(flow) = scratch::<F>() else { return rejected(Reason::TablesInconsistent) };
    flow.service = frontend.service;
    flow.hash = hash::flow(tuple, HASH_SEED.load());
    match balance::pick::<F>(frontend, P::INSIDE, flow.hash) {
        Ok(picked) => {
            flow.picked = picked;
            count::new_flow::<F>(frontend.service);
            trace(ctx, "new flow", tuple.src_port, tuple.dst_port, flow.picked.index);
            Choice::Backend
        }
        Err(reason) => {
            count::rejected::<F>(frontend.service);
            trace(ctx, "rejected", tuple.src_port, tuple.dst_port, reason as u32);
            rejected(reason)
        }
    }
}

#[inline(always)]
fn rejected(reason: Reason) -> Choice {
    count::reason(reason);
    match reason.disposition() {
        Disposition::Pass => Choice::NotOurs,
        Disposition::Refuse => Choice::Refuse,
        Disposition::Drop => Choice::Drop,
    }
}

/// This CPU's place for a flow in the making, or for the route of one that is known.
#[inline(always)]
fn scratch<F: Family>() -> Option<&'static mut NewFlow<F::Address>> {
    // SAFETY: this CPU's element, which the functions called from `request` use, one after the other: ingress hooks of
    // one CPU do not interrupt each other.
    F::scratch().get_ptr_mut(0).map(|flow| unsafe { &mut *flow })
}

/// Enters both directions of a flow to the backend that `choose` picked, and sends its first packet on.
#[inline(never)]
fn connect<C: PacketContext, P: Place, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Verdict {
    conclude(try_connect::<C, P, F>(ctx, packet))
}

#[inline(always)]
fn try_connect<C: PacketContext, P: Place, F: Family>(ctx: &C, packet: &Packet<F::Address>) -> Result<Verdict, Reason> {
    let flow = scratch::<F>().ok_or(Reason::TablesInconsistent)?;
    let (request, backend) = (&packet.tuple, &flow.picked.backend);
    // A pod that reaches itself must not see its own address as the client's; a backend on another node must answer
    // through this one. Everyone else keeps the client's address.
    let masquerade = if P::INSIDE { backend.address == request.src } else { backend.flags & BackendFlags::LOCAL == 0 };
    let action = if masquerade { FlowAction::Forward } else { FlowAction::Stack };

    let entry = &mut flow.request;
    entry.owner = hash::owner(request);
    entry.action = action as u8;
    entry.hooks = P::HOOK as u8;
    entry.tcp_state = match packet.protocol() {
        Protocol::Tcp => flow::tcp_state(packet.tcp_flags),
        Protocol::Udp => 0,
    };
    entry.direction = FlowDirection::Request as u8;
    entry.to = Tuple { dst: backend.address, dst_port: backend.port, ..*request };
    entry.backend = flow.picked.index;
    entry.generation = backend.generation;
    entry.service = flow.service;
    entry.pad2 = 0;
    entry.last_seen = flow::now();

    let entry = &mut flow.reply;
    *entry = flow.request;
    // A reply that is forwarded comes in by where the request came from (a pod that answers itself) or went out to
    // (another node): the same kind of place.
    entry.hooks = if masquerade { P::HOOK } else { P::REPLY_HOOK } as u8;
    entry.tcp_state = 0;
    entry.direction = FlowDirection::Reply as u8;
    entry.to = request.reversed();

    if masquerade {
        if ctx.has_vlan_tag() || packet.l3 != packet::ETHERNET {
            return Err(Reason::VlanForward);
        }
        flow.route.look_up::<C, F>(ctx, &flow.request.to)?;
        flow.request.to.src = node_address::<F>(flow.route.interface())?;
    }
    snat::reserve::<F>(flow, request.src_port, flow.hash, !masquerade)?;
    flow::enter::<F>(request, &flow.request)?;

    count::translated::<F>(flow.service, (ctx.length() - packet.l3) as u64);
    if masquerade {
        return forward::send::<C, F>(ctx, packet, &flow.request.to, &flow.route);
    }
    rewrite::<C, F>(ctx, packet, &flow.request.to, false)?;
    Ok(Verdict::Next)
}

/// The address that packets masqueraded by this node leave a device with.
#[inline(always)]
fn node_address<F: Family>(interface: u32) -> Result<F::Address, Reason> {
    let addresses = F::node_addresses();
    // A plain `&0` would be a constant in `.rodata`, which LLVM merges with any of our options that is 0 there: the
    // agent then sets both.
    let any = core::hint::black_box(0);
    // SAFETY: elements change only when the node's addresses do; one that was reused meanwhile is such an address, too.
    unsafe { addresses.get(&interface).or_else(|| addresses.get(&any)) }.copied().ok_or(Reason::NoNodeAddress)
}

/// One line for the operator who asked for a packet trace (`lb-agent run --trace-packets`). `AYA_LOG_LEVEL` is a
/// constant of the loaded object: at 0, the default, the verifier removes this.
#[inline(always)]
fn trace<C: EbpfContext>(ctx: &C, what: &str, src_port: u16, dst_port: u16, number: u32) {
    info!(ctx, "{} from port {} to port {}: {}", what, src_port, dst_port, number);
}
