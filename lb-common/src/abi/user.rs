//! What user space needs to read and write the types as map data.

use super::{
    Backend, Config, Flow, Frontend, FrontendKey, Service, ServiceName, ServiceStats, SocketFrontend, SocketPeer,
    SocketPeerKey, Tuple,
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
    Backend<[u8; 4]>,
    Backend<[u8; 16]>,
    Config,
    Flow<[u8; 4]>,
    Flow<[u8; 16]>,
    Frontend,
    FrontendKey<[u8; 4]>,
    FrontendKey<[u8; 16]>,
    Service,
    ServiceName,
    ServiceStats,
    SocketFrontend,
    SocketPeer<[u8; 4]>,
    SocketPeer<[u8; 16]>,
    SocketPeerKey<[u8; 4]>,
    SocketPeerKey<[u8; 16]>,
    Tuple<[u8; 4]>,
    Tuple<[u8; 16]>,
);
