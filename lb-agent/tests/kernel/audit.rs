//! Somebody else writes to the pinned maps while the agent runs.

use std::{fs, time::Instant};

use aya::maps::{HashMap, LpmTrie, MapData, lpm_trie::Key};
use lb_agent::{
    controller::{Controller, Settings},
    dataplane::{DataplaneMaps as _, Existing, FamilyMaps, KernelMaps, Pass, Tuning},
    loader::{LoadOptions, Loaded, Pins},
    model::{
        Change, Cidr, Endpoint, EndpointSlice, Family, NodeNetwork, ObjectKey, ObjectKind, Policy, Protocol, Service,
        ServicePort, ServiceType, SlicePort, SourceEvent,
    },
};
use lb_common::abi::{
    Affinity, AffinityKey, Allowed, Backend, BackendFlags, Config, Flow, FrontendKey, LIST_BITS,
    Service as ServiceValue, ServiceName, SourceRange, Tuple, capacity, maps,
};

use crate::{
    agent::{Agent, get, healthy, log, until},
    maps::time_on_cpu,
    sandbox::{self, Sandbox, ip},
};

/// Three Services: one in both families that uses everything, and two of which more is left alone.
fn write_manifests(sandbox: &Sandbox) {
    let dir = sandbox.dir.join("manifests");
    fs::create_dir_all(&dir).expect("a directory");
    let slice = |service: &str, family: &str, addresses: &[&str]| {
        let endpoints: Vec<_> = addresses.iter().map(|address| format!("- {{addresses: ['{address}']}}\n")).collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {service}-{}, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: {family}\nports: [{{name: http, port: 8080}}]\nendpoints:\n{}",
            family.to_lowercase(),
            endpoints.concat()
        )
    };
    let plain = |name: &str, address: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec:\n  clusterIP: {address}\n  clusterIPs: [{address}]\n  ports: [{{name: http, port: 80}}]\n"
        )
    };
    let rich = "apiVersion: v1\nkind: Service\nmetadata: {name: rich, namespace: shop}\n\
                spec:\n  clusterIP: 10.96.0.10\n  clusterIPs: [10.96.0.10, 'fd00:96::10']\n  type: LoadBalancer\n  \
                sessionAffinity: ClientIP\n  loadBalancerSourceRanges: [198.51.100.0/24, 203.0.113.0/24, 'fd03::/64']\n  \
                ports: [{name: http, port: 80, nodePort: 30080}]\n\
                status:\n  loadBalancer: {ingress: [{ip: 192.0.2.10}, {ip: 'fd02::10'}]}\n";
    let cidrs = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\n\
                 spec: {cidrs: [10.96.0.0/16, 'fd00:96::/112']}\n";
    let documents = [
        cidrs.to_owned(),
        rich.to_owned(),
        slice("rich", "IPv4", &["10.244.0.5", "10.244.0.6", "10.244.0.7"]),
        slice("rich", "IPv6", &["fd01::5", "fd01::6"]),
        plain("web", "10.96.0.20"),
        slice("web", "IPv4", &["10.244.0.5", "10.244.0.8"]),
        plain("six", "'fd00:96::20'"),
        slice("six", "IPv6", &["fd01::7"]),
    ];
    let part = dir.join(".part");
    fs::write(&part, documents.join("\n---\n")).expect("written");
    fs::rename(part, dir.join("all.yaml")).expect("renamed");
}

fn sorted<A: Family>(maps: &KernelMaps) -> Existing<A>
where
    KernelMaps: FamilyMaps<A>,
{
    let mut existing = FamilyMaps::<A>::existing(maps).expect("read");
    existing.frontends.sort_unstable_by_key(|(key, _)| *key);
    existing.node_addresses.sort_unstable();
    existing.local_addresses.sort_unstable();
    existing.source_ranges.sort_unstable();
    existing.service_cidrs.sort_unstable();
    existing
}

type Snapshot = (Existing<[u8; 4]>, Existing<[u8; 16]>, Config);

fn snapshot(maps: &KernelMaps) -> Snapshot {
    (sorted(maps), sorted(maps), maps.config().expect("read"))
}

