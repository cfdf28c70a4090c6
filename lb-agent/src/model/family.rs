use std::{fmt, hash::Hash, net::IpAddr};

use ipnet::IpNet;
use lb_common::abi::{Address, Prefix, maps};

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
    pub affinity: &'static str,
    pub loads: &'static str,
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

    /// The network, for people. `None` for more bits than an address has.
    pub fn to_net(self) -> Option<IpNet> {
        IpNet::new(self.address.to_ip(), u8::try_from(self.bits).ok()?).ok()
    }

    /// The first of some networks that is of this family.
    pub fn first_of(nets: &[IpNet]) -> Option<Self> {
        nets.iter().find_map(|net| Self::from_net(*net))
    }

    /// The network of one address.
    pub fn of_address(address: A) -> Self {
        Self { address, bits: A::BITS }
    }

    /// What `CONFIG` holds as a prefix; `None` for the one that holds nothing.
    pub fn from_prefix(prefix: Prefix<A>) -> Option<Self> {
        let bits = prefix.mask.common_bits(A::ONES);
        (prefix != Prefix::NOTHING).then_some(Self { address: prefix.address, bits })
    }

    /// The network as the programs compare with it.
    pub fn prefix(self) -> Prefix<A> {
        Prefix::new(self.address, self.bits)
    }

    /// Whether an address is in the network.
    pub fn contains(self, address: A) -> bool {
        self.prefix().contains(address)
    }

    /// The smallest network that holds both.
    #[must_use]
    pub fn cover(self, other: Self) -> Self {
        let bits = self.bits.min(other.bits).min(self.address.common_bits(other.address));
        Self { address: self.address.masked(A::mask(bits)), bits }
    }
}

impl<A: Family> fmt::Display for Cidr<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address.to_ip(), self.bits)
    }
}

/// An IP family, named by the type of its addresses in the maps.
pub trait Family: Address + Ord + Hash + Send {
    /// `IPv4` or `IPv6`.
    const NAME: &'static str;
    /// Bits of an address.
    const BITS: u32;
    /// The family's tables.
    const TABLES: TableNames;

    /// The address, if it is of this family.
    fn from_ip(ip: IpAddr) -> Option<Self>;
    /// The address, for people.
    fn to_ip(self) -> IpAddr;
    /// How many of the first bits of two addresses are the same.
    fn common_bits(self, other: Self) -> u32;
}

impl Family for [u8; 4] {
    const NAME: &'static str = "IPv4";
    const BITS: u32 = u32::BITS;
    const TABLES: TableNames = TableNames {
        frontends: maps::FRONTENDS4,
        services: maps::SERVICES4,
        service_names: maps::SERVICE_NAMES4,
        service_stats: maps::SERVICE_STATS4,
        slots: maps::SLOTS4,
        backends: maps::BACKENDS4,
        flows: maps::FLOWS4,
        affinity: maps::AFFINITY4,
        loads: maps::LOADS4,
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

    fn common_bits(self, other: Self) -> u32 {
        (u32::from_be_bytes(self) ^ u32::from_be_bytes(other)).leading_zeros()
    }
}

impl Family for [u8; 16] {
    const NAME: &'static str = "IPv6";
    const BITS: u32 = u128::BITS;
    const TABLES: TableNames = TableNames {
        frontends: maps::FRONTENDS6,
        services: maps::SERVICES6,
        service_names: maps::SERVICE_NAMES6,
        service_stats: maps::SERVICE_STATS6,
        slots: maps::SLOTS6,
        backends: maps::BACKENDS6,
        flows: maps::FLOWS6,
        affinity: maps::AFFINITY6,
        loads: maps::LOADS6,
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

    fn common_bits(self, other: Self) -> u32 {
        (u128::from_be_bytes(self) ^ u128::from_be_bytes(other)).leading_zeros()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cover_is_the_smallest_network_that_holds_both() {
        let v4 = |text: &str| Cidr::<[u8; 4]>::from_net(text.parse().expect("a network")).expect("IPv4");
        for (one, other, expected) in [
            ("10.96.0.1/32", "10.96.0.1/32", "10.96.0.1/32"),
            ("10.96.0.1/32", "10.96.0.2/32", "10.96.0.0/30"),
            ("10.96.0.0/16", "10.96.7.7/32", "10.96.0.0/16"),
            ("10.96.0.0/16", "10.97.0.0/24", "10.96.0.0/15"),
            ("10.96.0.0/16", "192.168.0.1/32", "0.0.0.0/0"),
        ] {
            assert_eq!(v4(one).cover(v4(other)), v4(expected), "{one} {other}");
            assert_eq!(v4(other).cover(v4(one)), v4(expected), "{other} {one}");
            assert_eq!(Cidr::from_prefix(v4(expected).prefix()), Some(v4(expected)));
        }
        let v6 = |text: &str| Cidr::<[u8; 16]>::from_net(text.parse().expect("a network")).expect("IPv6");
        assert_eq!(v6("fd00:96::/108").cover(v6("fd00:97::1/128")), v6("fd00:96::/31"));
        assert_eq!(v6("fd00:96::/108").to_string(), "fd00:96::/108");
        assert_eq!(Cidr::<[u8; 4]>::from_prefix(Prefix::NOTHING), None);
    }
}
