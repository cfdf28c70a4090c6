//! What the operator decided for all Services of this node: the parts of kube-proxy's configuration that change what
//! the maps hold.

use std::{net::IpAddr, str::FromStr};

use ipnet::IpNet;
use lb_common::abi::{ConfigFlags, ServiceFlags};

use super::{Family, Node};

/// The node's policy. Where it came from, a file or flags, does not matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `bindAddress`, unless it is unspecified: the node's own address of its family, whatever its Node says.
    pub bind_address: Option<IpAddr>,
    /// `nodePortAddresses`.
    pub node_port_addresses: NodePortAddresses,
    /// Whether processes of the node reach node ports on `127.0.0.1` and `::1` (`iptables.localhostNodePorts`).
    pub localhost_node_ports: bool,
    /// Whether the external IPs of Services are served (`featureGates.AllowServiceExternalIPs`).
    pub external_ips: bool,
    /// `detectLocalMode` and what belongs to it.
    pub detect_local: DetectLocal,
    /// How backends are selected for Services that do not say.
    pub balance: Balance,
    /// Ranges of cluster IPs that are known without `ServiceCIDR` objects (`--service-cluster-ip-range`).
    pub service_cidrs: Vec<IpNet>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            bind_address: None,
            node_port_addresses: NodePortAddresses::default(),
            localhost_node_ports: true,
            external_ips: true,
            detect_local: DetectLocal::default(),
            balance: Balance::default(),
            service_cidrs: Vec::new(),
        }
    }
}

impl Policy {
    /// The node's own address of a family (`detectNodeIPs` of `cmd/kube-proxy/app/server.go`): `bindAddress`, or else the
    /// first `InternalIP` of its Node, or else the first `ExternalIP` (`GetNodeHostIPs` of `pkg/util/node/node.go`).
    /// kube-proxy goes on with a loopback address where there is none.
    pub fn primary<A: Family>(&self, node: Option<&Node>) -> Option<A> {
        let of_node = node.into_iter().flat_map(|node| node.internal_ips.iter().chain(&node.external_ips));
        self.bind_address.iter().chain(of_node).find_map(|ip| A::from_ip(*ip))
    }
}

/// How a new flow's backend is selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// By the flow's hash, in the list of backends. Where the list changes, most flows that are in no flow table change
    /// their backends with it.
    #[default]
    Hash,
    /// By the flow's hash, in a Maglev table ([`lb_common::maglev`]): few do, and all nodes select the same.
    Maglev,
    /// In turn, on each CPU by itself: the most even, and a flow that is in no flow table any more is another one.
    RoundRobin,
    /// By its backends' flows: of two that the flow's hash names, that which has fewer on this node. A flow that is in no
    /// flow table any more is another one here, too.
    LeastConn,
}

impl Balance {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Hash, Self::Maglev, Self::RoundRobin, Self::LeastConn];

    /// The name that flags and annotations have for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Maglev => "maglev",
            Self::RoundRobin => "round-robin",
            Self::LeastConn => "least-conn",
        }
    }

    /// Bits of [`ServiceFlags`]. (A Maglev table is a list like another.)
    pub(crate) const fn flags(self) -> u32 {
        match self {
            Self::Hash | Self::Maglev => 0,
            Self::RoundRobin => ServiceFlags::ROUND_ROBIN,
            Self::LeastConn => ServiceFlags::LEAST_CONN,
        }
    }
}

/// A name that is none of [`Balance::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {}", Balance::ALL.map(Balance::name).join(", "))]
pub struct UnknownBalance;

impl FromStr for Balance {
    type Err = UnknownBalance;

    fn from_str(name: &str) -> Result<Self, UnknownBalance> {
        Self::ALL.into_iter().find(|balance| balance.name() == name).ok_or(UnknownBalance)
    }
}

/// On which of the node's addresses node ports answer (`pkg/proxy/util/nodeport_addresses.go`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On all of them.
    #[default]
    All,
    /// On the node's primary address of each family (`primary`), see [`Policy::primary`].
    Primary,
    /// On those within one of these networks.
    Within(Vec<IpNet>),
}

/// How the traffic of pods is told from traffic from outside (`getLocalDetectors` of `cmd/kube-proxy/app/server_linux.go`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// By the interface: what a pod's interface delivers is a pod's. `BridgeInterface` and `InterfaceNamePrefix`.
    #[default]
    Interface,
    /// By the source address: one within the first of these networks of its family. `ClusterCIDR`.
    ClusterCidr(Vec<IpNet>),
    /// By the source address: one within the node's own `podCIDRs`. `NodeCIDR`.
    NodeCidr,
    /// Not at all: pods are treated like clients outside. `ClusterCIDR` without a CIDR.
    Nothing,
}

impl DetectLocal {
    /// Bits of [`ConfigFlags`].
    pub(crate) const fn flags(&self) -> u32 {
        match self {
            Self::Interface => ConfigFlags::PODS_BY_INTERFACE,
            Self::ClusterCidr(_) | Self::NodeCidr => ConfigFlags::PODS_BY_ADDRESS,
            Self::Nothing => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_balance_has_a_name_of_its_own_and_at_most_one_flag() {
        for balance in Balance::ALL {
            assert_eq!(balance.name().parse(), Ok(balance));
        }
        assert_eq!("fewest".parse::<Balance>(), Err(UnknownBalance));
        let flags = Balance::ALL.map(Balance::flags);
        assert_eq!(flags, [0, 0, ServiceFlags::ROUND_ROBIN, ServiceFlags::LEAST_CONN]);
    }
}
