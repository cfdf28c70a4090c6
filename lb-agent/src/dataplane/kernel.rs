//! The maps in the kernel.

use std::{io, os::fd::AsFd as _};

use aya::{
    Pod,
    maps::{Array, HashMap, IterableMap, Map, MapData, MapError as AyaError},
};
use lb_common::abi::{Backend, Config, Frontend, FrontendKey, Service, ServiceName, maps};

use super::{Capacities, DataplaneMaps, Existing, FamilyMaps, MapError, Operation, ServiceCounters};
use crate::{
    loader::{LoaderError, syscall},
    model::Family,
};

/// All maps that the reconciler writes.
#[derive(Debug)]
pub struct KernelMaps {
    config: ArrayMap<Config>,
    v4: Tables<[u8; 4]>,
    v6: Tables<[u8; 16]>,
    /// Room for the keys of a batch.
    indices: Vec<u32>,
}

#[derive(Debug)]
struct Tables<A: Pod>
where
    Backend<A>: Pod,
{
    frontends: HashTable<FrontendKey<A>, Frontend>,
    services: ArrayMap<Service>,
    service_names: HashTable<u32, ServiceName>,
    service_stats: ServiceCounters,
    slots: ArrayMap<u32>,
    backends: ArrayMap<Backend<A>>,
    node_addresses: HashTable<u32, A>,
    node_port_addresses: HashTable<A, u32>,
    capacities: Capacities,
}

