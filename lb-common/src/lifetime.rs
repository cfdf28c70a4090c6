//! For how long a flow may be quiet, in seconds, before it is taken to have ended: the defaults of Linux' connection tracking
//! (`net.netfilter.nf_conntrack_*_timeout`) and, for established connections, of kube-proxy.

use crate::abi::{Protocol, TcpState};

/// A connection that ended with a FIN (`tcp_timeout_time_wait` is twice that of a socket's; a socket's is enough: what comes
/// later belongs to nobody).
pub const CLOSED: u64 = 60;
/// One that was reset (`tcp_timeout_close`).
pub const RESET: u64 = 10;
/// One that was never established (`tcp_timeout_syn_recv`).
pub const OPENING: u64 = 60;
/// One that is open (`--conntrack-tcp-timeout-established` of kube-proxy).
pub const ESTABLISHED: u64 = 24 * 60 * 60;
/// UDP (`udp_timeout_stream`).
pub const UDP: u64 = 120;

/// For how many seconds a flow may be quiet in a direction that was last seen in this state (bits of [`TcpState`]).
#[inline(always)]
pub const fn of(protocol: u32, state: u8) -> u64 {
    if protocol == Protocol::Udp as u32 {
        UDP
    } else if state & TcpState::RST != 0 {
        RESET
    } else if state & TcpState::FIN != 0 {
        CLOSED
    } else if state & TcpState::ESTABLISHED != 0 {
        ESTABLISHED
    } else {
        OPENING
    }
}
