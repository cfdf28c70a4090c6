//! Entry points: from outcome to verdict, nothing else.

#![expect(clippy::needless_pass_by_value, reason = "the signature that aya's macros call")]

use aya_ebpf::{
    bindings::{
        TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
    },
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use lb_common::abi::Reason;

use crate::{
    hook::{Bare, Ethernet, PodEgress, PodIngress, Skb, UplinkEgress, UplinkIngress, Verdict},
    path,
    socket::{self, live},
};

#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    tc_verdict(path::ingress::<_, PodIngress>(&Skb::<Ethernet>::new(ctx)))
}

#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    tc_verdict(path::egress::<_, PodEgress>(&Skb::<Ethernet>::new(ctx)))
}

#[classifier]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    tc_verdict(path::ingress::<_, UplinkIngress>(&Skb::<Ethernet>::new(ctx)))
}

#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    tc_verdict(path::egress::<_, UplinkEgress>(&Skb::<Ethernet>::new(ctx)))
}

/// [`uplink_ingress`] of a device whose packets have no Ethernet header.
#[classifier]
pub fn bare_ingress(ctx: TcContext) -> i32 {
    tc_verdict(path::ingress::<_, UplinkIngress>(&Skb::<Bare>::new(ctx)))
}

/// [`uplink_egress`] likewise.
#[classifier]
pub fn bare_egress(ctx: TcContext) -> i32 {
    tc_verdict(path::egress::<_, UplinkEgress>(&Skb::<Bare>::new(ctx)))
}

#[inline(always)]
fn tc_verdict(result: Result<Verdict, Reason>) -> i32 {
    match path::conclude::<Skb<Ethernet>>(result) {
        // With tcx and clsact alike: on to the next program, then to the stack.
        Verdict::Next | Verdict::Translated => TC_ACT_UNSPEC,
        // TC sends nothing back but by a redirect.
        Verdict::Drop | Verdict::Returned => TC_ACT_SHOT,
        Verdict::Redirected => TC_ACT_REDIRECT,
    }
}

/// `frags`: it may be attached where packets take more than one buffer (jumbo frames). Those that do are left to TC.
#[xdp(frags)]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    match path::conclude::<XdpContext>(path::ingress::<_, UplinkIngress>(&ctx)) {
        // What is as it was meets `uplink_ingress` next.
        Verdict::Next | Verdict::Translated => XDP_PASS,
        Verdict::Drop => XDP_DROP,
        Verdict::Redirected => XDP_REDIRECT,
        Verdict::Returned => XDP_TX,
    }
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect4(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::getpeername4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::getpeername6(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::sendmsg4(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::sendmsg6(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::recvmsg4(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::recvmsg6(&ctx)
}

/// Run by the kernel for each element of `SOCKETS`, for the agent that reads.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn live_sockets(visit: *const live::Visit) -> i32 {
    live::write(visit)
}
