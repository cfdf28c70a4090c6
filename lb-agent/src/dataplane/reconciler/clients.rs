//! Which clients may use the load-balancer addresses of a service port.
//!
//! ```text
//! apply:   enter its list, if there is none of these networks ──> frontends, which name it
//!          no room for it beside the former one ──> frontends that it would be of stay as they are
//! finish:  lists that no frontend names any more rest ──> a grace period later their networks are removed
//! ```
//!
//! A frontend names its service port and its list in one word. So the write that gives it to another service port, or its
//! service port another list, is the one write that changes who is let in: from just those of before to just those of after.

use std::{collections::BTreeSet, time::Instant};

use lb_common::abi::FrontendFlags;

use super::{Applied, Freed, Reconciler};
use crate::{
    dataplane::{ApplyError, ClientList, FamilyMaps},
    model::{Cidr, DesiredPort, Family},
};

impl<A: Family> Reconciler<A> {
    /// Makes sure that there is room for the list that a service port wants.
    pub(super) fn make_room_for_clients(
        &self,
        desired: &DesiredPort<A>,
        applied: &Applied<A>,
    ) -> Result<(), ApplyError> {
        wanted(desired).map_or(Ok(()), |wanted| self.lists.make_room(applied.index, wanted, applied.named))
    }

    /// Enters the list that a service port wants, which its frontends may name then. Of the former one it takes note.
    pub(super) fn admit<M: FamilyMaps<A>>(
        &mut self,
        maps: &mut M,
        desired: &DesiredPort<A>,
        applied: &mut Applied<A>,
    ) -> Result<(), ApplyError> {
        let list = wanted(desired).map(|wanted| self.lists.enter(maps, applied.index, wanted)).transpose()?;
        let former = std::mem::replace(&mut applied.clients, list);
        former.filter(|former| list != Some(*former)).into_iter().for_each(|former| self.lists.supersede(former));
        Ok(())
    }

    /// Lets lists rest that nobody wants, once all changed frontends have been written and removed.
    pub(super) fn rest_lists(&mut self, now: Instant) {
        if !self.lists.has_superseded() {
            return;
        }
        // All frontends, since any may be the one that could not be changed yet; but only where a list was changed.
        let named: BTreeSet<ClientList> = self.frontends.values().copied().filter_map(ClientList::of).collect();
        let until = now + self.grace;
        let resting = self.lists.rest(&named, until);
        self.quarantine.extend(resting.into_iter().map(|list| (until, Freed::Clients(list))));
    }
}

/// The networks of the clients that may use the frontends of a service port; `None` where everybody may use all of them.
fn wanted<A: Family>(desired: &DesiredPort<A>) -> Option<&[Cidr<A>]> {
    let restricted = |(_, flags): &(_, u8)| flags & FrontendFlags::SOURCE_RANGES != 0;
    desired.frontends.iter().any(restricted).then_some(&desired.source_ranges)
}
