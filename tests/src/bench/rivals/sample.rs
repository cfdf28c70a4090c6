//! Random numbers, the same in every run.

use std::collections::BTreeSet;

/// Sebastiano Vigna's `SplitMix64`: a counter, and a function that mixes its bits.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        Self(1)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// `count` different numbers below `limit`, or all of them where there are no more.
pub(super) fn sample(count: u32, limit: u32) -> Vec<u32> {
    let mut random = Random::new();
    let mut chosen = BTreeSet::new();
    while chosen.len() < count.min(limit) as usize {
        chosen.insert(u32::try_from(random.below(limit.into())).expect("below a u32"));
    }
    chosen.into_iter().collect()
}