/// Writes to every table of a family. Returns how many elements of each the agent has to write.
fn corrupt<A: Family>(maps: &mut KernelMaps) -> Vec<(&'static str, u32)>
where
    KernelMaps: FamilyMaps<A>,
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
    } = sorted::<A>(maps);
    let (service, name, value) = services[0];
    let (other, ..) = services[1];
    let ((_, endpoint), (second, _), (third, _)) = (backends[0], backends[1], backends[2]);
    let host = Cidr::of_address(endpoint.address);

    maps.remove_frontend(&frontends[0].0).expect("removed");
    let (key, mut frontend) = frontends[1];
    frontend.service = 1000;
    maps.set_frontend(&key, frontend).expect("written");
    maps.set_frontend(&FrontendKey::new(endpoint.address, 99, 6), frontend).expect("written");

    FamilyMaps::<A>::set_service(maps, service, ServiceValue { affinity_seconds: 7, ..value }).expect("written");
    FamilyMaps::<A>::remove_service_name(maps, service).expect("removed");
    let evil = ServiceName::new("kube-system", "evil", "", 6).expect("short");
    FamilyMaps::<A>::set_service_name(maps, other, &evil).expect("written");
    FamilyMaps::<A>::set_service_name(maps, 1000, &name).expect("written");

    let (first, last) = (slots[0].0, slots[slots.len() - 1].0);
    FamilyMaps::<A>::set_slots(maps, first, &[900]).expect("written");
    FamilyMaps::<A>::set_slots(maps, last, &[901]).expect("written");

    maps.set_backend(second, Backend::<A>::default()).expect("written");
    maps.set_backend(third, Backend { address: A::UNSPECIFIED, ..backends[2].1 }).expect("written");
    let end = FamilyMaps::<A>::capacities(maps).backends - 1;
    maps.set_backend(end, endpoint).expect("written");

    maps.remove_local_address(local_addresses[0].0).expect("removed");
    maps.set_local_address(endpoint.address, 1).expect("written");
    maps.set_node_address(777, endpoint.address).expect("written");
    let removed_node_address = node_addresses.first().map(|(interface, _)| *interface);
    if let Some(interface) = removed_node_address {
        FamilyMaps::<A>::remove_node_address(maps, interface).expect("removed");
    }

    maps.remove_source_range(source_ranges[0].0, source_ranges[0].1).expect("removed");
    maps.set_source_range(source_ranges[0].0, host).expect("written");
    maps.remove_service_cidr(service_cidrs[0]).expect("removed");
    maps.set_service_cidr(host).expect("written");

    let tables = A::TABLES;
    vec![
        (tables.frontends, 3),
        (tables.services, 1),
        (tables.service_names, 3),
        (tables.slots, 2),
        (tables.backends, 3),
        (tables.local_addresses, 2),
        (tables.node_addresses, 1 + u32::from(removed_node_address.is_some())),
        (tables.source_ranges, 2),
        (tables.service_cidrs, 2),
    ]
}

