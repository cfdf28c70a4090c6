/// Key of `FRONTENDS*`: what a client connects to.
///
/// A node port is entered once, with the unspecified address; it answers on the addresses in `LOCAL_ADDRS*` that are
/// marked for it. A cluster IP has an entry of its own, with port and protocol 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct FrontendKey<A> {
    /// Address, or the unspecified one for a node port.
    pub address: A,
    /// Port.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
}

impl<A> FrontendKey<A> {
    /// A key from its parts.
    #[inline(always)]
    pub const fn new(address: A, port: u16, protocol: u8) -> Self {
        Self { address, port, protocol, pad: 0 }
    }
}

/// Value of `FRONTENDS*`: 8 bytes, read and written as one word.
///
/// All frontends of a service port (its cluster IP, its node port, …) name the same element of `SERVICES*`, so that
/// one write there changes the backends of them all at once. Whose a frontend is, and which list of clients holds for it,
/// one write changes here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Frontend {
    /// Index in `SERVICES*`.
    pub service: u32,
    /// Low half of [`hash::frontend_owner`](crate::hash::frontend_owner) of the key: tells a value whose element was
    /// reused for another key while it was being read.
    pub owner: u16,
    /// Bits of [`FrontendFlags`].
    pub flags: u8,
    /// With [`FrontendFlags::SOURCE_RANGES`]: which of the service's lists in `SOURCE_RANGES*` its clients are in. Else 0.
    pub edition: u8,
}

/// How a frontend treats its traffic. The agent compiles Kubernetes' policies into these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendFlags;

impl FrontendFlags {
    /// Traffic goes to the service's local slots (`internalTrafficPolicy` or `externalTrafficPolicy` is `Local`).
    pub const LOCAL: u8 = 1;
    /// The frontend is reachable from outside the cluster (node port, load balancer or external IP): with
    /// [`Self::LOCAL`], traffic from pods and from the node itself uses the cluster slots all the same.
    pub const EXTERNAL: u8 = 2;
    /// The frontend is a node port.
    pub const NODE_PORT: u8 = 4;
    /// Only clients in its edition of the service's `SOURCE_RANGES*` may use it (`loadBalancerSourceRanges`).
    pub const SOURCE_RANGES: u8 = 8;
    /// Not a frontend but a cluster IP, entered once with port and protocol 0: ports of it that no frontend has are
    /// refused.
    pub const CLUSTER_IP: u8 = 16;
}
