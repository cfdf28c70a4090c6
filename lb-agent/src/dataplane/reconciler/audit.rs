//! Comparing the maps with what was written to them: somebody else may have written, too.
//!
//! ```text
//! node, networks of clients ──> strays of FRONTENDS*, SERVICE_NAMES* ──> BACKENDS* ──> service ports
//! ```
//!
//! A pass goes through a family's maps in this order, a few elements at a time, so that the thread that serves changes
//! is never away for long. Strays are removed first: what they took the place of has room again.
//!
//! What is compared with is what the [`Reconciler`] wrote, not what is desired: both differ while a change cannot be written,
//! and that is tried again elsewhere. So a repair needs no order of writes. It puts one element back to what it was,
//! index and generation included, and nothing that is as it was is written: flows, and clients' affinity, go on.
//!
//! Not looked at: elements of `SERVICES*` and `SLOTS*` that no service port has, which no program reads and whose contents
//! mean nothing; and the values in `SOURCE_RANGES*` and `SERVICE_CIDRS*`, which no program looks at.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    net::SocketAddr,
    ops::Bound,
};

use lb_common::abi::{Frontend, FrontendKey, LIST_BITS, ProtocolNumber, ServiceName, SlotRange};

use super::{Applied, Reconciler, apply};
use crate::{
    dataplane::{AuditReport, ClientList, Drift, FamilyMaps, MapError, SourcePrefix, tracker::Difference},
    model::{Cidr, Family, ServicePortName, TableNames},
};

/// Fewest elements of a hash table that are asked for at once: the kernel hands out whole buckets.
const LEAST: usize = 64;

/// Where the audit of a family's maps goes on.
#[derive(Debug, Default)]
pub(super) enum Place<A> {
    /// `NODE_ADDRESSES*`, `LOCAL_ADDRS*` and `SERVICE_CIDRS*`, which are small.
    #[default]
    Node,
    /// `SOURCE_RANGES*`, of which so much was found to be as it was written.
    SourceRanges(Walk<A>),
    /// What is in `FRONTENDS*`, by place in the table.
    Frontends(Option<u32>),
    /// What is in `SERVICE_NAMES*`, likewise.
    Names(Option<u32>),
    /// `BACKENDS*`, by index.
    Backends(u32),
    /// `SLOTS*`, `SERVICES*`, `SERVICE_NAMES*` and `FRONTENDS*`, by service port: those after this one.
    Ports(Option<ServicePortName>),
}

/// A walk through `SOURCE_RANGES*`.
///
/// Each prefix that is found is compared with what was written. What is missing is not found, so those that are found are
/// counted. If one of them is another's, or they are not as many as were written, or lists were changed meanwhile, so that
/// there is no place to go on from, then all of the table is read at once, which tells what is wrong. Otherwise nothing is.
#[derive(Debug)]
pub(super) struct Walk<A> {
    /// The last prefix that was found.
    after: Option<SourcePrefix<A>>,
    /// How many were found.
    found: usize,
    /// Writes to the lists before it began.
    writes: u64,
}

/// Whose an index in `SERVICES*` is, for messages: found out when there is something to say.
struct Owners<'a, A> {
    applied: &'a BTreeMap<ServicePortName, Applied<A>>,
    by_index: OnceCell<HashMap<u32, &'a ServicePortName>>,
}

impl<'a, A> Owners<'a, A> {
    fn new(applied: &'a BTreeMap<ServicePortName, Applied<A>>) -> Self {
        Self { applied, by_index: OnceCell::new() }
    }

    fn name(&self, index: u32) -> String {
        let by_index =
            self.by_index.get_or_init(|| self.applied.iter().map(|(name, port)| (port.index, name)).collect());
        by_index.get(&index).map_or_else(|| format!("service #{index}"), ToString::to_string)
    }
}

