use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use lb_common::{
    abi::{Frontend, FrontendKey, Service, ServiceFlags, ServiceName, SlotRange},
    hash,
};

use super::{
    ApplyError, ChangeKind, Failure, FamilyMaps, PortChange, SyncReport,
    backends::{Backends, Reference},
    ranges::Ranges,
    tracker::Tracker,
};
use crate::model::{DesiredPort, Family, ObjectKey, Protocol, ServicePortName};

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
/// new index, so that an index with a name always has content), its frontends. When all are through, removals:
/// frontends, names, backends that nobody refers to. What they free is reused after the grace period.
///
/// So each write leaves the maps in a state that a reader may see:
///
/// - **One write changes the endpoints of a service port**: that of its element of `SERVICES*`. Slots are never
///   rewritten in place. A changed list gets a new range, which no reader knows of until that write.
/// - A frontend that changes hands is overwritten, not removed and entered again.
/// - **Nothing is forgotten.** Every field below says what the maps hold, and is changed when a write has succeeded. A
///   service port that fails stays as it was, keeps the backends that were entered for it, and goes on from there when
///   it is applied again.
#[derive(Debug)]
pub struct Reconciler<A> {
    pub(super) grace: Duration,
    pub(super) frontend_capacity: usize,
    pub(super) indices: Ranges,
    pub(super) slots: Ranges,
    pub(super) backends: Backends<A>,
    /// The service ports in the maps.
    pub(super) applied: BTreeMap<ServicePortName, Applied<A>>,
    /// Those of `applied` that are no longer wanted. Their frontends are in `removals`.
    doomed: BTreeSet<ServicePortName>,
    /// Backends entered for service ports whose last attempt failed.
    held: BTreeMap<ServicePortName, Vec<Reference>>,
    /// What `FRONTENDS*` holds.
    pub(super) frontends: HashMap<FrontendKey<A>, Frontend>,
    /// Those of `frontends` that nobody wants.
    pub(super) removals: BTreeSet<FrontendKey<A>>,
    /// Node ports among `frontends`, with how many frontends each is.
    node_ports: BTreeMap<u16, u32>,
    /// Named elements of `SERVICES*` that a former agent left behind and that make no sense.
    pub(super) garbage: Vec<Garbage>,
    /// What was freed, in the order of the instants at which it may be reused.
    quarantine: VecDeque<(Instant, Freed)>,
    pub(super) node_addresses: Tracker<u32, A>,
    pub(super) node_port_addresses: Tracker<A, u32>,
    writes: u64,
}

/// A service port in the maps.
#[derive(Debug)]
pub(super) struct Applied<A> {
    /// Index in `SERVICES*`.
    pub(super) index: u32,
    /// Its element of `SERVICES*`.
    pub(super) value: Service,
    /// Contents of the slots of `value.cluster`.
    pub(super) cluster: Box<[u32]>,
    /// Contents of the slots of `value.local`.
    pub(super) local: Box<[u32]>,
    /// The backends that it refers to: those in its slots and others.
    pub(super) references: Box<[Reference]>,
    /// The frontends that it wants, ascending. `Reconciler::frontends` says which of them it has.
    pub(super) frontends: Box<[FrontendKey<A>]>,
}

/// A meaningless element of `SERVICES*` that has a name.
#[derive(Debug)]
pub(super) struct Garbage {
    /// Its index.
    pub(super) index: u32,
    /// What of its slots belongs to nobody else.
    pub(super) slots: Vec<SlotRange>,
}

#[derive(Clone, Copy, Debug)]
enum Freed {
    Index(u32),
    Slots(SlotRange),
    Backend(u32),
}

/// Slot ranges for a service port that is being applied.
#[derive(Clone, Copy, Default)]
struct Room {
    /// `None` where the list is as it was.
    cluster: Option<SlotRange>,
    local: Option<SlotRange>,
}

