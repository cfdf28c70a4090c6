//! The maps as the reconciler sees them. Three implementations: the kernel's, an in-memory fake, and a faulty one
//! that fails with a given probability.

use std::ops::RangeInclusive;

use crate::model::{Cidr, Family};
use lb_common::abi::{
    Address, Backend, Config, Frontend, FrontendFlags, FrontendKey, LIST_BITS, Service, ServiceName, SlotRange,
};

/// How many elements each table of one family holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// `FRONTENDS*`.
    pub frontends: u32,
    /// `SERVICES*`.
    pub services: u32,
    /// `SLOTS*`.
    pub slots: u32,
    /// `BACKENDS*`.
    pub backends: u32,
    /// `SOURCE_RANGES*`.
    pub source_ranges: u32,
}

/// What was done to a map when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A lookup, or a walk over all elements.
    Read,
    /// An update.
    Write,
    /// A deletion.
    Remove,
}

/// A map operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation:?} of map {map}: {source}")]
pub struct MapError {
    /// Name of the map.
    pub map: &'static str,
    /// What was tried.
    pub operation: Operation,
    /// What the kernel said.
    pub source: std::io::Error,
}

impl MapError {
    /// Whether the table was full (`E2BIG` for hash maps, `ENOMEM` or `ENOSPC` otherwise): trying again will not help
    /// until something is removed.
    pub fn is_full(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(nix::libc::E2BIG | nix::libc::ENOMEM | nix::libc::ENOSPC))
    }
}

/// Everything that the maps of one family hold, as an agent finds it that starts on pinned maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing<A> {
    /// `FRONTENDS*`.
    pub frontends: Vec<(FrontendKey<A>, Frontend)>,
    /// `SERVICE_NAMES*` with the element of `SERVICES*` of each.
    pub services: Vec<(u32, ServiceName, Service)>,
    /// `SLOTS*`: the backends of every slot in the ranges of `services`, by slot.
    pub slots: Vec<(u32, u32)>,
    /// `BACKENDS*`: every element whose generation is not 0.
    pub backends: Vec<(u32, Backend<A>)>,
    /// `NODE_ADDRESSES*`.
    pub node_addresses: Vec<(u32, A)>,
    /// `LOCAL_ADDRS*`.
    pub local_addresses: Vec<(A, u32)>,
    /// `SOURCE_RANGES*`: networks of clients, each with its list.
    pub source_ranges: Vec<(ClientList, Cidr<A>)>,
    /// `SERVICE_CIDRS*`.
    pub service_cidrs: Vec<Cidr<A>>,
}

/// Which of the lists of clients in `SOURCE_RANGES*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientList {
    /// Index in `SERVICES*`.
    pub service: u32,
    /// Which list of that service.
    pub edition: u8,
}

impl ClientList {
    /// The list that a frontend names, if it lets in some clients only.
    pub fn of(frontend: Frontend) -> Option<Self> {
        let Frontend { service, owner: _, flags, edition } = frontend;
        (flags & FrontendFlags::SOURCE_RANGES != 0).then_some(Self { service, edition })
    }

    /// All lists that a service can have.
    pub(super) fn all_of(service: u32) -> RangeInclusive<Self> {
        Self { service, edition: 0 }..=Self { service, edition: u8::MAX }
    }
}

/// A prefix of `SOURCE_RANGES*` as the table has it, whoever wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourcePrefix<A> {
    /// How many bits count, of the index, the edition and then of the address.
    pub bits: u32,
    /// Index in `SERVICES*`.
    pub service: u32,
    /// Edition of the service's list.
    pub edition: u32,
    /// Address of clients.
    pub client: A,
}

impl<A: Family> SourcePrefix<A> {
    /// The prefix of a network of clients in a list.
    pub fn new(list: ClientList, clients: Cidr<A>) -> Self {
        let ClientList { service, edition } = list;
        Self { bits: LIST_BITS + clients.bits, service, edition: edition.into(), client: clients.address }
    }

    /// The list and the clients; `None` for a prefix that is of more lists than one, or of one that no frontend can name, as
    /// no agent writes them. Bits of the address that do not count are 0, for the table finds the prefix whatever they are.
    pub fn network(self) -> Option<(ClientList, Cidr<A>)> {
        let bits = self.bits.checked_sub(LIST_BITS)?;
        let list = ClientList { service: self.service, edition: self.edition.try_into().ok()? };
        Some((list, Cidr { address: self.client.masked(A::mask(bits)), bits }))
    }
}

/// Some elements of a hash table, and where the next ones are: `None` at the end.
pub type Page<K, V> = (Vec<(K, V)>, Option<u32>);

/// Some prefixes of `SOURCE_RANGES*`, and the last of them where there may be more.
pub type Prefixes<A> = (Vec<SourcePrefix<A>>, Option<SourcePrefix<A>>);

/// The maps of one IP family. Every operation is idempotent: writing what is there, and removing what is not, succeed.
/// An operation that fails had no effect; only [`Self::set_slots`] may have written some of its slots.
pub trait FamilyMaps<A: Address> {
    /// Sizes of the tables.
    fn capacities(&self) -> Capacities;

    /// Reads everything.
    fn existing(&self) -> Result<Existing<A>, MapError>;

