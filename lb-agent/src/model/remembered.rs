use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::objects::{EndpointSlice, ObjectKey};

/// What the maps of a former agent say about objects, for as long as something may still hold these objects that could
/// not be read.
///
/// A source keeps the last good state of what it has read once. An agent that starts has read nothing yet: its last good
/// state is in the maps. So that comes first, as objects, and goes when the sources have said that nothing is left
/// in which it could be: a file of which nobody knows what it holds, or an object that was rejected.
///
/// Services keep their names in the maps, so one that was rejected is found there. Slices do not: what is remembered
/// of them are the endpoints of each service port. One that a slice lists that could be read belongs to that slice
/// from then on.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// Something could not be read, and nobody knows what it holds.
    pub(super) unread: bool,
    /// Services that are here because of that only.
    pub(super) services: HashSet<ObjectKey>,
    /// Endpoints that no known slice lists, by Service, each slice of one port.
    slices: HashMap<ObjectKey, Vec<EndpointSlice>>,
    /// Slices that exist and were rejected, and of which no state is known. Their labels may be what is wrong: they may
    /// be slices of any Service of their namespace.
    rejected: HashSet<ObjectKey>,
}

impl Remembered {
    /// What the maps held. Each slice has one port.
    pub(super) fn new(services: HashSet<ObjectKey>, slices: impl IntoIterator<Item = EndpointSlice>) -> Self {
        let mut this = Self { services, ..Self::default() };
        for slice in slices {
            this.slices.entry(slice.service.clone()).or_default().push(slice);
        }
        this
    }

    /// The slices that are remembered of a Service.
    pub(super) fn slices_of(&self, service: &ObjectKey) -> &[EndpointSlice] {
        self.slices.get(service).map(Vec::as_slice).unwrap_or_default()
    }

    /// Takes note of the slices that a list rejected and of which nothing is known.
    pub(super) fn reject(&mut self, rejected: HashSet<ObjectKey>) {
        self.rejected = rejected;
    }

    /// Takes note that a slice was told: it is no longer one of which nothing is known. Returns whether it was.
    pub(super) fn resolve(&mut self, slice: &ObjectKey) -> bool {
        self.rejected.remove(slice)
    }

    /// Forgets the slices that nothing can hold any more. Returns their Services.
    pub(super) fn forget_slices(&mut self) -> Vec<ObjectKey> {
        if self.unread {
            return Vec::new();
        }
        let namespaces: HashSet<&str> = self.rejected.iter().map(|slice| &*slice.namespace).collect();
        let gone = self.slices.extract_if(|service, _| !namespaces.contains(&*service.namespace));
        gone.map(|(service, _)| service).collect()
    }

    /// Leaves to a slice that was read the endpoints that it lists.
    pub(super) fn hand_over(&mut self, read: &EndpointSlice) {
        let Some(slices) = self.slices.get_mut(&read.service) else { return };
        let addresses: HashSet<IpAddr> = read.endpoints.iter().map(|endpoint| endpoint.address).collect();
        for slice in &mut *slices {
            let lists = |name, protocol| read.ports.iter().any(|port| port.name == name && port.protocol == protocol);
            if slice.ports.iter().all(|port| lists(port.name.clone(), port.protocol)) {
                slice.endpoints.retain(|endpoint| !addresses.contains(&endpoint.address));
            }
        }
        slices.retain(|slice| !slice.endpoints.is_empty());
        if slices.is_empty() {
            self.slices.remove(&read.service);
        }
    }
}
