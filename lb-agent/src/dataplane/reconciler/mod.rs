//! From what is desired to what must be written: [`Reconciler`].

mod adopt;
mod adopted;
mod apply;
mod audit;
mod clients;
mod remove;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

pub use adopted::{AdoptedEndpoint, AdoptedPort};
use lb_common::abi::{Frontend, FrontendKey, LocalAddressFlags, Service, SlotRange};

use super::{
    Capacities, ChangeKind, ClientList, FamilyMaps, MapError, NodeChange, PortChange, SyncReport, backends::Backends,
    client_lists::ClientLists, ranges::Ranges, tracker::Tracker,
};
use crate::model::{Cidr, DesiredNode, Family, ObjectKey, ServicePortName};

/// What a [`Reconciler`] is told at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How long what was freed is left alone, so that no program that still has its index finds another's content.
    /// Programs run for microseconds; [`Tuning::DEFAULT_GRACE`] leaves room for one that was interrupted.
    pub grace: Duration,
    /// Where generations of backends start to count: a number that differs from one start of the agent to the next.
    pub first_generation: u32,
}

impl Tuning {
    /// Ten seconds.
    pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);
}

/// Makes the maps of one family what is desired, one service port at a time.
///
/// The order of writes, for each service port: new backends, new slots, its element of `SERVICES*`, its name (of a
/// new index, so that an index with a name always has content), its list of clients if that is another one, its frontends,
/// backends that have left. When all are through, removals: frontends, names, backends. What is freed is reused after the
/// grace period; the networks of a list of clients that no frontend names any more are removed then. Last, the backends of
/// UDP ports that lost a frontend get new generations, so that no exchange goes on by what is another's frontend by now.
///
/// So each write leaves the maps in a state that a reader may see:
///
/// - **One write changes the endpoints of a service port**: that of its element of `SERVICES*`. Slots are never
///   rewritten in place. A changed list gets a new range, which no reader knows of until that write.
/// - **One write changes whose a frontend is, and who may use it**: that of its element of `FRONTENDS*`. Lists of clients are
///   never rewritten in place either. A changed list is another one, whole before a frontend names it and as long as one
///   does. A frontend that changes hands goes from its former holder's list of before to its new holder's of now, and is
///   overwritten, not removed and entered again.
/// - **Nothing is forgotten.** Every field below says what the maps hold, and is changed when a write has succeeded. A
///   service port that fails stays as it was, keeps its index and the backends that were entered for it, and goes on
///   from there when it is applied again.
#[derive(Debug)]
pub struct Reconciler<A> {
    grace: Duration,
    frontend_capacity: usize,
    indices: Ranges,
    /// Where the search for a free index begins.
    next_index: u32,
    slots: Ranges,
    backends: Backends<A>,
    /// The service ports that have something in the maps.
    applied: BTreeMap<ServicePortName, Applied<A>>,
    /// Those of `applied` that are no longer wanted. Their frontends are in `removals`.
    doomed: BTreeSet<ServicePortName>,
    /// UDP ports among `applied` that lost a frontend: their exchanges are to be picked for anew.
    bereft: BTreeSet<ServicePortName>,
    lists: ClientLists<A>,
    /// What `FRONTENDS*` holds.
    frontends: HashMap<FrontendKey<A>, Frontend>,
    /// Those of `frontends` that nobody wants.
    removals: BTreeSet<FrontendKey<A>>,
    /// Node ports among `frontends`, with how many frontends each is.
    node_ports: BTreeMap<u16, u32>,
    /// Cluster IPs among `frontends`.
    cluster_ips: BTreeSet<A>,
    /// What a former agent left behind that makes no sense, by index in `SERVICES*`.
    garbage: Vec<Garbage>,
    /// What was freed, in the order of the instants at which it may be reused.
    quarantine: VecDeque<(Instant, Freed)>,
    node_addresses: Tracker<u32, A>,
    local_addresses: Tracker<A, u32>,
    service_cidrs: Tracker<Cidr<A>, ()>,
    /// Where the audit goes on.
    audit_place: audit::Place<A>,
    writes: u64,
}

/// A service port in the maps.
#[derive(Debug)]
struct Applied<A> {
    /// Index in `SERVICES*`.
    index: u32,
    /// Whether the index has a name. Without, no frontend leads to it, and only its backends may be in the maps.
    named: bool,
    /// Its element of `SERVICES*`.
    value: Service,
    /// Contents of the slots of `value.cluster`.
    cluster: Box<[u32]>,
    /// Contents of the slots of `value.local`.
    local: Box<[u32]>,
    /// Its elements of `BACKENDS*`, those in its slots and others, ascending by address and port.
    backends: Vec<u32>,
    /// The frontends that it wants, ascending. `Reconciler::frontends` says which of them it has.
    frontends: Box<[FrontendKey<A>]>,
    /// The list of clients that its frontends name, or are to name, with `SOURCE_RANGES`. It is whole.
    clients: Option<ClientList>,
}

