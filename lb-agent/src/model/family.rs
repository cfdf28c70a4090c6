use std::{hash::Hash, net::IpAddr};

use lb_common::abi::{Address, maps};

/// Names of the tables of one IP family, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the name of the map of that name")]
pub struct TableNames {
    pub frontends: &'static str,
    pub services: &'static str,
    pub service_names: &'static str,
    pub service_stats: &'static str,
    pub slots: &'static str,
    pub backends: &'static str,
    pub flows: &'static str,
    pub node_addresses: &'static str,
    pub node_port_addresses: &'static str,
}

/// An IP family, named by the type of its addresses in the maps.
pub trait Family: Address + Ord + Hash + Send {
    /// `IPv4` or `IPv6`.
    const NAME: &'static str;
    /// The family's tables.
    const TABLES: TableNames;

    /// The address, if it is of this family.
    fn from_ip(ip: IpAddr) -> Option<Self>;
    /// The address, for people.
    fn to_ip(self) -> IpAddr;
}

impl Family for [u8; 4] {
    const NAME: &'static str = "IPv4";
    const TABLES: TableNames = TableNames {
        frontends: maps::FRONTENDS4,
        services: maps::SERVICES4,
        service_names: maps::SERVICE_NAMES4,
        service_stats: maps::SERVICE_STATS4,
        slots: maps::SLOTS4,
        backends: maps::BACKENDS4,
        flows: maps::FLOWS4,
        node_addresses: maps::NODE_ADDRESSES4,
        node_port_addresses: maps::NODEPORT_ADDRS4,
    };

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }
}

impl Family for [u8; 16] {
    const NAME: &'static str = "IPv6";
    const TABLES: TableNames = TableNames {
        frontends: maps::FRONTENDS6,
        services: maps::SERVICES6,
        service_names: maps::SERVICE_NAMES6,
        service_stats: maps::SERVICE_STATS6,
        slots: maps::SLOTS6,
        backends: maps::BACKENDS6,
        flows: maps::FLOWS6,
        node_addresses: maps::NODE_ADDRESSES6,
        node_port_addresses: maps::NODEPORT_ADDRS6,
    };

    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip.octets()),
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }
}
