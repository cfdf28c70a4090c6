/// Value of `SOCKETS` (socket storage): what a connected socket believes it talks to. IPv4 addresses are held
/// IPv4-mapped (RFC 4291 §2.5.5.2), since an IPv6 socket can connect to either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct SocketFrontend {
    /// Address that the process asked for.
    pub frontend_address: [u8; 16],
    /// Address that the kernel was told to connect to.
    pub backend_address: [u8; 16],
    /// Port that the process asked for.
    pub frontend_port: u16,
    /// Port that the kernel was told to connect to.
    pub backend_port: u16,
    /// Index in `BACKENDS4` or `BACKENDS6`, by the form of `backend_address`.
    pub backend: u32,
    /// Generation of the backend when it was picked.
    pub generation: u32,
    /// Always zero.
    pub pad: u32,
}

/// Which way a [`SocketPeerKey`] translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PeerDirection {
    /// Key: the frontend that a datagram is sent to. Value: its backend.
    Send = 0,
    /// Key: the backend that a datagram came from. Value: the frontend it was sent to.
    Receive = 1,
}

/// Key of `SOCKET_PEERS*` (LRU): the exchanges of unconnected UDP sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct SocketPeerKey<A> {
    /// `bpf_get_socket_cookie`, low and high half.
    pub cookie: [u32; 2],
    /// Address.
    pub address: A,
    /// Port.
    pub port: u16,
    /// A [`PeerDirection`].
    pub direction: u8,
    /// Always zero.
    pub pad: u8,
}

/// Value of `SOCKET_PEERS*`: what replaces the address of a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct SocketPeer<A> {
    /// Address that replaces the key's.
    pub address: A,
    /// Port that replaces the key's.
    pub port: u16,
    /// Always zero.
    pub pad: u16,
    /// Index in `BACKENDS*`.
    pub backend: u32,
    /// Generation of the backend when it was picked.
    pub generation: u32,
    /// The low half of `bpf_jiffies64` at the last datagram this way.
    pub last_seen: u32,
}

/// What the agent reads of a socket that has a backend. Not in any map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LiveSocket {
    /// Index in `BACKENDS4` or `BACKENDS6`.
    pub backend: u32,
    /// Generation of the backend when it was picked.
    pub generation: u32,
    /// 1 for `BACKENDS4`, 0 for `BACKENDS6`.
    pub is_v4: u32,
}
