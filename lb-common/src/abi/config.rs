use super::Prefix;

/// Ranges that make up the pool of source ports: what remains of 1024 to 65535 after taking out
/// `net.ipv4.ip_local_port_range` and the node ports is at most three ranges; one is spare.
pub const MAX_PORT_RANGES: usize = 4;

/// `count` consecutive ports from `first` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Number of ports; 0 = unused.
    pub count: u16,
}

/// How the programs tell who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigFlags;

impl ConfigFlags {
    /// What a pod's interface delivers is a pod's: with an external frontend of policy `Local` it uses the cluster
    /// slots (`detectLocalMode` by interface).
    pub const PODS_BY_INTERFACE: u32 = 1;
    /// A source address within `Config::pods4` or `Config::pods6` is a pod's, whichever way it comes (`ClusterCIDR`,
    /// `NodeCIDR`).
    pub const PODS_BY_ADDRESS: u32 = 2;
}

/// The only element of `CONFIG`: what may change while the programs run. (What may not is a constant in `.rodata`.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Config {
    /// [`ABI_VERSION`](super::ABI_VERSION) of all maps beside this one.
    pub abi_version: u32,
    /// Lowest node port in use, for a cheap test before the lookup; above `node_port_max` if there is none.
    pub node_port_min: u16,
    /// Highest node port in use.
    pub node_port_max: u16,
    /// Source ports for masquerading.
    pub snat_ports: [PortRange; MAX_PORT_RANGES],
    /// Sum of the counts of `snat_ports`.
    pub snat_port_count: u32,
    /// Bits of [`ConfigFlags`].
    pub flags: u32,
    /// A network that holds every cluster IP and every `ServiceCIDR`: destinations outside it need not be looked up.
    pub cluster_ips4: Prefix<[u8; 4]>,
    /// Pods' addresses, where they are told by these.
    pub pods4: Prefix<[u8; 4]>,
    /// As `cluster_ips4`, IPv6.
    pub cluster_ips6: Prefix<[u8; 16]>,
    /// As `pods4`, IPv6.
    pub pods6: Prefix<[u8; 16]>,
}
