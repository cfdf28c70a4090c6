use lb_common::abi::{Backend, SlotRange};

use super::{ApplyError, FamilyMaps, MapError, ranges::Ranges};
use crate::model::{DesiredBackend, Family};

/// What is known of an element of `BACKENDS*`.
#[derive(Clone, Copy, Debug, Default)]
struct Record<A> {
    /// What the map holds. Generation 0: not in use, or on its way into use.
    written: Backend<A>,
    /// Generation when it was last in use.
    last_generation: u32,
}

/// The elements of `BACKENDS*`. Which of them a service port has is in a list of its own, ascending by address and port.
#[derive(Debug)]
pub(super) struct Backends<A> {
    /// By index; as long as the highest index that was ever in use.
    records: Vec<Record<A>>,
    free: Ranges,
    /// The generation given out last. One counter for all elements.
    generation: u32,
    pub(super) writes: u64,
}

impl<A: Family> Backends<A> {
    /// An empty table. `first_generation` should differ from one start of the agent to the next: generations that a
    /// former agent gave to elements that are free now are in no map, but flows may remember them.
    pub(super) fn new(capacity: u32, first_generation: u32) -> Self {
        Self { records: Vec::new(), free: Ranges::new(capacity), generation: first_generation, writes: 0 }
    }

    /// Takes over an element in use. Returns whether it was one.
    pub(super) fn adopt(&mut self, index: u32, written: Backend<A>) -> bool {
        let adopted = written.generation != 0 && self.free.reserve(SlotRange { first: index, count: 1 });
        if adopted {
            *self.record(index) = Record { written, last_generation: written.generation };
        }
        adopted
    }

    /// Whether an element is in use for this service.
    pub(super) fn is_of(&self, index: u32, service: u32) -> bool {
        let written = self.records.get(index as usize).map(|record| record.written);
        written.is_some_and(|backend| backend.generation != 0 && backend.service == service)
    }

    /// Address and port of an element that is in use.
    pub(super) fn endpoint(&self, index: u32) -> (A, u16) {
        let Backend { address, port, .. } = self.records[index as usize].written;
        (address, port)
    }

    /// What the map holds at an index; generation 0 where it is not in use.
    pub(super) fn written(&self, index: u32) -> Backend<A> {
        self.records.get(index as usize).map(|record| record.written).unwrap_or_default()
    }

    /// Flags of an element that is in use.
    pub(super) fn flags(&self, index: u32) -> u16 {
        self.records[index as usize].written.flags
    }

    /// The element of an endpoint among those of a service port.
    pub(super) fn find(&self, elements: &[u32], wanted: &DesiredBackend<A>) -> Option<u32> {
        let index = *elements.get(self.position(elements, wanted))?;
        (self.endpoint(index) == (wanted.address, wanted.port)).then_some(index)
    }

    fn position(&self, elements: &[u32], wanted: &DesiredBackend<A>) -> usize {
        elements.partition_point(|index| self.endpoint(*index) < (wanted.address, wanted.port))
    }

    /// How many more endpoints there is room for now.
    pub(super) fn room(&self) -> u32 {
        self.free.free()
    }

