use std::collections::{BTreeSet, HashMap};

use lb_common::abi::{Backend, BackendFlags};

use super::{ApplyError, FamilyMaps, MapError, ranges::Ranges};
use crate::model::{DesiredBackend, Family};

/// A service port's hold on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Index in `BACKENDS*`.
    pub(super) index: u32,
    /// The [`BackendFlags`] that this service port gives it.
    pub(super) flags: u16,
}

/// What is known of an element of `BACKENDS*`.
#[derive(Clone, Copy, Debug, Default)]
struct Record<A> {
    /// What the map holds. Generation 0: not in use, or on its way into use.
    written: Backend<A>,
    /// Generation when it was last in use.
    last_generation: u32,
    references: u32,
    local: u32,
    selectable: u32,
}

impl<A> Record<A> {
    /// The flags that its references add up to.
    fn flags(&self) -> u16 {
        let bit = |count: u32, flag| if count > 0 { flag } else { 0 };
        bit(self.local, BackendFlags::LOCAL) | bit(self.selectable, BackendFlags::SELECTABLE)
    }
}

/// The elements of `BACKENDS*`, shared between service ports: one for each endpoint address and port, counted.
///
/// Flags are raised before a slot range that needs them is published and lowered after the last one is gone, so a
/// reader never finds a backend in a range that is not marked selectable.
#[derive(Debug)]
pub(super) struct Backends<A> {
    by_endpoint: HashMap<(A, u16), u32>,
    /// By index; as long as the highest index that was ever in use.
    records: Vec<Record<A>>,
    free: Ranges,
    /// The generation given out last. One counter for all elements.
    generation: u32,
    /// Elements whose references changed so that the map must follow.
    stale: BTreeSet<u32>,
    pub(super) writes: u64,
}

impl<A: Family> Backends<A> {
    /// An empty table. `first_generation` should differ from one start of the agent to the next: generations that a
    /// former agent gave to elements that are free now are in no map, but flows may remember them.
    pub(super) fn new(capacity: u32, first_generation: u32) -> Self {
        Self {
            by_endpoint: HashMap::new(),
            records: Vec::new(),
            free: Ranges::new(capacity),
            generation: first_generation,
            stale: BTreeSet::new(),
            writes: 0,
        }
    }

    /// Takes over an element in use. It goes with the next [`Self::settle`] unless someone takes a reference.
    pub(super) fn adopt(&mut self, index: u32, written: Backend<A>) {
        if written.generation == 0 || !self.free.reserve(lb_common::abi::SlotRange { first: index, count: 1 }) {
            return;
        }
        *self.record(index) = Record { written, last_generation: written.generation, ..Record::default() };
        // Of two elements for one endpoint the second is nobody's, and goes.
        self.by_endpoint.entry((written.address, written.port)).or_insert(index);
        self.stale.insert(index);
    }

    /// Flags of an adopted element that references may be taken on.
    pub(super) fn adopted_flags(&self, index: u32) -> Option<u16> {
        let Backend { address, port, flags, .. } = self.records.get(index as usize)?.written;
        (self.find(address, port) == Some(index)).then_some(flags)
    }

    /// The element of an endpoint.
    pub(super) fn find(&self, address: A, port: u16) -> Option<u32> {
        self.by_endpoint.get(&(address, port)).copied()
    }

    /// How many more endpoints there is room for now.
    pub(super) fn room(&self) -> u32 {
        self.free.free()
    }