impl<A> Applied<A> {
    /// A service port that has nothing but its index.
    fn new(index: u32) -> Self {
        let value = Service::default();
        let (cluster, local, frontends) = Default::default();
        Self { index, named: false, value, cluster, local, backends: Vec::new(), frontends, clients: None }
    }
}

/// A meaningless service: its element or its name does not make sense, or it has backends, frontends or lists of clients but
/// no name.
#[derive(Debug)]
struct Garbage {
    /// What names it, in whatever table.
    service: u32,
    /// Its index in `SERVICES*`; `None` if that is beyond the table.
    index: Option<u32>,
    /// What of its slots belongs to nobody else.
    slots: Vec<SlotRange>,
    /// Its elements of `BACKENDS*`.
    backends: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Freed {
    Index(u32),
    Slots(SlotRange),
    Backend(u32),
    Clients(ClientList),
}

impl<A: Family> Reconciler<A> {
    /// A reconciler of empty maps. See `adopt` for maps that hold something.
    fn empty(capacities: Capacities, tuning: Tuning) -> Self {
        Self {
            grace: tuning.grace,
            frontend_capacity: capacities.frontends as usize,
            indices: Ranges::new(capacities.services),
            next_index: 0,
            slots: Ranges::new(capacities.slots),
            backends: Backends::new(capacities.backends, tuning.first_generation),
            applied: BTreeMap::new(),
            doomed: BTreeSet::new(),
            bereft: BTreeSet::new(),
            lists: ClientLists::new(capacities.source_ranges),
            frontends: HashMap::new(),
            removals: BTreeSet::new(),
            node_ports: BTreeMap::new(),
            cluster_ips: BTreeSet::new(),
            garbage: Vec::new(),
            quarantine: VecDeque::new(),
            node_addresses: Tracker::new([]),
            local_addresses: Tracker::new([]),
            service_cidrs: Tracker::new([]),
            audit_place: audit::Place::default(),
            writes: 0,
        }
    }

    /// The Services that have ports in the maps.
    pub fn services(&self) -> impl Iterator<Item = &ObjectKey> {
        self.applied.keys().map(|name| &name.service)
    }

    /// The lowest and the highest node port in the maps.
    pub fn node_port_span(&self) -> Option<(u16, u16)> {
        Some((*self.node_ports.first_key_value()?.0, *self.node_ports.last_key_value()?.0))
    }

    /// How much room each table has. What waits out its grace period is in use.
    pub fn room(&self) -> Capacities {
        let free = self.frontend_capacity.saturating_sub(self.frontends.len());
        Capacities {
            frontends: u32::try_from(free).unwrap_or(u32::MAX),
            services: self.indices.free(),
            slots: self.slots.free(),
            backends: self.backends.room(),
            source_ranges: u32::try_from(self.lists.room()).unwrap_or(u32::MAX),
        }
    }

    /// The smallest network that holds every cluster IP and every range of them in the maps.
    pub fn cluster_ip_cover(&self) -> Option<Cidr<A>> {
        // What holds the least and the greatest holds all between them.
        let ends = self.cluster_ips.first().into_iter().chain(self.cluster_ips.last());
        ends.map(|address| Cidr::of_address(*address)).chain(self.service_cidrs.keys()).reduce(Cidr::cover)
    }

    /// When the next freed element may be reused.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.quarantine.front().map(|(at, _)| *at)
    }

    /// Whether removals failed that [`Self::finish`] must try again.
    pub fn is_behind(&self) -> bool {
        !self.removals.is_empty()
            || !self.doomed.is_empty()
            || !self.bereft.is_empty()
            || self.lists.has_superseded()
            || self.lists.has_leftovers()
            || !self.garbage.is_empty()
    }

    /// Makes available again what was freed a grace period ago. Returns whether there was any.
    pub fn expire(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some((_, freed)) = self.quarantine.pop_front_if(|(at, _)| *at <= now) {
            any = true;
            match freed {
                Freed::Index(index) => self.indices.release_one(index),
                Freed::Slots(range) => self.slots.release(range),
                Freed::Backend(index) => self.backends.free(index),
                Freed::Clients(list) => self.lists.expire(list, now),
            }
        }
        any
    }

