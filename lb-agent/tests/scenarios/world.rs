use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use lb_agent::{
    controller::{Controller, Settings},
    dataplane::{Fake, FamilyMaps, Tuning, check},
    model::{Change, DetectLocal, NodeNetwork, NodePortAddresses, ObjectKey, ObjectKind, Policy, SourceEvent},
    source::{Reduced, parse_cidr_sloppy, reduce_json},
};
use lb_common::abi::LocalAddressFlags;
use serde_json::Value;

/// The name of this node in all scenarios.
const HERE: &str = "here";
/// Its addresses.
const ADDRESSES: [(&str, u32); 6] = [
    ("127.0.0.1", LocalAddressFlags::LOOPBACK),
    ("192.0.2.1", 0),
    ("198.51.100.1", 0),
    ("::1", LocalAddressFlags::LOOPBACK),
    ("2001:db8::1", 0),
    ("2001:db8:1::1", 0),
];

/// An agent on maps in memory.
pub(crate) struct World {
    maps: Fake,
    policy: Policy,
    controller: Controller,
    /// What the API server holds.
    objects: BTreeMap<(ObjectKind, ObjectKey), Change>,
    now: Instant,
}

impl World {
    pub(crate) fn new(policy: &str) -> Self {
        let maps = Fake::default();
        let policy = read_policy(policy);
        let controller = adopt(&maps, &policy);
        let mut world = Self { maps, policy, controller, objects: BTreeMap::new(), now: Instant::now() };
        world.list();
        world
    }

    pub(crate) fn apply(&mut self, place: &str, text: &str) {
        for document in text.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{place}: {error}"));
            let kind = object["kind"].as_str().unwrap_or_default();
            let (kind, reduced) = match kind {
                "Service" => (ObjectKind::Service, reduce_json::<Service>(&object)),
                "EndpointSlice" => (ObjectKind::EndpointSlice, reduce_json::<EndpointSlice>(&object)),
                "Node" => (ObjectKind::Node, reduce_json::<Node>(&object)),
                "ServiceCIDR" => (ObjectKind::ServiceCidr, reduce_json::<ServiceCIDR>(&object)),
                other => panic!("{place}: kind {other:?}"),
            };
            let Reduced { key, change, rejections: _ } = reduced;
            // What is rejected keeps its last good state.
            if let Some(change) = change {
                self.controller.apply(SourceEvent::Changed(change.clone()));
                if change.exists() {
                    self.objects.insert((kind, key), change);
                } else {
                    self.objects.remove(&(kind, key));
                }
            }
        }
    }

    pub(crate) fn delete(&mut self, place: &str, text: &str) {
        for line in text.lines() {
            let (kind, name) = line.split_once(' ').unwrap_or_else(|| panic!("{place}: {line}"));
            let kind = ObjectKind::ALL.into_iter().find(|known| known.name() == kind);
            let kind = kind.unwrap_or_else(|| panic!("{place}: {line}"));
            let namespaced = matches!(kind, ObjectKind::Service | ObjectKind::EndpointSlice);
            let key = ObjectKey::new(if namespaced { "default" } else { "" }, name);
            assert!(self.objects.remove(&(kind, key.clone())).is_some(), "{place}: {line}: is not there");
            self.controller.apply(SourceEvent::Changed(Change::gone(kind, key)));
        }
    }

    /// Brings the maps up to date and renders them. Checks what holds in every scenario.
    pub(crate) fn tables(&mut self, place: &str) -> String {
        self.sync(place);
        let tables = self.maps.to_string();
        let v4 = check::<[u8; 4]>(&self.maps.existing().expect("a fake reads"));
        let v6 = check::<[u8; 16]>(&self.maps.existing().expect("a fake reads"));
        assert_eq!((v4, v6), (Vec::new(), Vec::new()), "{place}");

        // What rested is removed.
        self.sync(place);
        self.controller = adopt(&self.maps, &self.policy);
        self.list();
        self.maps.take_writes();
        self.sync(place);
        assert_eq!(self.maps.take_writes(), BTreeMap::new(), "{place}: a restart writes nothing");
        tables
    }

    fn sync(&mut self, place: &str) {
        let report = self.controller.sync(&mut self.maps, self.now);
        assert!(report.failures.is_empty(), "{place}: {:?}", report.failures);
        self.now += Duration::from_secs(1);
    }

    fn list(&mut self) {
        for kind in ObjectKind::ALL {
            let of_kind = self.objects.iter().filter(|((of, _), _)| *of == kind);
            let objects = of_kind.map(|(_, change)| change.clone()).collect();
            self.controller.apply(SourceEvent::Replaced { kind, objects, rejected: Vec::new() });
        }
        let address = |(ip, flags): (&str, u32)| (ip.parse::<IpAddr>().expect("an address"), flags);
        let local_addresses = ADDRESSES.map(address).into();
        self.controller.set_network(NodeNetwork { local_addresses, ..NodeNetwork::default() });
    }
}

fn adopt(maps: &Fake, policy: &Policy) -> Controller {
    let tuning = Tuning { grace: Duration::from_millis(1), first_generation: 0 };
    let (kinds, policy) = (ObjectKind::ALL.into(), policy.clone());
    Controller::adopt(maps, Settings { node_name: HERE.into(), kinds, tuning, policy }).expect("a fake reads")
}

fn read_policy(text: &str) -> Policy {
    let networks = |text: &str| -> Vec<IpNet> {
        text.split_whitespace().map(|network| parse_cidr_sloppy(network).expect("a network")).collect()
    };
    let mut policy = Policy::default();
    for line in text.lines() {
        let (name, value) = line.split_once(": ").expect("name: value");
        match (name, value) {
            ("bindAddress", value) => policy.bind_address = Some(value.parse().expect("an address")),
            ("nodePortAddresses", "primary") => policy.node_port_addresses = NodePortAddresses::Primary,
            ("nodePortAddresses", list) => policy.node_port_addresses = NodePortAddresses::Within(networks(list)),
            ("localhostNodePorts", value) => policy.localhost_node_ports = value.parse().expect("a bool"),
            ("externalIPs", value) => policy.external_ips = value.parse().expect("a bool"),
            ("detectLocalMode", "NodeCIDR") => policy.detect_local = DetectLocal::NodeCidr,
            ("detectLocalMode", "none") => policy.detect_local = DetectLocal::Nothing,
            ("clusterCIDR", list) => policy.detect_local = DetectLocal::ClusterCidr(networks(list)),
            ("serviceCIDRs", list) => policy.service_cidrs = networks(list),
            _ => panic!("policy {line}"),
        }
    }
    policy
}
