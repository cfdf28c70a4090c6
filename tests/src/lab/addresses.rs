//! Who has which address; the table is in the documentation of the [lab](super).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The one of a family.
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// Of the outside client.
pub(super) const CLIENT: Addresses =
    Addresses { v4: Ipv4Addr::new(198, 51, 100, 2), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2) };
/// Of the router, on the client's side.
pub(super) const CLIENT_GATEWAY: Addresses =
    Addresses { v4: Ipv4Addr::new(198, 51, 100, 1), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1) };
/// Of the router, on the nodes' side.
pub(super) const NODE_GATEWAY: Addresses = node(254);

/// Of a node, from 1.
pub(crate) const fn node(node: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 168, 100, node),
        v6: Ipv6Addr::new(0xfd00, 0x192, 0x168, 0x100, 0, 0, 0, node as u16),
    }
}

/// Of a pod, from 0, of a node, from 1.
pub(super) const fn pod(node: u8, pod: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 1, node, pod + 1),
        v6: Ipv6Addr::new(0xfd00, 0x10, 1, node as u16, 0, 0, 0, pod as u16 + 1),
    }
}

/// The networks that hold all pods of a node.
pub(super) fn pod_networks(node: u8) -> [String; 2] {
    [format!("10.1.{node}.0/24"), format!("fd00:10:1:{node:x}::/64")]
}

/// The first addresses of these networks, which are no pod's: of a node's end of a tunnel to the other node.
pub const fn tunnel_end(node: u8) -> Addresses {
    Addresses { v4: Ipv4Addr::new(10, 1, node, 0), v6: Ipv6Addr::new(0xfd00, 0x10, 1, node as u16, 0, 0, 0, 0) }
}

/// The cluster IPs of the `number`th Service of a test.
pub const fn cluster_ips(number: u8) -> Addresses {
    Addresses { v4: Ipv4Addr::new(10, 96, 0, number), v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number as u16) }
}