    /// Takes note of an entry of `FRONTENDS*`.
    fn note_frontend(&mut self, key: FrontendKey<A>, value: Frontend) {
        if self.frontends.insert(key, value).is_some() {
            return;
        }
        if key.address == A::UNSPECIFIED {
            *self.node_ports.entry(key.port).or_default() += 1;
        } else if key.port == 0 {
            self.cluster_ips.insert(key.address);
        }
    }

    /// Takes note that an entry of `FRONTENDS*` is gone.
    fn forget_frontend(&mut self, key: &FrontendKey<A>) {
        self.frontends.remove(key);
        if key.address != A::UNSPECIFIED {
            if key.port == 0 {
                self.cluster_ips.remove(&key.address);
            }
        } else if let Some(count) = self.node_ports.get_mut(&key.port) {
            *count -= 1;
            if *count == 0 {
                self.node_ports.remove(&key.port);
            }
        }
    }

    /// Makes `NODE_ADDRESSES*`, `LOCAL_ADDRS*` and `SERVICE_CIDRS*` what is desired.
    pub fn apply_node<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredNode<A>,
        report: &mut SyncReport,
    ) -> bool {
        let DesiredNode { masquerade, local_addresses, service_cidrs } = desired;
        let mut errors = Vec::new();
        let write = |interface, address| match address {
            Some(address) => maps.set_node_address(interface, address),
            None => FamilyMaps::<A>::remove_node_address(maps, interface),
        };
        self.writes += self.node_addresses.sync(masquerade, write, &mut errors);
        let write = |address: A, flags: Option<u32>| {
            match flags {
                Some(flags) => maps.set_local_address(address, flags),
                None => maps.remove_local_address(address),
            }?;
            let node_ports = flags.map(|flags| flags & LocalAddressFlags::NODE_PORTS != 0);
            report.node_changes.push(NodeChange::Address { address: address.to_ip(), node_ports });
            Ok(())
        };
        self.writes += self.local_addresses.sync(local_addresses, write, &mut errors);
        let write = |cidr: Cidr<A>, present: Option<()>| {
            match present {
                Some(()) => maps.set_service_cidr(cidr),
                None => maps.remove_service_cidr(cidr),
            }?;
            let (network, present) = (cidr.to_string(), present.is_some());
            report.node_changes.push(NodeChange::ServiceCidr { network, present });
            Ok(())
        };
        self.writes += self.service_cidrs.sync(service_cidrs, write, &mut errors);
        let succeeded = errors.is_empty();
        report.add_errors(errors);
        succeeded
    }

    /// Map elements written and removed so far.
    pub fn writes(&self) -> u64 {
        self.writes + self.backends.writes + self.lists.writes
    }

    /// Takes all of these backends out of use but those to keep, which are in the same order. What could not be written
    /// stays in the list.
    fn retire<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        backends: &mut Vec<u32>,
        keep: &[u32],
        now: Instant,
    ) -> Result<(), MapError> {
        let mut keep = keep.iter().peekable();
        let mut result = Ok(());
        backends.retain(|index| {
            if keep.next_if_eq(&index).is_some() {
                return true;
            }
            if let Err(error) = self.backends.retire(maps, *index) {
                result = Err(error);
                return true;
            }
            self.quarantine.push_back((now + self.grace, Freed::Backend(*index)));
            false
        });
        result
    }

    fn free_slots(&mut self, range: SlotRange, now: Instant) {
        if range.count > 0 {
            self.quarantine.push_back((now + self.grace, Freed::Slots(range)));
        }
    }
}

fn change<A: Family>(name: ServicePortName, kind: ChangeKind, applied: Option<&Applied<A>>) -> PortChange {
    let size = |of: fn(&Applied<A>) -> usize| applied.map_or(0, of);
    PortChange {
        name,
        family: A::NAME,
        kind,
        frontends: size(|applied| applied.frontends.iter().filter(|key| key.port != 0).count()),
        cluster: size(|applied| applied.cluster.len()),
        local: size(|applied| applied.local.len()),
    }
}

#[cfg(test)]
impl<A: Family> Reconciler<A> {
    /// That nothing is in use and nothing was lost.
    pub(crate) fn assert_all_free(&self, capacities: Capacities) {
        assert!(self.applied.is_empty() && self.frontends.is_empty() && !self.is_behind());
        assert!(self.node_ports.is_empty() && self.cluster_ips.is_empty() && self.quarantine.is_empty());
        assert_eq!(self.lists.room(), capacities.source_ranges as usize);
        assert!(self.lists.services().is_empty());
        assert_eq!(self.indices, Ranges::new(capacities.services));
        assert_eq!(self.slots, Ranges::new(capacities.slots));
        assert_eq!(self.backends.room(), capacities.backends);
    }
}
