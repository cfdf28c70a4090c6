use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    intern::Interner,
    objects::{Change, ChangeTrigger, EndpointSlice, Node, ObjectKey, ObjectKind, Service, SourceEvent},
    remembered::Remembered,
};

/// What all sources have said, and which Services each event touches.
///
/// Objects are stored as they come, indexed so that one Service's slices are found without a search. Nothing may be
/// derived from them before [`Self::is_complete`]: a Service whose slices have not been listed yet looks like one that
/// has no endpoints.
#[derive(Debug)]
pub struct Inputs {
    /// Kinds that no source has listed yet.
    awaited: BTreeSet<ObjectKind>,
    services: HashMap<ObjectKey, Service>,
    slices: HashMap<ObjectKey, EndpointSlice>,
    /// Keys of each Service's slices, ascending.
    slices_of: HashMap<ObjectKey, Vec<ObjectKey>>,
    node: Option<Node>,
    /// What made the slices of each Service change since it was taken last.
    triggers: HashMap<ObjectKey, Vec<ChangeTrigger>>,
    service_cidrs: BTreeMap<ObjectKey, Vec<IpNet>>,
    names: Interner,
    remembered: Remembered,
}

/// Most triggers of one Service that are kept: more come together only while its tables cannot be written.
const MAX_TRIGGERS: usize = 64;

impl Inputs {
    /// No objects yet, expecting a first list of each of `kinds`.
    pub fn new(kinds: impl IntoIterator<Item = ObjectKind>) -> Self {
        Self {
            awaited: kinds.into_iter().collect(),
            services: HashMap::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            node: None,
            triggers: HashMap::new(),
            service_cidrs: BTreeMap::new(),
            names: Interner::default(),
            remembered: Remembered::default(),
        }
    }

    /// Begins with what the maps of a former agent say: Services, and slices of one port each. A Service stays if the
    /// first list rejects it, all stay while something cannot be read ([`SourceEvent::Unread`]), and endpoints stay
    /// where a rejected slice may hold them. The rest goes with the first lists.
    pub fn remember(&mut self, services: Vec<(ObjectKey, Service)>, slices: Vec<EndpointSlice>) {
        let names = services.iter().map(|(key, _)| key.clone()).collect();
        for (key, service) in services {
            self.change(Change::Service(key, Some(service)), &mut BTreeSet::new());
        }
        self.remembered = Remembered::new(names, slices);
    }

    /// Whether every expected kind has been listed once.
    pub fn is_complete(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Whether a source could not read something, and nobody knows what it holds.
    pub fn has_unread(&self) -> bool {
        self.remembered.unread
    }

    /// Kinds that have not been listed yet, for messages.
    pub fn awaited(&self) -> impl Iterator<Item = ObjectKind> {
        self.awaited.iter().copied()
    }

    /// The Service of this name.
    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// Names of all Services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.keys()
    }

    /// The slices of a Service, in the order of their names; then what is remembered of slices that cannot be read.
    pub fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &EndpointSlice> {
        let known = self.slices_of.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        known.chain(self.remembered.slices_of(service))
    }

    /// This node.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// What made the slices of a Service change since this was asked last.
    pub fn take_triggers(&mut self, service: &ObjectKey) -> Vec<ChangeTrigger> {
        self.triggers.remove(service).unwrap_or_default()
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: ObjectKind) -> usize {
        match kind {
            ObjectKind::Service => self.services.len(),
            ObjectKind::EndpointSlice => self.slices.len(),
            ObjectKind::Node => self.node.iter().count(),
            ObjectKind::ServiceCidr => self.service_cidrs.len(),
        }
    }

