//! What user space needs to read and write the types as map data.

use super::{
    Affinity, AffinityKey, Allowed, Backend, Config, Counter, Event, EventCounts, Flow, Frontend, FrontendKey,
    Interface, Load, LoadKey, LocalAddress, LocalAddressKey, Monitor, NodeAddress, Prefix, Service, ServiceCidr,
    ServiceIndex, ServiceName, ServiceStats, Slot, SocketFrontend, SocketPeer, SocketPeerKey, SourceRange, Tuple,
    XdpDevice,
};

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `#[repr(C)]` integers and octets without padding (pinned by the tests in `layout`), so every
            // bit pattern is a value and every byte of a value is initialized.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

pod!(
    Affinity,
    AffinityKey<[u8; 4]>,
    AffinityKey<[u8; 16]>,
    Allowed,
    Backend<[u8; 4]>,
    Backend<[u8; 16]>,
    Config,
    Counter,
    Event,
    EventCounts,
    Flow<[u8; 4]>,
    Flow<[u8; 16]>,
    Frontend,
    FrontendKey<[u8; 4]>,
    FrontendKey<[u8; 16]>,
    Interface,
    Load,
    LoadKey,
    LocalAddress,
    LocalAddressKey<[u8; 4]>,
    LocalAddressKey<[u8; 16]>,
    Monitor,
    NodeAddress<[u8; 4]>,
    NodeAddress<[u8; 16]>,
    Prefix<[u8; 4]>,
    Prefix<[u8; 16]>,
    Service,
    ServiceCidr,
    ServiceIndex,
    ServiceName,
    ServiceStats,
    Slot,
    SocketFrontend,
    SocketPeer<[u8; 4]>,
    SocketPeer<[u8; 16]>,
    SocketPeerKey<[u8; 4]>,
    SocketPeerKey<[u8; 16]>,
    SourceRange<[u8; 4]>,
    SourceRange<[u8; 16]>,
    Tuple<[u8; 4]>,
    Tuple<[u8; 16]>,
    XdpDevice,
);
