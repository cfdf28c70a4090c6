use lb_common::abi::{Backend, Config, Frontend, FrontendKey, Service, ServiceName, SlotRange, maps};
use nix::libc::EAGAIN;

use super::{
    Capacities, ClientList, DataplaneMaps, Existing, FamilyMaps, MapError, Operation, Page, Prefixes, SourcePrefix,
};
use crate::model::{Cidr, Family};

/// Maps whose writes fail at random, as a kernel short of memory lets them fail: without effect, except that a failed
/// [`FamilyMaps::set_slots`] may have written some of the slots.
#[derive(Debug)]
pub struct Faulty<M> {
    inner: M,
    per_mille: u32,
    state: u32,
}

impl<M> Faulty<M> {
    /// Maps that fail `per_mille` of a thousand writes, which ones being decided by `seed`.
    pub fn new(inner: M, per_mille: u32, seed: u32) -> Self {
        Self { inner, per_mille, state: seed | 1 }
    }

    /// Fails this many of a thousand writes from now on.
    pub fn set_rate(&mut self, per_mille: u32) {
        self.per_mille = per_mille;
    }

    /// The maps behind.
    pub fn inner(&mut self) -> &mut M {
        &mut self.inner
    }

    /// A random number (Marsaglia, "Xorshift RNGs", 2003, the 32-bit generator of its section 3).
    fn random(&mut self) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        self.state
    }

    /// The maps behind, unless this write fails.
    fn attempt(&mut self, map: &'static str, operation: Operation) -> Result<&mut M, MapError> {
        if self.random() % 1000 < self.per_mille {
            return Err(MapError { map, operation, source: std::io::Error::from_raw_os_error(EAGAIN) });
        }
        Ok(&mut self.inner)
    }
}

impl<A: Family, M: FamilyMaps<A>> FamilyMaps<A> for Faulty<M> {
    fn capacities(&self) -> Capacities {
        self.inner.capacities()
    }

