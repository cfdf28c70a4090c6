//! What the programs write and the agent only reads.

use aya::{
    Pod,
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use lb_common::abi::{Affinity, AffinityKey, Counter, Flow, Load, LoadKey, Reason, ServiceStats, Tuple, maps};

use super::{
    MapError, Operation,
    scrape::sum,
    table::{HashTable, failed},
};
use crate::{loader::LoaderError, model::Family};

/// `COUNTERS`.
pub struct Counters(PerCpuArray<MapData, Counter>);

impl Counters {
    /// Takes the map from where `open` finds it.
    pub fn open(open: impl FnOnce(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        let map = maps::COUNTERS;
        open(map)?.try_into().map(Self).map_err(|source| LoaderError::Map { map, source })
    }

    /// Every reason with its count, summed over the CPUs.
    pub fn read(&self) -> Result<Vec<(Reason, u64)>, MapError> {
        let count = |reason: &Reason| {
            let counts = self.0.get(&(*reason as u32), 0);
            let counts = counts.map_err(|error| failed(maps::COUNTERS, Operation::Read, error))?;
            Ok((*reason, counts.iter().map(|cpu| cpu.count).sum()))
        };
        Reason::ALL.iter().map(count).collect()
    }
}

/// `SERVICE_STATS*` of one family.
pub struct ServiceCounters {
    map: PerCpuArray<MapData, ServiceStats>,
    name: &'static str,
}

impl std::fmt::Debug for ServiceCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceCounters").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ServiceCounters {
    /// Takes the map of family `A` from where `open` finds it.
    pub fn open<A: Family>(open: impl FnOnce(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        let name = A::TABLES.service_stats;
        let map = open(name)?.try_into().map_err(|source| LoaderError::Map { map: name, source })?;
        Ok(Self { map, name })
    }

    /// Sets the counts of the service at `index` to zero.
    pub(super) fn reset(&mut self, index: u32) -> Result<(), MapError> {
        let failure = |source| MapError { map: self.name, operation: Operation::Write, source };
        let cpus = nr_cpus().map_err(|(_, source)| failure(source))?;
        let zeros = PerCpuValues::try_from(vec![ServiceStats::default(); cpus.get() as usize]).map_err(failure)?;
        self.map.set(index, zeros, 0).map_err(|error| failed(self.name, Operation::Write, error))
    }

    /// The counts of the service at `index`, summed over the CPUs; zeros beyond the end of the table.
    pub fn read(&self, index: u32) -> Result<ServiceStats, MapError> {
        if index >= self.map.len() {
            return Ok(ServiceStats::default());
        }
        let per_cpu = self.map.get(&index, 0).map_err(|error| failed(self.name, Operation::Read, error))?;
        Ok(per_cpu.iter().copied().fold(ServiceStats::default(), sum))
    }
}

/// `FLOWS*` of one family.
pub struct Flows<A>(HashTable<Tuple<A>, Flow<A>>);

impl<A: Family> Flows<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    /// Takes the map from where `open` finds it.
    pub fn open(mut open: impl FnMut(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        HashTable::open(&mut open, A::TABLES.flows).map(Self)
    }

    /// How many entries it can hold.
    pub fn capacity(&self) -> Result<u32, LoaderError> {
        self.0.capacity()
    }

    /// Shows every entry, thousands at once, until `see` fails. Packets go on meanwhile: an entry may be shown twice, or not
    /// at all, if it moved.
    pub fn visit<E: From<MapError>>(&self, see: impl FnMut(&[Tuple<A>], &[Flow<A>]) -> Result<(), E>) -> Result<(), E> {
        self.0.visit(see)
    }

    /// What becomes of packets of this tuple. To ask does not make the entry look used.
    pub fn get(&self, tuple: &Tuple<A>) -> Result<Option<Flow<A>>, MapError> {
        self.0.get(tuple)
    }

    /// Enters what becomes of packets of this tuple. The flow table of the data plane is the programs' to write: this is for
    /// one of a [rehearsal](crate::loader::Rehearsal).
    pub fn set(&mut self, tuple: &Tuple<A>, flow: &Flow<A>) -> Result<(), MapError> {
        self.0.set(tuple, flow)
    }

    /// Removes the entry of this tuple, if there is one.
    pub fn remove(&mut self, tuple: &Tuple<A>) -> Result<(), MapError> {
        self.0.remove(tuple)
    }
}

/// `AFFINITY*` of one family.
pub struct Affinities<A>(HashTable<AffinityKey<A>, Affinity>);

impl<A: Family> Affinities<A>
where
    AffinityKey<A>: Pod,
{
    /// Takes the map from where `open` finds it.
    pub fn open(mut open: impl FnMut(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        HashTable::open(&mut open, A::TABLES.affinity).map(Self)
    }

    /// The backend of a client's last new flow.
    pub fn get(&self, client: &AffinityKey<A>) -> Result<Option<Affinity>, MapError> {
        self.0.get(client)
    }

    /// As [`Flows::set`].
    pub fn set(&mut self, client: &AffinityKey<A>, affinity: &Affinity) -> Result<(), MapError> {
        self.0.set(client, affinity)
    }

    /// Removes a client's entry, if there is one.
    pub fn remove(&mut self, client: &AffinityKey<A>) -> Result<(), MapError> {
        self.0.remove(client)
    }

    /// As [`Flows::visit`].
    pub fn visit<E: From<MapError>>(
        &self,
        see: impl FnMut(&[AffinityKey<A>], &[Affinity]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.0.visit(see)
    }
}

/// `LOADS*` of one family.
#[derive(Debug)]
pub struct Loads(HashTable<LoadKey, Load>);

impl Loads {
    /// Takes the map of family `A` from where `open` finds it.
    pub fn open<A: Family>(
        mut open: impl FnMut(&'static str) -> Result<Map, LoaderError>,
    ) -> Result<Self, LoaderError> {
        HashTable::open(&mut open, A::TABLES.loads).map(Self)
    }

    /// Every element.
    pub fn read(&self) -> Result<Vec<(LoadKey, Load)>, MapError> {
        self.0.read_all()
    }

    /// Writes how many flows a backend has.
    pub fn set(&mut self, backend: &LoadKey, load: Load) -> Result<(), MapError> {
        self.0.set(backend, &load)
    }

    /// Removes the element of a backend, if there is one: it has no flows.
    pub fn remove(&mut self, backend: &LoadKey) -> Result<(), MapError> {
        self.0.remove(backend)
    }

    /// Makes the table hold what another one does.
    pub fn copy(&mut self, other: &Self) -> Result<(), MapError> {
        for (backend, _) in self.read()? {
            self.remove(&backend)?;
        }
        other.read()?.into_iter().try_for_each(|(backend, load)| self.set(&backend, load))
    }
}
