//! Maps that somebody else writes to, too.

use std::collections::BTreeMap;

use lb_common::abi::{
    Backend, Config, Frontend, FrontendKey, LocalAddressFlags, Service as ServiceValue, ServiceName, capacity, maps,
};

use super::*;
use crate::{
    controller::tests::many,
    dataplane::{
        AuditReport, ClientList,
        Drift::{self, Changed, Missing, Stray},
        Existing, Fake, Faulty, HasTables, Pass, SourcePrefix,
    },
    model::{
        Change, Cidr, Endpoint, Service, ServicePort, ServiceType, SlicePort, TrafficPolicy,
        testing::{endpoint, key, port, service, slice},
    },
};

type Maps = Faulty<Fake>;
type Snapshot = (Existing<[u8; 4]>, Existing<[u8; 16]>, Config);

/// An agent whose maps hold something in every table of both families.
struct World {
    maps: Maps,
    controller: Controller,
    now: Instant,
}

impl World {
    fn empty(fake: Fake) -> Self {
        let settings = Settings {
            node_name: "here".into(),
            kinds: [ObjectKind::Service, ObjectKind::EndpointSlice].into(),
            tuning: Tuning { grace: Tuning::DEFAULT_GRACE, first_generation: 0 },
            policy: Policy { service_cidrs: vec![net("10.96.0.0/16"), net("fd00::/112")], ..Policy::default() },
        };
        let controller = Controller::adopt(&fake, settings).expect("a fake reads");
        Self { controller, maps: Faulty::new(fake, 0, 7), now: Instant::now() }
    }

    fn list(&mut self, services: Vec<Change>, slices: Vec<Change>) {
        for (kind, objects) in [(ObjectKind::Service, services), (ObjectKind::EndpointSlice, slices)] {
            self.controller.apply(SourceEvent::Replaced { kind, objects, rejected: Vec::new() });
        }
        self.controller.set_network(network());
        let report = self.controller.sync(&mut self.maps, self.now);
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        self.maps.inner().take_writes();
    }

    fn new() -> Self {
        let mut world = Self::empty(Fake::default());
        let (services, slices) = objects();
        world.list(services, slices);
        world
    }

    fn snapshot(&mut self) -> Snapshot {
        let fake = self.maps.inner();
        let read = "a fake reads";
        (fake.existing().expect(read), fake.existing().expect(read), fake.config().expect(read))
    }

    /// Looks at all maps, a few elements at a time.
    fn pass(&mut self, budget: usize) -> AuditReport {
        let mut sum = AuditReport::default();
        for _ in 0..1_000_000 {
            let AuditReport { repairs, failures, read, pass } =
                self.controller.audit_some(&mut self.maps, budget, self.now);
            sum.repairs.extend(repairs);
            sum.failures.extend(failures);
            sum.read += read;
            if pass != Pass::UnderWay {
                return AuditReport { pass, ..sum };
            }
        }
        panic!("no pass ends");
    }
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().expect("a network")
}

fn network() -> NodeNetwork {
    let [v4, v6] = [[192, 0, 2, 1].into(), [0xfd; 16].into()];
    NodeNetwork {
        masquerade4: [(0, [192, 0, 2, 1]), (5, [198, 51, 100, 1])].into(),
        masquerade6: [(0, [0xfd; 16])].into(),
        local_addresses: [([127, 0, 0, 1].into(), LocalAddressFlags::LOOPBACK), (v4, 0), (v6, 0)].into(),
        ..NodeNetwork::default()
    }
}

