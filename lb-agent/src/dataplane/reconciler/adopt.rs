//! Taking over what a former agent left in the maps.

use std::collections::{BTreeMap, HashMap};

use lb_common::abi::{Service, ServiceName, SlotRange};

use super::{Applied, Garbage, Reconciler, Tuning};
use crate::{
    dataplane::{Capacities, Existing, backends::Reference, tracker::Tracker},
    model::{Family, ObjectKey, Protocol, ServicePortName},
};

impl<A: Family> Reconciler<A> {
    /// A reconciler of maps that hold `existing`: indices and generations stay, so that the first synchronization
    /// writes only what differs and flows do not notice.
    ///
    /// What does not make sense (a range beyond the table or shared with another service, a slot without a backend, a
    /// second index of the same name) is not taken over: it stays as it is until its service port has been written
    /// anew, then it is removed.
    ///
    /// What the former agent freed last is not known, and may be reused at once: no program runs as long as an agent
    /// takes to start.
    pub fn adopt(capacities: Capacities, existing: Existing<A>, tuning: Tuning) -> Self {
        let Existing { frontends, services, slots, backends, node_addresses, node_port_addresses } = existing;
        let mut this = Self::empty(capacities, tuning);
        this.node_addresses = Tracker::new(node_addresses);
        this.node_port_addresses = Tracker::new(node_port_addresses);
        for (index, backend) in backends {
            this.backends.adopt(index, backend);
        }
        let slots: HashMap<u32, u32> = slots.into_iter().collect();
        let mut adopted = HashMap::new();
        let mut rejected = Vec::new();
        for (index, name, value) in services {
            match this.adopt_service(index, &name, value, &slots) {
                Some(name) => drop(adopted.insert(index, name)),
                None => rejected.push((index, value)),
            }
        }
        // Until the last frontend that names it is gone, an index is in use, whatever is there.
        let named: BTreeMap<u32, Service> =
            frontends.iter().map(|(_, value)| (value.service, Service::default())).chain(rejected).collect();
        for (index, value) in named {
            if !adopted.contains_key(&index) && this.indices.reserve(SlotRange { first: index, count: 1 }) {
                let slots = [value.cluster, value.local].map(|range| this.slots.reserve_free_parts(range)).concat();
                this.garbage.push(Garbage { index, slots });
            }
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
        let cluster = self.backends_in(value.cluster, slots)?;
        let local = self.backends_in(value.local, slots)?;
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
        let mut unique: Vec<u32> = cluster.iter().chain(&local).copied().collect();
        unique.sort_unstable();
        unique.dedup();
        let reference = |index| Reference { index, flags: self.backends.adopted_flags(index).unwrap_or(0) };
        let references: Box<[Reference]> = unique.into_iter().map(reference).collect();
        references.iter().for_each(|reference| self.backends.take(*reference));
        let (cluster, local) = (cluster.into(), local.into());
        let applied = Applied { index, value, cluster, local, references, frontends: Box::default() };
        self.applied.insert(name.clone(), applied);
        Some(name)
    }

    /// The backends in a range of slots, if each slot has one that may be picked.
    fn backends_in(&self, range: SlotRange, slots: &HashMap<u32, u32>) -> Option<Vec<u32>> {
        (range.first..range.first.checked_add(range.count)?)
            .map(|slot| {
                let index = *slots.get(&slot)?;
                self.backends.adopted_flags(index).map(|_| index)
            })
            .collect()
    }
}
