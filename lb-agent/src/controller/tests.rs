use std::{collections::BTreeMap, net::IpAddr};

use lb_common::abi::{
    Backend, BackendFlags, Frontend, FrontendKey, LocalAddressFlags, Service as ServiceValue, ServiceName, SlotRange,
    maps,
};

use super::*;
use crate::{
    dataplane::{Capacities, ClientList, Existing, Fake, NodeChange, check},
    model::{
        Change, Cidr, EndpointSlice, Node, Policy, Protocol, Service, ServicePort, ServiceType,
        testing::{endpoint, key, port, service, slice},
    },
};

pub(super) const GRACE: Duration = Duration::from_secs(10);

/// An agent with maps in memory and a clock that is moved by hand.
pub(super) struct World {
    pub(super) maps: Fake,
    pub(super) controller: Controller,
    pub(super) now: Instant,
}

fn controller(maps: &Fake, first_generation: u32) -> Controller {
    let kinds = [ObjectKind::Service, ObjectKind::EndpointSlice].into();
    let tuning = Tuning { grace: GRACE, first_generation };
    Controller::adopt(maps, Settings { node_name: "here".into(), kinds, tuning, policy: Policy::default() })
        .expect("a fake reads")
}

impl World {
    pub(super) fn new(maps: Fake) -> Self {
        let mut world = Self { controller: controller(&maps, 0), maps, now: Instant::now() };
        world.list(Vec::new(), Vec::new());
        world.controller.set_network(NodeNetwork::default());
        world.sync();
        world.maps.take_writes();
        world
    }

    fn list(&mut self, services: Vec<Change>, slices: Vec<Change>) {
        for (kind, objects) in [(ObjectKind::Service, services), (ObjectKind::EndpointSlice, slices)] {
            self.controller.apply(SourceEvent::Replaced { kind, objects, rejected: Vec::new() });
        }
    }

    pub(super) fn service(&mut self, name: &str, service: Option<Service>) {
        self.controller.apply(SourceEvent::Changed(Change::Service(key(name), service)));
    }

    pub(super) fn slice(&mut self, service: &str, addresses: &[&str]) {
        let endpoints: Vec<_> = addresses.iter().map(|address| endpoint(address)).collect();
        let change = Change::EndpointSlice(key(service), Some(slice(service, &endpoints)));
        self.controller.apply(SourceEvent::Changed(change));
    }

    fn sync(&mut self) -> SyncReport {
        self.controller.sync(&mut self.maps, self.now)
    }

    /// Synchronizes without failures.
    pub(super) fn sync_all(&mut self) -> SyncReport {
        let report = self.sync();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        report
    }

    pub(super) fn failures(&mut self) -> Vec<String> {
        self.sync().failures.iter().map(ToString::to_string).collect()
    }

    pub(super) fn existing(&self) -> Existing<[u8; 4]> {
        self.maps.existing().expect("a fake reads")
    }

    pub(super) fn change_all(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.controller.apply(SourceEvent::Changed(change));
        }
    }

    pub(super) fn dump(&self) -> Vec<String> {
        let lines = self.maps.to_string();
        let frontends = lines.lines().filter(|line| line.contains(" -> ") && !line.contains("CLUSTER_IP"));
        frontends.map(Into::into).collect()
    }

    /// A new agent that is told nothing yet but what the node's network is.
    pub(super) fn restart_silently(&mut self) -> Controller {
        let former = std::mem::replace(&mut self.controller, controller(&self.maps, 1 << 20));
        self.controller.set_network(NodeNetwork::default());
        former
    }

    /// A new agent that is told the same.
    pub(super) fn restart(&mut self) {
        let former = self.restart_silently();
        let inputs = former.inputs();
        let mut services: Vec<ObjectKey> = inputs.services().cloned().collect();
        services.sort();
        let slices =
            |key| inputs.slices_of(key).map(|slice| Change::EndpointSlice(slice.service.clone(), Some(slice.clone())));
        let slices = services.iter().flat_map(slices).collect();
        let service = |key: &ObjectKey| Change::Service(key.clone(), inputs.service(key).cloned());
        self.list(services.iter().map(service).collect(), slices);
    }
}