/// A Service that uses everything, in both families, and one that uses little.
fn objects() -> (Vec<Change>, Vec<Change>) {
    let rich = Service {
        service_type: ServiceType::LoadBalancer,
        cluster_ips: vec![[10, 96, 0, 9].into(), "fd00::9".parse().expect("an address")],
        load_balancer_ips: vec![[192, 0, 2, 10].into(), "fd02::10".parse().expect("an address")],
        source_ranges: vec![net("198.51.100.0/24"), net("fd03::/64")],
        ports: vec![ServicePort { node_port: Some(30_080), ..port("http", 80) }],
        external_policy: TrafficPolicy::Local,
        affinity_seconds: Some(60),
        ..Service::default()
    };
    let here = |address| Endpoint { node_name: Some("here".into()), ..endpoint(address) };
    let with = |endpoints: Vec<Endpoint>| {
        let ports = vec![SlicePort { name: "http".into(), protocol: crate::model::Protocol::Tcp, port: 8080 }];
        crate::model::EndpointSlice { ports, ..slice("rich", &endpoints) }
    };
    let slices = [
        ("rich-4", with(vec![here("10.0.0.1"), endpoint("10.0.0.2"), endpoint("10.0.0.3")])),
        ("rich-6", with(vec![here("fd01::1"), endpoint("fd01::2")])),
        ("web", slice("web", &[endpoint("10.0.1.1"), endpoint("10.0.1.2")])),
    ];
    let services =
        vec![Change::Service(key("rich"), Some(rich)), Change::Service(key("web"), Some(service("10.96.0.1")))];
    (services, slices.into_iter().map(|(name, slice)| Change::EndpointSlice(key(name), Some(slice))).collect())
}

/// What somebody does to the maps, in which of them it is seen, as what and how often.
struct Corruption {
    map: &'static str,
    drift: Drift,
    elements: usize,
    by: Box<dyn Fn(&mut Fake)>,
}

fn corruption(map: &'static str, drift: Drift, by: impl Fn(&mut Fake) -> Result<(), MapError> + 'static) -> Corruption {
    Corruption { map, drift, elements: 1, by: Box::new(move |fake| by(fake).expect("a fake has room")) }
}