    /// The networks of all `ServiceCIDR`s, whatever their conditions, as kube-proxy takes them (`ServiceCIDRConfig` in
    /// `pkg/proxy/config/config.go`).
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.service_cidrs.values().flatten().copied()
    }

    /// Takes in an event and returns the Services whose desired state it may have changed: exactly one for a Service
    /// or a slice that changed, none for one that did not.
    pub fn apply(&mut self, event: SourceEvent) -> BTreeSet<ObjectKey> {
        let mut dirty = BTreeSet::new();
        match event {
            SourceEvent::Changed(change) => self.change(change, &mut dirty),
            SourceEvent::Replaced { kind, objects, rejected } => {
                for gone in self.missing_from(kind, &objects, &rejected) {
                    self.change(gone, &mut dirty);
                }
                self.take_rejected(kind, rejected, &mut dirty);
                for change in objects {
                    self.change(change, &mut dirty);
                }
                self.awaited.remove(&kind);
            }
            SourceEvent::Unread(unread) => {
                self.remembered.unread = unread;
                if !unread {
                    for service in std::mem::take(&mut self.remembered.services) {
                        self.change(Change::Service(service, None), &mut dirty);
                    }
                    dirty.extend(self.remembered.forget_slices());
                }
            }
        }
        dirty
    }

    /// Keeps what is remembered of objects that a list rejected, and nothing else unless something is unread.
    fn take_rejected(&mut self, kind: ObjectKind, rejected: Vec<ObjectKey>, dirty: &mut BTreeSet<ObjectKey>) {
        match kind {
            // They exist: from now on they stay until somebody says otherwise.
            ObjectKind::Service => self.remembered.services.retain(|key| !rejected.contains(key)),
            ObjectKind::EndpointSlice => {
                let unknown = rejected.into_iter().filter(|key| !self.slices.contains_key(key)).collect();
                self.remembered.reject(unknown);
                dirty.extend(self.remembered.forget_slices());
            }
            ObjectKind::Node | ObjectKind::ServiceCidr => {}
        }
    }

    /// Deletions of what is known of `kind` and is neither in `objects` nor in `rejected`, nor may be in something
    /// unread.
    fn missing_from(&self, kind: ObjectKind, objects: &[Change], rejected: &[ObjectKey]) -> Vec<Change> {
        let mut listed: HashSet<&ObjectKey> = rejected.iter().collect();
        listed.extend(objects.iter().filter_map(|change| match change {
            Change::Service(key, _) | Change::EndpointSlice(key, _) | Change::ServiceCidr(key, _) => Some(key),
            Change::Node(_) => None,
        }));
        match kind {
            ObjectKind::Service => {
                let Remembered { unread, services, .. } = &self.remembered;
                let may_be_unread = |key| *unread && services.contains(key);
                let gone = self.services.keys().filter(|key| !listed.contains(key) && !may_be_unread(*key));
                gone.map(|key| Change::Service(key.clone(), None)).collect()
            }
            ObjectKind::EndpointSlice => {
                let gone = self.slices.keys().filter(|key| !listed.contains(key));
                gone.map(|key| Change::EndpointSlice(key.clone(), None)).collect()
            }
            // It stays what it was: see `change_node`.
            ObjectKind::Node => Vec::new(),
            ObjectKind::ServiceCidr => {
                let gone = self.service_cidrs.keys().filter(|key| !listed.contains(key));
                gone.map(|key| Change::ServiceCidr(key.clone(), None)).collect()
            }
        }
    }

    fn change(&mut self, change: Change, dirty: &mut BTreeSet<ObjectKey>) {
        match change {
            Change::Service(key, service) => self.change_service(key, service, dirty),
            Change::EndpointSlice(key, slice) => self.change_slice(key, slice, dirty),
            Change::Node(node) => self.change_node(node, dirty),
            Change::ServiceCidr(key, Some(cidrs)) => drop(self.service_cidrs.insert(key, cidrs)),
            Change::ServiceCidr(key, None) => drop(self.service_cidrs.remove(&key)),
        }
    }

    fn change_service(&mut self, mut key: ObjectKey, service: Option<Service>, dirty: &mut BTreeSet<ObjectKey>) {
        self.remembered.services.remove(&key);
        if self.services.get(&key) == service.as_ref() {
            return;
        }
        match service {
            Some(mut service) => {
                self.names.intern(&mut key.namespace);
                service.ports.iter_mut().for_each(|port| self.names.intern(&mut port.name));
                self.services.insert(key.clone(), service);
            }
            None => drop(self.services.remove(&key)),
        }
        dirty.insert(key);
    }

    fn change_slice(&mut self, mut key: ObjectKey, mut slice: Option<EndpointSlice>, dirty: &mut BTreeSet<ObjectKey>) {
        if let Some(slice) = &slice {
            self.remembered.hand_over(slice);
        }
        if self.remembered.resolve(&key) {
            dirty.extend(self.remembered.forget_slices());
        }
        let trigger = slice.as_mut().and_then(|slice| slice.trigger.take());
        if self.slices.get(&key) == slice.as_ref() {
            return;
        }
        if let Some(old) = self.slices.remove(&key) {
            if let Some(keys) = self.slices_of.get_mut(&old.service) {
                keys.retain(|other| *other != key);
                if keys.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
            if slice.is_none() {
                // A deletion carries the time of the change before it: it says nothing of what is still to be written.
                self.triggers.remove(&old.service);
            }
            dirty.insert(old.service);
        }
        if let Some(mut slice) = slice {
            self.names.intern(&mut key.namespace);
            self.share_names(&mut slice);
            dirty.insert(slice.service.clone());
            if let Some(trigger) = trigger {
                let triggers = self.triggers.entry(slice.service.clone()).or_default();
                if triggers.len() < MAX_TRIGGERS {
                    triggers.push(trigger);
                }
            }
            let keys = self.slices_of.entry(slice.service.clone()).or_default();
            keys.insert(keys.partition_point(|other| *other < key), key.clone());
            keys.shrink_to_fit();
            self.slices.insert(key, slice);
        }
    }

    fn share_names(&mut self, slice: &mut EndpointSlice) {
        self.names.intern(&mut slice.service.namespace);
        slice.ports.iter_mut().for_each(|port| self.names.intern(&mut port.name));
        for endpoint in &mut slice.endpoints {
            let hints = endpoint.zone_hints.iter_mut().chain(&mut endpoint.node_hints);
            hints.chain(&mut endpoint.node_name).for_each(|name| self.names.intern(name));
        }
        slice.endpoints.shrink_to_fit();
    }

    /// Of a Node only two things count: its zone, for Services whose endpoints have zone hints, and its addresses, for
    /// those that only some clients may use. Both change so seldom that looking through everything is cheaper than
    /// keeping track.
    ///
    /// A Node that is deleted stays what it was, as long as this process runs: so does kube-proxy's (`OnNodeDelete` of
    /// `pkg/proxy/node.go`), and node ports are not to die by it. Of one that is made anew, addresses and networks of pods
    /// that it does not have yet are those of before: kube-proxy keeps the addresses of its start, and starts again when
    /// the networks change.
    fn change_node(&mut self, node: Option<Node>, dirty: &mut BTreeSet<ObjectKey>) {
        let Some(mut node) = node else { return };
        if let Some(before) = &self.node {
            if node.internal_ips.is_empty() && node.external_ips.is_empty() {
                node.internal_ips.clone_from(&before.internal_ips);
                node.external_ips.clone_from(&before.external_ips);
            }
            if node.pod_cidrs.is_empty() {
                node.pod_cidrs.clone_from(&before.pod_cidrs);
            }
        }
        let node = Some(node);
        let zone = |node: &Option<Node>| node.as_ref().and_then(|node| node.zone.as_ref().map(Arc::clone));
        if zone(&self.node) != zone(&node) {
            let hinted = self.slices.values().filter(|slice| slice.endpoints.iter().any(|e| !e.zone_hints.is_empty()));
            dirty.extend(hinted.map(|slice| slice.service.clone()));
        }
        let addresses =
            |node: &Option<Node>| node.as_ref().map(|node| (node.internal_ips.clone(), node.external_ips.clone()));
        if addresses(&self.node).unwrap_or_default() != addresses(&node).unwrap_or_default() {
            let restricted = self.services.iter().filter(|(_, service)| !service.source_ranges.is_empty());
            dirty.extend(restricted.map(|(key, _)| key.clone()));
        }
        self.node = node;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::model::testing::{endpoint, key, service, slice};

    fn set(keys: &[&str]) -> BTreeSet<ObjectKey> {
        keys.iter().map(|name| key(name)).collect()
    }

    fn slice_change(name: &str, slice: Option<EndpointSlice>) -> SourceEvent {
        SourceEvent::Changed(Change::EndpointSlice(key(name), slice))
    }

    fn replaced(kind: ObjectKind, objects: Vec<Change>) -> SourceEvent {
        SourceEvent::Replaced { kind, objects, rejected: Vec::new() }
    }

    #[test]
    fn complete_only_when_every_kind_was_listed_by_whichever_source() {
        let mut inputs = Inputs::new([ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node]);
        for kind in [ObjectKind::Node, ObjectKind::EndpointSlice] {
            inputs.apply(replaced(kind, Vec::new()));
            assert!(!inputs.is_complete());
        }
        inputs.apply(SourceEvent::Changed(Change::Service(key("web"), Some(service("10.96.0.1")))));
        assert!(!inputs.is_complete(), "one object is not a list");
        inputs.apply(replaced(ObjectKind::Service, Vec::new()));
        assert!(inputs.is_complete());
        assert_eq!(inputs.service(&key("web")), None, "the list did not have it");
    }

    #[test]
    fn a_slice_dirties_its_service_and_the_one_that_it_left() {
        let mut inputs = Inputs::new([]);
        let web = slice("web", &[endpoint("10.0.0.1")]);
        assert_eq!(inputs.apply(slice_change("web-1", Some(web.clone()))), set(&["web"]));
        assert_eq!(inputs.apply(slice_change("web-1", Some(web))), set(&[]), "nothing changed");
        let moved = slice("api", &[endpoint("10.0.0.1")]);
        assert_eq!(inputs.apply(slice_change("web-1", Some(moved))), set(&["api", "web"]));
        assert_eq!(inputs.slices_of(&key("web")).count(), 0);
        assert_eq!(inputs.slices_of(&key("api")).count(), 1);
        assert_eq!(inputs.apply(slice_change("web-1", None)), set(&["api"]));
        assert_eq!(inputs.apply(slice_change("web-1", None)), set(&[]));
    }

    #[test]
    fn triggers_are_those_of_changes_and_no_changes_themselves() {
        let mut inputs = Inputs::new([]);
        let trigger = |second| ChangeTrigger { at: Timestamp::from_second(second).expect("in range"), is_ipv4: true };
        let triggered = |second, ip: &str| {
            let slice = EndpointSlice { trigger: Some(trigger(second)), ..slice("web", &[endpoint(ip)]) };
            slice_change("web-1", Some(slice))
        };
        assert_eq!(inputs.apply(triggered(1, "10.0.0.1")), set(&["web"]));
        assert_eq!(inputs.apply(triggered(2, "10.0.0.1")), set(&[]), "only the annotation changed");
        assert_eq!(inputs.apply(triggered(3, "10.0.0.2")), set(&["web"]));
        assert_eq!(inputs.take_triggers(&key("web")), [trigger(1), trigger(3)]);
        assert_eq!(inputs.take_triggers(&key("web")), []);
        inputs.apply(triggered(4, "10.0.0.3"));
        inputs.apply(slice_change("web-1", None));
        assert_eq!(inputs.take_triggers(&key("web")), [], "a deletion has no time");
        for second in 0..1000 {
            inputs.apply(triggered(second, if second % 2 == 0 { "10.0.0.1" } else { "10.0.0.2" }));
        }
        assert_eq!(inputs.take_triggers(&key("web")).len(), MAX_TRIGGERS);
    }

    #[test]
    fn a_new_list_dirties_what_differs_and_keeps_what_was_rejected() {
        let mut inputs = Inputs::new([ObjectKind::Service]);
        let change = |name: &str, ip: &str| Change::Service(key(name), Some(service(ip)));
        let first = vec![change("a", "10.96.0.1"), change("b", "10.96.0.2"), change("c", "10.96.0.3")];
        assert_eq!(inputs.apply(replaced(ObjectKind::Service, first)), set(&["a", "b", "c"]));

        let dirty = inputs.apply(SourceEvent::Replaced {
            kind: ObjectKind::Service,
            objects: vec![change("a", "10.96.0.1"), change("d", "10.96.0.4")],
            rejected: vec![key("b")],
        });
        assert_eq!(dirty, set(&["c", "d"]));
        assert_eq!(inputs.service(&key("b")), Some(&service("10.96.0.2")));
        assert_eq!(inputs.service(&key("c")), None);
    }

    #[test]
    fn a_change_of_zone_dirties_services_with_hints_only() {
        let mut inputs = Inputs::new([]);
        let mut hinted = endpoint("10.0.0.1");
        hinted.zone_hints = vec!["a".into()];
        inputs.apply(slice_change("hinted-1", Some(slice("hinted", &[hinted]))));
        inputs.apply(slice_change("plain-1", Some(slice("plain", &[endpoint("10.0.0.2")]))));

        let node = |zone: &str, taints: Vec<Arc<str>>| Node { zone: Some(zone.into()), taints, ..Node::default() };
        let mut change = |node| inputs.apply(SourceEvent::Changed(Change::Node(Some(node))));
        assert_eq!(change(node("a", Vec::new())), set(&["hinted"]));
        assert_eq!(change(node("a", vec!["tainted".into()])), set(&[]));
        assert_eq!(change(node("b", Vec::new())), set(&["hinted"]));
    }

    #[test]
    fn a_node_that_is_deleted_stays_what_it_was_and_what_it_gets_anew_is_taken() {
        let ips = |text: &str| vec![text.parse().expect("an address")];
        let known = Node {
            zone: Some("a".into()),
            internal_ips: ips("192.0.2.1"),
            external_ips: ips("198.51.100.1"),
            pod_cidrs: vec!["10.1.1.0/24".parse().expect("a network")],
            ..Node::default()
        };
        let mut inputs = Inputs::new([ObjectKind::Node]);
        let mut hinted = endpoint("10.0.0.1");
        hinted.zone_hints = vec!["a".into()];
        inputs.apply(slice_change("hinted-1", Some(slice("hinted", &[hinted]))));
        inputs.apply(SourceEvent::Changed(Change::Node(Some(known.clone()))));
        for event in [SourceEvent::Changed(Change::Node(None)), replaced(ObjectKind::Node, Vec::new())] {
            assert_eq!(inputs.apply(event), set(&[]));
            assert_eq!(inputs.node(), Some(&known));
        }
        // As the kubelet makes it: what controllers add comes later.
        let anew = Node { taints: vec!["new".into()], ..Node::default() };
        assert_eq!(inputs.apply(SourceEvent::Changed(Change::Node(Some(anew.clone())))), set(&["hinted"]), "the zone");
        let Node { internal_ips, external_ips, pod_cidrs, .. } = known;
        assert_eq!(inputs.node(), Some(&Node { internal_ips, external_ips, pod_cidrs, ..anew.clone() }));
        let complete =
            Node { internal_ips: ips("192.0.2.9"), pod_cidrs: vec!["10.1.9.0/24".parse().expect("one")], ..anew };
        inputs.apply(SourceEvent::Changed(Change::Node(Some(complete.clone()))));
        assert_eq!(inputs.node(), Some(&complete));
    }
}