impl<A: Family> Reconciler<A> {
    /// Looks at the next elements until the report counts `budget` of them: more where a table that must be read at once,
    /// or the slots of one service port, are more. Returns whether a pass has ended.
    pub fn audit<M: FamilyMaps<A>>(&mut self, maps: &mut M, budget: usize, report: &mut AuditReport) -> bool {
        while report.read < budget {
            let about = (budget - report.read).max(LEAST);
            self.audit_place = match mem::take(&mut self.audit_place) {
                Place::Node => {
                    self.audit_node(maps, report);
                    Place::SourceRanges(Walk { after: None, found: 0, writes: self.lists.writes })
                }
                Place::SourceRanges(walk) => match self.walk_source_ranges(maps, &walk, about, report) {
                    None => Place::Frontends(None),
                    Some(walk) => Place::SourceRanges(walk),
                },
                Place::Frontends(from) => match self.audit_frontends(maps, from, about, report) {
                    None => Place::Names(None),
                    next => Place::Frontends(next),
                },
                Place::Names(from) => match self.audit_names(maps, from, about, report) {
                    None => Place::Backends(0),
                    next => Place::Names(next),
                },
                Place::Backends(first) => match self.audit_backends(maps, first, about, report) {
                    None => Place::Ports(None),
                    Some(next) => Place::Backends(next),
                },
                Place::Ports(after) => match self.audit_ports(maps, after.as_ref(), budget, report) {
                    None => return true,
                    last => Place::Ports(last),
                },
            };
        }
        false
    }

    fn audit_node<M: FamilyMaps<A>>(&self, maps: &mut M, report: &mut AuditReport) {
        let TableNames { node_addresses, local_addresses, service_cidrs, .. } = A::TABLES;

        let found = report.look(maps.node_addresses(), Vec::len).map(|found| self.node_addresses.compare(found));
        for Difference { key, value, drift } in found.into_iter().flatten() {
            let written = match value {
                Some(address) => maps.set_node_address(key, address),
                None => FamilyMaps::<A>::remove_node_address(maps, key),
            };
            report.note(node_addresses, format_args!("the address of interface {key}"), drift, 1, written);
        }
        let found = report.look(maps.local_addresses(), Vec::len).map(|found| self.local_addresses.compare(found));
        for Difference { key, value, drift } in found.into_iter().flatten() {
            let written = match value {
                Some(flags) => maps.set_local_address(key, flags),
                None => maps.remove_local_address(key),
            };
            report.note(local_addresses, key.to_ip(), drift, 1, written);
        }
        let found = report.look(maps.service_cidrs(), Vec::len);
        let found = found.map(|found| self.service_cidrs.compare(found.into_iter().map(|cidr| (cidr, ()))));
        for Difference { key, value, drift } in found.into_iter().flatten() {
            let written = match value {
                Some(()) => maps.set_service_cidr(key),
                None => maps.remove_service_cidr(key),
            };
            report.note(service_cidrs, key, drift, 1, written);
        }
    }

    /// Returns the walk where there is more to find.
    fn walk_source_ranges<M: FamilyMaps<A>>(
        &self,
        maps: &mut M,
        walk: &Walk<A>,
        about: usize,
        report: &mut AuditReport,
    ) -> Option<Walk<A>> {
        let Walk { after, found, writes } = *walk;
        if writes == self.lists.writes {
            let (prefixes, last) = report.look(maps.some_source_prefixes(after, about), |(found, _)| found.len())?;
            let found = found + prefixes.len();
            let is_ours = |prefix: &SourcePrefix<A>| prefix.network().is_some_and(|network| self.lists.holds(network));
            if prefixes.iter().all(is_ours) && found <= self.lists.count() {
                if last.is_some() {
                    return Some(Walk { after: last, found, writes });
                }
                if found == self.lists.count() {
                    return None;
                }
            }
        }
        self.audit_source_ranges(maps, report);
        None
    }

