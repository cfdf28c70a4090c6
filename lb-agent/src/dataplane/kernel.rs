//! The maps in the kernel.

use aya::{Pod, maps::Map};
use lb_common::abi::{
    Allowed, Backend, Config, Frontend, FrontendKey, Interface, LocalAddress, LocalAddressKey, NodeAddress, Service,
    ServiceCidr, ServiceIndex, ServiceName, Slot, SlotRange, SourceRange, maps,
};

use super::{
    Capacities, ClientList, DataplaneMaps, Existing, FamilyMaps, MapError, Page, Prefixes, ServiceCounters,
    SourcePrefix,
    table::{self, ArrayMap, HashTable, PrefixTable},
};
use crate::{
    loader::LoaderError,
    model::{Cidr, Family},
};

/// All maps that the reconciler writes.
#[derive(Debug)]
pub struct KernelMaps {
    config: ArrayMap<Config>,
    v4: Tables<[u8; 4]>,
    v6: Tables<[u8; 16]>,
    /// Room for a batch.
    batch: Batch,
}

/// Room for the keys and the values of a batch of slots, kept between calls.
#[derive(Debug, Default)]
struct Batch {
    indices: Vec<u32>,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Tables<A: Pod>
where
    Backend<A>: Pod,
{
    frontends: HashTable<FrontendKey<A>, Frontend>,
    services: ArrayMap<Service>,
    service_names: HashTable<ServiceIndex, ServiceName>,
    service_stats: ServiceCounters,
    slots: ArrayMap<Slot>,
    backends: ArrayMap<Backend<A>>,
    node_addresses: HashTable<Interface, NodeAddress<A>>,
    local_addresses: HashTable<LocalAddressKey<A>, LocalAddress>,
    source_ranges: PrefixTable<SourceRange<A>, Allowed>,
    service_cidrs: PrefixTable<A, ServiceCidr>,
    capacities: Capacities,
}

impl KernelMaps {
    /// Takes the maps from where `open` finds them by name: a loaded object or the pins.
    pub fn open(mut open: impl FnMut(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        Ok(Self {
            config: ArrayMap::open(&mut open, maps::CONFIG)?,
            v4: Tables::open(&mut open)?,
            v6: Tables::open(&mut open)?,
            batch: Batch::default(),
        })
    }
}

impl<A: Family + Pod> Tables<A>
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
    NodeAddress<A>: Pod,
    LocalAddressKey<A>: Pod,
    SourceRange<A>: Pod,
{
    fn open(open: &mut impl FnMut(&'static str) -> Result<Map, LoaderError>) -> Result<Self, LoaderError> {
        let names = A::TABLES;
        let frontends = HashTable::open(open, names.frontends)?;
        let services = ArrayMap::open(open, names.services)?;
        let slots = ArrayMap::open(open, names.slots)?;
        let backends = ArrayMap::open(open, names.backends)?;
        let source_ranges = PrefixTable::open(open, names.source_ranges)?;
        let capacities = Capacities {
            frontends: frontends.capacity()?,
            services: services.map.len(),
            slots: slots.map.len(),
            backends: backends.map.len(),
            source_ranges: source_ranges.capacity()?,
        };
        Ok(Self {
            frontends,
            services,
            service_names: HashTable::open(open, names.service_names)?,
            service_stats: ServiceCounters::open::<A>(&mut *open)?,
            slots,
            backends,
            node_addresses: HashTable::open(open, names.node_addresses)?,
            local_addresses: HashTable::open(open, names.local_addresses)?,
            source_ranges,
            service_cidrs: PrefixTable::open(open, names.service_cidrs)?,
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
    fn tables_mut(maps: &mut KernelMaps) -> (&mut Tables<Self>, &mut Batch);
}

impl Half for [u8; 4] {
    fn tables(maps: &KernelMaps) -> &Tables<Self> {
        &maps.v4
    }
    fn tables_mut(maps: &mut KernelMaps) -> (&mut Tables<Self>, &mut Batch) {
        (&mut maps.v4, &mut maps.batch)
    }
}

impl Half for [u8; 16] {
    fn tables(maps: &KernelMaps) -> &Tables<Self> {
        &maps.v6
    }
    fn tables_mut(maps: &mut KernelMaps) -> (&mut Tables<Self>, &mut Batch) {
        (&mut maps.v6, &mut maps.batch)
    }
}

fn prefix<A>((bits, SourceRange { service, edition, client }): table::Prefix<SourceRange<A>>) -> SourcePrefix<A> {
    SourcePrefix { bits, service, edition, client }
}

impl<A: Half> FamilyMaps<A> for KernelMaps
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
    NodeAddress<A>: Pod,
    LocalAddressKey<A>: Pod,
    SourceRange<A>: Pod,
{
    fn capacities(&self) -> Capacities {
        A::tables(self).capacities
    }

    fn existing(&self) -> Result<Existing<A>, MapError> {
        let tables = A::tables(self);
        let names = tables.service_names.read_all()?;
        let mut services = Vec::with_capacity(names.len());
        for (ServiceIndex { service: index }, name) in names {
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
            .filter_map(|slot| table.get(usize::try_from(slot).ok()?).map(|(slot, value)| (*slot, value.backend)))
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
            node_addresses: self.node_addresses()?,
            local_addresses: self.local_addresses()?,
            // Without those that are of no one list: nobody's. The audit removes them.
            source_ranges: self.source_prefixes()?.into_iter().filter_map(SourcePrefix::network).collect(),
            service_cidrs: self.service_cidrs()?,
        })
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Result<Option<Frontend>, MapError> {
        A::tables(self).frontends.get(key)
    }

    fn some_frontends(&self, from: Option<u32>, about: usize) -> Result<Page<FrontendKey<A>, Frontend>, MapError> {
        A::tables(self).frontends.read_some(from, about)
    }

    fn service(&self, index: u32) -> Result<Service, MapError> {
        A::tables(self).services.get(index)
    }

    fn service_name(&self, index: u32) -> Result<Option<ServiceName>, MapError> {
        A::tables(self).service_names.get(&ServiceIndex { service: index })
    }

    fn some_service_names(&self, from: Option<u32>, about: usize) -> Result<Page<u32, ServiceName>, MapError> {
        let (names, next) = A::tables(self).service_names.read_some(from, about)?;
        Ok((names.into_iter().map(|(ServiceIndex { service }, name)| (service, name)).collect(), next))
    }

    fn slots(&self, range: SlotRange) -> Result<Vec<u32>, MapError> {
        let slots = A::tables(self).slots.read_range(range.first, range.count)?;
        Ok(slots.into_iter().map(|slot| slot.backend).collect())
    }

    fn backends(&self, first: u32, count: u32) -> Result<Vec<Backend<A>>, MapError> {
        A::tables(self).backends.read_range(first, count)
    }

    fn node_addresses(&self) -> Result<Vec<(u32, A)>, MapError> {
        let addresses = A::tables(self).node_addresses.read_all()?;
        Ok(addresses.into_iter().map(|(key, value)| (key.interface, value.address)).collect())
    }

    fn local_addresses(&self) -> Result<Vec<(A, u32)>, MapError> {
        let addresses = A::tables(self).local_addresses.read_all()?;
        Ok(addresses.into_iter().map(|(key, value)| (key.address, value.flags)).collect())
    }

    fn source_prefixes(&self) -> Result<Vec<SourcePrefix<A>>, MapError> {
        let prefixes = A::tables(self).source_ranges.read_all()?;
        Ok(prefixes.into_iter().map(prefix).collect())
    }

    fn some_source_prefixes(&self, after: Option<SourcePrefix<A>>, about: usize) -> Result<Prefixes<A>, MapError> {
        let after = after
            .map(|SourcePrefix { bits, service, edition, client }| (bits, SourceRange { service, edition, client }));
        let (prefixes, last) = A::tables(self).source_ranges.read_some(after, about)?;
        Ok((prefixes.into_iter().map(prefix).collect(), last.map(prefix)))
    }

    fn service_cidrs(&self) -> Result<Vec<Cidr<A>>, MapError> {
        let cidrs = A::tables(self).service_cidrs.read_all()?;
        // The table finds a prefix whatever the bits are that do not count.
        let cidr = |(bits, address): (u32, A)| Cidr { address: address.masked(A::mask(bits)), bits };
        Ok(cidrs.into_iter().map(cidr).collect())
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
        A::tables_mut(self).0.service_names.set(&ServiceIndex { service: index }, name)
    }

    fn reset_service_stats(&mut self, index: u32) -> Result<(), MapError> {
        A::tables_mut(self).0.service_stats.reset(index)
    }

    fn remove_service_name(&mut self, index: u32) -> Result<(), MapError> {
        A::tables_mut(self).0.service_names.remove(&ServiceIndex { service: index })
    }

    fn set_slots(&mut self, first: u32, backends: &[u32]) -> Result<(), MapError> {
        let (tables, Batch { indices, slots }) = A::tables_mut(self);
        slots.clear();
        slots.extend(backends.iter().map(|backend| Slot { backend: *backend }));
        tables.slots.set_range(first, slots, indices)
    }

    fn set_backend(&mut self, index: u32, value: Backend<A>) -> Result<(), MapError> {
        A::tables_mut(self).0.backends.set(index, &value)
    }

    fn set_node_address(&mut self, interface: u32, address: A) -> Result<(), MapError> {
        A::tables_mut(self).0.node_addresses.set(&Interface { interface }, &NodeAddress { address })
    }

    fn remove_node_address(&mut self, interface: u32) -> Result<(), MapError> {
        A::tables_mut(self).0.node_addresses.remove(&Interface { interface })
    }

    fn set_local_address(&mut self, address: A, flags: u32) -> Result<(), MapError> {
        A::tables_mut(self).0.local_addresses.set(&LocalAddressKey { address }, &LocalAddress { flags })
    }

    fn remove_local_address(&mut self, address: A) -> Result<(), MapError> {
        A::tables_mut(self).0.local_addresses.remove(&LocalAddressKey { address })
    }

    fn set_source_range(&mut self, list: ClientList, clients: Cidr<A>) -> Result<(), MapError> {
        let SourcePrefix { bits, service, edition, client } = SourcePrefix::new(list, clients);
        A::tables_mut(self).0.source_ranges.set(bits, SourceRange { service, edition, client }, &Allowed { allowed: 1 })
    }

    fn remove_source_range(&mut self, list: ClientList, clients: Cidr<A>) -> Result<(), MapError> {
        self.remove_source_prefix(SourcePrefix::new(list, clients))
    }

    fn remove_source_prefix(&mut self, prefix: SourcePrefix<A>) -> Result<(), MapError> {
        let SourcePrefix { bits, service, edition, client } = prefix;
        A::tables_mut(self).0.source_ranges.remove(bits, SourceRange { service, edition, client })
    }

    fn set_service_cidr(&mut self, cidr: Cidr<A>) -> Result<(), MapError> {
        A::tables_mut(self).0.service_cidrs.set(cidr.bits, cidr.address, &ServiceCidr { allocated: 1 })
    }

    fn remove_service_cidr(&mut self, cidr: Cidr<A>) -> Result<(), MapError> {
        A::tables_mut(self).0.service_cidrs.remove(cidr.bits, cidr.address)
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