    /// Reads an element of `FRONTENDS*`.
    fn frontend(&self, key: &FrontendKey<A>) -> Result<Option<Frontend>, MapError>;
    /// Reads about this many elements of `FRONTENDS*`, from a place on that an earlier page named, else the first.
    fn some_frontends(&self, from: Option<u32>, about: usize) -> Result<Page<FrontendKey<A>, Frontend>, MapError>;
    /// Reads an element of `SERVICES*`.
    fn service(&self, index: u32) -> Result<Service, MapError>;
    /// Reads an element of `SERVICE_NAMES*`.
    fn service_name(&self, index: u32) -> Result<Option<ServiceName>, MapError>;
    /// As [`Self::some_frontends`], of `SERVICE_NAMES*`.
    fn some_service_names(&self, from: Option<u32>, about: usize) -> Result<Page<u32, ServiceName>, MapError>;
    /// Reads consecutive elements of `SLOTS*`.
    fn slots(&self, range: SlotRange) -> Result<Vec<u32>, MapError>;
    /// Reads consecutive elements of `BACKENDS*`, in use or not: fewer where the table ends.
    fn backends(&self, first: u32, count: u32) -> Result<Vec<Backend<A>>, MapError>;
    /// Reads `NODE_ADDRESSES*`.
    fn node_addresses(&self) -> Result<Vec<(u32, A)>, MapError>;
    /// Reads `LOCAL_ADDRS*`.
    fn local_addresses(&self) -> Result<Vec<(A, u32)>, MapError>;
    /// Reads `SOURCE_RANGES*`.
    fn source_prefixes(&self) -> Result<Vec<SourcePrefix<A>>, MapError>;
    /// Reads about this many prefixes of `SOURCE_RANGES*`, after the last of an earlier call, else the first. If that one was
    /// removed meanwhile, some come again, or not at all.
    fn some_source_prefixes(&self, after: Option<SourcePrefix<A>>, about: usize) -> Result<Prefixes<A>, MapError>;
    /// Reads `SERVICE_CIDRS*`.
    fn service_cidrs(&self) -> Result<Vec<Cidr<A>>, MapError>;

    /// Writes an element of `FRONTENDS*`.
    fn set_frontend(&mut self, key: &FrontendKey<A>, value: Frontend) -> Result<(), MapError>;
    /// Removes an element of `FRONTENDS*`.
    fn remove_frontend(&mut self, key: &FrontendKey<A>) -> Result<(), MapError>;

    /// Writes an element of `SERVICES*`: each of its 8-byte words changes at once.
    fn set_service(&mut self, index: u32, value: Service) -> Result<(), MapError>;
    /// Writes an element of `SERVICE_NAMES*`.
    fn set_service_name(&mut self, index: u32, name: &ServiceName) -> Result<(), MapError>;
    /// Sets an element of `SERVICE_STATS*` to zero, for a new owner.
    fn reset_service_stats(&mut self, index: u32) -> Result<(), MapError>;
    /// Removes an element of `SERVICE_NAMES*`.
    fn remove_service_name(&mut self, index: u32) -> Result<(), MapError>;

    /// Writes consecutive elements of `SLOTS*`.
    fn set_slots(&mut self, first: u32, backends: &[u32]) -> Result<(), MapError>;

    /// Writes an element of `BACKENDS*`. To take a free element into use, see
    /// [`Backend`] for the order of writes.
    fn set_backend(&mut self, index: u32, value: Backend<A>) -> Result<(), MapError>;

    /// Writes an element of `NODE_ADDRESSES*`.
    fn set_node_address(&mut self, interface: u32, address: A) -> Result<(), MapError>;
    /// Removes an element of `NODE_ADDRESSES*`.
    fn remove_node_address(&mut self, interface: u32) -> Result<(), MapError>;

    /// Writes an element of `LOCAL_ADDRS*`.
    fn set_local_address(&mut self, address: A, flags: u32) -> Result<(), MapError>;
    /// Removes an element of `LOCAL_ADDRS*`.
    fn remove_local_address(&mut self, address: A) -> Result<(), MapError>;

    /// Enters a network of clients in a list of `SOURCE_RANGES*`.
    fn set_source_range(&mut self, list: ClientList, clients: Cidr<A>) -> Result<(), MapError>;
    /// Removes one.
    fn remove_source_range(&mut self, list: ClientList, clients: Cidr<A>) -> Result<(), MapError>;
    /// Removes a prefix of `SOURCE_RANGES*`, whatever it is.
    fn remove_source_prefix(&mut self, prefix: SourcePrefix<A>) -> Result<(), MapError>;

    /// Enters a network in `SERVICE_CIDRS*`.
    fn set_service_cidr(&mut self, cidr: Cidr<A>) -> Result<(), MapError>;
    /// Removes one.
    fn remove_service_cidr(&mut self, cidr: Cidr<A>) -> Result<(), MapError>;
}

/// The maps of both families.
pub trait DataplaneMaps: FamilyMaps<[u8; 4]> + FamilyMaps<[u8; 16]> {
    /// Reads `CONFIG`.
    fn config(&self) -> Result<Config, MapError>;
    /// Writes `CONFIG`.
    fn set_config(&mut self, config: &Config) -> Result<(), MapError>;
}