    /// Takes a reference to the element of an endpoint, and brings the endpoint into the map if it is not there.
    pub(super) fn acquire<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        wanted: &DesiredBackend<A>,
    ) -> Result<Reference, ApplyError> {
        let index = match self.find(wanted.address, wanted.port) {
            Some(index) => {
                self.raise_flags(maps, index, wanted.flags)?;
                index
            }
            None => self.bring_in(maps, wanted)?,
        };
        let reference = Reference { index, flags: wanted.flags };
        self.take(reference);
        Ok(reference)
    }

    /// Counts a reference to an element that is in the map with at least these flags.
    pub(super) fn take(&mut self, reference: Reference) {
        self.count(reference, |count, by| *count += by);
    }

    /// Gives a reference back. The map follows with [`Self::settle`].
    pub(super) fn release(&mut self, reference: Reference) {
        self.count(reference, |count, by| *count -= by);
        let record = self.record(reference.index);
        if record.references == 0 || record.flags() != record.written.flags {
            self.stale.insert(reference.index);
        }
    }

    fn count(&mut self, reference: Reference, add: impl Fn(&mut u32, u32)) {
        let has = |flag: u16| u32::from(reference.flags & flag != 0);
        let record = self.record(reference.index);
        add(&mut record.references, 1);
        add(&mut record.local, has(BackendFlags::LOCAL));
        add(&mut record.selectable, has(BackendFlags::SELECTABLE));
    }

    /// Brings the map up to date with the references: marks elements that nobody holds invalid and lowers flags.
    /// Returns the elements that are out of use now; they may be reused, through [`Self::free`], after a grace period.
    pub(super) fn settle<M: FamilyMaps<A>>(&mut self, maps: &mut M, errors: &mut Vec<MapError>) -> Vec<u32> {
        let mut retired = Vec::new();
        for index in std::mem::take(&mut self.stale) {
            let record = *self.record(index);
            let wanted = if record.references == 0 {
                // The address stays: a reader that is still at it finds a whole backend or an invalid one.
                Backend { generation: 0, flags: 0, ..record.written }
            } else {
                Backend { flags: record.flags(), ..record.written }
            };
            if let Err(error) = self.write(maps, index, wanted) {
                errors.push(error);
                self.stale.insert(index);
            } else if wanted.generation == 0 {
                let endpoint = (wanted.address, wanted.port);
                if self.by_endpoint.get(&endpoint) == Some(&index) {
                    self.by_endpoint.remove(&endpoint);
                }
                retired.push(index);
            }
        }
        retired
    }

    /// Whether the map is behind the references.
    pub(super) fn is_behind(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Makes an element available again.
    pub(super) fn free(&mut self, index: u32) {
        self.free.release_one(index);
    }

    /// Takes a free element into use. Free elements are invalid (generation 0) in the map: their last use ended with
    /// that. So two writes make the order that [`Backend`] asks for.
    fn bring_in<M: FamilyMaps<A>>(&mut self, maps: &mut M, wanted: &DesiredBackend<A>) -> Result<u32, ApplyError> {
        let full = ApplyError::Full { table: A::TABLES.backends };
        let index = self.free.allocate_one().ok_or(full)?;
        let generation = self.next_generation(index);
        let invalid = Backend { generation: 0, address: wanted.address, port: wanted.port, flags: wanted.flags };
        let valid = Backend { generation, ..invalid };
        if let Err(error) = self.write(maps, index, invalid).and_then(|()| self.write(maps, index, valid)) {
            // It never became valid, so nobody can have seen it.
            self.free.release_one(index);
            return Err(error.into());
        }
        self.record(index).last_generation = generation;
        self.by_endpoint.insert((wanted.address, wanted.port), index);
        Ok(index)
    }

    fn raise_flags<M: FamilyMaps<A>>(&mut self, maps: &mut M, index: u32, flags: u16) -> Result<(), MapError> {
        let written = self.record(index).written;
        self.write(maps, index, Backend { flags: written.flags | flags, ..written })
    }

    /// Writes an element unless it is so already.
    fn write<M: FamilyMaps<A>>(&mut self, maps: &mut M, index: u32, value: Backend<A>) -> Result<(), MapError> {
        if self.record(index).written != value {
            maps.set_backend(index, value)?;
            self.record(index).written = value;
            self.writes += 1;
        }
        Ok(())
    }

    fn next_generation(&mut self, index: u32) -> u32 {
        let former = self.record(index).last_generation;
        loop {
            self.generation = self.generation.wrapping_add(1);
            if self.generation != 0 && self.generation != former {
                return self.generation;
            }
        }
    }

    fn record(&mut self, index: u32) -> &mut Record<A> {
        let index = index as usize;
        if self.records.len() <= index {
            self.records.resize(index + 1, Record::default());
        }
        &mut self.records[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Fake;

    const WANTED: DesiredBackend<[u8; 4]> =
        DesiredBackend { address: [10, 0, 0, 1], port: 80, flags: BackendFlags::SELECTABLE };

    fn existing(fake: &Fake) -> Vec<(u32, Backend<[u8; 4]>)> {
        FamilyMaps::<[u8; 4]>::existing(fake).expect("a fake").backends
    }

    #[test]
    fn a_backend_lives_while_someone_holds_it_and_flags_add_up() {
        let mut fake = Fake::default();
        let mut backends = Backends::new(8, 41);
        let local = DesiredBackend { flags: BackendFlags::LOCAL, ..WANTED };
        let first = backends.acquire(&mut fake, &WANTED).expect("room");
        let second = backends.acquire(&mut fake, &local).expect("room");
        assert_eq!(first.index, second.index);
        let value = |generation, flags| Backend { generation, address: [10, 0, 0, 1], port: 80, flags };
        assert_eq!(existing(&fake), [(0, value(42, BackendFlags::LOCAL | BackendFlags::SELECTABLE))]);

        backends.release(first);
        assert_eq!(backends.settle(&mut fake, &mut Vec::new()), [0; 0]);
        assert_eq!(existing(&fake), [(0, value(42, BackendFlags::LOCAL))]);
        backends.release(second);
        assert_eq!(backends.settle(&mut fake, &mut Vec::new()), [0]);
        assert_eq!(existing(&fake), []);
    }

    #[test]
    fn generations_skip_zero_and_the_former_one() {
        let mut fake = Fake::default();
        let mut backends = Backends::new(1, u32::MAX - 1);
        let mut generation = |backends: &mut Backends<_>| {
            let reference = backends.acquire(&mut fake, &WANTED).expect("room");
            let generation = existing(&fake)[0].1.generation;
            backends.release(reference);
            for index in backends.settle(&mut fake, &mut Vec::new()) {
                backends.free(index);
            }
            generation
        };
        assert_eq!(generation(&mut backends), u32::MAX);
        assert_eq!(generation(&mut backends), 1, "0 means invalid");
        backends.generation = 0;
        assert_eq!(generation(&mut backends), 2, "the counter has gone round to the former one");
    }
}
