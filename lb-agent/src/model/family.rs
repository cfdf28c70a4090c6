use std::{hash::Hash, net::IpAddr};

use ipnet::IpNet;
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
    pub local_addresses: &'static str,
    pub source_ranges: &'static str,
    pub service_cidrs: &'static str,
}

/// A network of one family (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr<A> {
    /// Its address; the bits after the first `bits` are 0.
    pub address: A,
    /// How many bits count.
    pub bits: u32,
}

impl<A: Family> Cidr<A> {
    /// The network, if it is of this family.
    pub fn from_net(net: IpNet) -> Option<Self> {
        Some(Self { address: A::from_ip(net.network())?, bits: u32::from(net.prefix_len()) })
    }
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
        local_addresses: maps::LOCAL_ADDRS4,
        source_ranges: maps::SOURCE_RANGES4,
        service_cidrs: maps::SERVICE_CIDRS4,
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
        local_addresses: maps::LOCAL_ADDRS6,
        source_ranges: maps::SOURCE_RANGES6,
        service_cidrs: maps::SERVICE_CIDRS6,
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
