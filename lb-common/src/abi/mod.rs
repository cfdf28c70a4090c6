//! The keys and values of every map. Their layout is an interface: maps outlive the agent that filled them.
//!
//! Rules of this module: `#[repr(C)]`, fixed-width integers, padding written out, no `bool`, no `Option`, no enum
//! with data. Types that exist once per IP family are generic over the address `A`, `[u8; 4]` or `[u8; 16]`; map
//! names end in `4` or `6` accordingly.
//!
//! A change of any layout needs a new [`ABI_VERSION`]; `layout` pins sizes and offsets and fails until both agree.

mod backend;
mod config;
mod flow;
mod frontend;
mod service;
mod service_name;
mod socket;
mod tuple;

#[cfg(test)]
mod layout;

#[cfg(feature = "user")]
mod user;

pub mod capacity;
pub mod reason;

pub use backend::{Backend, BackendFlags};
pub use config::{Config, MAX_PORT_RANGES, PortRange};
pub use flow::{Flow, FlowAction, FlowDirection, Hook, TcpState};
pub use frontend::{Frontend, FrontendFlags, FrontendKey};
pub use reason::{Disposition, Reason};
pub use service::{Service, ServiceFlags, ServiceStats, SlotRange};
pub use service_name::{MAX_LABEL, ServiceName};
pub use socket::{PeerDirection, SocketFrontend, SocketPeer, SocketPeerKey};
pub(crate) use tuple::halves;
pub use tuple::{Address, Protocol, Tuple};

/// Version of all layouts in this module. It names the directory of the pins, so that an agent never reads maps of
/// another layout as its own.
pub const ABI_VERSION: u32 = 1;

/// Names of the maps, as the kernel and the pins know them (15 characters at most, `BPF_OBJ_NAME_LEN` less the NUL).
pub mod maps {
    /// [`Config`](super::Config), one element.
    pub const CONFIG: &str = "CONFIG";
    /// Per-CPU `u64`, indexed by [`Reason`](super::Reason).
    pub const COUNTERS: &str = "COUNTERS";
    /// Per-CPU [`ServiceStats`](super::ServiceStats), indexed by service, IPv4.
    pub const SERVICE_STATS4: &str = "SERVICE_STATS4";
    /// As [`SERVICE_STATS4`], IPv6.
    pub const SERVICE_STATS6: &str = "SERVICE_STATS6";
    /// [`Tuple`](super::Tuple) to [`Flow`](super::Flow), IPv4.
    pub const FLOWS4: &str = "FLOWS4";
    /// As [`FLOWS4`], IPv6.
    pub const FLOWS6: &str = "FLOWS6";
    /// [`FrontendKey`](super::FrontendKey) to [`Frontend`](super::Frontend), IPv4.
    pub const FRONTENDS4: &str = "FRONTENDS4";
    /// As [`FRONTENDS4`], IPv6.
    pub const FRONTENDS6: &str = "FRONTENDS6";
    /// Service index to [`Service`](super::Service), IPv4.
    pub const SERVICES4: &str = "SERVICES4";
    /// As [`SERVICES4`], IPv6.
    pub const SERVICES6: &str = "SERVICES6";
    /// Service index to [`ServiceName`](super::ServiceName), IPv4.
    pub const SERVICE_NAMES4: &str = "SERVICE_NAMES4";
    /// As [`SERVICE_NAMES4`], IPv6.
    pub const SERVICE_NAMES6: &str = "SERVICE_NAMES6";
    /// Slot to backend index (`u32`), IPv4.
    pub const SLOTS4: &str = "SLOTS4";
    /// As [`SLOTS4`], IPv6.
    pub const SLOTS6: &str = "SLOTS6";
    /// Backend index to [`Backend`](super::Backend), IPv4.
    pub const BACKENDS4: &str = "BACKENDS4";
    /// As [`BACKENDS4`], IPv6.
    pub const BACKENDS6: &str = "BACKENDS6";
    /// Interface index (`u32`, 0 = any other) to the address that masqueraded packets leave it with, IPv4.
    pub const NODE_ADDRESSES4: &str = "NODE_ADDRESSES4";
    /// As [`NODE_ADDRESSES4`], IPv6.
    pub const NODE_ADDRESSES6: &str = "NODE_ADDRESSES6";
    /// Addresses of this node on which node ports answer, to [`NODE_PORT_LOOPBACK`](super::NODE_PORT_LOOPBACK) or 0
    /// (`u32`), IPv4.
    pub const NODEPORT_ADDRS4: &str = "NODEPORT_ADDRS4";
    /// As [`NODEPORT_ADDRS4`], IPv6.
    pub const NODEPORT_ADDRS6: &str = "NODEPORT_ADDRS6";
    /// Socket storage: [`SocketFrontend`](super::SocketFrontend).
    pub const SOCKETS: &str = "SOCKETS";
    /// [`SocketPeerKey`](super::SocketPeerKey) to [`SocketPeer`](super::SocketPeer), IPv4.
    pub const SOCKET_PEERS4: &str = "SOCKET_PEERS4";
    /// As [`SOCKET_PEERS4`], IPv6.
    pub const SOCKET_PEERS6: &str = "SOCKET_PEERS6";
}

/// Value of `NODEPORT_ADDRS*` for a loopback address: node ports answer on it for sockets of the node itself only.
pub const NODE_PORT_LOOPBACK: u32 = 1;