pub(crate) fn what_others_write_to_pinned_maps_is_put_right_within_a_minute_and_counted() {
    sandbox::run(|sandbox| {
        // Addresses that come by themselves would come in the midst of it.
        ip("link add eth0 type veth peer name far0");
        for device in ["eth0", "far0"] {
            ip(&format!("link set {device} addrgenmode none"));
            ip(&format!("link set {device} up"));
        }
        ip("addr add 10.0.0.1/24 dev eth0");
        ip("addr add fd00::1/64 dev eth0 nodad");
        ip("route add default via 10.0.0.254");
        ip("route add default via fd00::254");
        write_manifests(sandbox);
        // A pass through tables of the default size takes half a minute.
        let _agent = Agent::start(sandbox, &[], &["--backend-table-size=4096"]);
        until(sandbox, "healthy", healthy);
        let pins = Pins::new(&sandbox.bpffs);
        let mut maps = KernelMaps::open(|name| pins.open(name)).unwrap_or_else(|error| panic!("{error}"));
        let before = snapshot(&maps);
        assert_eq!((before.0.services.len(), before.1.services.len()), (2, 2), "{before:?}");

        // A flow and a client's choice, which name a backend that will be gone for a while.
        let (index, backend) = before.0.backends[1];
        let mut flows: HashMap<MapData, Tuple<[u8; 4]>, Flow<[u8; 4]>> =
            pins.open(maps::FLOWS4).unwrap_or_else(|error| panic!("{error}")).try_into().expect("a hash map");
        let tuple = Tuple::new([198, 51, 100, 7], 40000, [10, 96, 0, 10], 80, 6);
        let flow = Flow { backend: index, generation: backend.generation, service: backend.service, ..Flow::default() };
        flows.insert(&tuple, &flow, 0).expect("written");
        let mut affinities: HashMap<MapData, AffinityKey<[u8; 4]>, Affinity> =
            pins.open(maps::AFFINITY4).unwrap_or_else(|error| panic!("{error}")).try_into().expect("a hash map");
        let list = u32::from(BackendFlags::IN_CLUSTER);
        let client = AffinityKey { namespace: [0; 2], client: [198, 51, 100, 7], service: backend.service, list };
        let choice = Affinity { backend: index, generation: backend.generation, last_used: 5 };
        affinities.insert(&client, &choice, 0).expect("written");

        let writes_before = metric("lb_map_writes_total");
        let mut expected = corrupt::<[u8; 4]>(&mut maps);
        expected.extend(corrupt::<[u8; 16]>(&mut maps));
        maps.set_config(&Config { node_port_min: 1, ..before.2 }).expect("written");
        expected.push((maps::CONFIG, 1));
        // Everybody may use all services, says a prefix of no bits.
        let mut ranges: LpmTrie<MapData, SourceRange<[u8; 4]>, Allowed> =
            pins.open(maps::SOURCE_RANGES4).unwrap_or_else(|error| panic!("{error}")).try_into().expect("a trie");
        ranges.insert(&Key::new(0, SourceRange::default()), &Allowed { allowed: 1 }, 0).expect("written");
        // And one in a list that no frontend can name.
        let unnamed = SourceRange { edition: 256, ..SourceRange::default() };
        ranges.insert(&Key::new(LIST_BITS, unnamed), &Allowed { allowed: 1 }, 0).expect("written");
        let count = expected.iter_mut().find(|(map, _)| *map == maps::SOURCE_RANGES4).expect("it was corrupted");
        count.1 += 2;

        // `until` is patient for a minute.
        until(sandbox, "as before", || snapshot(&maps) == before);
        let nobody_else = || FamilyMaps::<[u8; 4]>::source_prefixes(&maps).expect("read").len() == 2;
        until(sandbox, "no prefix of somebody else", nobody_else);
        // What it counts it has written before.
        let repaired = |map: &str| metric(&format!("lb_map_drift_repaired_total{{map=\"{map}\"}}"));
        until(sandbox, "counted", || expected.iter().all(|(map, count)| repaired(map) >= u64::from(*count)));
        until(sandbox, "a pass", || metric("lb_map_audit_last_timestamp_seconds") > 0);
        for (map, count) in &expected {
            assert_eq!(repaired(map), u64::from(*count), "{map}");
        }
        let repaired: u32 = expected.iter().map(|(_, count)| count).sum();
        assert_eq!(metric("lb_map_writes_total") - writes_before, u64::from(repaired), "nothing else was written");
        assert_eq!(snapshot(&maps), before);
        assert_eq!(flows.get(&tuple, 0).expect("it is there"), flow);
        assert_eq!(affinities.get(&client, 0).expect("it is there"), choice);

        let log = log(sandbox);
        for line in [
            "WARN drift: FRONTENDS4: 10.244.0.5:99/TCP had been entered by somebody else, and is removed",
            "WARN drift: BACKENDS4: 10.244.0.6:8080 of shop/rich:http/TCP had been removed, and is entered again",
            "WARN drift: SERVICE_NAMES4: the name of shop/rich:http/TCP had been removed, and is entered again",
            "WARN drift: CONFIG: the configuration had been changed, and is as it was",
            "WARN drift: SOURCE_RANGES4: clients of many services, by 0 bits of service #0 had been entered",
            "WARN drift: SOURCE_RANGES4: clients of list 256 of shop/rich:http/TCP, which no frontend can name, had been",
        ] {
            assert!(log.contains(line), "no {line:?} in\n{log}");
        }
        assert!(!log.contains("ERROR"), "{log}");
    });
}