impl KernelMaps {
    /// Takes the maps from where `open` finds them by name: a loaded object or the pins.
    pub fn open(mut open: impl FnMut(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        Ok(Self {
            config: ArrayMap::open(&mut open, maps::CONFIG)?,
            v4: Tables::open(&mut open)?,
            v6: Tables::open(&mut open)?,
            indices: Vec::new(),
        })
    }
}

impl<A: Family + Pod> Tables<A>
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
{
    fn open(open: &mut impl FnMut(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        let names = A::TABLES;
        let frontends = HashTable::open(open, names.frontends)?;
        let services = ArrayMap::open(open, names.services)?;
        let slots = ArrayMap::open(open, names.slots)?;
        let backends = ArrayMap::open(open, names.backends)?;
        let capacities = Capacities {
            frontends: frontends.capacity()?,
            services: services.map.len(),
            slots: slots.map.len(),
            backends: backends.map.len(),
        };
        Ok(Self {
            frontends,
            services,
            service_names: HashTable::open(open, names.service_names)?,
            service_stats: ServiceCounters::open::<A>(&mut *open)?,
            slots,
            backends,
            node_addresses: HashTable::open(open, names.node_addresses)?,
            node_port_addresses: HashTable::open(open, names.node_port_addresses)?,
            capacities,
        })
    }
}

/// The two types of address, each with its half of [`KernelMaps`].
trait Half: Family + Pod
where
    Backend<Self>: Pod,
{
    fn tables(maps: &KernelMaps) -> &Tables<Self>;
    fn tables_mut(maps: &mut KernelMaps) -> (&mut Tables<Self>, &mut Vec<u32>);
}

impl Half for [u8; 4] {
    fn tables(maps: &KernelMaps) -> &Tables<Self> {
        &maps.v4
    }
    fn tables_mut(maps: &mut KernelMaps) -> (&mut Tables<Self>, &mut Vec<u32>) {
        (&mut maps.v4, &mut maps.indices)
    }
}

impl Half for [u8; 16] {
    fn tables(maps: &KernelMaps) -> &Tables<Self> {
        &maps.v6
    }
    fn tables_mut(maps: &mut KernelMaps) -> (&mut Tables<Self>, &mut Vec<u32>) {
        (&mut maps.v6, &mut maps.indices)
    }
}

impl<A: Half> FamilyMaps<A> for KernelMaps
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
{
    fn capacities(&self) -> Capacities {
        A::tables(self).capacities
    }

    fn existing(&self) -> Result<Existing<A>, MapError> {
        let tables = A::tables(self);
        let names = tables.service_names.read_all()?;
        let mut services = Vec::with_capacity(names.len());
        for (index, name) in names {
            // A name beyond the end of the table is of no use to anyone; it is shown as a service without backends.
            let service =
                if index < tables.services.map.len() { tables.services.get(index)? } else { Service::default() };
            services.push((index, name, service));
        }
        services.sort_unstable_by_key(|(index, ..)| *index);

        let ranges = || services.iter().flat_map(|(_, _, service)| [service.cluster, service.local]);
        let end = ranges().map(|range| range.first.saturating_add(range.count)).max().unwrap_or(0);
        let table = tables.slots.read(end, |_| true)?;
        let mut slots: Vec<_> = ranges()
            .flat_map(|range| range.first..range.first.saturating_add(range.count))
            .filter_map(|slot| table.get(usize::try_from(slot).ok()?).copied())
            .collect();
        slots.sort_unstable();
        slots.dedup();

        // All of them: those that are terminating, or wait out their quarantine, are in no slot.
        let backends = tables.backends.read(tables.backends.map.len(), |backend| backend.generation != 0)?;
        Ok(Existing {
            frontends: tables.frontends.read_all()?,
            services,
            slots,
            backends,
            node_addresses: tables.node_addresses.read_all()?,
            node_port_addresses: tables.node_port_addresses.read_all()?,
        })
    }

    fn set_frontend(&mut self, key: &FrontendKey<A>, value: Frontend) -> Result<(), MapError> {
        A::tables_mut(self).0.frontends.set(key, &value)
    }

    fn remove_frontend(&mut self, key: &FrontendKey<A>) -> Result<(), MapError> {
        A::tables_mut(self).0.frontends.remove(key)
    }

    fn set_service(&mut self, index: u32, value: Service) -> Result<(), MapError> {
        A::tables_mut(self).0.services.set(index, &value)
    }

    fn set_service_name(&mut self, index: u32, name: &ServiceName) -> Result<(), MapError> {
        A::tables_mut(self).0.service_names.set(&index, name)
    }

    fn reset_service_stats(&mut self, index: u32) -> Result<(), MapError> {
        A::tables_mut(self).0.service_stats.reset(index)
    }

    fn remove_service_name(&mut self, index: u32) -> Result<(), MapError> {
        A::tables_mut(self).0.service_names.remove(&index)
    }

    fn set_slots(&mut self, first: u32, backends: &[u32]) -> Result<(), MapError> {
        let (tables, indices) = A::tables_mut(self);
        tables.slots.set_range(first, backends, indices)
    }

    fn set_backend(&mut self, index: u32, value: Backend<A>) -> Result<(), MapError> {
        A::tables_mut(self).0.backends.set(index, &value)
    }

    fn set_node_address(&mut self, interface: u32, address: A) -> Result<(), MapError> {
        A::tables_mut(self).0.node_addresses.set(&interface, &address)
    }

    fn remove_node_address(&mut self, interface: u32) -> Result<(), MapError> {
        A::tables_mut(self).0.node_addresses.remove(&interface)
    }

    fn set_node_port_address(&mut self, address: A, flags: u32) -> Result<(), MapError> {
        A::tables_mut(self).0.node_port_addresses.set(&address, &flags)
    }

    fn remove_node_port_address(&mut self, address: A) -> Result<(), MapError> {
        A::tables_mut(self).0.node_port_addresses.remove(&address)
    }
}

impl DataplaneMaps for KernelMaps {
    fn config(&self) -> Result<Config, MapError> {
        self.config.get(0)
    }

    fn set_config(&mut self, config: &Config) -> Result<(), MapError> {
        self.config.set(0, config)
    }
}

/// A hash map with its name.
#[derive(Debug)]
pub(crate) struct HashTable<K, V> {
    map: HashMap<MapData, K, V>,
    name: &'static str,
}

impl<K: Pod, V: Pod> HashTable<K, V> {
    pub(crate) fn open(
        open: &mut impl FnMut(&'static str) -> Result<Map, LoaderError>,
        name: &'static str,
    ) -> Result<Self, LoaderError> {
        let map = HashMap::try_from(open(name)?).map_err(|source| LoaderError::Map { map: name, source })?;
        Ok(Self { map, name })
    }

    /// How many elements it can hold.
    pub(crate) fn capacity(&self) -> Result<u32, LoaderError> {
        let info = self.map.map().info().map_err(|source| LoaderError::Map { map: self.name, source })?;
        Ok(info.max_entries())
    }

    pub(crate) fn read_all(&self) -> Result<Vec<(K, V)>, MapError> {
        syscall::read_all(self.map.map().fd().as_fd(), usize::MAX, |_| true).map_err(|source| MapError {
            map: self.name,
            operation: Operation::Read,
            source,
        })
    }

    fn set(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.map.insert(key, value, 0).map_err(|error| failed(self.name, Operation::Write, error))
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        match self.map.remove(key).map_err(|error| failed(self.name, Operation::Remove, error)) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }
}

/// An array with its name.
struct ArrayMap<V: Pod> {
    map: Array<MapData, V>,
    name: &'static str,
}

impl<V: Pod> std::fmt::Debug for ArrayMap<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArrayMap").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<V: Pod> ArrayMap<V> {
    fn open(
        open: &mut impl FnMut(&'static str) -> Result<Map, LoaderError>,
        name: &'static str,
    ) -> Result<Self, LoaderError> {
        let map = Array::try_from(open(name)?).map_err(|source| LoaderError::Map { map: name, source })?;
        Ok(Self { map, name })
    }

    fn get(&self, index: u32) -> Result<V, MapError> {
        self.map.get(&index, 0).map_err(|error| failed(self.name, Operation::Read, error))
    }

    fn set(&mut self, index: u32, value: &V) -> Result<(), MapError> {
        self.map.set(index, value, 0).map_err(|error| failed(self.name, Operation::Write, error))
    }

    /// Those of the first `count` elements that are to `keep`, with their indices.
    fn read(&self, count: u32, keep: impl Fn(&V) -> bool) -> Result<Vec<(u32, V)>, MapError> {
        syscall::read_all(self.map.map().fd().as_fd(), count as usize, keep).map_err(|source| MapError {
            map: self.name,
            operation: Operation::Read,
            source,
        })
    }

    /// Writes consecutive elements. `indices` is room to work in, kept between calls.
    fn set_range(&mut self, first: u32, values: &[V], indices: &mut Vec<u32>) -> Result<(), MapError> {
        indices.clear();
        indices.extend((first..).take(values.len()));
        syscall::write_all(self.map.map().fd().as_fd(), indices, values).map_err(|source| MapError {
            map: self.name,
            operation: Operation::Write,
            source,
        })
    }
}

pub(super) fn failed(map: &'static str, operation: Operation, error: AyaError) -> MapError {
    let source = match error {
        AyaError::SyscallError(error) => error.io_error,
        AyaError::IoError(error) => error,
        AyaError::KeyNotFound | AyaError::ElementNotFound => io::Error::from_raw_os_error(nix::libc::ENOENT),
        other => io::Error::other(other),
    };
    MapError { map, operation, source }
}
