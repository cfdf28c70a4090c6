use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::SlotRange;

/// Allocates contiguous ranges of the numbers below a limit: slots, and, as ranges of one, the indices of services and
/// backends.
///
/// Best fit, the lowest of equal ones, neighbours merged when they are freed: the large holes stay for large services,
/// and every step costs O(log of the number of holes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ranges {
    /// First number of each hole to its size.
    holes: BTreeMap<u32, u32>,
    /// The same holes as (size, first).
    by_size: BTreeSet<(u32, u32)>,
    /// Sum of their sizes.
    free: u32,
}

impl Ranges {
    /// All numbers below `limit`, free.
    pub(super) fn new(limit: u32) -> Self {
        let mut ranges = Self { holes: BTreeMap::new(), by_size: BTreeSet::new(), free: 0 };
        ranges.release(SlotRange { first: 0, count: limit });
        ranges
    }

    /// How many numbers are free, in holes of any size.
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// Whether a number is free.
    pub(super) fn is_free(&self, number: u32) -> bool {
        self.holes.range(..=number).next_back().is_some_and(|(&hole, &size)| number - hole < size)
    }

    /// Takes `count` consecutive numbers. The empty range is always there.
    pub(super) fn allocate(&mut self, count: u32) -> Option<SlotRange> {
        if count == 0 {
            return Some(SlotRange::default());
        }
        let (_, first) = *self.by_size.range((count, 0)..).next()?;
        let range = SlotRange { first, count };
        self.reserve(range).then_some(range)
    }

    /// Takes one number.
    pub(super) fn allocate_one(&mut self) -> Option<u32> {
        self.allocate(1).map(|range| range.first)
    }

    /// Takes the first free number from `from` on, or from 0 if there is none: who asks with the number after the last one
    /// gets a number that was freed long ago.
    pub(super) fn allocate_one_from(&mut self, from: u32) -> Option<u32> {
        let within = self.holes.range(..=from).next_back().filter(|(hole, size)| from - **hole < **size);
        let number = match within {
            Some(_) => from,
            None => *self.holes.range(from..).next().or_else(|| self.holes.first_key_value())?.0,
        };
        self.reserve(SlotRange { first: number, count: 1 }).then_some(number)
    }

    /// Takes exactly this range; false, and nothing taken, unless all of it is free.
    pub(super) fn reserve(&mut self, range: SlotRange) -> bool {
        let SlotRange { first, count } = range;
        if count == 0 {
            return true;
        }
        let Some((&hole, &size)) = self.holes.range(..=first).next_back() else { return false };
        let before = first - hole;
        let Some(after) = size.checked_sub(before).and_then(|rest| rest.checked_sub(count)) else { return false };
        self.remove_hole(hole, size);
        self.add_hole(hole, before);
        self.add_hole(first + count, after);
        true
    }

    /// Takes what is free of this range, in pieces.
    pub(super) fn reserve_free_parts(&mut self, range: SlotRange) -> Vec<SlotRange> {
        let end = range.first.saturating_add(range.count);
        let hole_before = self.holes.range(..range.first).next_back();
        let pieces: Vec<SlotRange> = hole_before
            .into_iter()
            .chain(self.holes.range(range.first..end))
            .map(|(&hole, &size)| {
                let first = hole.max(range.first);
                SlotRange { first, count: (hole + size).min(end).saturating_sub(first) }
            })
            .filter(|piece| piece.count > 0)
            .collect();
        for piece in &pieces {
            self.reserve(*piece);
        }
        pieces
    }

    /// Gives a range back. It must have been taken.
    pub(super) fn release(&mut self, range: SlotRange) {
        let SlotRange { mut first, mut count } = range;
        if count == 0 {
            return;
        }
        if let Some((&hole, &size)) = self.holes.range(..first).next_back()
            && hole + size == first
        {
            self.remove_hole(hole, size);
            (first, count) = (hole, size + count);
        }
        if let Some(&size) = self.holes.get(&(first + count)) {
            self.remove_hole(first + count, size);
            count += size;
        }
        self.add_hole(first, count);
    }

