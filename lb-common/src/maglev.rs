//! Maglev hashing: tables that say which backend a flow's hash selects, nearly the same before and after a backend comes
//! or goes, and equal on all nodes that know the same backends (Eisenbud et al., "Maglev: A Fast and Reliable Software
//! Network Load Balancer", NSDI 2016, §3.4).
//!
//! The data plane knows nothing of it: a table is a range of slots like any other, with each backend in it many times.

/// Sizes of tables: primes, so that every step visits all of a table; each about twice the one before it.
pub const SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131_071];
/// Slots for each backend, at least. Shares differ by one slot at most, so by 0.5 %; and a backend that comes or goes moves
/// at most 2 % of the others' slots (with 100 it is up to 3 %, with 400 up to 1.5 %).
pub const SLOTS_PER_BACKEND: usize = 200;
/// A slot that no backend has taken yet.
const FREE: u32 = u32::MAX;

/// The size of the table of so many backends. From 655 on it does not grow any more; shares
/// differ by more than 1 % from 1,310 on.
///
/// It depends on the number of backends alone, so that all nodes choose the same. Where one backend more needs the next
/// size, the new table has little in common with the former: flows that are in no flow table are spread anew then.
pub fn size(backends: usize) -> u32 {
    let wanted = backends.saturating_mul(SLOTS_PER_BACKEND);
    let fitting = SIZES.into_iter().find(|size| *size as usize >= wanted);
    fitting.unwrap_or(SIZES[SIZES.len() - 1])
}

/// The order in which a backend wants a table's slots: from some slot on, in steps of a constant length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preference {
    next: u32,
    step: u32,
}

impl Preference {
    /// The order of a backend in a table of `size` slots. `identity` must be well mixed and the same on all nodes, as
    /// [`hash::endpoint`](crate::hash::endpoint) is.
    #[expect(clippy::cast_possible_truncation, reason = "both halves take part")]
    pub const fn new(identity: u64, size: u32) -> Self {
        Self { next: onto((identity >> 32) as u32, size), step: onto(identity as u32, size - 1) + 1 }
    }

    /// The slot that is wanted next.
    const fn take(&mut self, size: u32) -> u32 {
        let slot = self.next;
        self.next = slot + self.step;
        if self.next >= size {
            self.next -= size;
        }
        slot
    }
}

/// Maps all hashes evenly onto the numbers below `size`.
const fn onto(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

/// Fills a table of one of the [`SIZES`] with positions in `preferences`: the backends take turns, each the first slot in
/// its order that is free. The order of the backends matters, to who gets a slot that two want in one turn.
pub fn fill(table: &mut [u32], preferences: &mut [Preference]) {
    table.fill(FREE);
    let size = u32::try_from(table.len()).unwrap_or(u32::MAX);
    let mut free = table.len();
    loop {
        for (position, preference) in (0..).zip(&mut *preferences) {
            if free == 0 {
                return;
            }
            // Every order visits every slot, since the size is prime: one of them is free.
            let slot = loop {
                let slot = preference.take(size) as usize;
                if table[slot] == FREE {
                    break slot;
                }
            };
            table[slot] = position;
            free -= 1;
        }
        if preferences.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash;

    /// The table of backends 10.0.x.y:80, x and y from a number each.
    fn table(backends: &[u16]) -> Vec<u32> {
        let size = size(backends.len());
        let identity = |number: &u16| {
            let [x, y] = number.to_be_bytes();
            hash::endpoint([10, 0, x, y], 80)
        };
        let mut preferences: Vec<_> = backends.iter().map(|number| Preference::new(identity(number), size)).collect();
        let mut table = vec![0; size as usize];
        fill(&mut table, &mut preferences);
        table.iter().map(|position| u32::from(backends[*position as usize])).collect()
    }

    fn numbers(count: u16) -> Vec<u16> {
        (0..count).collect()
    }

    #[test]
    fn tables_do_not_change_between_versions() {
        let start = |backends: &[u16]| table(backends)[..16].to_vec();
        assert_eq!(
            [start(&numbers(2)), start(&numbers(3)), start(&numbers(100))],
            VECTORS.map(Vec::from),
            "a change of the tables moves flows to other backends while nodes are upgraded"
        );
    }

    const VECTORS: [[u32; 16]; 3] = [
        [1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1],
        [0, 1, 1, 0, 2, 1, 1, 0, 2, 1, 2, 0, 2, 1, 2, 1],
        [0, 61, 15, 72, 34, 13, 90, 28, 14, 76, 57, 83, 85, 61, 56, 50],
    ];

    #[test]
    fn shares_differ_by_one_slot_and_so_by_one_percent() {
        for count in [1, 2, 3, 5, 10, 20, 40, 100, 250, 1000, 1310] {
            let mut shares = vec![0_u32; usize::from(count)];
            for backend in table(&numbers(count)) {
                shares[backend as usize] += 1;
            }
            let (least, most) = (shares.iter().min().expect("some"), shares.iter().max().expect("some"));
            assert!(most - least <= 1, "{count} backends: {least} to {most} slots");
            assert!(f64::from(most - least) <= 0.01 * f64::from(*least), "{count} backends: {least} to {most} slots");
        }
    }

    #[test]
    fn a_backend_that_goes_takes_few_flows_of_others_with_it() {
        // Counts at which one backend less does not change the size.
        for count in [4, 10, 20, 40, 81, 163, 327] {
            let all = numbers(count);
            let former = table(&all);
            let mut worst: f64 = 0.0;
            for gone in 0..count.min(40) {
                let left: Vec<u16> = all.iter().copied().filter(|number| *number != gone).collect();
                let now = table(&left);
                assert_eq!(former.len(), now.len(), "{count} backends");
                let moved = former.iter().zip(&now).filter(|(was, is)| **was != u32::from(gone) && was != is).count();
                #[expect(clippy::cast_precision_loss, reason = "thousands")]
                let share = moved as f64 / former.len() as f64;
                worst = worst.max(share);
            }
            assert!(worst <= 0.02, "{count} backends: {worst} of the slots moved beside those of the one that went");
        }
    }

    #[test]
    fn a_table_without_backends_is_left_free() {
        let mut table = [7; 251];
        fill(&mut table, &mut []);
        assert_eq!(table, [FREE; 251]);
    }
}