/// One of each kind for each table of a family.
fn corruptions<A: Family>(fake: &Fake) -> Vec<Corruption>
where
    Fake: HasTables<A>,
{
    let Existing {
        frontends,
        services,
        slots,
        backends,
        node_addresses,
        local_addresses,
        source_ranges,
        service_cidrs,
    } = FamilyMaps::<A>::existing(fake).expect("a fake reads");
    let tables = A::TABLES;
    let (frontend_key, frontend) = frontends[0];
    let (service, name, value) = services[0];
    let (slot, _) = slots[0];
    let (backend, endpoint) = backends[0];
    let (interface, address) = node_addresses[0];
    let (local, flags) = local_addresses[0];
    let (restricted, clients) = source_ranges[0];
    let cidr = service_cidrs[0];
    let nobodys_key = FrontendKey::new(endpoint.address, 99, 6);
    let nobodys_name = ServiceName::new("default", "nobody", "", 6).expect("short");
    let host = Cidr::of_address(endpoint.address);
    let (all, first) = (slots.len(), slots[0].0);
    assert!(
        slots.iter().map(|(slot, _)| *slot).eq((first..).take(all)),
        "no holes, so that all are one range: {slots:?}"
    );
    vec![
        corruption(tables.frontends, Missing, move |fake| fake.remove_frontend(&frontend_key)),
        corruption(tables.frontends, Changed, move |fake| {
            let mut frontend = frontend;
            frontend.flags ^= 1;
            fake.set_frontend(&frontend_key, frontend)
        }),
        corruption(tables.frontends, Stray, move |fake| fake.set_frontend(&nobodys_key, frontend)),
        corruption(tables.services, Changed, move |fake| {
            FamilyMaps::<A>::set_service(fake, service, ServiceValue { affinity_seconds: 7, ..value })
        }),
        corruption(tables.services, Changed, move |fake| {
            FamilyMaps::<A>::set_service(fake, service, ServiceValue::default())
        }),
        corruption(tables.service_names, Missing, move |fake| FamilyMaps::<A>::remove_service_name(fake, service)),
        corruption(tables.service_names, Changed, move |fake| {
            FamilyMaps::<A>::set_service_name(fake, service, &nobodys_name)
        }),
        corruption(tables.service_names, Stray, move |fake| FamilyMaps::<A>::set_service_name(fake, 60_000, &name)),
        corruption(tables.slots, Changed, move |fake| FamilyMaps::<A>::set_slots(fake, slot, &[1000])),
        corruption(tables.backends, Missing, move |fake| fake.set_backend(backend, Backend::<A>::default())),
        corruption(tables.backends, Changed, move |fake| fake.set_backend(backend, Backend { port: 9, ..endpoint })),
        corruption(tables.backends, Changed, move |fake| {
            fake.set_backend(backend, Backend { generation: endpoint.generation + 1, ..endpoint })
        }),
        corruption(tables.backends, Stray, move |fake| fake.set_backend(200_000, endpoint)),
        corruption(tables.node_addresses, Missing, move |fake| FamilyMaps::<A>::remove_node_address(fake, interface)),
        corruption(tables.node_addresses, Changed, move |fake| fake.set_node_address(interface, endpoint.address)),
        corruption(tables.node_addresses, Stray, move |fake| fake.set_node_address(77, address)),
        corruption(tables.local_addresses, Missing, move |fake| fake.remove_local_address(local)),
        corruption(tables.local_addresses, Changed, move |fake| fake.set_local_address(local, flags ^ 1)),
        corruption(tables.local_addresses, Stray, move |fake| fake.set_local_address(endpoint.address, 1)),
        corruption(tables.source_ranges, Missing, move |fake| fake.remove_source_range(restricted, clients)),
        corruption(tables.source_ranges, Stray, move |fake| fake.set_source_range(restricted, host)),
        corruption(tables.frontends, Changed, move |fake| {
            let frontend = Frontend { edition: frontend.edition ^ 1, ..frontend };
            fake.set_frontend(&frontend_key, frontend)
        }),
        corruption(tables.source_ranges, Stray, move |fake| {
            fake.set_source_range(ClientList { edition: restricted.edition + 1, ..restricted }, clients)
        }),
        corruption(tables.source_ranges, Stray, move |fake| {
            fake.set_source_range(ClientList { service: 60_000, ..restricted }, clients)
        }),
        corruption(tables.service_cidrs, Missing, move |fake| fake.remove_service_cidr(cidr)),
        corruption(tables.service_cidrs, Stray, move |fake| fake.set_service_cidr(host)),
    ]
}

fn all_corruptions(fake: &Fake) -> Vec<Corruption> {
    let config = fake.config().expect("a fake reads");
    let config = Config { node_port_max: 1, ..config };
    let of_config = corruption(maps::CONFIG, Drift::Changed, move |fake| fake.set_config(&config));
    corruptions::<[u8; 4]>(fake).into_iter().chain(corruptions::<[u8; 16]>(fake)).chain([of_config]).collect()
}

#[test]
fn each_kind_of_drift_of_each_map_is_put_right_and_nothing_else_is_written() {
    let mut world = World::new();
    let before = world.snapshot();
    let corruptions = all_corruptions(world.maps.inner());
    assert_eq!(corruptions.len(), 53);
    for Corruption { map, drift, elements, by } in corruptions {
        by(world.maps.inner());
        assert_ne!(world.snapshot(), before, "{map} {drift:?}");
        world.maps.inner().take_writes();
        let report = world.pass(100);
        let found: Vec<_> = report.repairs.iter().map(|repair| (repair.map, repair.drift, repair.elements)).collect();
        assert_eq!(found, [(map, drift, elements)], "{:?}", report.repairs);
        assert!(report.failures.is_empty() && report.pass == Pass::Completed);
        let mut writes = world.maps.inner().take_writes();
        // Maps that can fail write slots in two goes.
        let slots = [maps::SLOTS4, maps::SLOTS6];
        writes.iter_mut().filter(|(map, _)| slots.contains(*map)).for_each(|(_, count)| *count = 1);
        assert_eq!(writes, BTreeMap::from([(map, elements as u64)]), "{:?}", report.repairs);
        assert_eq!(world.snapshot(), before, "{:?}", report.repairs);
    }
    let report = world.pass(8192);
    assert_eq!((report.repairs.len(), report.pass), (0, Pass::Completed));
    assert_eq!(world.maps.inner().take_writes(), BTreeMap::new());
}

