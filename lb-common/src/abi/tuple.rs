use core::fmt::Debug;

/// An IP address as the maps hold it: its octets in wire order.
pub trait Address: Copy + Eq + Debug + Default + 'static {
    /// The unspecified address (`0.0.0.0`, `::`).
    const UNSPECIFIED: Self;

    /// The address folded to 64 bits, for hashing: every bit of the address takes part.
    fn fold(self) -> u64;
}

impl Address for [u8; 4] {
    const UNSPECIFIED: Self = [0; 4];

    #[inline(always)]
    fn fold(self) -> u64 {
        u64::from(u32::from_le_bytes(self))
    }
}

impl Address for [u8; 16] {
    const UNSPECIFIED: Self = [0; 16];

    #[inline(always)]
    fn fold(self) -> u64 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self;
        let high = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let low = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
        // The multiplication keeps addresses that differ by swapped halves apart.
        high.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ low
    }
}

/// The transport protocols that are balanced, by their IANA numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
}

impl Protocol {
    /// The protocol of an IP header's protocol or last next-header field, if it is one that is balanced.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

/// The 5-tuple of a packet, as `FLOWS*` is keyed: 16 bytes for IPv4, 40 for IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct Tuple<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// IANA protocol number, see [`Protocol`].
    pub protocol: u8,
    /// Always zero: hash keys are compared byte by byte.
    pub pad: [u8; 3],
}

impl<A: Address> Tuple<A> {
    /// A tuple from its parts.
    #[inline(always)]
    pub const fn new(src: A, src_port: u16, dst: A, dst_port: u16, protocol: u8) -> Self {
        Self { src, dst, src_port, dst_port, protocol, pad: [0; 3] }
    }

    /// The tuple of the packets that answer this one.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self::new(self.dst, self.dst_port, self.src, self.src_port, self.protocol)
    }
}
