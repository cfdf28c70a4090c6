//! The way out: packets whose addresses both change are not given back to the stack, which would drop them as
//! martians (their source is an address of this node), but sent by us.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
        bpf_fib_lookup,
    },
    helpers::bpf_fib_lookup as fib_lookup,
};
use lb_common::abi::{FlowAction, Reason, Tuple};

use crate::{
    family::Family,
    hook::{PacketContext, Tag, Verdict, size_i32},
    maps::Work,
    packet::{self, Mac, Packet},
    rewrite::rewrite,
};

/// A route and, where the kernel knows it, the neighbour.
#[repr(C)]
pub struct Route {
    params: bpf_fib_lookup,
    /// The neighbour's link-layer address is known.
    resolved: u32,
}

impl Route {
    /// Index of the device that leads there.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        self.params.ifindex
    }

    /// The longest IP packet that fits, where the way is too narrow for the one that it was looked up for.
    #[inline(always)]
    pub fn mtu(&self) -> u16 {
        // SAFETY: both forms are integers of 16 bits.
        unsafe { self.params.__bindgen_anon_1.mtu_result }
    }

    /// Looks up the way for a packet that comes by the device of `ctx` and is to be one of `tuple`.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a protocol number, and a length below 64 KiB")]
    pub fn look_up<C: PacketContext, F: Family>(
        &mut self,
        ctx: &C,
        packet: &Packet<F::Address>,
        tuple: &Tuple<F::Address>,
    ) -> Result<(), Reason> {
        let params = &mut self.params;
        params.family = F::AF;
        let protocol = tuple.protocol as u8;
        params.l4_protocol = protocol;
        params.sport = tuple.src_port.to_be();
        params.dport = tuple.dst_port.to_be();
        // The kernel compares it with the route's MTU. (With 0 it would compare the frame with the device's, and let pass
        // all that is still to be segmented.)
        params.__bindgen_anon_1.tot_len = match ctx.segment_size() {
            0 => ctx.length() - packet.l3(),
            data => packet.l4().saturating_sub(packet.l3()) + packet.transport_header_length(ctx)? + data,
        } as u16;
        params.ifindex = ctx.interface();
        params.__bindgen_anon_2.flowinfo = 0;
        params.__bindgen_anon_5.tbid = 0;
        params.__bindgen_anon_6.__bindgen_anon_1.mark = 0;
        F::set_fib_addresses(params, tuple.src, tuple.dst);
        // SAFETY: `params` is initialized and lives through the call.
        let code = unsafe { fib_lookup(ctx.as_ptr(), params, size_i32::<bpf_fib_lookup>(), 0) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "negative codes match no constant")]
        match code as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => {
                self.resolved = 1;
                Ok(())
            }
            BPF_FIB_LKUP_RET_NO_NEIGH => {
                self.resolved = 0;
                Ok(())
            }
            BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
                Err(Reason::RouteForbids)
            }
            BPF_FIB_LKUP_RET_FRAG_NEEDED => Err(Reason::TooBig),
            BPF_FIB_LKUP_RET_FWD_DISABLED => Err(Reason::ForwardingDisabled),
            _ => Err(Reason::NoRoute),
        }
    }
}

/// Whether [`send`] would succeed, asked where a packet that cannot be sent must stay as it is.
#[inline(always)]
pub fn is_possible<C: PacketContext, F: Family>(ctx: &C, packet: &Packet<F::Address>, route: &Route) -> bool {
    packet.ttl > 1 && route.resolved != 0 && ctx.can_redirect(route.interface())
}

/// Turns the packet into one of tuple `to` and sends it.
#[inline(always)]
pub fn send<C: PacketContext, F: Family>(
    ctx: &C,
    packet: &Packet<F::Address>,
    to: &Tuple<F::Address>,
    route: &Route,
) -> Result<Verdict, Reason> {
    depart(ctx, packet)?;
    rewrite::<C, F>(ctx, packet, to, true)?;
    transmit::<C, F>(ctx, route)
}

/// Sends on a packet of `work`, which `rewrite` makes one of `request.to`: by the way out, or to the stack, as
/// `request.action` says. `rewrite` is told whether the packet is forwarded by us, and so loses one of its time to live.
#[inline(always)]
pub fn go_on<C: PacketContext, F: Family>(
    ctx: &C,
    work: &mut Work<F::Address>,
    rewrite: impl FnOnce(&Work<F::Address>, bool) -> Result<(), Reason>,
) -> Result<Verdict, Reason> {
    if work.request.action != FlowAction::Forward as u8 {
        rewrite(work, false)?;
        return Ok(Verdict::Translated);
    }
    work.route.look_up::<C, F>(ctx, &work.packet, &work.request.to)?;
    depart(ctx, &work.packet)?;
    rewrite(work, true)?;
    transmit::<C, F>(ctx, &work.route)
}

/// Readies a packet for the way out. That it has one hop less to live is for the caller to write.
#[inline(always)]
fn depart<C: PacketContext, A>(ctx: &C, packet: &Packet<A>) -> Result<(), Reason> {
    if packet.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    // The priority that it came with was for that link.
    if ctx.tag() == Tag::Priority {
        ctx.untag()?;
    }
    Ok(())
}

/// Sends a packet, as it is but for its MAC addresses. It has an Ethernet header for that, whatever it came with: whether the
/// device wants one the kernel knows.
#[inline(always)]
fn transmit<C: PacketContext, F: Family>(ctx: &C, route: &Route) -> Result<Verdict, Reason> {
    packet::frame::<C, F>(ctx)?;
    if route.resolved == 0 {
        return ctx.redirect_unresolved(route.interface(), &mut F::next_hop(&route.params));
    }
    // SAFETY: a lookup that found the neighbour filled in both addresses, the source's first, at an even offset.
    let [src, dst]: [Mac; 2] = unsafe { *(&raw const route.params.__bindgen_anon_6).cast() };
    packet::set_macs(ctx, dst, src)?;
    ctx.redirect(route.interface())
}