impl<A: Family> Reconciler<A> {
    /// A reconciler of empty maps. See `adopt` for maps that hold something.
    pub(super) fn empty(capacities: super::Capacities, tuning: Tuning) -> Self {
        Self {
            grace: tuning.grace,
            frontend_capacity: capacities.frontends as usize,
            indices: Ranges::new(capacities.services),
            slots: Ranges::new(capacities.slots),
            backends: Backends::new(capacities.backends, tuning.first_generation),
            applied: BTreeMap::new(),
            doomed: BTreeSet::new(),
            held: BTreeMap::new(),
            frontends: HashMap::new(),
            removals: BTreeSet::new(),
            node_ports: BTreeMap::new(),
            garbage: Vec::new(),
            quarantine: VecDeque::new(),
            node_addresses: Tracker::new([]),
            node_port_addresses: Tracker::new([]),
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

    /// When the next freed element may be reused.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.quarantine.front().map(|(at, _)| *at)
    }

    /// Whether removals failed that [`Self::finish`] must try again.
    pub fn is_behind(&self) -> bool {
        !self.removals.is_empty() || !self.doomed.is_empty() || !self.garbage.is_empty() || self.backends.is_behind()
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
            }
        }
        any
    }

    /// Makes the ports of a Service what is desired: `ports` are all that it should have. Failures go to the report;
    /// returns whether there were none. Removals follow with [`Self::finish`].
    pub fn apply<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        service: &ObjectKey,
        ports: &[DesiredPort<A>],
        now: Instant,
        report: &mut SyncReport,
    ) -> bool {
        let known = of_service(&self.applied, service);
        for name in known.into_iter().filter(|name| ports.iter().all(|port| port.name != *name)) {
            self.doom(name);
        }
        // Given back only when the new attempt has taken what it needs, so that it finds them in the maps.
        let held: Vec<Reference> =
            of_service(&self.held, service).into_iter().filter_map(|name| self.held.remove(&name)).flatten().collect();
        let mut succeeded = true;
        for port in ports {
            let kind = if self.applied.contains_key(&port.name) { ChangeKind::Updated } else { ChangeKind::Added };
            match self.apply_port(maps, port, now) {
                Ok(true) => report.changes.push(change(port.name.clone(), kind, self.applied.get(&port.name))),
                Ok(false) => {}
                Err(error) => {
                    succeeded = false;
                    report.failures.push(Failure { service_port: Some(port.name.clone()), error });
                }
            }
        }
        held.into_iter().for_each(|reference| self.backends.release(reference));
        succeeded
    }

    /// Returns whether anything changed.
    fn apply_port<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredPort<A>,
        now: Instant,
    ) -> Result<bool, ApplyError> {
        let writes_before = self.writes();
        self.doomed.remove(&desired.name);
        let room = self.make_room(desired)?;
        let mut references = Vec::with_capacity(desired.backends.len());
        let dropped = match self.publish(maps, desired, room, &mut references) {
            Ok(published) => self.commit(desired, published, now),
            Err(error) => {
                // No reader knows of these: they are not in use.
                for range in [room.cluster, room.local].into_iter().flatten() {
                    self.slots.release(range);
                }
                if error.is_full() {
                    references.into_iter().for_each(|reference| self.backends.release(reference));
                } else {
                    self.held.insert(desired.name.clone(), references);
                }
                return Err(error);
            }
        };
        self.write_frontends(maps, desired)?;
        Ok(dropped || self.writes() > writes_before)
    }

    /// Makes sure that there is room in every table before anything is written, and takes the slots.
    fn make_room(&mut self, desired: &DesiredPort<A>) -> Result<Room, ApplyError> {
        let full = |table| Err(ApplyError::Full { table });
        let tables = A::TABLES;
        let applied = self.applied.get(&desired.name);
        if applied.is_none() {
            label(&desired.name)?;
            if self.indices.free() == 0 {
                return full(tables.services);
            }
        }
        let new_frontends = desired.frontends.iter().filter(|(key, _)| !self.frontends.contains_key(key)).count();
        if self.frontends.len() + new_frontends > self.frontend_capacity {
            return full(tables.frontends);
        }
        let find = |position: &u32| {
            let backend = &desired.backends[*position as usize];
            self.backends.find(backend.address, backend.port)
        };
        let new_backends = desired.backends.iter().filter(|b| self.backends.find(b.address, b.port).is_none()).count();
        if new_backends > self.backends.room() as usize {
            return full(tables.backends);
        }
        let same = |list: &[u32], slots: &[u32]| list.iter().map(find).eq(slots.iter().map(|index| Some(*index)));
        let keep_cluster = applied.is_some_and(|applied| same(&desired.cluster, &applied.cluster));
        let keep_local = applied.is_some_and(|applied| same(&desired.local, &applied.local));

        let mut room = Room::default();
        if !keep_cluster {
            room.cluster = self.slots.allocate(count(&desired.cluster));
            if room.cluster.is_none() {
                return full(tables.slots);
            }
        }
        if !keep_local {
            room.local = self.slots.allocate(count(&desired.local));
            if room.local.is_none() {
                room.cluster.into_iter().for_each(|range| self.slots.release(range));
                return full(tables.slots);
            }
        }
        Ok(room)
    }

    /// Writes backends, slots, and last the element of `SERVICES*` that makes them seen. `references` are the backends
    /// taken, also on failure.
    fn publish<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredPort<A>,
        room: Room,
        references: &mut Vec<Reference>,
    ) -> Result<Applied<A>, ApplyError> {
        for backend in &desired.backends {
            references.push(self.backends.acquire(maps, backend)?);
        }
        let indices = |list: &[u32]| list.iter().map(|position| references[*position as usize].index).collect();
        let (cluster, local): (Box<[u32]>, Box<[u32]>) = (indices(&desired.cluster), indices(&desired.local));
        for (range, list) in [(room.cluster, &cluster), (room.local, &local)] {
            if let Some(range) = range.filter(|range| range.count > 0) {
                maps.set_slots(range.first, list)?;
                self.writes += u64::from(range.count);
            }
        }

        let before = self.applied.get(&desired.name).map(|applied| (applied.index, applied.value));
        let old = before.map(|(_, value)| value).unwrap_or_default();
        let value = Service {
            cluster: room.cluster.unwrap_or(old.cluster),
            local: room.local.unwrap_or(old.local),
            flags: if desired.has_endpoints { ServiceFlags::HAS_ENDPOINTS } else { 0 },
            affinity_seconds: desired.affinity_seconds,
        };
        let index = match before {
            Some((index, _)) => {
                if value != old {
                    maps.set_service(index, value)?;
                    self.writes += 1;
                }
                index
            }
            None => self.enter(maps, &desired.name, value)?,
        };
        let frontends = desired.frontends.iter().map(|(key, _)| *key).collect();
        let references = references.as_slice().into();
        Ok(Applied { index, value, cluster, local, references, frontends })
    }

    /// Takes an index for a new service port. Nobody reads it before a frontend names it.
    fn enter<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        name: &ServicePortName,
        value: Service,
    ) -> Result<u32, ApplyError> {
        let label = label(name)?;
        let index = self.indices.allocate_one().ok_or(ApplyError::Full { table: A::TABLES.services })?;
        if let Err(error) = maps.set_service(index, value).and_then(|()| maps.set_service_name(index, &label)) {
            self.indices.release_one(index);
            return Err(error.into());
        }
        self.writes += 2;
        Ok(index)
    }

    /// Takes note of what was published, and frees what it replaced. Returns whether frontends were dropped.
    fn commit(&mut self, desired: &DesiredPort<A>, new: Applied<A>, now: Instant) -> bool {
        let (index, value) = (new.index, new.value);
        let Some(old) = self.applied.insert(desired.name.clone(), new) else { return false };
        for (old, new) in [(old.value.cluster, value.cluster), (old.value.local, value.local)] {
            if old != new {
                self.free_slots(old, now);
            }
        }
        old.references.into_iter().for_each(|reference| self.backends.release(reference));
        let mut dropped = false;
        for key in old.frontends {
            if desired.frontends.binary_search_by_key(&key, |(key, _)| *key).is_err() {
                self.unwant(key, index);
                dropped = true;
            }
        }
        dropped
    }

    fn write_frontends<M: FamilyMaps<A>>(&mut self, maps: &mut M, desired: &DesiredPort<A>) -> Result<(), ApplyError> {
        let Some(index) = self.applied.get(&desired.name).map(|applied| applied.index) else { return Ok(()) };
        let mut result = Ok(());
        for (key, flags) in &desired.frontends {
            let value = Frontend { service: index, owner: hash::frontend_owner(key), flags: *flags };
            if self.frontends.get(key) != Some(&value) {
                if let Err(error) = maps.set_frontend(key, value) {
                    result = Err(error.into());
                    continue;
                }
                self.writes += 1;
                self.note_frontend(*key, value);
            }
            self.removals.remove(key);
        }
        result
    }

    /// Takes note of an entry of `FRONTENDS*`.
    pub(super) fn note_frontend(&mut self, key: FrontendKey<A>, value: Frontend) {
        if self.frontends.insert(key, value).is_none() && key.address == A::UNSPECIFIED {
            *self.node_ports.entry(key.port).or_default() += 1;
        }
    }

    /// A service port no longer wants a frontend: it goes, if it has not got another's value meanwhile.
    fn unwant(&mut self, key: FrontendKey<A>, index: u32) {
        if self.frontends.get(&key).is_some_and(|frontend| frontend.service == index) {
            self.removals.insert(key);
        }
    }

    /// A service port is no longer wanted.
    fn doom(&mut self, name: ServicePortName) {
        if let Some(applied) = self.applied.get(&name) {
            let index = applied.index;
            for key in applied.frontends.clone() {
                self.unwant(key, index);
            }
            self.doomed.insert(name);
        }
    }

    /// Removes what nobody wants, once all changed Services have been applied, and frees what that leaves. Failures go
    /// to the report; what failed is tried again with the next call. Returns whether frontends were removed: their
    /// room is available at once.
    pub fn finish<M: FamilyMaps<A>>(&mut self, maps: &mut M, now: Instant, report: &mut SyncReport) -> bool {
        let mut errors = Vec::new();
        let frontends_before = self.frontends.len();
        for key in std::mem::take(&mut self.removals) {
            if let Err(error) = maps.remove_frontend(&key) {
                errors.push(error);
                self.removals.insert(key);
                continue;
            }
            self.writes += 1;
            self.frontends.remove(&key);
            if key.address == A::UNSPECIFIED
                && let Some(count) = self.node_ports.get_mut(&key.port)
            {
                *count -= 1;
                if *count == 0 {
                    self.node_ports.remove(&key.port);
                }
            }
        }
        // A service goes after its last frontend.
        let in_use: BTreeSet<u32> =
            self.removals.iter().filter_map(|key| self.frontends.get(key)).map(|frontend| frontend.service).collect();
        for name in std::mem::take(&mut self.doomed) {
            let Some(applied) = self.applied.get(&name).filter(|applied| !in_use.contains(&applied.index)) else {
                self.doomed.insert(name);
                continue;
            };
            if let Err(error) = maps.remove_service_name(applied.index) {
                errors.push(error);
                self.doomed.insert(name);
                continue;
            }
            self.writes += 1;
            if let Some(gone) = self.applied.remove(&name) {
                self.quarantine.push_back((now + self.grace, Freed::Index(gone.index)));
                self.free_slots(gone.value.cluster, now);
                self.free_slots(gone.value.local, now);
                gone.references.into_iter().for_each(|reference| self.backends.release(reference));
            }
            report.changes.push(change::<A>(name, ChangeKind::Removed, None));
        }
        for garbage in std::mem::take(&mut self.garbage) {
            if in_use.contains(&garbage.index) {
                self.garbage.push(garbage);
            } else if let Err(error) = maps.remove_service_name(garbage.index) {
                errors.push(error);
                self.garbage.push(garbage);
            } else {
                self.writes += 1;
                self.quarantine.push_back((now + self.grace, Freed::Index(garbage.index)));
                garbage.slots.into_iter().for_each(|range| self.free_slots(range, now));
            }
        }
        let retired = self.backends.settle(maps, &mut errors);
        self.quarantine.extend(retired.into_iter().map(|index| (now + self.grace, Freed::Backend(index))));
        let failure = |error| Failure { service_port: None, error: ApplyError::Map(error) };
        report.failures.extend(errors.into_iter().map(failure));
        self.frontends.len() < frontends_before
    }

    /// Makes `NODE_ADDRESSES*` and `NODEPORT_ADDRS*` what is desired.
    pub fn apply_node<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        masquerade: &BTreeMap<u32, A>,
        node_port_addresses: &BTreeMap<A, u32>,
        report: &mut SyncReport,
    ) -> bool {
        let mut errors = Vec::new();
        let write = |interface, address| match address {
            Some(address) => maps.set_node_address(interface, address),
            None => FamilyMaps::<A>::remove_node_address(maps, interface),
        };
        self.writes += self.node_addresses.sync(masquerade, write, &mut errors);
        let write = |address, flags| match flags {
            Some(flags) => maps.set_node_port_address(address, flags),
            None => maps.remove_node_port_address(address),
        };
        self.writes += self.node_port_addresses.sync(node_port_addresses, write, &mut errors);
        let succeeded = errors.is_empty();
        let failure = |error| Failure { service_port: None, error: ApplyError::Map(error) };
        report.failures.extend(errors.into_iter().map(failure));
        succeeded
    }

    /// Map elements written and removed so far.
    pub fn writes(&self) -> u64 {
        self.writes + self.backends.writes
    }

    fn free_slots(&mut self, range: SlotRange, now: Instant) {
        if range.count > 0 {
            self.quarantine.push_back((now + self.grace, Freed::Slots(range)));
        }
    }
}

