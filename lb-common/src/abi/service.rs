use crate::hash;

/// A contiguous range of `SLOTS*`. 8 aligned bytes, so that a reader sees the old range or the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct SlotRange {
    /// First slot.
    pub first: u32,
    /// Number of slots; 0 where no endpoint is eligible.
    pub count: u32,
}

impl SlotRange {
    /// The slot that a hash selects, uniformly and without a division. `None` for an empty range.
    #[inline(always)]
    pub const fn pick(self, hash: u32) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        // Multiply-shift: maps [0, 2^32) onto [0, count). The result is below `count`, so it fits.
        let offset = ((hash as u64 * self.count as u64) >> 32) as u32;
        Some(self.first.wrapping_add(offset))
    }

    /// Two slots that a hash selects, each pair as likely as any other: the first is that of [`pick`](Self::pick), the
    /// second another one, unless there is only one. `None` for an empty range.
    #[inline(always)]
    pub const fn pick_two(self, hash: u32) -> Option<[u32; 2]> {
        let Some(first) = self.pick(hash) else { return None };
        // How far from the first: 1 to `count - 1`.
        let others = self.count - 1;
        let step = 1 + ((hash::second(hash) as u64 * others as u64) >> 32) as u32;
        let offset = first.wrapping_sub(self.first).wrapping_add(step);
        // (A range is far shorter than 2^31.)
        let offset = if offset >= self.count { offset.wrapping_sub(self.count) } else { offset };
        Some([first, self.first.wrapping_add(offset)])
    }

    /// The slot whose turn it is. `None` for an empty range.
    #[inline(always)]
    pub const fn at_turn(self, turn: u32) -> Option<u32> {
        match turn.checked_rem(self.count) {
            Some(offset) => Some(self.first.wrapping_add(offset)),
            None => None,
        }
    }
}

/// Value of `SLOTS*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot {
    /// Index in `BACKENDS*`.
    pub backend: u32,
}

/// Key of `SERVICE_NAMES*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceIndex {
    /// Index in `SERVICES*`.
    pub service: u32,
}

/// Value of `SERVICES*`: one port of one Service in one IP family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Service {
    /// Backends in the whole cluster, as kube-proxy's `CategorizeEndpoints` selects them.
    pub cluster: SlotRange,
    /// Backends on this node, likewise.
    pub local: SlotRange,
    /// Bits of [`ServiceFlags`].
    pub flags: u32,
    /// Session affinity timeout in seconds; 0 = none.
    pub affinity_seconds: u32,
}

/// What else is known of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceFlags;

impl ServiceFlags {
    /// Some usable endpoint exists somewhere: an empty slot range then means drop. Without it, refuse.
    pub const HAS_ENDPOINTS: u32 = 1;
    /// New flows take the slots in turn, on each CPU by itself. Without it, by their hash.
    pub const ROUND_ROBIN: u32 = 2;
    /// New flows take, of the two slots that their hash names, that whose backend has fewer flows.
    pub const LEAST_CONN: u32 = 4;
}

/// Value of `SERVICE_STATS*`, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct ServiceStats {
    /// Flows that were given a backend, on the packet path and by sockets.
    pub flows: u64,
    /// Packets translated on the packet path, requests and replies.
    pub packets: u64,
    /// Bytes of those packets, from the IP header on.
    pub bytes: u64,
    /// New flows refused or dropped.
    pub rejected: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pairs_of_slots_are_picked_alike_and_none_twice() {
        // 7 slots have 42 ordered pairs. Of 420,000 hashes each gets 10,000 on average with a standard deviation of
        // sqrt(n p (1-p)) = 98.8; six deviations fail a good hash once in 10^7 runs, and the input is fixed.
        let range = SlotRange { first: 100, count: 7 };
        let mut pairs = [[0_i64; 7]; 7];
        for number in 0..420_000_u32 {
            let hash = hash::socket(number.into(), &crate::abi::FrontendKey::new([10, 96, 0, 1], 80, 6), 0);
            let [first, second] = range.pick_two(hash).expect("it is not empty");
            assert_eq!(range.pick(hash), Some(first));
            pairs[first as usize - 100][second as usize - 100] += 1;
        }
        for (first, seconds) in pairs.iter().enumerate() {
            for (second, count) in seconds.iter().enumerate() {
                if first == second {
                    assert_eq!(*count, 0);
                } else {
                    assert!((count - 10_000).abs() < 593, "{first} {second}: {count}");
                }
            }
        }
    }

    #[test]
    fn two_of_one_slot_are_that_one_and_of_none_none() {
        for hash in [0, 1, 1 << 31, u32::MAX] {
            assert_eq!(SlotRange { first: 9, count: 1 }.pick_two(hash), Some([9, 9]));
            assert_eq!(SlotRange { first: 9, count: 0 }.pick_two(hash), None);
            let [first, second] = SlotRange { first: 9, count: 2 }.pick_two(hash).expect("two");
            assert_eq!(first + second, 9 + 10);
        }
    }
}