    fn audit_source_ranges<M: FamilyMaps<A>>(&self, maps: &mut M, report: &mut AuditReport) {
        let Some(found) = report.look(maps.source_prefixes(), Vec::len) else { return };
        let map = A::TABLES.source_ranges;
        let mut missing: HashSet<(ClientList, Cidr<A>)> = self.lists.all().collect();
        let is_stray = |prefix: &SourcePrefix<A>| prefix.network().is_none_or(|network| !missing.remove(&network));
        let strays: Vec<_> = found.into_iter().filter(is_stray).collect();

        let owners = Owners::new(&self.applied);
        for prefix in strays {
            let written = maps.remove_source_prefix(prefix);
            let SourcePrefix { bits, service, edition, .. } = prefix;
            let object = if let Some((list, clients)) = prefix.network() {
                format!("clients {clients} of {}", owners.name(list.service))
            } else if bits < LIST_BITS {
                format!("clients of many services, by {bits} bits of service #{service}")
            } else {
                format!("clients of list {edition} of {}, which no frontend can name,", owners.name(service))
            };
            report.note(map, object, Drift::Stray, 1, written);
        }
        let mut missing: Vec<_> = missing.into_iter().collect();
        missing.sort_unstable();
        for (list, clients) in missing {
            let written = maps.set_source_range(list, clients);
            report.note(map, format!("clients {clients} of {}", owners.name(list.service)), Drift::Missing, 1, written);
        }
    }

    /// Those that are in the table. Returns where the next are.
    fn audit_frontends<M: FamilyMaps<A>>(
        &self,
        maps: &mut M,
        from: Option<u32>,
        about: usize,
        report: &mut AuditReport,
    ) -> Option<u32> {
        let (found, next) = report.look(maps.some_frontends(from, about), |(found, _)| found.len())?;
        let owners = Owners::new(&self.applied);
        for (key, value) in found {
            match self.frontends.get(&key) {
                Some(known) if *known == value => {}
                Some(known) => put_back(maps, &key, *known, Drift::Changed, &owners, report),
                None => {
                    let written = maps.remove_frontend(&key);
                    report.note(A::TABLES.frontends, describe(&key), Drift::Stray, 1, written);
                }
            }
        }
        next
    }

    /// Names of indices that are nobody's. Those of the others come with their service ports, or go by and by.
    fn audit_names<M: FamilyMaps<A>>(
        &self,
        maps: &mut M,
        from: Option<u32>,
        about: usize,
        report: &mut AuditReport,
    ) -> Option<u32> {
        let page = FamilyMaps::<A>::some_service_names(maps, from, about);
        let (found, next) = report.look(page, |(found, _)| found.len())?;
        let capacity = FamilyMaps::<A>::capacities(maps).services;
        for (index, name) in found {
            if index >= capacity || self.indices.is_free(index) {
                let written = FamilyMaps::<A>::remove_service_name(maps, index);
                report.note(A::TABLES.service_names, format!("#{index}, {name},"), Drift::Stray, 1, written);
            }
        }
        next
    }

    /// Returns the index of the next ones.
    fn audit_backends<M: FamilyMaps<A>>(
        &self,
        maps: &mut M,
        first: u32,
        about: usize,
        report: &mut AuditReport,
    ) -> Option<u32> {
        let count = u32::try_from(about).unwrap_or(u32::MAX);
        let found = report.look(maps.backends(first, count), Vec::len)?;
        let owners = Owners::new(&self.applied);
        let read = found.len();
        for (index, found) in (first..).zip(found) {
            let written = self.backends.written(index);
            // Of one that is not in use the rest means nothing.
            let is_same = if written.generation == 0 { found.generation == 0 } else { found == written };
            if is_same {
                continue;
            }
            let (shown, drift) = match (written.generation, found.generation) {
                (0, _) => (found, Drift::Stray),
                (_, 0) => (written, Drift::Missing),
                _ => (written, Drift::Changed),
            };
            let address = SocketAddr::new(shown.address.to_ip(), shown.port);
            let object = format!("{address} of {}", owners.name(shown.service));
            // At once, not as a new one is taken into use: with its generation 0 meanwhile, its UDP flows would be picked
            // for anew. A program that reads meanwhile may find half of it, which is no worse than what was there.
            report.note(A::TABLES.backends, object, drift, 1, maps.set_backend(index, written));
        }
        let next = first.saturating_add(count);
        (read == count as usize && next < maps.capacities().backends).then_some(next)
    }