    /// Gives one number back.
    pub(super) fn release_one(&mut self, number: u32) {
        self.release(SlotRange { first: number, count: 1 });
    }

    fn add_hole(&mut self, first: u32, size: u32) {
        if size > 0 {
            self.holes.insert(first, size);
            self.by_size.insert((size, first));
            self.free += size;
        }
    }

    fn remove_hole(&mut self, first: u32, size: u32) {
        self.holes.remove(&first);
        self.by_size.remove(&(size, first));
        self.free -= size;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn range(first: u32, count: u32) -> SlotRange {
        SlotRange { first, count }
    }

    #[test]
    fn holes_merge_with_both_neighbours_and_the_tightest_is_taken_first() {
        let mut ranges = Ranges::new(10);
        assert_eq!(ranges.allocate(3), Some(range(0, 3)));
        assert_eq!(ranges.allocate(2), Some(range(3, 2)));
        assert_eq!(ranges.allocate(3), Some(range(5, 3)));
        ranges.release(range(0, 3));
        assert_eq!(ranges.allocate(2), Some(range(8, 2)), "the hole of two, not that of three");
        assert_eq!(ranges.allocate(4), None);
        let free: Vec<u32> = (0..12).filter(|number| ranges.is_free(*number)).collect();
        assert_eq!(free, [0, 1, 2], "ten is beyond the end");
        ranges.release(range(5, 3));
        ranges.release(range(3, 2));
        assert_eq!(ranges.allocate(8), Some(range(0, 8)));
        assert_eq!((ranges.allocate(1), ranges.allocate(0)), (None, Some(range(0, 0))));
    }

    #[test]
    fn numbers_go_round() {
        let mut ranges = Ranges::new(4);
        assert_eq!([0, 1, 2].map(|from| ranges.allocate_one_from(from)), [Some(0), Some(1), Some(2)]);
        ranges.release_one(1);
        assert_eq!(ranges.allocate_one_from(3), Some(3), "not the one just freed");
        assert_eq!(ranges.allocate_one_from(4), Some(1));
        assert_eq!(ranges.allocate_one_from(2), None);
    }

    #[test]
    fn only_what_is_wholly_free_can_be_reserved() {
        let mut ranges = Ranges::new(10);
        assert!(ranges.reserve(range(4, 2)));
        for taken in [range(4, 2), range(3, 2), range(5, 3), range(0, 10), range(8, 3), range(u32::MAX, 2)] {
            assert!(!ranges.reserve(taken), "{taken:?}");
        }
        assert_eq!(ranges.reserve_free_parts(range(2, 6)), [range(2, 2), range(6, 2)]);
        assert_eq!(ranges.free(), 4);
        assert_eq!(ranges.reserve_free_parts(range(9, u32::MAX)), [range(9, 1)]);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_comes_back(steps in proptest::collection::vec((0_u32..12, any::<prop::sample::Index>()), 1..200)) {
            let mut ranges = Ranges::new(64);
            let mut taken: Vec<SlotRange> = Vec::new();
            for (count, which) in steps {
                match ranges.allocate(count) {
                    Some(new) if count > 0 => {
                        prop_assert!(new.first + new.count <= 64);
                        let apart = |old: &SlotRange| new.first + new.count <= old.first || old.first + old.count <= new.first;
                        prop_assert!(taken.iter().all(apart));
                        taken.push(new);
                    }
                    _ if !taken.is_empty() => ranges.release(taken.swap_remove(which.index(taken.len()))),
                    _ => {}
                }
                prop_assert_eq!(ranges.free(), 64 - taken.iter().map(|range| range.count).sum::<u32>());
            }
            for range in taken {
                ranges.release(range);
            }
            prop_assert_eq!(ranges, Ranges::new(64));
        }
    }
}
