//! Entry points.

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    macros::{cgroup_sock_addr, classifier},
    programs::{SockAddrContext, TcContext},
};

#[classifier]
pub fn pod_ingress(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
#[classifier]
pub fn pod_egress(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
#[classifier]
pub fn uplink_ingress(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
#[classifier]
pub fn uplink_egress(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
#[cgroup_sock_addr(connect4)]
pub fn connect4(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(connect6)]
pub fn connect6(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(_ctx: SockAddrContext) -> i32 {
    1
}
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(_ctx: SockAddrContext) -> i32 {
    1
}