#[test]
fn a_repair_names_the_service_and_what_of_it_was_wrong() {
    let mut world = World::new();
    let Existing { frontends, slots, backends, source_ranges, .. } = world.snapshot().0;
    let fake = world.maps.inner();
    for (key, _) in frontends {
        fake.remove_frontend(&key).expect("a fake");
    }
    for (slot, _) in slots {
        FamilyMaps::<[u8; 4]>::set_slots(fake, slot, &[1000]).expect("a fake");
    }
    fake.set_backend(backends[1].0, Backend::<[u8; 4]>::default()).expect("a fake");
    fake.set_source_range(source_ranges[0].0, Cidr { address: [10, 0, 0, 0], bits: 8 }).expect("a fake");
    FamilyMaps::<[u8; 16]>::remove_node_address(fake, 0).expect("a fake");

    let report = world.pass(8192);
    let lines: Vec<_> = report.repairs.iter().map(ToString::to_string).collect();
    let again = "had been removed, and is entered again";
    assert_eq!(
        lines,
        [
            "SOURCE_RANGES4: clients 10.0.0.0/8 of default/rich:http/TCP had been entered by somebody else, and is removed"
                .to_owned(),
            format!("BACKENDS4: 10.0.0.2:8080 of default/rich:http/TCP {again}"),
            "SLOTS4: 3 of 3 slots of default/rich:http/TCP had been changed, and is as it was".to_owned(),
            "SLOTS4: 1 of 1 slots of default/rich:http/TCP had been changed, and is as it was".to_owned(),
            format!("FRONTENDS4: 0.0.0.0:30080/TCP of default/rich:http/TCP {again}"),
            format!("FRONTENDS4: cluster IP 10.96.0.9 of default/rich:http/TCP {again}"),
            format!("FRONTENDS4: 10.96.0.9:80/TCP of default/rich:http/TCP {again}"),
            format!("FRONTENDS4: 192.0.2.10:80/TCP of default/rich:http/TCP {again}"),
            "SLOTS4: 2 of 2 slots of default/web:http/TCP had been changed, and is as it was".to_owned(),
            format!("FRONTENDS4: cluster IP 10.96.0.1 of default/web:http/TCP {again}"),
            format!("FRONTENDS4: 10.96.0.1:80/TCP of default/web:http/TCP {again}"),
            format!("NODE_ADDRESSES6: the address of interface 0 {again}"),
        ]
    );
    assert_eq!(report.repairs.iter().map(|repair| repair.elements).sum::<usize>(), 15);
}

#[test]
fn a_repair_that_fails_is_told_and_tried_again_soon() {
    let mut world = World::new();
    let before = world.snapshot();
    let corruptions = all_corruptions(world.maps.inner());
    for Corruption { by, .. } in &corruptions {
        by(world.maps.inner());
    }
    world.maps.set_rate(1000);
    let report = world.pass(64);
    assert_eq!((report.repairs.len(), report.pass), (0, Pass::Failed));
    assert!(report.failures.iter().all(|failure| failure.object.is_some()), "{:?}", report.failures);
    let told = "audit of 0.0.0.0:30080/TCP of default/rich:http/TCP: Write of map FRONTENDS4: ";
    assert!(report.failures.iter().any(|failure| failure.to_string().starts_with(told)), "{:?}", report.failures);
    assert_eq!(world.controller.next_audit(), Some(world.now + Duration::from_secs(5)));

    world.maps.set_rate(500);
    let mut passes = 0;
    while world.pass(64).pass != Pass::Completed {
        passes += 1;
        assert!(passes < 100, "half of the writes succeed");
    }
    assert!(passes > 0, "half of the writes fail");
    assert_eq!(world.snapshot(), before);
}

