//! Writing what a Service should be.

use std::{collections::BTreeMap, time::Instant};

use lb_common::{
    abi::{Frontend, Service, ServiceFlags, ServiceName, SlotRange},
    hash,
};

use super::{Applied, Reconciler, change};
use crate::{
    dataplane::{ApplyError, ChangeKind, Failure, FamilyMaps, SyncReport, backends::Reference},
    model::{DesiredPort, Family, ObjectKey, Protocol, ServicePortName},
};

/// Slot ranges for a service port that is being applied.
#[derive(Clone, Copy, Default)]
struct Room {
    /// `None` where the list is as it was.
    cluster: Option<SlotRange>,
    local: Option<SlotRange>,
}

impl<A: Family> Reconciler<A> {
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
        self.release_all(held);
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
                    self.release_all(references);
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
                    // Three words, each written at once but not all together: a reader may find the lists of now with
                    // the flags of before, and so drop one packet instead of refusing it, or the reverse.
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
        let written = maps
            .set_service(index, value)
            .and_then(|()| maps.reset_service_stats(index))
            .and_then(|()| maps.set_service_name(index, &label));
        if let Err(error) = written {
            self.indices.release_one(index);
            return Err(error.into());
        }
        self.writes += 3;
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
        self.release_all(old.references);
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

fn count(list: &[u32]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}
