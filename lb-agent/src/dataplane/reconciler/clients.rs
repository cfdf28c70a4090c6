//! Which clients may use the load-balancer addresses of a service port: `SOURCE_RANGES*`.
//!
//! ```text
//! apply:   add the networks that are new ──> frontends, with or without SOURCE_RANGES
//! finish:  remove frontends ──> remove networks that nobody wants ──> names, and with them the indices
//! ```
//!
//! A frontend that asks for networks always has all of those that hold before and after a change.

use lb_common::abi::FrontendFlags;

use super::{Applied, Reconciler};
use crate::{
    dataplane::{ApplyError, FamilyMaps, MapError},
    model::{Cidr, DesiredPort, Family},
};

impl<A: Family> Reconciler<A> {
    /// Whether the networks that are new fit.
    pub(super) fn clients_fit(&self, desired: &DesiredPort<A>, applied: &Applied<A>) -> bool {
        let new = desired.source_ranges.iter().filter(|range| !applied.clients.contains(range)).count();
        self.clients + new <= self.client_capacity
    }

    /// Enters the networks that are new, and takes note of those that are no longer wanted.
    pub(super) fn admit<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredPort<A>,
        applied: &mut Applied<A>,
    ) -> Result<(), ApplyError> {
        applied.wanted_clients = desired.source_ranges.as_slice().into();
        if applied.has_excess() {
            self.excess.insert(desired.name.clone());
        }
        for range in &desired.source_ranges {
            if !applied.clients.contains(range) {
                maps.set_source_range(applied.index, *range)?;
                self.writes += 1;
                self.clients += 1;
                applied.clients.insert(*range);
            }
        }
        Ok(())
    }

    /// Removes networks that are no longer wanted, once all changed frontends have been written and removed.
    pub(super) fn remove_excess<M: FamilyMaps<A>>(&mut self, maps: &mut M, errors: &mut Vec<MapError>) {
        for name in std::mem::take(&mut self.excess) {
            let Some(mut applied) = self.applied.remove(&name) else { continue };
            // Without any network left, a frontend that could not be changed yet would let nobody in.
            let replaced = applied.wanted_clients.iter().all(|range| applied.clients.contains(range));
            if replaced && (!applied.wanted_clients.is_empty() || !self.is_asked_for_clients(applied.index)) {
                let wanted = std::mem::take(&mut applied.wanted_clients);
                if let Err(error) = self.expel(maps, &mut applied, &wanted) {
                    errors.push(error);
                }
                applied.wanted_clients = wanted;
            }
            if applied.has_excess() {
                self.excess.insert(name.clone());
            }
            self.applied.insert(name, applied);
        }
    }

    /// Removes the networks of a service port but those to keep, which are ascending.
    pub(super) fn expel<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        applied: &mut Applied<A>,
        keep: &[Cidr<A>],
    ) -> Result<(), MapError> {
        let gone: Vec<Cidr<A>> =
            applied.clients.iter().filter(|range| keep.binary_search(range).is_err()).copied().collect();
        for range in gone {
            maps.remove_source_range(applied.index, range)?;
            self.writes += 1;
            self.clients -= 1;
            applied.clients.remove(&range);
        }
        Ok(())
    }

    /// Whether a frontend in the maps lets in the clients of this index only. Looks at all of them; it is asked when a
    /// Service stops to restrict its clients.
    fn is_asked_for_clients(&self, index: u32) -> bool {
        let asks = |flags: u16| flags & FrontendFlags::SOURCE_RANGES != 0;
        self.frontends.values().any(|frontend| frontend.service == index && asks(frontend.flags))
    }
}

impl<A: Family> Applied<A> {
    /// Whether it has networks of clients that it does not want.
    fn has_excess(&self) -> bool {
        self.clients.iter().any(|range| self.wanted_clients.binary_search(range).is_err())
    }
}
