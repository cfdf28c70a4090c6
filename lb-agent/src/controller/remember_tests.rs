//! An agent that starts on maps of a former one, and is told less than what is in them.

use std::net::IpAddr;

use crate::{
    controller::tests::World,
    dataplane::Fake,
    model::{
        Balance, Change, Endpoint, EndpointSlice, ObjectKey, ObjectKind, Protocol, Service, ServicePort, ServiceType,
        SlicePort, SourceEvent, TrafficPolicy,
        testing::{endpoint, key, port, service, slice},
    },
};

fn slice_change(name: &str, slice: Option<EndpointSlice>) -> SourceEvent {
    SourceEvent::Changed(Change::EndpointSlice(key(name), slice))
}

/// A Service that uses everything, and endpoints of every state.
fn rich() -> (Service, Vec<(&'static str, EndpointSlice)>) {
    let service = Service {
        service_type: ServiceType::LoadBalancer,
        cluster_ips: vec![IpAddr::from([10, 96, 0, 9]), "fd00::9".parse().expect("an address")],
        external_ips: vec![IpAddr::from([192, 0, 2, 9])],
        load_balancer_ips: vec![IpAddr::from([192, 0, 2, 10])],
        source_ranges: vec!["198.51.100.0/24".parse().expect("a network")],
        ports: vec![
            ServicePort { node_port: Some(30_080), ..port("http", 80) },
            ServicePort { node_port: Some(30_053), protocol: Protocol::Udp, ..port("dns", 53) },
        ],
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        affinity_seconds: Some(60),
        balance: None,
        created: 7,
        health_check_node_port: None,
        uid: None,
    };
    let here = |address| Endpoint { node_name: Some("here".into()), ..endpoint(address) };
    let ending = |address| Endpoint { ready: false, terminating: true, ..endpoint(address) };
    let gone = |address| Endpoint { serving: false, ..ending(address) };
    let ports = vec![
        SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 },
        SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 5353 },
    ];
    let with = |endpoints: Vec<Endpoint>| EndpointSlice { ports: ports.clone(), ..slice("rich", &endpoints) };
    let v4 = with(vec![here("10.0.0.1"), endpoint("10.0.0.2"), ending("10.0.0.3"), gone("10.0.0.4")]);
    let v6 = with(vec![here("fd01::1"), endpoint("fd01::2")]);
    (service, vec![("rich-4", v4), ("rich-6", v6)])
}

/// Maps that hold `rich` and `web`.
fn served() -> World {
    served_by(None)
}

/// Maps that hold `rich`, whose backends are picked in this way, and `web`.
fn served_by(balance: Option<Balance>) -> World {
    let mut world = World::new(Fake::default());
    let (rich, slices) = rich();
    world.service("rich", Some(Service { balance, ..rich }));
    for (name, slice) in slices {
        world.controller.apply(slice_change(name, Some(slice)));
    }
    world.service("web", Some(service("10.96.0.1")));
    world.slice("web", &["10.0.1.1", "10.0.1.2"]);
    world.sync_all();
    world.maps.take_writes();
    world
}

/// A new agent that is told these lists; keys are objects that were rejected.
fn restart(
    world: &mut World,
    unread: bool,
    (services, rejected_services): (Vec<Change>, &[&str]),
    (slices, rejected_slices): (Vec<Change>, &[&str]),
) {
    world.restart_silently();
    if unread {
        world.controller.apply(SourceEvent::Unread(true));
    }
    let keys = |names: &[&str]| names.iter().map(|name| key(name)).collect();
    for (kind, objects, rejected) in [
        (ObjectKind::Service, services, keys(rejected_services)),
        (ObjectKind::EndpointSlice, slices, keys(rejected_slices)),
    ] {
        world.controller.apply(SourceEvent::Replaced { kind, objects, rejected });
    }
}

fn web() -> Vec<Change> {
    vec![Change::Service(key("web"), Some(service("10.96.0.1")))]
}

fn rich_service() -> Vec<Change> {
    vec![Change::Service(key("rich"), Some(rich().0))]
}

fn web_slice(addresses: &[&str]) -> Vec<Change> {
    let endpoints: Vec<_> = addresses.iter().map(|address| endpoint(address)).collect();
    vec![Change::EndpointSlice(key("web"), Some(slice("web", &endpoints)))]
}

fn rich_slices() -> Vec<Change> {
    rich().1.into_iter().map(|(name, slice)| Change::EndpointSlice(key(name), Some(slice))).collect()
}

/// The lines of a dump that name a Service.
fn of(world: &World, name: &str) -> Vec<String> {
    world.dump().into_iter().filter(|line| line.contains(&format!("default/{name}:"))).collect()
}

#[test]
fn nothing_that_was_served_changes_while_all_of_it_may_be_in_what_cannot_be_read() {
    for balance in [None, Some(Balance::Maglev), Some(Balance::RoundRobin), Some(Balance::LeastConn)] {
        let mut world = served_by(balance);
        let before = (world.dump(), world.existing());
        restart(&mut world, true, (Vec::new(), &[]), (Vec::new(), &[]));
        let report = world.sync_all();
        assert_eq!((report.writes, report.changes), (0, Vec::new()), "{balance:?} {}", world.maps);
        assert_eq!((world.dump(), world.existing()), before);

        // It could be read, and none of it was there.
        world.controller.apply(SourceEvent::Unread(false));
        world.sync_all();
        assert_eq!(world.dump(), [""; 0]);
    }
}