    fn existing(&self) -> Result<Existing<A>, MapError> {
        self.inner.existing()
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Result<Option<Frontend>, MapError> {
        self.inner.frontend(key)
    }

    fn some_frontends(&self, from: Option<u32>, about: usize) -> Result<Page<FrontendKey<A>, Frontend>, MapError> {
        self.inner.some_frontends(from, about)
    }

    fn service(&self, index: u32) -> Result<Service, MapError> {
        FamilyMaps::<A>::service(&self.inner, index)
    }

    fn service_name(&self, index: u32) -> Result<Option<ServiceName>, MapError> {
        FamilyMaps::<A>::service_name(&self.inner, index)
    }

    fn some_service_names(&self, from: Option<u32>, about: usize) -> Result<Page<u32, ServiceName>, MapError> {
        FamilyMaps::<A>::some_service_names(&self.inner, from, about)
    }

    fn slots(&self, range: SlotRange) -> Result<Vec<u32>, MapError> {
        FamilyMaps::<A>::slots(&self.inner, range)
    }

    fn backends(&self, first: u32, count: u32) -> Result<Vec<Backend<A>>, MapError> {
        self.inner.backends(first, count)
    }

    fn node_addresses(&self) -> Result<Vec<(u32, A)>, MapError> {
        self.inner.node_addresses()
    }

    fn local_addresses(&self) -> Result<Vec<(A, u32)>, MapError> {
        self.inner.local_addresses()
    }

    fn source_prefixes(&self) -> Result<Vec<SourcePrefix<A>>, MapError> {
        self.inner.source_prefixes()
    }

    fn some_source_prefixes(&self, after: Option<SourcePrefix<A>>, about: usize) -> Result<Prefixes<A>, MapError> {
        self.inner.some_source_prefixes(after, about)
    }

    fn service_cidrs(&self) -> Result<Vec<Cidr<A>>, MapError> {
        self.inner.service_cidrs()
    }

    fn set_frontend(&mut self, key: &FrontendKey<A>, value: Frontend) -> Result<(), MapError> {
        self.attempt(A::TABLES.frontends, Operation::Write)?.set_frontend(key, value)
    }

    fn remove_frontend(&mut self, key: &FrontendKey<A>) -> Result<(), MapError> {
        self.attempt(A::TABLES.frontends, Operation::Remove)?.remove_frontend(key)
    }

    fn set_service(&mut self, index: u32, value: Service) -> Result<(), MapError> {
        self.attempt(A::TABLES.services, Operation::Write)?.set_service(index, value)
    }

    fn set_service_name(&mut self, index: u32, name: &ServiceName) -> Result<(), MapError> {
        self.attempt(A::TABLES.service_names, Operation::Write)?.set_service_name(index, name)
    }

    fn reset_service_stats(&mut self, index: u32) -> Result<(), MapError> {
        self.attempt(A::TABLES.service_stats, Operation::Write)?.reset_service_stats(index)
    }

    fn remove_service_name(&mut self, index: u32) -> Result<(), MapError> {
        self.attempt(A::TABLES.service_names, Operation::Remove)?.remove_service_name(index)
    }

    fn set_slots(&mut self, first: u32, backends: &[u32]) -> Result<(), MapError> {
        let written = self.random() as usize % (backends.len() + 1);
        self.inner.set_slots(first, &backends[..written])?;
        self.attempt(A::TABLES.slots, Operation::Write)?.set_slots(first, backends)
    }

    fn set_backend(&mut self, index: u32, value: Backend<A>) -> Result<(), MapError> {
        self.attempt(A::TABLES.backends, Operation::Write)?.set_backend(index, value)
    }

    fn set_node_address(&mut self, interface: u32, address: A) -> Result<(), MapError> {
        self.attempt(A::TABLES.node_addresses, Operation::Write)?.set_node_address(interface, address)
    }

    fn remove_node_address(&mut self, interface: u32) -> Result<(), MapError> {
        let inner = self.attempt(A::TABLES.node_addresses, Operation::Remove)?;
        FamilyMaps::<A>::remove_node_address(inner, interface)
    }

    fn set_local_address(&mut self, address: A, flags: u32) -> Result<(), MapError> {
        self.attempt(A::TABLES.local_addresses, Operation::Write)?.set_local_address(address, flags)
    }

    fn remove_local_address(&mut self, address: A) -> Result<(), MapError> {
        self.attempt(A::TABLES.local_addresses, Operation::Remove)?.remove_local_address(address)
    }

    fn set_source_range(&mut self, list: ClientList, clients: Cidr<A>) -> Result<(), MapError> {
        self.attempt(A::TABLES.source_ranges, Operation::Write)?.set_source_range(list, clients)
    }

    fn remove_source_range(&mut self, list: ClientList, clients: Cidr<A>) -> Result<(), MapError> {
        self.attempt(A::TABLES.source_ranges, Operation::Remove)?.remove_source_range(list, clients)
    }

    fn remove_source_prefix(&mut self, prefix: SourcePrefix<A>) -> Result<(), MapError> {
        self.attempt(A::TABLES.source_ranges, Operation::Remove)?.remove_source_prefix(prefix)
    }

    fn set_service_cidr(&mut self, cidr: Cidr<A>) -> Result<(), MapError> {
        self.attempt(A::TABLES.service_cidrs, Operation::Write)?.set_service_cidr(cidr)
    }

    fn remove_service_cidr(&mut self, cidr: Cidr<A>) -> Result<(), MapError> {
        self.attempt(A::TABLES.service_cidrs, Operation::Remove)?.remove_service_cidr(cidr)
    }
}

impl<M: DataplaneMaps> DataplaneMaps for Faulty<M> {
    fn config(&self) -> Result<Config, MapError> {
        self.inner.config()
    }

    fn set_config(&mut self, config: &Config) -> Result<(), MapError> {
        self.attempt(maps::CONFIG, Operation::Write)?.set_config(config)
    }
}