#[test]
fn what_is_entered_in_a_full_table_makes_room_for_what_was_removed() {
    let capacities = Capacities { frontends: 9, services: 8, slots: 64, backends: 16, source_ranges: 2 };
    let mut world = World::empty(Fake::new(capacities));
    let (services, slices) = objects();
    world.list(services, slices);
    let before = world.snapshot();
    let fake = world.maps.inner();
    let key = FrontendKey::new([10, 96, 0, 1], 80, 6);
    let value = fake.frontend(&key).expect("a fake").expect("it is there");
    fake.remove_frontend(&key).expect("a fake");
    let strays = (1000..2000).take_while(|port| fake.set_frontend(&FrontendKey { port: *port, ..key }, value).is_ok());
    assert!(strays.count() > 1);
    let (service, clients) = before.0.source_ranges[0];
    fake.remove_source_range(service, clients).expect("a fake");
    let strays =
        (0..100).take_while(|host| fake.set_source_range(service, Cidr::of_address([10, 0, 0, *host])).is_ok());
    assert_eq!(strays.count(), 2);
    let report = world.pass(8192);
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert_eq!(world.snapshot(), before);
}

#[test]
fn a_prefix_is_the_same_whatever_the_bits_are_that_do_not_count() {
    let list = ClientList { service: 3, edition: 5 };
    let prefix = SourcePrefix { bits: 64 + 20, service: 3, edition: 5, client: [10, 1, 0x2f, 9] };
    assert_eq!(prefix.network(), Some((list, Cidr { address: [10, 1, 0x20, 0], bits: 20 })));
    let everybody = SourcePrefix { bits: 64, client: [10, 1, 2, 3], ..prefix };
    assert_eq!(everybody.network(), Some((list, Cidr { address: [0; 4], bits: 0 })));
    assert_eq!(SourcePrefix { bits: 63, ..everybody }.network(), None, "of two lists");
    assert_eq!(SourcePrefix { edition: 256, ..prefix }.network(), None, "of a list that no frontend can name");
}

#[test]
fn ten_thousand_services_of_ten_endpoints_are_looked_at_within_a_minute_and_a_little_at_once() {
    let capacities = Capacities {
        frontends: capacity::FRONTENDS,
        services: capacity::SERVICES,
        slots: capacity::SLOTS,
        backends: capacity::BACKENDS,
        source_ranges: capacity::SOURCE_RANGES,
    };
    let mut world = World::empty(Fake::new(capacities));
    assert_eq!(world.controller.next_audit(), None, "nothing was written yet");
    let (services, slices) = many(10_000);
    world.list(services, slices);
    let start = world.now;
    assert_eq!(world.controller.next_audit(), Some(start));
    let lost = FrontendKey::new([10, 0, 0x27, 0x10], 80, 6);
    assert!(world.maps.frontend(&lost).expect("a fake").is_some());
    world.maps.inner().remove_frontend(&lost).expect("a fake");

    let mut read = 0;
    let mut repairs = Vec::new();
    let end = loop {
        let at = world.controller.next_audit().expect("it goes on");
        let report = world.controller.audit(&mut world.maps, at);
        assert!(report.read < 8192 + 100, "{}", report.read);
        read += report.read;
        repairs.extend(report.repairs);
        if report.pass == Pass::Completed {
            break at;
        }
    };
    // Backends of both families, used or not; slots, services, names twice, frontends twice, and cluster IPs.
    let at_least = 2 * capacity::BACKENDS as usize + 100_000 + 10_000 + 2 * 10_000 + 2 * 20_000;
    assert!(read >= at_least && read < at_least + 1000, "{read}, and not {at_least}");
    assert!(end - start < Duration::from_secs(32), "{:?}", end - start);
    assert_eq!(repairs.len(), 1, "{repairs:?}");
    let next = world.controller.next_audit().expect("it goes on");
    assert!(next - start < Duration::from_secs(32), "the next pass begins {:?} after this one did", next - start);
}