#[test]
fn what_could_be_read_goes_on_beside_what_could_not() {
    let mut world = served();
    let rich_before = of(&world, "rich");
    restart(&mut world, true, (web(), &[]), (web_slice(&["10.0.1.1", "10.0.1.2"]), &[]));
    assert_eq!(world.sync_all().writes, 0);
    // An endpoint that a slice had since the start goes when the slice says so.
    world.slice("web", &["10.0.1.2", "10.0.1.3"]);
    world.sync_all();
    assert!(of(&world, "web")[0].contains("cluster [10.0.1.2:8080 10.0.1.3:8080]"), "{}", world.maps);
    // And so does a Service.
    world.service("web", None);
    world.sync_all();
    assert_eq!(of(&world, "web"), [""; 0]);
    assert_eq!(of(&world, "rich"), rich_before);
    // The file that could not be read can be, with another state in it.
    let fixed = Service { external_ips: Vec::new(), ..rich().0 };
    world.service("rich", Some(fixed));
    world.change_all(rich_slices());
    world.controller.apply(SourceEvent::Unread(false));
    world.sync_all();
    assert_eq!(of(&world, "rich").len(), rich_before.len() - 2, "the external address, in two ports");
}

#[test]
fn services_whose_slices_could_not_be_read_keep_their_endpoints() {
    let mut world = served();
    let before = world.dump();
    // Slices are in a file of their own, which is broken.
    let services = || web().into_iter().chain(rich_service()).collect();
    restart(&mut world, true, (services(), &[]), (Vec::new(), &[]));
    assert_eq!(world.sync_all().writes, 0);
    assert_eq!(world.dump(), before);
    // One that is known adds to what is remembered.
    world.slice("web", &["10.0.1.2", "10.0.1.9"]);
    world.sync_all();
    assert!(of(&world, "web")[0].contains("[10.0.1.1:8080 10.0.1.2:8080 10.0.1.9:8080]"), "{}", world.maps);
    world.controller.apply(SourceEvent::Unread(false));
    world.sync_all();
    assert!(of(&world, "web")[0].contains("cluster [10.0.1.2:8080 10.0.1.9:8080]"), "{}", world.maps);
    assert!(of(&world, "rich").iter().all(|line| line.contains("cluster [] local []")), "{}", world.maps);
}

#[test]
fn a_service_that_the_first_list_rejects_stays_until_it_is_told_or_gone() {
    for last in [None, Some(service("10.96.0.77"))] {
        let mut world = served();
        let before = world.dump();
        restart(&mut world, false, (web(), &["rich"]), (web_slice(&["10.0.1.1", "10.0.1.2"]), &[]));
        world.change_all(rich_slices());
        assert_eq!(world.sync_all().writes, 0);
        assert_eq!(world.dump(), before);
        // Its endpoints are followed meanwhile.
        let (_, slices) = rich();
        let (name, mut slice) = slices[0].clone();
        slice.endpoints.remove(1);
        world.controller.apply(slice_change(name, Some(slice)));
        world.sync_all();
        assert!(of(&world, "rich").iter().all(|line| !line.contains("10.0.0.2:")), "{}", world.maps);
        // Another list that rejects it makes no difference.
        world.controller.apply(SourceEvent::Replaced {
            kind: ObjectKind::Service,
            objects: web(),
            rejected: vec![key("rich")],
        });
        assert_eq!(world.sync_all().writes, 0);

        world.service("rich", last.clone());
        world.sync_all();
        let found: Vec<_> = of(&world, "rich").iter().map(|line| line[..13].to_owned()).collect();
        let expected = if last.is_some() { vec!["10.96.0.77:80"] } else { Vec::new() };
        assert_eq!(found, expected, "{}", world.maps);
    }
}

#[test]
fn a_slice_that_the_first_list_rejects_keeps_endpoints_in_its_namespace_that_no_slice_lists() {
    let mut world = served();
    let elsewhere = ObjectKey::new("other", "web");
    let other = |endpoints: &[Endpoint]| EndpointSlice { service: elsewhere.clone(), ..slice("web", endpoints) };
    let told = |change| SourceEvent::Changed(change);
    world.controller.apply(told(Change::Service(elsewhere.clone(), Some(service("10.96.0.3")))));
    world.controller.apply(told(Change::EndpointSlice(elsewhere.clone(), Some(other(&[endpoint("10.0.3.1")])))));
    world.sync_all();

    let services = web().into_iter().chain(rich_service());
    let services = services.chain([Change::Service(elsewhere.clone(), Some(service("10.96.0.3")))]).collect();
    let before = of(&world, "rich");
    restart(&mut world, false, (services, &[]), (web_slice(&["10.0.1.1"]), &["rich-4", "rich-6"]));
    world.sync_all();
    assert_eq!(of(&world, "rich"), before);
    // The rejected slices may be any Service's of the namespace: 10.0.1.2 may be in one of them.
    assert!(of(&world, "web")[0].contains("[10.0.1.1:8080 10.0.1.2:8080]"), "{}", world.maps);
    assert!(world.dump().iter().any(|line| line.contains("other/web:http/TCP cluster [] local []")), "{}", world.maps);

    for (name, slice) in rich().1 {
        world.controller.apply(slice_change(name, Some(slice)));
    }
    world.sync_all();
    assert_eq!(of(&world, "rich"), before);
    assert!(of(&world, "web")[0].contains("cluster [10.0.1.1:8080] local"), "{}", world.maps);
}

#[test]
fn an_address_that_a_known_service_claims_is_not_kept_for_one_that_is_remembered() {
    let mut world = served();
    let taken = Change::Service(key("new"), Some(Service { created: i64::MAX - 1, ..service("10.96.0.1") }));
    restart(&mut world, true, (vec![taken], &[]), (Vec::new(), &[]));
    world.sync_all();
    assert!(world.dump().iter().any(|line| line.starts_with("10.96.0.1:80/TCP ") && line.contains("default/new:http")));
    assert_eq!(of(&world, "web"), [""; 0], "it has no other address");
}
