//! Writing what a Service should be.

use std::{collections::BTreeMap, time::Instant};

use lb_common::{
    abi::{Frontend, FrontendFlags, Service, ServiceFlags, ServiceName, SlotRange},
    hash,
};

use super::{Applied, Reconciler, change};
use crate::{
    dataplane::{ApplyError, ChangeKind, Failure, FamilyMaps, MapError, SyncReport},
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
        let mut succeeded = true;
        for port in ports {
            let was_named = self.applied.get(&port.name).is_some_and(|applied| applied.named);
            let kind = if was_named { ChangeKind::Updated } else { ChangeKind::Added };
            let writes_before = self.writes();
            let result = self.apply_port(maps, port, now);
            let changed = match &result {
                Ok(dropped) => *dropped || self.writes() > writes_before,
                Err(error) => error.concerns_clients_only() && self.writes() > writes_before,
            };
            if changed {
                report.changes.push(change(port.name.clone(), kind, self.applied.get(&port.name)));
            }
            if let Err(error) = result {
                succeeded = false;
                report.failures.push(Failure { service_port: Some(port.name.clone()), error });
            }
        }
        succeeded
    }

    /// Returns whether frontends were dropped.
    fn apply_port<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredPort<A>,
        now: Instant,
    ) -> Result<bool, ApplyError> {
        self.doomed.remove(&desired.name);
        let mut applied = if let Some(applied) = self.applied.remove(&desired.name) {
            applied
        } else {
            let full = ApplyError::Full { table: A::TABLES.services };
            // Flows that outlive their Service are counted under its index: the next Service is given another one.
            let index = self.indices.allocate_one_from(self.next_index).ok_or(full)?;
            self.next_index = index + 1;
            Applied::new(index)
        };
        let result = self.write_port(maps, desired, &mut applied, now);
        if !applied.named && applied.backends.is_empty() && !self.lists.has(applied.index) {
            // Nothing of it is in the maps.
            self.indices.release_one(applied.index);
        } else {
            if !applied.named && result.as_ref().is_err_and(ApplyError::is_full) {
                // What it cannot use it must not keep from others.
                self.doomed.insert(desired.name.clone());
            }
            self.applied.insert(desired.name.clone(), applied);
        }
        result
    }

    /// Returns whether frontends were dropped.
    fn write_port<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredPort<A>,
        applied: &mut Applied<A>,
        now: Instant,
    ) -> Result<bool, ApplyError> {
        let clients_fit = match self.make_room_for_clients(desired, applied) {
            Err(error) if !error.concerns_clients_only() => return Err(error),
            fit => fit,
        };
        let room = self.make_room(desired, applied)?;
        let backends = match self.publish(maps, desired, room, applied, now) {
            Ok(backends) => backends,
            Err(error) => {
                // No reader knows of these: they are not in use.
                for range in [room.cluster, room.local].into_iter().flatten() {
                    self.slots.release(range);
                }
                return Err(error);
            }
        };
        let dropped = self.drop_frontends(desired, applied);
        if dropped && desired.name.protocol == Protocol::Udp {
            self.bereft.insert(desired.name.clone());
        }
        // An error of one does not keep the others from being done.
        let admitted = clients_fit.and_then(|()| self.admit(maps, desired, applied));
        let entered = self.write_frontends(maps, desired, applied, admitted.is_ok());
        let trimmed = self.trim(maps, desired, &backends, applied, now);
        entered.and(trimmed).map_err(ApplyError::from).and(admitted)?;
        Ok(dropped)
    }

    /// Makes sure that there is room in every other table before anything is written, and takes the slots.
    fn make_room(&mut self, desired: &DesiredPort<A>, applied: &Applied<A>) -> Result<Room, ApplyError> {
        let full = |table| Err(ApplyError::Full { table });
        let tables = A::TABLES;
        label(&desired.name)?;
        let new_frontends = desired.frontends.iter().filter(|(key, _)| !self.frontends.contains_key(key)).count();
        if self.frontends.len() + new_frontends > self.frontend_capacity {
            return full(tables.frontends);
        }
        let found: Vec<Option<u32>> =
            desired.backends.iter().map(|backend| self.backends.find(&applied.backends, backend)).collect();
        let new_backends = found.iter().filter(|index| index.is_none()).count();
        if new_backends > self.backends.room() as usize {
            return full(tables.backends);
        }
        let same = |list: &[u32], slots: &[u32]| {
            list.iter().map(|position| found[*position as usize]).eq(slots.iter().map(|index| Some(*index)))
        };
        let keep_cluster = same(&desired.cluster, &applied.cluster);
        let keep_local = same(&desired.local, &applied.local);

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

    /// Writes backends, slots, and last the element of `SERVICES*` that makes them seen, and frees the slots that they
    /// replace. Returns the backends in the order of `desired`.
    fn publish<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredPort<A>,
        room: Room,
        applied: &mut Applied<A>,
        now: Instant,
    ) -> Result<Vec<u32>, ApplyError> {
        let Applied { index, backends, .. } = applied;
        backends.reserve_exact(desired.backends.len().saturating_sub(backends.len()));
        let acquire = |backend| self.backends.acquire(maps, *index, backends, backend);
        let taken: Vec<u32> = desired.backends.iter().map(acquire).collect::<Result<_, _>>()?;
        let indices = |list: &[u32]| list.iter().map(|position| taken[*position as usize]).collect();
        let (cluster, local): (Box<[u32]>, Box<[u32]>) = (indices(&desired.cluster), indices(&desired.local));
        for (range, list) in [(room.cluster, &cluster), (room.local, &local)] {
            if let Some(range) = range.filter(|range| range.count > 0) {
                maps.set_slots(range.first, list)?;
                self.writes += u64::from(range.count);
            }
        }

        let old = applied.value;
        let value = Service {
            cluster: room.cluster.unwrap_or(old.cluster),
            local: room.local.unwrap_or(old.local),
            flags: if desired.has_endpoints { ServiceFlags::HAS_ENDPOINTS } else { 0 } | desired.balance.flags(),
            affinity_seconds: desired.affinity_seconds,
        };
        if !applied.named {
            self.enter(maps, applied.index, &desired.name, value)?;
        } else if value != old {
            // Three words, each written at once but not all together: a reader may find the lists of now with the flags
            // of before, and so drop one packet instead of refusing it, or the reverse.
            maps.set_service(applied.index, value)?;
            self.writes += 1;
        }
        (applied.named, applied.value, applied.cluster, applied.local) = (true, value, cluster, local);
        for (old, new) in [(old.cluster, value.cluster), (old.local, value.local)] {
            if old != new {
                self.free_slots(old, now);
            }
        }
        Ok(taken)
    }

    /// Writes and names the element of a new service port. Nobody reads it before a frontend names it.
    fn enter<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        index: u32,
        name: &ServicePortName,
        value: Service,
    ) -> Result<(), ApplyError> {
        let label = label(name)?;
        maps.set_service(index, value)?;
        maps.reset_service_stats(index)?;
        maps.set_service_name(index, &label)?;
        self.writes += 3;
        Ok(())
    }

    /// Takes note of the frontends that are wanted. Returns whether some are no longer.
    fn drop_frontends(&mut self, desired: &DesiredPort<A>, applied: &mut Applied<A>) -> bool {
        let frontends = desired.frontends.iter().map(|(key, _)| *key).collect();
        let mut dropped = false;
        for key in std::mem::replace(&mut applied.frontends, frontends) {
            if desired.frontends.binary_search_by_key(&key, |(key, _)| *key).is_err() {
                self.unwant(key, applied.index);
                dropped = true;
            }
        }
        dropped
    }

    /// Lowers the flags of backends that stay, and takes those that have left out of use.
    fn trim<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredPort<A>,
        stay: &[u32],
        applied: &mut Applied<A>,
        now: Instant,
    ) -> Result<(), MapError> {
        for (index, backend) in stay.iter().zip(&desired.backends) {
            self.backends.set_flags(maps, *index, backend.flags)?;
        }
        self.retire(maps, &mut applied.backends, stay, now)
    }

    /// `admitted`: whether the list of clients is there that restricted frontends are to name. Without, those that there are
    /// stay as they are, so that they let in whom they let in before, and new ones wait.
    fn write_frontends<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredPort<A>,
        applied: &Applied<A>,
        admitted: bool,
    ) -> Result<(), MapError> {
        let Applied { index, clients, .. } = *applied;
        let mut result = Ok(());
        for (key, flags) in &desired.frontends {
            let restricted = flags & FrontendFlags::SOURCE_RANGES != 0;
            if restricted && !admitted {
                if self.frontends.get(key).is_some_and(|frontend| frontend.service == index) {
                    self.removals.remove(key);
                }
                continue;
            }
            let clients = clients.filter(|_| restricted);
            let edition = clients.map_or(0, |list| list.edition);
            let value = Frontend { service: index, owner: hash::frontend_owner(key), flags: *flags, edition };
            if self.frontends.get(key) != Some(&value) {
                if let Err(error) = maps.set_frontend(key, value) {
                    result = Err(error);
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
pub(super) fn label(name: &ServicePortName) -> Result<ServiceName, ApplyError> {
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
