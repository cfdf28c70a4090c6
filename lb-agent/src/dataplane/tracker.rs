use std::collections::BTreeMap;

use super::{Drift, MapError};

/// A small table of which the whole desired content is known at every step: holds what the map has, and writes only
/// what differs. What fails stays different, and so is tried again with the next step.
#[derive(Debug)]
pub(super) struct Tracker<K, V> {
    actual: BTreeMap<K, V>,
}

/// An entry that is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Difference<K, V> {
    pub(super) key: K,
    /// What it was; `None` for one that was not there.
    pub(super) value: Option<V>,
    pub(super) drift: Drift,
}

impl<K: Copy + Ord, V: Copy + Eq> Tracker<K, V> {
    /// A table that holds these entries.
    pub(super) fn new(actual: impl IntoIterator<Item = (K, V)>) -> Self {
        Self { actual: actual.into_iter().collect() }
    }

    /// What the table holds.
    pub(super) fn keys(&self) -> impl Iterator<Item = K> {
        self.actual.keys().copied()
    }

    /// How the table differs from what it is known to hold, and what makes it so again: what is too much first.
    pub(super) fn compare(&self, found: impl IntoIterator<Item = (K, V)>) -> Vec<Difference<K, V>> {
        let found: BTreeMap<K, V> = found.into_iter().collect();
        let strays = found.keys().filter(|key| !self.actual.contains_key(key));
        let strays = strays.map(|key| Difference { key: *key, value: None, drift: Drift::Stray });
        let wrong = self.actual.iter().filter_map(|(key, value)| {
            let drift = match found.get(key) {
                Some(found) if found == value => return None,
                Some(_) => Drift::Changed,
                None => Drift::Missing,
            };
            Some(Difference { key: *key, value: Some(*value), drift })
        });
        strays.chain(wrong).collect()
    }

    /// Makes the table what is `desired`, through `write`: `None` removes. Additions first. Returns the number of
    /// writes.
    pub(super) fn sync(
        &mut self,
        desired: &BTreeMap<K, V>,
        mut write: impl FnMut(K, Option<V>) -> Result<(), MapError>,
        errors: &mut Vec<MapError>,
    ) -> u64 {
        let missing = desired.iter().filter(|(key, value)| self.actual.get(key) != Some(value));
        let extra = self.actual.keys().filter(|key| !desired.contains_key(key));
        let changes: Vec<(K, Option<V>)> =
            missing.map(|(key, value)| (*key, Some(*value))).chain(extra.map(|key| (*key, None))).collect();
        let mut writes = 0;
        for (key, value) in changes {
            match (write(key, value), value) {
                (Ok(()), Some(value)) => drop(self.actual.insert(key, value)),
                (Ok(()), None) => drop(self.actual.remove(&key)),
                (Err(error), _) => {
                    errors.push(error);
                    continue;
                }
            }
            writes += 1;
        }
        writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Operation;

    #[test]
    fn only_differences_are_written_and_failures_are_tried_again() {
        let mut tracker = Tracker::new([(1, 'a'), (2, 'b'), (3, 'c')]);
        let desired = BTreeMap::from([(2, 'b'), (3, 'x'), (4, 'd')]);
        let mut step = |fails: bool| {
            let mut seen = Vec::new();
            let mut errors = Vec::new();
            let writes = tracker.sync(
                &desired,
                |key, value| {
                    seen.push((key, value));
                    let error =
                        || MapError { map: "M", operation: Operation::Write, source: std::io::Error::other("no") };
                    if fails && key == 3 { Err(error()) } else { Ok(()) }
                },
                &mut errors,
            );
            (seen, writes, errors.len())
        };
        assert_eq!(step(true), (vec![(3, Some('x')), (4, Some('d')), (1, None)], 2, 1));
        assert_eq!(step(false), (vec![(3, Some('x'))], 1, 0));
        assert_eq!(step(false), (Vec::new(), 0, 0));
    }
    #[test]
    fn a_table_that_others_wrote_to_is_put_back_strays_first() {
        let tracker = Tracker::new([(1, 'a'), (2, 'b'), (3, 'c')]);
        let difference = |key, value, drift| Difference { key, value, drift };
        assert_eq!(tracker.compare([(1, 'a'), (2, 'b'), (3, 'c')]), []);
        assert_eq!(
            tracker.compare([(9, 'a'), (2, 'x'), (3, 'c')]),
            [
                difference(9, None, Drift::Stray),
                difference(1, Some('a'), Drift::Missing),
                difference(2, Some('b'), Drift::Changed),
            ]
        );
    }
}