#[test]
fn many_networks_of_clients_are_looked_at_a_little_at_once_and_all_at_once_where_something_is_wrong() {
    const MANY: u32 = 30_000;
    let mut world = World::new();
    let range = |number: u32| -> ipnet::IpNet {
        let [_, a, b, c] = (number * 8).to_be_bytes();
        net(&format!("11.{a}.{b}.{c}/29"))
    };
    let restricted = |ranges: std::ops::Range<u32>| Service {
        service_type: ServiceType::LoadBalancer,
        load_balancer_ips: vec![[192, 0, 2, 20].into()],
        source_ranges: ranges.map(range).collect(),
        ..service("10.96.0.20")
    };
    let ask = |world: &mut World, ranges| {
        world.controller.apply(SourceEvent::Changed(Change::Service(key("many"), Some(restricted(ranges)))));
        let report = world.controller.sync(&mut world.maps, world.now);
        assert!(report.failures.is_empty(), "{:?}", report.failures);
    };
    ask(&mut world, 0..MANY);
    let before = world.snapshot();
    let longest = |world: &mut World| {
        let mut longest = 0;
        let mut repairs = Vec::new();
        loop {
            let report = world.controller.audit_some(&mut world.maps, 8192, world.now);
            assert!(report.failures.is_empty(), "{:?}", report.failures);
            longest = longest.max(report.read);
            repairs.extend(report.repairs);
            if report.pass == Pass::Completed {
                return (longest, repairs.len());
            }
        }
    };
    let (read, repairs) = longest(&mut world);
    assert!(read < 8192 + 100, "{read} at once");
    assert_eq!(repairs, 0);

    // One that is gone, one that is another's, and both, so that there are as many as there should be.
    let list = before.0.source_ranges.last().expect("there are").0;
    let held = |number: u32| (list, Cidr::from_net(range(number)).expect("IPv4"));
    for (gone, stray) in [(Some(17_000), None), (None, Some(MANY + 5)), (Some(29_999), Some(MANY + 6))] {
        let fake = world.maps.inner();
        if let Some((list, network)) = gone.map(held) {
            FamilyMaps::<[u8; 4]>::remove_source_range(fake, list, network).expect("a fake");
        }
        if let Some((list, network)) = stray.map(held) {
            fake.set_source_range(list, network).expect("a fake");
        }
        let (_, repairs) = longest(&mut world);
        assert_eq!(repairs, usize::from(gone.is_some()) + usize::from(stray.is_some()));
        assert_eq!(world.snapshot(), before);
    }

    // Lists that change in the midst of it are no drift, and hide none.
    for (steps, asked) in [(1, 5..MANY), (2, 0..MANY), (3, 0..10)] {
        for _ in 0..steps {
            let report = world.controller.audit_some(&mut world.maps, 8192, world.now);
            assert!(report.repairs.is_empty() && report.pass == Pass::UnderWay, "{report:?}");
        }
        ask(&mut world, asked);
        let kept = world.snapshot();
        let (list, network) = kept.0.source_ranges[0];
        world.maps.inner().remove_source_range(list, network).expect("a fake");
        assert_eq!(longest(&mut world).1, 1);
        assert_eq!(world.snapshot(), kept);
        world.now += Tuning::DEFAULT_GRACE;
        world.controller.sync(&mut world.maps, world.now);
        assert_eq!(longest(&mut world).1, 0);
    }
}
