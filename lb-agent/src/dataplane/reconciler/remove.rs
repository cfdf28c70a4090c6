//! Removing what nobody wants.

use std::{collections::BTreeSet, time::Instant};

use lb_common::abi::FrontendKey;

use super::{Applied, Freed, Garbage, Reconciler, change};
use crate::{
    dataplane::{ChangeKind, FamilyMaps, MapError, SyncReport},
    model::{Family, ServicePortName},
};

impl<A: Family> Reconciler<A> {
    /// A service port no longer wants a frontend: it goes, if it has not got another's value meanwhile.
    pub(super) fn unwant(&mut self, key: FrontendKey<A>, index: u32) {
        if self.frontends.get(&key).is_some_and(|frontend| frontend.service == index) {
            self.removals.insert(key);
        }
    }

    /// A service port is no longer wanted.
    pub(super) fn doom(&mut self, name: ServicePortName) {
        if let Some(applied) = self.applied.get(&name) {
            let index = applied.index;
            for key in applied.frontends.clone() {
                self.unwant(key, index);
            }
            self.doomed.insert(name);
        }
    }

    /// Removes what nobody wants, once all changed Services have been applied, and frees what that leaves. Failures go
    /// to the report; what failed is tried again with the next call. Returns whether frontends were removed, or lists of
    /// clients that had rested: their room is available at once.
    pub fn finish<M: FamilyMaps<A>>(&mut self, maps: &mut M, now: Instant, report: &mut SyncReport) -> bool {
        let mut errors = Vec::new();
        let frontends_before = self.frontends.len();
        self.remove_frontends(maps, &mut errors);
        self.rest_lists(now);
        let lists_removed = self.lists.remove_leftovers(maps, &mut errors);
        // A service goes after its last frontend.
        let in_use: BTreeSet<u32> =
            self.removals.iter().filter_map(|key| self.frontends.get(key)).map(|frontend| frontend.service).collect();
        self.remove_services(maps, now, &in_use, report, &mut errors);
        self.remove_garbage(maps, now, &in_use, &mut errors);
        self.renew_bereft(maps, &in_use, &mut errors);
        report.add_errors(errors);
        self.frontends.len() < frontends_before || lists_removed
    }

    fn remove_frontends<M: FamilyMaps<A>>(&mut self, maps: &mut M, errors: &mut Vec<MapError>) {
        for key in std::mem::take(&mut self.removals) {
            if let Err(error) = maps.remove_frontend(&key) {
                errors.push(error);
                self.removals.insert(key);
                continue;
            }
            self.writes += 1;
            self.forget_frontend(&key);
        }
    }

    fn remove_services<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        now: Instant,
        in_use: &BTreeSet<u32>,
        report: &mut SyncReport,
        errors: &mut Vec<MapError>,
    ) {
        for name in std::mem::take(&mut self.doomed) {
            let Some(mut applied) = self.applied.remove(&name) else { continue };
            if in_use.contains(&applied.index) {
                self.applied.insert(name.clone(), applied);
                self.doomed.insert(name);
                continue;
            }
            let was_named = applied.named;
            let removed = self.remove_service(maps, &mut applied, now);
            if was_named && !applied.named {
                report.changes.push(change::<A>(name.clone(), ChangeKind::Removed, None));
            }
            if let Err(error) = removed {
                errors.push(error);
                self.applied.insert(name.clone(), applied);
                self.doomed.insert(name);
                continue;
            }
            self.quarantine.push_back((now + self.grace, Freed::Index(applied.index)));
            self.free_slots(applied.value.cluster, now);
            self.free_slots(applied.value.local, now);
        }
    }

    /// Gives the backends of UDP ports new generations that do not have a frontend any more which they had. An exchange is
    /// known by its tuple, not by its frontend: without this it would go on with them when the frontend is another's.
    fn renew_bereft<M: FamilyMaps<A>>(&mut self, maps: &mut M, in_use: &BTreeSet<u32>, errors: &mut Vec<MapError>) {
        for name in std::mem::take(&mut self.bereft) {
            let Some(applied) = self.applied.get(&name) else { continue };
            let renewed = if in_use.contains(&applied.index) {
                Ok(false)
            } else {
                applied.backends.iter().try_for_each(|index| self.backends.renew(maps, *index)).map(|()| true)
            };
            match renewed {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => errors.push(error),
            }
            self.bereft.insert(name);
        }
    }

    /// Removes a service port that no frontend leads to: its lists of clients, its name, then its backends, which no
    /// slot of a service with a name has then.
    fn remove_service<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        applied: &mut Applied<A>,
        now: Instant,
    ) -> Result<(), MapError> {
        applied.clients = None;
        self.lists.remove_all(maps, applied.index)?;
        if applied.named {
            maps.remove_service_name(applied.index)?;
            self.writes += 1;
            applied.named = false;
        }
        self.retire(maps, &mut applied.backends, &[], now)
    }

    fn remove_garbage<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        now: Instant,
        in_use: &BTreeSet<u32>,
        errors: &mut Vec<MapError>,
    ) {
        for mut garbage in std::mem::take(&mut self.garbage) {
            if in_use.contains(&garbage.service) {
                self.garbage.push(garbage);
            } else if let Err(error) = self.remove_one(maps, &mut garbage, now) {
                errors.push(error);
                self.garbage.push(garbage);
            } else {
                self.quarantine.extend(garbage.index.map(|index| (now + self.grace, Freed::Index(index))));
                for range in garbage.slots {
                    self.free_slots(range, now);
                }
            }
        }
    }

    fn remove_one<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        garbage: &mut Garbage,
        now: Instant,
    ) -> Result<(), MapError> {
        self.lists.remove_all(maps, garbage.service)?;
        if let Some(index) = garbage.index {
            maps.remove_service_name(index)?;
            self.writes += 1;
        }
        self.retire(maps, &mut garbage.backends, &[], now)
    }
}
