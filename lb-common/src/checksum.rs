//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! A header that changes need not be summed again. With `HC` the old checksum, `m` an old 16-bit word and `m'` its
//! replacement, RFC 1624 equation 3 gives the new one:
//!
//! ```text
//! HC' = ~(~HC + ~m + m')
//! ```
//!
//! in one's complement arithmetic, which is associative and commutative: all changes add up to one [`Diff`], applied
//! once. One's complement sums do not care about byte order (RFC 1071 §2 B), so words are taken as they lie in memory.

use crate::abi::halves;

/// What changed, as the one's complement sum of every `~m + m'`: 32 bits wide and not yet folded, which is the form
/// that `bpf_l3_csum_replace` and `bpf_l4_csum_replace` take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Diff(u64);

impl Diff {
    /// Nothing changed.
    pub const NONE: Self = Self(0);

    /// Adds the replacement of a 16-bit word. Both values in the same byte order as they lie in the packet.
    #[inline(always)]
    pub const fn word16(self, old: u16, new: u16) -> Self {
        // 16 bits leave room for 2^47 additions before the accumulator could overflow.
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Adds the replacement of an aligned 32-bit word.
    #[inline(always)]
    pub const fn word32(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Adds the replacement of an IPv4 address.
    #[inline(always)]
    pub const fn ipv4(self, old: [u8; 4], new: [u8; 4]) -> Self {
        self.word32(u32::from_ne_bytes(old), u32::from_ne_bytes(new))
    }

    /// Adds the replacement of an IPv6 address.
    #[inline(always)]
    pub const fn ipv6(self, old: [u8; 16], new: [u8; 16]) -> Self {
        let [old0, old1] = halves(old);
        let [new0, new1] = halves(new);
        self.word64(old0, new0).word64(old1, new1)
    }

    /// Adds the replacement of two 32-bit words.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    const fn word64(self, old: u64, new: u64) -> Self {
        self.word32(old as u32, new as u32).word32((old >> 32) as u32, (new >> 32) as u32)
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The difference folded to 32 bits, the `to` argument of the kernel's checksum helpers with `from` 0.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "folded")]
    pub const fn to_u32(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// The checksum that replaces `old`, RFC 1624 equation 3. Both as they lie in the packet.
    #[inline(always)]
    pub const fn apply(self, old: u16) -> u16 {
        !fold(self.to_u32() as u64 + (!old) as u64)
    }

    /// The value that replaces `old` where the field holds an unfinished sum (the pseudo header's alone, neither
    /// complemented nor complete), as the kernel leaves it for the device to finish (`CHECKSUM_PARTIAL`).
    #[inline(always)]
    pub const fn apply_partial(self, old: u16) -> u16 {
        fold(self.to_u32() as u64 + old as u64)
    }
}

/// Folds a one's complement sum to 16 bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded")]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use etherparse::checksum::Sum16BitWords;
    use proptest::prelude::*;

    use super::*;

    /// The checksum of `bytes` by an independent implementation, as it lies in the packet.
    fn reference(bytes: &[u8]) -> u16 {
        Sum16BitWords::new().add_slice(bytes).ones_complement()
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_new_sum(
            mut packet in proptest::collection::vec(any::<u8>(), 40..200),
            new_address: [u8; 4], new_address6: [u8; 16], new_port: u16,
        ) {
            // Never all zero: one's complement has two zeros, and only a sum of nothing but zeros gives +0.
            packet[39] |= 1;
            let before = reference(&packet);

            let old_address = <[u8; 4]>::try_from(&packet[0..4]).unwrap();
            let old_address6 = <[u8; 16]>::try_from(&packet[4..20]).unwrap();
            let old_port = u16::from_ne_bytes([packet[20], packet[21]]);
            packet[0..4].copy_from_slice(&new_address);
            packet[4..20].copy_from_slice(&new_address6);
            packet[20..22].copy_from_slice(&new_port.to_ne_bytes());

            let diff = Diff::NONE.ipv4(old_address, new_address).ipv6(old_address6, new_address6).word16(old_port, new_port);
            prop_assert_eq!(diff.apply(before), reference(&packet));
        }
    }

    #[test]
    fn the_example_of_rfc_1624_section_4() {
        // HC = 0xDD2F, m = 0x5555, m' = 0x3285: equation 3 gives 0x0000, where equation 2 of RFC 1141 errs.
        assert_eq!(Diff::NONE.word16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }
}
