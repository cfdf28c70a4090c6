use core::fmt::{self, Debug, Display};

/// An IP address as the maps hold it: its octets in wire order.
pub trait Address: Copy + Eq + Debug + Default + 'static {
    /// The unspecified address (`0.0.0.0`, `::`).
    const UNSPECIFIED: Self;

    /// The address of which every bit is one.
    const ONES: Self;

    /// Ones for the first `bits` bits; for all of them where `bits` is more than an address has.
    fn mask(bits: u32) -> Self;

    /// The bits that are one in `mask`, and zeros for the others.
    #[must_use]
    fn masked(self, mask: Self) -> Self;

    /// The address folded to 64 bits, for hashing: every bit of the address takes part.
    fn fold(self) -> u64;
}

impl Address for [u8; 4] {
    const UNSPECIFIED: Self = [0; 4];
    const ONES: Self = [0xff; 4];

    fn mask(bits: u32) -> Self {
        u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0).to_be_bytes()
    }

    #[inline(always)]
    fn masked(self, mask: Self) -> Self {
        (u32::from_ne_bytes(self) & u32::from_ne_bytes(mask)).to_ne_bytes()
    }

    #[inline(always)]
    fn fold(self) -> u64 {
        u64::from(u32::from_le_bytes(self))
    }
}

impl Address for [u8; 16] {
    const UNSPECIFIED: Self = [0; 16];
    const ONES: Self = [0xff; 16];

    fn mask(bits: u32) -> Self {
        u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0).to_be_bytes()
    }

    #[inline(always)]
    fn masked(self, mask: Self) -> Self {
        let ([low, high], [mask_low, mask_high]) = (halves(self), halves(mask));
        // SAFETY: both are 16 bytes of which every bit pattern is a value.
        unsafe { core::mem::transmute([low & mask_low, high & mask_high]) }
    }

    #[inline(always)]
    fn fold(self) -> u64 {
        let [low, high] = halves(self).map(u64::from_le);
        // The multiplication keeps addresses that differ by swapped halves apart.
        low.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ high
    }
}

/// An IPv6 address as two words as they lie in memory. Not byte by byte: what is taken apart in bytes stays so in a
/// program for the BPF target.
#[inline(always)]
pub(crate) const fn halves(address: [u8; 16]) -> [u64; 2] {
    // SAFETY: both are 16 bytes of which every bit pattern is a value.
    unsafe { core::mem::transmute(address) }
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

    /// The protocol as Kubernetes spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// An IANA protocol number, for people: it shows as the name of a protocol that is balanced, or as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolNumber(pub u32);

impl Display for ProtocolNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u8::try_from(self.0).ok().and_then(Protocol::from_number) {
            Some(protocol) => f.write_str(protocol.name()),
            None => write!(f, "{}", self.0),
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
    /// IANA protocol number, see [`Protocol`]. As wide as the alignment, so that there is no padding to keep zero.
    pub protocol: u32,
}

impl<A: Address> Tuple<A> {
    /// A tuple from its parts.
    #[inline(always)]
    pub const fn new(src: A, src_port: u16, dst: A, dst_port: u16, protocol: u8) -> Self {
        Self { src, dst, src_port, dst_port, protocol: protocol as u32 }
    }

    /// The tuple of the packets that answer this one.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port, protocol: self.protocol }
    }
}
