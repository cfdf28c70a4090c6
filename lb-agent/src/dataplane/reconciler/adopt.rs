//! Taking over what a former agent left in the maps.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_common::abi::{Service, ServiceName, SlotRange};

use super::{Applied, Garbage, Reconciler, Tuning};
use crate::{
    dataplane::{Capacities, ClientList, Existing, tracker::Tracker},
    model::{Family, ObjectKey, Protocol, ServicePortName},
};

impl<A: Family> Reconciler<A> {
    /// A reconciler of maps that hold `existing`: indices and generations stay, so that the first synchronization
    /// writes only what differs and flows do not notice.
    ///
    /// What does not make sense (a range beyond the table or shared with another service, a slot without a backend of
    /// the service's own, a second index of the same name, a backend of a service without a name) is not taken over: it
    /// stays as it is until all service ports have been written anew, then it is removed.
    ///
    /// What the former agent freed last is not known, and may be reused at once: no program runs as long as an agent
    /// takes to start.
    pub fn adopt(capacities: Capacities, existing: Existing<A>, tuning: Tuning) -> Self {
        let Existing {
            frontends,
            services,
            slots,
            backends,
            node_addresses,
            local_addresses,
            source_ranges,
            service_cidrs,
        } = existing;
        let mut this = Self::empty(capacities, tuning);
        this.node_addresses = Tracker::new(node_addresses);
        this.local_addresses = Tracker::new(local_addresses);
        this.service_cidrs = Tracker::new(service_cidrs.into_iter().map(|cidr| (cidr, ())));
        let named_lists: BTreeSet<ClientList> =
            frontends.iter().filter_map(|(_, value)| ClientList::of(*value)).collect();
        this.lists.adopt(source_ranges, &named_lists);
        let mut backends_of: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (index, backend) in backends {
            if this.backends.adopt(index, backend) {
                backends_of.entry(backend.service).or_default().push(index);
            }
        }
        let slots: HashMap<u32, u32> = slots.into_iter().collect();
        let mut adopted = HashMap::new();
        let mut rejected = Vec::new();
        for (index, name, value) in services {
            match this.adopt_service(index, &name, value, &slots) {
                Some(name) => {
                    if let Some(applied) = this.applied.get_mut(&name) {
                        applied.backends = backends_of.remove(&index).unwrap_or_default();
                        // Of several, where the former agent was stopped in the midst of a change, any is one that was in force.
                        applied.clients = named_lists.range(ClientList::all_of(index)).next().copied();
                        applied.backends.sort_by_key(|backend| (this.backends.endpoint(*backend), *backend));
                    }
                    adopted.insert(index, name);
                }
                None => rejected.push((index, value)),
            }
        }
        let in_force: BTreeSet<ClientList> = this.applied.values().filter_map(|applied| applied.clients).collect();
        named_lists.difference(&in_force).for_each(|list| this.lists.supersede(*list));
        // Until the last frontend, backend and list that name it are gone, an index is in use, whatever is there.
        let by_frontends = frontends.iter().map(|(_, value)| value.service);
        let by_contents = backends_of.keys().copied().chain(this.lists.services());
        let named = by_frontends.chain(by_contents).map(|index| (index, Service::default()));
        let named: BTreeMap<u32, Service> = named.chain(rejected).collect();
        for (service, value) in named.into_iter().filter(|(index, _)| !adopted.contains_key(index)) {
            let slots = [value.cluster, value.local].map(|range| this.slots.reserve_free_parts(range)).concat();
            let backends = backends_of.remove(&service).unwrap_or_default();
            let index = this.indices.reserve(SlotRange { first: service, count: 1 }).then_some(service);
            this.garbage.push(Garbage { service, index, slots, backends });
        }
        let mut frontends_of: BTreeMap<&ServicePortName, Vec<_>> = BTreeMap::new();
        for (key, value) in frontends {
            this.note_frontend(key, value);
            match adopted.get(&value.service) {
                Some(name) => frontends_of.entry(name).or_default().push(key),
                None => drop(this.removals.insert(key)),
            }
        }
        for (name, mut keys) in frontends_of {
            keys.sort_unstable();
            if let Some(applied) = this.applied.get_mut(name) {
                applied.frontends = keys.into();
            }
        }
        this
    }

    /// Takes over one service port, if all of it makes sense.
    fn adopt_service(
        &mut self,
        index: u32,
        name: &ServiceName,
        value: Service,
        slots: &HashMap<u32, u32>,
    ) -> Option<ServicePortName> {
        let (namespace, service, port) = name.parts();
        let protocol = Protocol::from_number(name.protocol)?;
        let name = ServicePortName { service: ObjectKey::new(namespace, service), port: port.into(), protocol };
        if self.applied.contains_key(&name) {
            return None;
        }
        let cluster = self.backends_in(value.cluster, slots, index)?;
        let local = self.backends_in(value.local, slots, index)?;
        if !self.slots.reserve(value.cluster) {
            return None;
        }
        if !self.slots.reserve(value.local) {
            self.slots.release(value.cluster);
            return None;
        }
        if !self.indices.reserve(SlotRange { first: index, count: 1 }) {
            self.slots.release(value.cluster);
            self.slots.release(value.local);
            return None;
        }
        let applied = Applied { named: true, value, cluster, local, ..Applied::new(index) };
        self.applied.insert(name.clone(), applied);
        Some(name)
    }

    /// The backends in a range of slots, if each slot has one of the service's own.
    fn backends_in(&self, range: SlotRange, slots: &HashMap<u32, u32>, service: u32) -> Option<Box<[u32]>> {
        (range.first..range.first.checked_add(range.count)?)
            .map(|slot| slots.get(&slot).copied().filter(|index| self.backends.is_of(*index, service)))
            .collect()
    }
}