/// Services `s0`, `s1`, … of ten endpoints each, in the form of two lists.
pub(super) fn many(services: u32) -> (Vec<Change>, Vec<Change>) {
    let address = |net: u8, number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        format!("{net}.{a}.{b}.{c}")
    };
    (0..services)
        .map(|number| {
            let name = format!("s{number}");
            let endpoints: Vec<_> = (0..10)
                .map(|endpoint_number| {
                    let mut endpoint = endpoint(&address(11, number * 16 + endpoint_number));
                    endpoint.node_name = Some(format!("node-{}", (number + endpoint_number) % 500).into());
                    endpoint
                })
                .collect();
            (
                Change::Service(key(&name), Some(service(&address(10, number + 1)))),
                Change::EndpointSlice(key(&name), Some(slice(&name, &endpoints))),
            )
        })
        .unzip()
}

#[test]
fn one_service_from_lists_to_maps_and_the_report_names_it() {
    let mut world = World::new(Fake::default());
    world.service("web", Some(service("10.96.0.1")));
    world.slice("web", &["10.0.0.2", "10.0.0.1"]);
    let report = world.sync_all();
    let changes: Vec<String> = report.changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["default/web:http/TCP IPv4 added: 1 frontends, 2 endpoints, 0 on this node"]);
    assert_eq!(
        world.dump(),
        ["10.96.0.1:80/TCP -> #0 default/web:http/TCP cluster [10.0.0.1:8080 10.0.0.2:8080] local []"]
    );
    let writes = [
        (maps::BACKENDS4, 4),
        (maps::CONFIG, 1),
        (maps::FRONTENDS4, 2),
        (maps::SERVICES4, 1),
        (maps::SERVICE_NAMES4, 1),
        (maps::SERVICE_STATS4, 1),
        (maps::SLOTS4, 2),
    ];
    assert_eq!(world.maps.take_writes(), BTreeMap::from(writes));
    assert_eq!(report.writes, 12);

    world.service("web", None);
    let report = world.sync_all();
    let changes: Vec<String> = report.changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["default/web:http/TCP IPv4 removed"]);
    assert_eq!(world.existing(), Existing::default());
}

#[test]
fn nothing_is_written_before_everything_is_known() {
    let maps = Fake::default();
    let mut world = World { controller: controller(&maps, 0), maps, now: Instant::now() };
    world.service("web", Some(service("10.96.0.1")));
    world.controller.set_network(NodeNetwork::default());
    let listed = |kind| SourceEvent::Replaced { kind, objects: Vec::new(), rejected: vec![key("web")] };
    world.controller.apply(listed(ObjectKind::Service));
    assert!(!world.controller.is_complete());
    assert_eq!((world.sync_all().writes, world.controller.next_deadline()), (0, None));
    world.controller.apply(listed(ObjectKind::EndpointSlice));
    assert!(world.controller.is_complete());
    world.sync_all();
    assert_eq!(world.dump(), ["10.96.0.1:80/TCP -> #0 default/web:http/TCP cluster [] local [] no endpoints"]);
}