/// The service port's name as the map holds it.
fn label(name: &ServicePortName) -> Result<ServiceName, ApplyError> {
    let ServicePortName { service, port, protocol } = name;
    ServiceName::new(&service.namespace, &service.name, port, *protocol as u8).ok_or(ApplyError::NameTooLong)
}

/// The names of a Service's ports among the keys of a map.
fn of_service<V>(map: &BTreeMap<ServicePortName, V>, service: &ObjectKey) -> Vec<ServicePortName> {
    // The least name that a port of the Service can have.
    let first = ServicePortName { service: service.clone(), port: "".into(), protocol: Protocol::Tcp };
    map.range(first..).map(|(name, _)| name).take_while(|name| name.service == *service).cloned().collect()
}

fn change<A>(name: ServicePortName, kind: ChangeKind, applied: Option<&Applied<A>>) -> PortChange
where
    A: Family,
{
    let size = |of: fn(&Applied<A>) -> usize| applied.map_or(0, of);
    PortChange {
        name,
        family: A::NAME,
        kind,
        frontends: size(|applied| applied.frontends.len()),
        cluster: size(|applied| applied.cluster.len()),
        local: size(|applied| applied.local.len()),
    }
}

fn count(list: &[u32]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
impl<A: Family> Reconciler<A> {
    /// That nothing is in use and nothing was lost.
    pub(crate) fn assert_all_free(&self, capacities: super::Capacities) {
        assert!(self.applied.is_empty() && self.frontends.is_empty() && self.held.is_empty() && !self.is_behind());
        assert!(self.node_ports.is_empty() && self.quarantine.is_empty());
        assert_eq!(self.indices, Ranges::new(capacities.services));
        assert_eq!(self.slots, Ranges::new(capacities.slots));
        assert_eq!(self.backends.room(), capacities.backends);
    }
}
