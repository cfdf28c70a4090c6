use super::Address;

/// A network (RFC 4632), as the programs compare with: one load and one comparison for each word of an address. Aligned,
/// so that these are loads of words and not of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Prefix<A> {
    /// Its address; the bits outside `mask` are 0.
    pub address: A,
    /// Ones for the bits that count, zeros after them.
    pub mask: A,
}

impl<A: Address> Prefix<A> {
    /// A prefix that nothing is within that is anybody's address: the unspecified address alone.
    pub const NOTHING: Self = Self { address: A::UNSPECIFIED, mask: A::ONES };

    /// The network of an address whose first `bits` bits count.
    pub fn new(address: A, bits: u32) -> Self {
        let mask = A::mask(bits);
        Self { address: address.masked(mask), mask }
    }

    /// Whether it is [`Self::NOTHING`].
    #[inline(always)]
    pub fn is_nothing(&self) -> bool {
        self.mask == A::ONES && self.address == A::UNSPECIFIED
    }

    /// Whether an address is in the network.
    #[inline(always)]
    pub fn contains(&self, address: A) -> bool {
        let Self { address: network, mask } = *self;
        address.masked(mask) == network
    }
}

impl<A: Address> Default for Prefix<A> {
    fn default() -> Self {
        Self::NOTHING
    }
}

/// Data of the keys of `SOURCE_RANGES*`, longest prefix match: all bits of `service` and `edition`, and the first bits of
/// `client`.
///
/// The networks of one service and edition are a list. A list that a [`Frontend`](super::Frontend) names does not change: a
/// changed one is another edition, entered before the first frontend names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct SourceRange<A> {
    /// Index in `SERVICES*`.
    pub service: u32,
    /// [`Frontend::edition`](super::Frontend::edition).
    pub edition: u32,
    /// Address of a client.
    pub client: A,
}

/// Bits of [`SourceRange::service`] and [`SourceRange::edition`], which always count.
pub const LIST_BITS: u32 = 64;

/// Value of `SOURCE_RANGES*`: clients in this range may use the frontends that name the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Allowed {
    /// Always 1.
    pub allowed: u32,
}

/// Value of `SERVICE_CIDRS*`, longest prefix match by destination: a range from which the API server gives out cluster IPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceCidr {
    /// Always 1.
    pub allocated: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_holds_what_shares_its_first_bits() {
        let inside = |address: [u8; 4], bits, other: [u8; 4]| Prefix::new(address, bits).contains(other);
        assert!(inside([10, 96, 7, 7], 16, [10, 96, 255, 1]) && !inside([10, 96, 7, 7], 16, [10, 97, 7, 7]));
        assert!(inside([10, 0, 0, 8], 29, [10, 0, 0, 15]) && !inside([10, 0, 0, 8], 29, [10, 0, 0, 16]));
        assert!(inside([1, 2, 3, 4], 0, [200, 1, 1, 1]), "everything is within /0");
        assert!(inside([1, 2, 3, 4], 32, [1, 2, 3, 4]) && !inside([1, 2, 3, 4], 32, [1, 2, 3, 5]));
        assert!(Prefix::<[u8; 4]>::NOTHING.is_nothing() && Prefix::<[u8; 16]>::NOTHING.is_nothing());
        assert!(!Prefix::new([0; 4], 0).is_nothing() && !Prefix::new([10, 1, 1, 1], 32).is_nothing());
        assert!(!Prefix::NOTHING.contains([10, 0, 0, 1]) && !Prefix::NOTHING.contains([1; 16]));

        let net = |text: &str| text.parse::<core::net::Ipv6Addr>().expect("an address").octets();
        let service = Prefix::new(net("fd00:10:96::7"), 112);
        assert_eq!(service.address, net("fd00:10:96::"));
        assert!(service.contains(net("fd00:10:96::ffff")) && !service.contains(net("fd00:10:96::1:0")));
        let odd = Prefix::new(net("2001:db8::8000"), 113);
        assert!(odd.contains(net("2001:db8::ffff")) && !odd.contains(net("2001:db8::7fff")));
        assert!(Prefix::new(net("::1"), 0).contains(net("ffff::")));
    }
}