#[test]
fn one_endpoint_costs_the_same_writes_among_1_and_10000_services() {
    let mut seen = Vec::new();
    for services in [1, 10_000] {
        let mut world = World::new(Fake::default());
        let (list, slices) = many(services);
        world.list(list, slices);
        world.sync_all();
        assert_eq!(world.existing().services.len(), services as usize);
        world.now += GRACE;
        world.sync_all();
        world.maps.take_writes();

        world.slice("s0", &["11.0.0.0", "11.0.0.1", "12.0.0.99"]);
        let report = world.sync_all();
        assert_eq!(report.changes.len(), 1);
        seen.push((world.maps.take_writes(), report.writes));
        assert_eq!(check(&world.existing()), []);
    }
    // One backend in (2 writes) and eight out, a new range of three slots, one service.
    assert_eq!(seen[0].0, BTreeMap::from([(maps::BACKENDS4, 10), (maps::SLOTS4, 3), (maps::SERVICES4, 1)]));
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn a_restart_on_what_is_desired_writes_nothing_and_continues_from_there() {
    let mut world = World::new(Fake::default());
    let (list, slices) = many(50);
    world.list(list, slices);
    let ending = crate::model::Endpoint { ready: false, terminating: true, ..endpoint("11.9.9.9") };
    let both = Change::EndpointSlice(key("s7"), Some(slice("s7", &[ending, endpoint("11.9.9.8")])));
    world.controller.apply(SourceEvent::Changed(both));
    world.sync_all();
    let before = world.existing();
    assert!(before.backends.iter().any(|(_, backend)| backend.address == [11, 9, 9, 9] && backend.flags == 0));

    world.maps.take_writes();
    world.restart();
    let report = world.sync_all();
    assert_eq!((world.maps.take_writes(), report.writes, report.changes), (BTreeMap::new(), 0, Vec::new()));
    assert_eq!(world.existing(), before);

    // The Service that went while no agent ran, and an endpoint that came.
    world.restart();
    world.service("s3", None);
    world.slice("s7", &["11.9.9.8", "11.9.9.7"]);
    world.sync_all();
    assert_eq!(world.existing().services.len(), 49);
    assert!(world.dump().iter().any(|line| line.contains("s7") && line.contains("[11.9.9.7:8080 11.9.9.8:8080]")));
}

#[test]
fn what_makes_no_sense_is_not_adopted_but_replaced_and_removed() {
    let mut maps = Fake::default();
    let key4 = |host| FrontendKey::new([10, 96, 0, host], 80, 6);
    let named = |name| ServiceName::new("default", name, "http", 6).expect("short");
    let range = |first, count| SlotRange { first, count };
    let with = |cluster| ServiceValue { cluster, ..ServiceValue::default() };
    let flags = BackendFlags::SELECTABLE | BackendFlags::IN_CLUSTER;
    let backend = Backend { generation: 9, address: [10, 0, 0, 1], port: 8080, flags, service: 10 };
    let write = |maps: &mut Fake| -> Result<(), MapError> {
        // Sound; the same endpoint again; of a service that makes no sense; of one without a name; beyond the table.
        for (index, service) in (3..).zip([10, 10, 11, 15, u32::MAX]) {
            maps.set_backend(index, Backend { service, ..backend })?;
        }
        FamilyMaps::<[u8; 4]>::set_slots(maps, 0, &[3, 3, 77])?;
        // Sound; overlapping it; a slot without backend; beyond the table; the same name again; no name at all.
        let services =
            [("a", range(0, 1)), ("b", range(0, 2)), ("c", range(2, 1)), ("d", range(u32::MAX, 9)), ("a", range(5, 0))];
        for (index, (name, cluster)) in (10..).zip(services) {
            FamilyMaps::<[u8; 4]>::set_service(maps, index, with(cluster))?;
            FamilyMaps::<[u8; 4]>::set_service_name(maps, index, &named(name))?;
        }
        // Clients of a sound one that asks for none, of one that makes no sense, of none, beyond the table.
        for service in [10, 11, 77, u32::MAX] {
            maps.set_source_range(ClientList { service, edition: 3 }, Cidr::of_address([198, 51, 100, 1]))?;
        }
        for (host, service) in (1..).zip([10, 11, 12, 13, 14, 99, u32::MAX]) {
            maps.set_frontend(&key4(host), Frontend { service, owner: 1, ..Frontend::default() })?;
        }
        Ok(())
    };
    write(&mut maps).expect("room");
    let now = Instant::now();
    let mut world = World { controller: controller(&maps, 100), maps, now };
    let services = (1..)
        .zip(["a", "b", "c"])
        .map(|(host, name)| Change::Service(key(name), Some(service(&format!("10.96.0.{host}")))));
    let slices =
        ["a", "b", "c"].map(|name| Change::EndpointSlice(key(name), Some(slice(name, &[endpoint("10.0.0.1")]))));
    world.list(services.collect(), slices.into());
    world.controller.set_network(NodeNetwork::default());
    world.sync_all();

    let existing = world.existing();
    assert_eq!(check(&existing), []);
    let anew = |generation, service| Backend { generation, service, ..backend };
    assert_eq!(existing.backends, [(0, anew(101, 0)), (1, anew(102, 1)), (3, backend)]);
    let line = |host, index, name| {
        format!("10.96.0.{host}:80/TCP -> #{index} default/{name}:http/TCP cluster [10.0.0.1:8080] local []")
    };
    assert_eq!(world.dump(), [line(1, 10, "a"), line(2, 0, "b"), line(3, 1, "c")]);
    assert_eq!(existing.services[2].2.cluster, range(0, 1), "a was adopted");
    world.now += GRACE;
    world.sync_all();
    assert_eq!(world.controller.next_deadline(), None);

    for name in ["a", "b", "c"] {
        world.service(name, None);
    }
    world.sync_all();
    world.now += GRACE;
    world.sync_all();
    world.controller.v4.assert_all_free(FamilyMaps::<[u8; 4]>::capacities(&world.maps));
}

#[test]
fn a_full_table_costs_only_the_service_that_does_not_fit_until_there_is_room() {
    let roomy = Capacities { frontends: 100, services: 100, slots: 100, backends: 100, source_ranges: 100 };
    let cases = [
        (Capacities { frontends: 4, ..roomy }, maps::FRONTENDS4),
        (Capacities { services: 2, ..roomy }, maps::SERVICES4),
        (Capacities { slots: 4, ..roomy }, maps::SLOTS4),
        (Capacities { backends: 4, ..roomy }, maps::BACKENDS4),
        (Capacities { source_ranges: 2, ..roomy }, maps::SOURCE_RANGES4),
    ];
    for (capacities, table) in cases {
        let mut world = World::new(Fake::new(capacities));
        for (host, name) in (1..).zip(["a", "b", "c", "empty"]) {
            if name != "empty" || capacities.frontends > 4 && capacities.services > 2 {
                let restricted = Service {
                    service_type: ServiceType::LoadBalancer,
                    load_balancer_ips: vec![[203, 0, 113, host].into()],
                    source_ranges: vec!["198.51.100.0/24".parse().expect("a network")],
                    ..service(&format!("10.96.0.{host}"))
                };
                let open = service(&format!("10.96.0.{host}"));
                let one = if table == maps::SOURCE_RANGES4 && name != "empty" { restricted } else { open };
                world.service(name, Some(one));
            }
            if name != "empty" {
                world.slice(name, &[&format!("10.0.{host}.1"), &format!("10.0.{host}.2")]);
            }
        }
        assert_eq!(world.failures(), [format!("default/c:http/TCP: table {table} is full")]);
        let served = |world: &World| world.dump().iter().map(|line| line[..9].to_owned()).collect::<Vec<_>>();
        assert_eq!(served(&world)[..2], ["10.96.0.1", "10.96.0.2"], "{table}");
        assert!(world.dump().iter().all(|line| !line.contains("default/c")), "nothing of c, with {table} full");

        // A served one that wants more than there is stays as it is.
        if table == maps::SLOTS4 {
            let before = world.dump();
            world.slice("a", &["10.0.1.1", "10.0.1.2", "10.0.1.3"]);
            assert_eq!(world.failures(), [format!("default/a:http/TCP: table {table} is full")]);
            assert_eq!(world.dump(), before);
            world.slice("a", &["10.0.1.1", "10.0.1.2"]);
            assert_eq!(world.failures(), [""; 0]);
        }

        world.service("a", None);
        world.sync();
        world.now += GRACE;
        assert!(world.controller.next_deadline().is_some_and(|at| at <= world.now));
        world.sync_all();
        assert!(world.dump().iter().any(|line| line.contains("default/c")), "{table}: {}", world.maps);
    }
}

#[test]
fn a_backend_index_rests_for_the_grace_period_and_comes_back_with_another_generation() {
    let mut world =
        World::new(Fake::new(Capacities { frontends: 9, services: 9, slots: 9, backends: 1, source_ranges: 1 }));
    world.service("web", Some(service("10.96.0.1")));
    world.slice("web", &["10.0.0.1"]);
    world.sync_all();
    let [(0, first)] = world.existing().backends[..] else { panic!("{}", world.maps) };
    world.slice("web", &[]);
    world.sync_all();
    assert_eq!(world.existing().backends, [], "its generation is 0");

    world.slice("web", &["10.0.0.1"]);
    world.now += Duration::from_millis(9_999);
    assert_eq!(world.failures(), ["default/web:http/TCP: table BACKENDS4 is full"]);
    assert_eq!(world.controller.next_deadline(), Some(world.now + Duration::from_millis(1)));
    world.now += Duration::from_millis(1);
    world.sync_all();
    let [(0, second)] = world.existing().backends[..] else { panic!("{}", world.maps) };
    assert_ne!(first.generation, second.generation);
}

#[test]
fn exchanges_of_a_udp_port_are_picked_for_anew_when_a_frontend_of_it_is_anothers() {
    let world_of = |protocol| {
        let of = |host: u8, external: &[&str]| {
            let mut service = service(&format!("10.96.0.{host}"));
            service.ports[0].protocol = protocol;
            service.external_ips = external.iter().map(|ip| ip.parse().expect("an address")).collect();
            Some(service)
        };
        let slice = |name: &str, address: &str| {
            let mut slice = slice(name, &[endpoint(address)]);
            slice.ports[0].protocol = protocol;
            Change::EndpointSlice(key(name), Some(slice))
        };
        let mut world = World::new(Fake::default());
        world.service("a", of(1, &["192.0.2.80", "192.0.2.81"]));
        world.service("b", of(2, &[]));
        world.change_all([slice("a", "10.0.0.1"), slice("b", "10.0.0.2")]);
        world.sync_all();
        let before = world.existing().backends;
        // Nothing of it: the same again, and one frontend more.
        world.service("b", of(2, &["192.0.2.82"]));
        world.sync_all();
        assert_eq!(world.existing().backends, before);
        world.service("a", of(1, &["192.0.2.81"]));
        world.service("b", of(2, &["192.0.2.80", "192.0.2.82"]));
        world.maps.take_writes();
        world.sync_all();
        (before, world.existing().backends)
    };
    let (before, after) = world_of(Protocol::Tcp);
    assert_eq!(before, after, "connections stay");
    let (before, after) = world_of(Protocol::Udp);
    let [(first, a), (second, b)] = before[..] else { panic!("{before:?}") };
    let [(0..=1, renewed), _] = after[..] else { panic!("{after:?}") };
    assert!(renewed.generation > b.generation, "none that was given out before");
    assert_eq!(after, [(first, Backend { generation: renewed.generation, ..a }), (second, b)]);
}

#[test]
fn an_endpoint_that_leaves_one_service_port_stays_in_the_others_as_it_is() {
    let mut world = World::new(Fake::default());
    for (host, name) in (1..).zip(["a", "b"]) {
        world.service(name, Some(service(&format!("10.96.0.{host}"))));
        world.slice(name, &["10.0.0.1", "10.0.0.2"]);
    }
    world.sync_all();
    let before = world.existing().backends;
    let owners: Vec<_> = before.iter().map(|(_, backend)| (backend.address[3], backend.service)).collect();
    assert_eq!(owners, [(1, 0), (2, 0), (1, 1), (2, 1)], "each has its own");
    world.slice("a", &["10.0.0.2"]);
    world.sync_all();
    assert_eq!(world.existing().backends, before[1..]);
    world.service("b", None);
    world.sync_all();
    assert_eq!(world.existing().backends, before[1..2]);
}

#[test]
fn a_frontend_that_changes_hands_is_never_missing() {
    let mut world = World::new(Fake::default());
    let claim = |created, ip: &str| Service { created, external_ips: vec![[192, 0, 2, 1].into()], ..service(ip) };
    world.service("young", Some(claim(2, "10.96.0.2")));
    world.sync_all();
    world.service("old", Some(claim(1, "10.96.0.1")));
    world.maps.observe(|maps| assert!(maps.to_string().contains("192.0.2.1:80"), "{maps}"));
    let report = world.sync_all();
    assert_eq!(report.conflicts.len(), 1);
    assert!(world.dump()[2].contains("default/old"), "{}", world.maps);
    world.service("old", None);
    let report = world.sync_all();
    assert_eq!(report.conflicts, []);
    assert!(world.dump()[1].contains("default/young"), "{}", world.maps);
}

#[test]
fn the_limits_of_node_ports_are_wide_before_a_frontend_needs_them_and_tight_after() {
    let mut world = World::new(Fake::default());
    let on = |numbers: &[u16]| {
        let ports = numbers.iter().map(|n| ServicePort { node_port: Some(*n), ..port(&format!("p{n}"), *n) }).collect();
        Some(Service { service_type: ServiceType::NodePort, ports, ..service("10.96.0.1") })
    };
    world.maps.observe(|maps| {
        let config = maps.config().expect("a fake reads");
        let existing: Existing<[u8; 4]> = maps.existing().expect("a fake reads");
        let ports = existing.frontends.iter().filter(|(key, _)| key.address == [0; 4]).map(|(key, _)| key.port);
        for port in ports {
            assert!((config.node_port_min..=config.node_port_max).contains(&port), "{port} is not within {config:?}");
        }
    });
    let limits = |world: &World| {
        let config = world.maps.config().expect("a fake reads");
        (config.node_port_min, config.node_port_max)
    };
    assert_eq!(limits(&world), (1, 0));
    for (numbers, expected) in [
        (&[30_500][..], (30_500, 30_500)),
        (&[30_100, 32_000], (30_100, 32_000)),
        (&[31_000], (31_000, 31_000)),
        (&[], (1, 0)),
    ] {
        world.service("web", on(numbers));
        world.sync_all();
        assert_eq!(limits(&world), expected);
    }
}

#[test]
fn the_node_s_own_network_is_followed() {
    let mut world = World::new(Fake::default());
    let config = world.maps.config().expect("a fake reads");
    // 1024 to 29999 and 61000 to 65535: neither node ports nor ports of local sockets.
    assert_eq!((config.abi_version, config.snat_port_count), (ABI_VERSION, 28_976 + 4536));

    let mut network = NodeNetwork {
        masquerade4: [(0, [192, 0, 2, 1]), (5, [198, 51, 100, 1])].into(),
        masquerade6: [(0, [0xfd; 16])].into(),
        local_addresses: [
            ([127, 0, 0, 1].into(), LocalAddressFlags::LOOPBACK),
            ([192, 0, 2, 1].into(), 0),
            ([0xfd; 16].into(), 0),
        ]
        .into(),
        ..NodeNetwork::default()
    };
    world.controller.set_network(network.clone());
    assert_eq!(world.sync_all().writes, 6);
    let existing = world.existing();
    assert_eq!(existing.node_addresses, [(0, [192, 0, 2, 1]), (5, [198, 51, 100, 1])]);
    assert_eq!(existing.local_addresses, [([127, 0, 0, 1], 3), ([192, 0, 2, 1], LocalAddressFlags::NODE_PORTS)]);

    network.masquerade4.remove(&5);
    world.controller.set_network(network);
    assert_eq!(world.sync_all().writes, 1);
    assert_eq!(world.existing().node_addresses, [(0, [192, 0, 2, 1])]);
}

#[test]
fn what_changes_of_the_node_s_own_network_is_told_once() {
    let mut world = World::new(Fake::default());
    let own = IpAddr::from([192, 0, 2, 1]);
    let mut network = NodeNetwork {
        local_addresses: [([127, 0, 0, 1].into(), LocalAddressFlags::LOOPBACK), (own, 0)].into(),
        ..NodeNetwork::default()
    };
    let policy = Policy { localhost_node_ports: false, ..Policy::default() };
    world.controller.policy = policy;
    world.controller.set_network(network.clone());
    let address = |address: IpAddr, node_ports| NodeChange::Address { address, node_ports };
    assert_eq!(world.sync_all().node_changes, [address([127, 0, 0, 1].into(), Some(false)), address(own, Some(true))]);

    let networks = |networks: &[&str]| networks.iter().map(|network| network.parse().expect("a network")).collect();
    let cidr = |network: &str, present| NodeChange::ServiceCidr { network: network.to_owned(), present };
    network.local_addresses.remove(&own);
    world.controller.set_network(network);
    let added = Change::ServiceCidr(key("kubernetes"), Some(networks(&["10.96.0.0/16", "fd00:10:96::/112"])));
    world.controller.apply(SourceEvent::Changed(added));
    assert_eq!(
        world.sync_all().node_changes,
        [address(own, None), cidr("10.96.0.0/16", true), cidr("fd00:10:96::/112", true)]
    );

    world.controller.apply(SourceEvent::Changed(Change::ServiceCidr(key("kubernetes"), None)));
    assert_eq!(world.sync_all().node_changes, [cidr("10.96.0.0/16", false), cidr("fd00:10:96::/112", false)]);
    assert_eq!(world.sync_all().node_changes, []);
}

#[test]
fn a_node_that_leaves_its_zone_changes_only_what_has_hints() {
    let mut world = World::new(Fake::default());
    world.service("web", Some(service("10.96.0.1")));
    let hinted = |address, zone: &str| crate::model::Endpoint { zone_hints: vec![zone.into()], ..endpoint(address) };
    let slice: EndpointSlice = slice("web", &[hinted("10.0.0.1", "a"), hinted("10.0.0.2", "b")]);
    world.controller.apply(SourceEvent::Changed(Change::EndpointSlice(key("web"), Some(slice))));
    world.sync_all();
    let node = Node { zone: Some("b".into()), ..Node::default() };
    world.controller.apply(SourceEvent::Changed(Change::Node(Some(node))));
    world.sync_all();
    assert!(world.dump()[0].contains("cluster [10.0.0.2:8080]"), "{}", world.maps);
    let flags = world.existing().backends.iter().map(|(_, backend)| backend.flags).collect::<Vec<_>>();
    assert_eq!(
        flags,
        [0, BackendFlags::SELECTABLE | BackendFlags::IN_CLUSTER],
        "the other keeps its flows and gets no new ones"
    );
}