    /// Returns the last service port that was looked at.
    fn audit_ports<M: FamilyMaps<A>>(
        &self,
        maps: &mut M,
        after: Option<&ServicePortName>,
        budget: usize,
        report: &mut AuditReport,
    ) -> Option<ServicePortName> {
        let owners = Owners::new(&self.applied);
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (name, applied) in self.applied.range::<ServicePortName, _>((start, Bound::Unbounded)) {
            if report.read >= budget {
                return last.or(after).cloned();
            }
            self.audit_port(maps, name, applied, &owners, report);
            last = Some(name);
        }
        None
    }

    fn audit_port<M: FamilyMaps<A>>(
        &self,
        maps: &mut M,
        name: &ServicePortName,
        applied: &Applied<A>,
        owners: &Owners<'_, A>,
        report: &mut AuditReport,
    ) {
        let TableNames { services, service_names, .. } = A::TABLES;
        let Applied { index, named, value, ref cluster, ref local, ref frontends, .. } = *applied;
        if !named {
            return;
        }
        audit_slots(maps, name, value.cluster, cluster, report);
        audit_slots(maps, name, value.local, local, report);
        if let Some(found) = report.look(FamilyMaps::<A>::service(maps, index), |_| 1)
            && found != value
        {
            report.note(services, name, Drift::Changed, 1, FamilyMaps::<A>::set_service(maps, index, value));
        }
        let label: Option<ServiceName> = apply::label(name).ok();
        if let Some(found) = report.look(FamilyMaps::<A>::service_name(maps, index), |_| 1)
            && let Some(label) = label
            && found != Some(label)
        {
            let drift = if found.is_none() { Drift::Missing } else { Drift::Changed };
            let written = FamilyMaps::<A>::set_service_name(maps, index, &label);
            report.note(service_names, format_args!("the name of {name}"), drift, 1, written);
        }
        for key in frontends {
            // Another one may have taken it over, or it could not be entered yet.
            let known = self.frontends.get(key).copied().filter(|frontend| frontend.service == index);
            if let Some(known) = known
                && let Some(found) = report.look(maps.frontend(key), |_| 1)
                && found != Some(known)
            {
                let drift = if found.is_none() { Drift::Missing } else { Drift::Changed };
                put_back(maps, key, known, drift, owners, report);
            }
        }
    }
}

fn audit_slots<A: Family, M: FamilyMaps<A>>(
    maps: &mut M,
    name: &ServicePortName,
    range: SlotRange,
    list: &[u32],
    report: &mut AuditReport,
) {
    if list.is_empty() {
        return;
    }
    let Some(found) = report.look(FamilyMaps::<A>::slots(maps, range), Vec::len) else { return };
    let differs = |position: &usize| found.get(*position) != list.get(*position);
    let wrong: Vec<usize> = (0..list.len()).filter(differs).collect();
    if let (Some(first), Some(last)) = (wrong.first(), wrong.last())
        && let Ok(offset) = u32::try_from(*first)
    {
        // Those between that are right are written as they are.
        let written = FamilyMaps::<A>::set_slots(maps, range.first + offset, &list[*first..=*last]);
        let object = format!("{} of {} slots of {name}", wrong.len(), list.len());
        report.note(A::TABLES.slots, object, Drift::Changed, wrong.len(), written);
    }
}

fn put_back<A: Family, M: FamilyMaps<A>>(
    maps: &mut M,
    key: &FrontendKey<A>,
    value: Frontend,
    drift: Drift,
    owners: &Owners<'_, A>,
    report: &mut AuditReport,
) {
    let written: Result<(), MapError> = maps.set_frontend(key, value);
    let object = format!("{} of {}", describe(key), owners.name(value.service));
    report.note(A::TABLES.frontends, object, drift, 1, written);
}

fn describe<A: Family>(key: &FrontendKey<A>) -> String {
    let FrontendKey { address, port, protocol, .. } = *key;
    if port == 0 {
        return format!("cluster IP {}", address.to_ip());
    }
    format!("{}/{}", SocketAddr::new(address.to_ip(), port), ProtocolNumber(protocol.into()))
}