/// A number of the agent's metrics, without what is after its point.
fn metric(name: &str) -> u64 {
    let metrics = get("127.0.0.1:10249", "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let number = line.unwrap_or_else(|| panic!("no {name} in\n{metrics}"));
    number.split('.').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{name} {number}"))
}

/// Services of ten endpoints each, and their slices.
fn many(services: u32) -> [Vec<Change>; 2] {
    let address = |net: u8, number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        [net, a, b, c].into()
    };
    let change = |number: u32| {
        let key = ObjectKey::new("default", format!("s{number}"));
        let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
        let service = Service { cluster_ips: vec![address(10, number + 1)], ports: vec![port], ..Service::default() };
        let endpoint = |of: u32| Endpoint {
            address: address(11, number * 16 + of),
            ready: true,
            serving: true,
            terminating: false,
            node_name: None,
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        };
        let slice = EndpointSlice {
            trigger: None,
            service: key.clone(),
            ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: (0..10).map(endpoint).collect(),
        };
        (Change::Service(key.clone(), Some(service)), Change::EndpointSlice(key, Some(slice)))
    };
    let (services, slices) = (0..services).map(change).unzip();
    [services, slices]
}

pub(crate) fn a_look_at_ten_thousand_services_costs_little_and_never_much_at_once() {
    sandbox::run(|_| assert_cheap(many(10_000)));
}

pub(crate) fn a_look_at_a_full_table_of_clients_never_costs_much_at_once() {
    let network = |number: u32| Cidr { address: (0x0b00_0000 + number * 8).to_be_bytes(), bits: 29 };
    let [mut services, slices] = many(1);
    let Some(Change::Service(_, Some(service))) = services.first_mut() else { unreachable!("one Service") };
    service.service_type = ServiceType::LoadBalancer;
    service.load_balancer_ips = vec![[192, 0, 2, 1].into()];
    service.source_ranges =
        (0..capacity::SOURCE_RANGES).map(|number| network(number).to_string().parse().expect("a network")).collect();
    sandbox::run(|_| assert_cheap([services, slices]));
}

/// Looks once at the maps of these objects, and asserts what it costs.
fn assert_cheap(objects: [Vec<Change>; 2]) {
    let mut maps = Loaded::load(&LoadOptions::default())
        .and_then(|mut loaded| loaded.take_maps())
        .unwrap_or_else(|error| panic!("{error}"));
    let settings = Settings {
        node_name: "node-a".into(),
        kinds: [ObjectKind::Service, ObjectKind::EndpointSlice].into(),
        tuning: Tuning { grace: Tuning::DEFAULT_GRACE, first_generation: 1 },
        policy: Policy::default(),
    };
    let mut controller = Controller::adopt(&maps, settings).expect("new maps");
    for (kind, objects) in [ObjectKind::Service, ObjectKind::EndpointSlice].into_iter().zip(objects) {
        controller.apply(SourceEvent::Replaced { kind, objects, rejected: Vec::new() });
    }
    controller.set_network(NodeNetwork::default());
    let report = controller.sync(&mut maps, Instant::now());
    assert!(report.failures.is_empty(), "{:?}", report.failures);

    let whole = time_on_cpu();
    let clients = FamilyMaps::<[u8; 4]>::source_prefixes(&maps).expect("read").len();
    println!("{clients} networks of clients at once: {:?}", time_on_cpu() - whole);

    let mut at = controller.next_audit().expect("it was synchronized");
    let (start, start_of_work) = (at, time_on_cpu());
    let (mut read, mut longest) = (0, std::time::Duration::ZERO);
    loop {
        let step = time_on_cpu();
        let report = controller.audit(&mut maps, at);
        longest = longest.max((time_on_cpu() - step).into());
        assert!(report.repairs.is_empty() && report.failures.is_empty(), "{:?} {:?}", report.repairs, report.failures);
        assert!(report.read < 2 * 8192, "{} at once", report.read);
        read += report.read;
        if report.pass == Pass::Completed {
            break;
        }
        at = controller.next_audit().expect("it goes on");
    }
    let (taken, planned) = (std::time::Duration::from(time_on_cpu() - start_of_work), at - start);
    println!("{read} elements in {taken:?} on the CPU, {longest:?} at once, spread over {planned:?}");
    assert!(planned.as_secs() < 60, "{planned:?}");
    // Unoptimized, and on whatever machine; the document says what it is in a release.
    assert!(taken < planned / 10, "{taken:?} of {planned:?}");
    assert!(longest.as_millis() < 250, "{longest:?} during which no change is served");
}
