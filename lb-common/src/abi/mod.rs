//! The keys and values of every map. Their layout is an interface: maps outlive the agent that filled them.
//!
//! Rules of this module: `#[repr(C)]`, fixed-width integers, padding written out, no `bool`, no `Option`, no enum
//! with data. Types that exist once per IP family are generic over the address `A`, `[u8; 4]` or `[u8; 16]`; map
//! names end in `4` or `6` accordingly.
//!
//! A change of any layout needs a new [`ABI_VERSION`]; `layout` pins sizes and offsets and fails until both agree.

mod affinity;
mod backend;
mod config;
mod event;
mod flow;
mod frontend;
mod load;
mod node;
mod prefix;
mod service;
mod service_name;
mod socket;
mod tuple;
mod xdp;

#[cfg(test)]
mod layout;

#[cfg(feature = "user")]
mod user;

pub mod capacity;
pub mod reason;

pub use affinity::{Affinity, AffinityKey};
pub use backend::{Backend, BackendFlags};
pub use config::{Config, ConfigFlags, MAX_PORT_RANGES, PortRange};
pub use event::{Event, EventCounts, EventKind, EventPlace, Monitor};
pub use flow::{Flow, FlowAction, FlowDirection, Hook, TcpState};
pub use frontend::{Frontend, FrontendFlags, FrontendKey};
pub use load::{Load, LoadKey};
pub use node::{Interface, LocalAddress, LocalAddressFlags, LocalAddressKey, NodeAddress};
pub use prefix::{Allowed, LIST_BITS, Prefix, ServiceCidr, SourceRange};
pub use reason::{Counter, Disposition, Reason};
pub use service::{Service, ServiceFlags, ServiceIndex, ServiceStats, Slot, SlotRange};
pub use service_name::{MAX_LABEL, ServiceName};
pub use socket::{LiveSocket, PeerDirection, SocketFrontend, SocketPeer, SocketPeerKey};
pub(crate) use tuple::halves;
pub use tuple::{Address, Protocol, ProtocolNumber, Tuple};
pub use xdp::{XdpDevice, XdpFlags, XdpState};

/// Version of all layouts in this module. It names the directory of the pins, so that an agent never reads maps of
/// another layout as its own.
pub const ABI_VERSION: u32 = 5;

/// Names of the maps, as the kernel and the pins know them (15 characters at most, `BPF_OBJ_NAME_LEN` less the NUL).
pub mod maps {
    /// [`Config`](super::Config), one element.
    pub const CONFIG: &str = "CONFIG";
    /// Per-CPU [`Counter`](super::Counter), indexed by [`Reason`](super::Reason).
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
    /// [`ServiceIndex`](super::ServiceIndex) to [`ServiceName`](super::ServiceName), IPv4.
    pub const SERVICE_NAMES4: &str = "SERVICE_NAMES4";
    /// As [`SERVICE_NAMES4`], IPv6.
    pub const SERVICE_NAMES6: &str = "SERVICE_NAMES6";
    /// Slot to [`Slot`](super::Slot), IPv4.
    pub const SLOTS4: &str = "SLOTS4";
    /// As [`SLOTS4`], IPv6.
    pub const SLOTS6: &str = "SLOTS6";
    /// Backend index to [`Backend`](super::Backend), IPv4.
    pub const BACKENDS4: &str = "BACKENDS4";
    /// As [`BACKENDS4`], IPv6.
    pub const BACKENDS6: &str = "BACKENDS6";
    /// [`Interface`](super::Interface) to [`NodeAddress`](super::NodeAddress), IPv4.
    pub const NODE_ADDRESSES4: &str = "NODE_ADDRESSES4";
    /// As [`NODE_ADDRESSES4`], IPv6.
    pub const NODE_ADDRESSES6: &str = "NODE_ADDRESSES6";
    /// [`LocalAddressKey`](super::LocalAddressKey) to [`LocalAddress`](super::LocalAddress), IPv4.
    pub const LOCAL_ADDRS4: &str = "LOCAL_ADDRS4";
    /// As [`LOCAL_ADDRS4`], IPv6.
    pub const LOCAL_ADDRS6: &str = "LOCAL_ADDRS6";
    /// [`AffinityKey`](super::AffinityKey) to [`Affinity`](super::Affinity), IPv4.
    pub const AFFINITY4: &str = "AFFINITY4";
    /// As [`AFFINITY4`], IPv6.
    pub const AFFINITY6: &str = "AFFINITY6";
    /// Prefixes of [`SourceRange`](super::SourceRange) to [`Allowed`](super::Allowed), IPv4.
    pub const SOURCE_RANGES4: &str = "SOURCE_RANGES4";
    /// As [`SOURCE_RANGES4`], IPv6.
    pub const SOURCE_RANGES6: &str = "SOURCE_RANGES6";
    /// Prefixes of cluster IPs to [`ServiceCidr`](super::ServiceCidr), IPv4.
    pub const SERVICE_CIDRS4: &str = "SERVICE_CIDRS4";
    /// As [`SERVICE_CIDRS4`], IPv6.
    pub const SERVICE_CIDRS6: &str = "SERVICE_CIDRS6";
    /// [`LoadKey`](super::LoadKey) to [`Load`](super::Load), IPv4.
    pub const LOADS4: &str = "LOADS4";
    /// As [`LOADS4`], IPv6.
    pub const LOADS6: &str = "LOADS6";
    /// Socket storage: [`SocketFrontend`](super::SocketFrontend).
    pub const SOCKETS: &str = "SOCKETS";
    /// [`SocketPeerKey`](super::SocketPeerKey) to [`SocketPeer`](super::SocketPeer), IPv4.
    pub const SOCKET_PEERS4: &str = "SOCKET_PEERS4";
    /// As [`SOCKET_PEERS4`], IPv6.
    pub const SOCKET_PEERS6: &str = "SOCKET_PEERS6";
    /// [`Interface`](super::Interface) of an uplink to [`XdpDevice`](super::XdpDevice).
    pub const XDP_DEVICES: &str = "XDP_DEVICES";
    /// Ring buffer of [`Event`](super::Event).
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU [`EventCounts`](super::EventCounts), one element.
    pub const EVENT_COUNTS: &str = "EVENT_COUNTS";
    /// [`Monitor`](super::Monitor), one element.
    pub const MONITOR: &str = "MONITOR";
}
