use lb_common::abi::{ABI_VERSION, Config, FrontendFlags};

use crate::{
    dataplane::Reconciler,
    model::{Cidr, DesiredPort, Family},
};

/// Lowest and highest node port where there is none: a range that holds nothing.
const NO_NODE_PORTS: (u16, u16) = (1, 0);

/// What `CONFIG` lets programs skip a lookup by: node ports and cluster IPs are looked up only within these. So it is
/// widened before an entry needs it, and made tight again after entries have gone: both ends of each are known without a
/// search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// The lowest and the highest.
    node_ports: Option<(u16, u16)>,
    cluster_ips4: Option<Cidr<[u8; 4]>>,
    cluster_ips6: Option<Cidr<[u8; 16]>>,
}

impl Reach {
    /// What a configuration lets through; nothing if it was never written.
    pub(super) fn of_config(config: &Config) -> Self {
        if config.abi_version != ABI_VERSION {
            return Self::default();
        }
        let node_ports = (config.node_port_min, config.node_port_max);
        Self {
            node_ports: Some(node_ports).filter(|(min, max)| min <= max),
            cluster_ips4: Cidr::from_prefix(config.cluster_ips4),
            cluster_ips6: Cidr::from_prefix(config.cluster_ips6),
        }
    }

    /// What the maps hold.
    pub(super) fn of_maps(v4: &Reconciler<[u8; 4]>, v6: &Reconciler<[u8; 16]>) -> Self {
        let node_ports = [v4.node_port_span(), v6.node_port_span()].into_iter().flatten();
        Self {
            node_ports: node_ports.reduce(both),
            cluster_ips4: v4.cluster_ip_cover(),
            cluster_ips6: v6.cluster_ip_cover(),
        }
    }

    /// What some service ports need.
    pub(super) fn of_ports(v4: &[DesiredPort<[u8; 4]>], v6: &[DesiredPort<[u8; 16]>]) -> Self {
        Self {
            node_ports: node_ports(v4).chain(node_ports(v6)).map(|port| (port, port)).reduce(both),
            cluster_ips4: cluster_ips(v4),
            cluster_ips6: cluster_ips(v6),
        }
    }

    /// What ranges of cluster IPs need.
    pub(super) fn of_cidrs(cluster_ips4: Option<Cidr<[u8; 4]>>, cluster_ips6: Option<Cidr<[u8; 16]>>) -> Self {
        Self { node_ports: None, cluster_ips4, cluster_ips6 }
    }

    /// What holds both.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            node_ports: self.node_ports.into_iter().chain(other.node_ports).reduce(both),
            cluster_ips4: self.cluster_ips4.into_iter().chain(other.cluster_ips4).reduce(Cidr::cover),
            cluster_ips6: self.cluster_ips6.into_iter().chain(other.cluster_ips6).reduce(Cidr::cover),
        }
    }

    pub(super) fn write(self, config: &mut Config) {
        (config.node_port_min, config.node_port_max) = self.node_ports.unwrap_or(NO_NODE_PORTS);
        config.cluster_ips4 = self.cluster_ips4.map(Cidr::prefix).unwrap_or_default();
        config.cluster_ips6 = self.cluster_ips6.map(Cidr::prefix).unwrap_or_default();
    }
}

fn both(one: (u16, u16), other: (u16, u16)) -> (u16, u16) {
    (one.0.min(other.0), one.1.max(other.1))
}

/// The node ports among the frontends of some service ports.
fn node_ports<A: Family>(ports: &[DesiredPort<A>]) -> impl Iterator<Item = u16> {
    let frontends = ports.iter().flat_map(|port| &port.frontends);
    frontends.filter(|(key, _)| key.address == A::UNSPECIFIED).map(|(key, _)| key.port)
}

/// What holds the cluster IPs that some service ports have entries of.
fn cluster_ips<A: Family>(ports: &[DesiredPort<A>]) -> Option<Cidr<A>> {
    let frontends = ports.iter().flat_map(|port| &port.frontends);
    let entries = frontends.filter(|(_, flags)| flags & FrontendFlags::CLUSTER_IP != 0);
    entries.map(|(key, _)| Cidr::of_address(key.address)).reduce(Cidr::cover)
}
