use std::{collections::BTreeMap, net::IpAddr};

use lb_common::ports::Reserved;

/// What the programs must know of the node's own network. The loader finds it out and follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNetwork {
    /// Interface index (0 = any other) to the IPv4 address that masqueraded packets leave it with.
    pub masquerade4: BTreeMap<u32, [u8; 4]>,
    /// As `masquerade4`, IPv6.
    pub masquerade6: BTreeMap<u32, [u8; 16]>,
    /// All of the node's addresses, with [`LocalAddressFlags::LOOPBACK`](lb_common::abi::LocalAddressFlags::LOOPBACK)
    /// where they are such. On which of them node ports answer is [`Policy`](super::Policy)'s to say.
    pub local_addresses: BTreeMap<IpAddr, u32>,
    /// `net.ipv4.ip_local_port_range`: ports that the kernel gives to local sockets.
    pub local_ports: Reserved,
    /// The API server's `--service-node-port-range`.
    pub node_ports: Reserved,
}

impl Default for NodeNetwork {
    /// No addresses, and the ranges that Linux and Kubernetes use where nobody says otherwise.
    fn default() -> Self {
        Self {
            masquerade4: BTreeMap::new(),
            masquerade6: BTreeMap::new(),
            local_addresses: BTreeMap::new(),
            local_ports: Reserved { first: 32_768, last: 60_999 },
            node_ports: Reserved { first: 30_000, last: 32_767 },
        }
    }
}