    /// Finds the element of an endpoint among those of a service port, or brings the endpoint into the map. It has at
    /// least the wanted flags then; see [`Self::set_flags`].
    pub(super) fn acquire<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        service: u32,
        elements: &mut Vec<u32>,
        wanted: &DesiredBackend<A>,
    ) -> Result<u32, ApplyError> {
        if let Some(index) = self.find(elements, wanted) {
            let flags = self.record(index).written.flags | wanted.flags;
            self.set_flags(maps, index, flags)?;
            return Ok(index);
        }
        let index = self.bring_in(maps, service, wanted)?;
        elements.insert(self.position(elements, wanted), index);
        Ok(index)
    }

    /// Gives an element that is in use these flags. Flags are raised before a slot range that needs them is published
    /// and lowered after it was replaced, so a reader never finds a backend in a range that is not marked selectable.
    pub(super) fn set_flags<M: FamilyMaps<A>>(&mut self, maps: &mut M, index: u32, flags: u16) -> Result<(), MapError> {
        let written = self.record(index).written;
        self.write(maps, index, Backend { flags, ..written })
    }

    /// Ends the UDP exchanges of an element that stays what it is: the next packet of each is a first one.
    pub(super) fn renew<M: FamilyMaps<A>>(&mut self, maps: &mut M, index: u32) -> Result<(), MapError> {
        let generation = self.next_generation(index);
        let written = self.record(index).written;
        // The address stays: a reader finds a whole backend before and after.
        self.write(maps, index, Backend { generation, ..written })?;
        self.record(index).last_generation = generation;
        Ok(())
    }

    /// Marks an element invalid: its flows end. It may be reused, through [`Self::free`], after a grace period.
    pub(super) fn retire<M: FamilyMaps<A>>(&mut self, maps: &mut M, index: u32) -> Result<(), MapError> {
        // The address stays: a reader that is still at it finds a whole backend or an invalid one.
        let written = self.record(index).written;
        self.write(maps, index, Backend { generation: 0, flags: 0, ..written })
    }

    /// Makes an element available again.
    pub(super) fn free(&mut self, index: u32) {
        self.free.release_one(index);
    }

    /// Takes a free element into use. Free elements are invalid (generation 0) in the map: their last use ended with
    /// that. So two writes make the order that [`Backend`] asks for.
    fn bring_in<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        service: u32,
        wanted: &DesiredBackend<A>,
    ) -> Result<u32, ApplyError> {
        let full = ApplyError::Full { table: A::TABLES.backends };
        let index = self.free.allocate_one().ok_or(full)?;
        let generation = self.next_generation(index);
        let DesiredBackend { address, port, flags } = *wanted;
        let invalid = Backend { generation: 0, address, port, flags, service };
        let valid = Backend { generation, ..invalid };
        if let Err(error) = self.write(maps, index, invalid).and_then(|()| self.write(maps, index, valid)) {
            // It never became valid, so nobody can have seen it.
            self.free.release_one(index);
            return Err(error.into());
        }
        self.record(index).last_generation = generation;
        Ok(index)
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
    use lb_common::abi::BackendFlags;

    use super::*;
    use crate::dataplane::Fake;

    const WANTED: DesiredBackend<[u8; 4]> =
        DesiredBackend { address: [10, 0, 0, 1], port: 80, flags: BackendFlags::SELECTABLE };

    fn existing(fake: &Fake) -> Vec<(u32, Backend<[u8; 4]>)> {
        FamilyMaps::<[u8; 4]>::existing(fake).expect("a fake").backends
    }

    #[test]
    fn an_endpoint_has_one_element_in_a_service_port_and_lists_stay_sorted() {
        let mut fake = Fake::default();
        let mut backends = Backends::new(8, 41);
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        let local = DesiredBackend { flags: BackendFlags::LOCAL, ..WANTED };
        let before = DesiredBackend { port: 79, ..WANTED };
        let mut acquire =
            |service, list: &mut Vec<u32>, wanted| backends.acquire(&mut fake, service, list, wanted).expect("room");
        assert_eq!(acquire(7, &mut ours, &WANTED), 0);
        assert_eq!(acquire(7, &mut ours, &local), 0, "in place");
        assert_eq!(acquire(8, &mut others, &WANTED), 1);
        assert_eq!(acquire(7, &mut ours, &before), 2);
        assert_eq!((ours, others), (vec![2, 0], vec![1]));

        let value =
            |generation, service, port, flags| Backend { generation, address: [10, 0, 0, 1], port, flags, service };
        let raised = BackendFlags::LOCAL | BackendFlags::SELECTABLE;
        let [first, second, third] = [value(42, 7, 80, raised), value(43, 8, 80, 2), value(44, 7, 79, 2)];
        assert_eq!(existing(&fake), [(0, first), (1, second), (2, third)]);
        backends.set_flags(&mut fake, 0, BackendFlags::LOCAL).expect("a fake");
        backends.retire(&mut fake, 2).expect("a fake");
        assert_eq!(existing(&fake), [(0, Backend { flags: BackendFlags::LOCAL, ..first }), (1, second)]);
        assert!(backends.is_of(0, 7) && !backends.is_of(0, 8) && !backends.is_of(2, 7) && !backends.is_of(3, 0));
    }

    #[test]
    fn generations_skip_zero_and_the_former_one() {
        let mut fake = Fake::default();
        let mut backends = Backends::new(1, u32::MAX - 1);
        let mut generation = |backends: &mut Backends<_>| {
            let index = backends.acquire(&mut fake, 7, &mut Vec::new(), &WANTED).expect("room");
            let generation = existing(&fake)[0].1.generation;
            backends.retire(&mut fake, index).expect("a fake");
            backends.free(index);
            generation
        };
        assert_eq!(generation(&mut backends), u32::MAX);
        assert_eq!(generation(&mut backends), 1, "0 means invalid");
        backends.generation = 0;
        assert_eq!(generation(&mut backends), 2, "the counter has gone round to the former one");
    }
}
