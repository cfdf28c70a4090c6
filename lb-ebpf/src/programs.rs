//! Entry points: from outcome to verdict, nothing else.

#![expect(clippy::needless_pass_by_value, reason = "the signature that aya's macros call")]

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};
use lb_common::abi::Reason;

use crate::{
    hook::{PodEgress, PodIngress, UplinkEgress, UplinkIngress, Verdict},
    path, socket,
};

#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    tc_verdict(path::ingress::<_, PodIngress>(&ctx))
}

#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    tc_verdict(path::egress::<_, PodEgress>(&ctx))
}

#[classifier]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    tc_verdict(path::ingress::<_, UplinkIngress>(&ctx))
}

#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    tc_verdict(path::egress::<_, UplinkEgress>(&ctx))
}

#[inline(always)]
fn tc_verdict(result: Result<Verdict, Reason>) -> i32 {
    match path::conclude(result) {
        // With tcx and clsact alike: on to the next program, then to the stack.
        Verdict::Next => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Redirected => TC_ACT_REDIRECT,
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
