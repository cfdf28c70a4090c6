//! Random changes, failures, full tables and restarts, with a reader who looks at the maps after every single write.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    rc::Rc,
};

use ipnet::IpNet;
use lb_common::abi::{Frontend, FrontendFlags, FrontendKey, Prefix, Service as ServiceValue, SlotRange};
use proptest::prelude::*;

use super::*;
use crate::{
    dataplane::{Capacities, ClientList, Existing, Fake, Faulty, check},
    model::{
        Change, Cidr, DesiredPort, Endpoint, EndpointSlice, Family, Node, Policy, Protocol, Service, ServicePort,
        ServiceType, SlicePort, TrafficPolicy,
        testing::{endpoint, key},
    },
};

const GRACE: Duration = Duration::from_secs(10);
const ROOMY: Capacities = Capacities { frontends: 100, services: 100, slots: 1000, backends: 100, source_ranges: 100 };
const TIGHT: Capacities = Capacities { frontends: 14, services: 6, slots: 30, backends: 12, source_ranges: 4 };

type PortName = (String, String, String, u8);
/// Cluster list, local list, flags, affinity.
type Lists<A> = (Vec<(A, u16)>, Vec<(A, u16)>, u32, u32);

/// Whose a frontend is, its flags, and the list of clients that it lets in, if it does not let in everybody.
type Entry<A> = (PortName, u8, Option<Vec<Cidr<A>>>);

/// Networks that Services may list as their clients'.
const RANGES: [&str; 7] =
    ["198.51.100.0/24", "198.51.0.0/16", "198.51.128.0/17", "203.0.113.7/32", "fd02::/64", "0.0.0.0/0", "fd02::7/128"];
/// The maps as a reader understands them: without indices.
#[derive(Clone, Debug, PartialEq)]
struct View<A: Ord> {
    services: BTreeMap<PortName, Lists<A>>,
    frontends: BTreeMap<FrontendKey<A>, Entry<A>>,
    /// Flags of each endpoint of each service port.
    backends: BTreeMap<(PortName, A, u16), u16>,
    /// All lists of clients, whether a frontend names them or not.
    clients: Vec<(PortName, Vec<Cidr<A>>)>,
    service_cidrs: BTreeSet<Cidr<A>>,
}

impl<A: Family> View<A> {
    fn empty() -> Self {
        Self {
            services: BTreeMap::new(),
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            clients: Vec::new(),
            service_cidrs: BTreeSet::new(),
        }
    }
}

impl<A: Family> View<A> {
    fn of_maps(existing: &Existing<A>) -> Self {
        let slots: HashMap<_, _> = existing.slots.iter().copied().collect();
        let backends: HashMap<_, _> = existing.backends.iter().copied().collect();
        let list = |range: SlotRange| -> Vec<(A, u16)> {
            let backends = (range.first..range.first + range.count).map(|slot| backends[&slots[&slot]]);
            backends.map(|backend| (backend.address, backend.port)).collect()
        };
        let names: HashMap<_, PortName> = existing
            .services
            .iter()
            .map(|(index, name, _)| {
                let (namespace, service, port) = name.parts();
                (*index, (namespace.into(), service.into(), port.into(), name.protocol))
            })
            .collect();
        let lists =
            |value: &ServiceValue| (list(value.cluster), list(value.local), value.flags, value.affinity_seconds);
        let lists_of_clients = lists_of_clients(existing);
        let frontend = |value: &Frontend| {
            let clients = ClientList::of(*value).map(|list| lists_of_clients[&list].clone());
            (names[&value.service].clone(), value.flags, clients)
        };
        let of_port = |(list, clients): (&ClientList, &Vec<_>)| (names[&list.service].clone(), clients.clone());
        let mut clients: Vec<_> = lists_of_clients.iter().map(of_port).collect();
        clients.sort();
        // A backend comes before its service has a name, and goes after.
        let in_service = existing.backends.iter().filter(|(_, backend)| names.contains_key(&backend.service));
        Self {
            clients,
            backends: in_service.map(|(_, b)| ((names[&b.service].clone(), b.address, b.port), b.flags)).collect(),
            service_cidrs: existing.service_cidrs.iter().copied().collect(),
            services: existing.services.iter().map(|(index, _, value)| (names[index].clone(), lists(value))).collect(),
            frontends: existing.frontends.iter().map(|(key, value)| (*key, frontend(value))).collect(),
        }
    }

    fn of_desired(ports: &[DesiredPort<A>], inputs: &Inputs) -> Self {
        let service_cidrs = inputs.service_cidrs().filter_map(Cidr::from_net).collect();
        let mut view = Self { service_cidrs, ..Self::empty() };
        for port in ports {
            let service = &port.name.service;
            let name: PortName = (
                service.namespace.to_string(),
                service.name.to_string(),
                port.name.port.to_string(),
                port.name.protocol as u8,
            );
            let backend = |position: &u32| {
                let backend = &port.backends[*position as usize];
                (backend.address, backend.port)
            };
            let list = |positions: &[u32]| positions.iter().map(backend).collect();
            let lists = (list(&port.cluster), list(&port.local), u32::from(port.has_endpoints), port.affinity_seconds);
            view.services.insert(name.clone(), lists);
            view.backends.extend(port.backends.iter().map(|b| ((name.clone(), b.address, b.port), b.flags)));
            let restricted = |flags: &u8| flags & FrontendFlags::SOURCE_RANGES != 0;
            if port.frontends.iter().any(|(_, flags)| restricted(flags)) {
                view.clients.push((name.clone(), port.source_ranges.clone()));
            }
            view.frontends.extend(port.frontends.iter().map(|(key, flags)| {
                (*key, (name.clone(), *flags, restricted(flags).then(|| port.source_ranges.clone())))
            }));
        }
        view.clients.sort();
        view
    }
}

/// Every list of clients in the maps, ascending.
fn lists_of_clients<A: Family>(existing: &Existing<A>) -> BTreeMap<ClientList, Vec<Cidr<A>>> {
    let mut lists: BTreeMap<ClientList, Vec<Cidr<A>>> = BTreeMap::new();
    for (list, network) in &existing.source_ranges {
        lists.entry(*list).or_default().push(*network);
    }
    for list in lists.values_mut() {
        list.sort();
    }
    lists
}

/// A reader of one family.
struct Reader<A: Ord> {
    now: Instant,
    /// What the maps held when the synchronization began, and what it is to lead to.
    old: View<A>,
    new: View<A>,
    /// Nothing can fail: a frontend that is in both must be there all the time.
    strict: bool,
    /// What each index meant when it was last seen in use, and when that was.
    slots: HashMap<u32, (u32, Instant)>,
    /// Of those that frontends name.
    lists: HashMap<ClientList, (Vec<Cidr<A>>, Instant)>,
    names: HashMap<u32, (PortName, Instant)>,
    backends: HashMap<u32, ((A, u16, u32), Instant)>,
    /// What each generation of each backend was.
    generations: HashMap<(u32, u32), (A, u16, u32)>,
}

impl<A: Family> Reader<A> {
    fn new(now: Instant) -> Self {
        Self {
            now,
            old: View::empty(),
            new: View::empty(),
            strict: false,
            slots: HashMap::new(),
            lists: HashMap::new(),
            names: HashMap::new(),
            backends: HashMap::new(),
            generations: HashMap::new(),
        }
    }

    /// A new agent does not know what the former one freed last: it takes longer than a program to start.
    fn forget_times(&mut self) {
        self.slots.clear();
        self.lists.clear();
        self.names.clear();
        self.backends.clear();
    }

    fn look(&mut self, existing: &Existing<A>) {
        assert_eq!(check(existing), [], "maps contradict themselves");
        let view = View::of_maps(existing);
        for (name, lists) in &view.services {
            let allowed = [self.old.services.get(name), self.new.services.get(name)];
            assert!(allowed.contains(&Some(lists)), "{name:?} is {lists:?}, expected one of {allowed:?}");
        }
        for (key, value) in &view.frontends {
            let allowed = [self.old.frontends.get(key), self.new.frontends.get(key)];
            assert!(allowed.contains(&Some(value)), "{key:?} is {value:?}, expected one of {allowed:?}");
        }
        if self.strict {
            let both = self.old.frontends.keys().filter(|key| self.new.frontends.contains_key(key));
            let missing: Vec<_> = both.filter(|key| !view.frontends.contains_key(key)).collect();
            assert!(missing.is_empty(), "{missing:?} is not there for a moment");
        }

        let now = self.now;
        for (slot, backend) in &existing.slots {
            in_use(&mut self.slots, *slot, *backend, now, "slot");
        }
        let lists = lists_of_clients(existing);
        for list in existing.frontends.iter().filter_map(|(_, frontend)| ClientList::of(*frontend)) {
            self.lists.insert(list, (lists[&list].clone(), now));
        }
        // Nor does one change that was named a moment ago: a program may have read the frontend as it was. But a service
        // without frontends may go, and its lists first.
        self.lists.retain(|list, _| existing.frontends.iter().any(|(_, frontend)| frontend.service == list.service));
        for (list, (former, at)) in &self.lists {
            let found = lists.get(list);
            let ago = now - *at;
            assert!(ago >= GRACE || found == Some(former), "{list:?} was {former:?} {ago:?} ago and is {found:?}");
        }
        for (index, name, _) in &existing.services {
            let (namespace, service, port) = name.parts();
            let name = (namespace.into(), service.into(), port.into(), name.protocol);
            in_use(&mut self.names, *index, name, now, "service");
        }
        for (index, backend) in &existing.backends {
            let endpoint = (backend.address, backend.port, backend.service);
            in_use(&mut self.backends, *index, endpoint, now, "backend");
            let first = *self.generations.entry((*index, backend.generation)).or_insert(endpoint);
            assert_eq!(first, endpoint, "generation {} of backend {index} came twice", backend.generation);
        }
    }
}

/// Notes that `index` means `meaning`, which it may not do if it meant something else less than a grace period ago.
fn in_use<T: PartialEq + std::fmt::Debug>(
    seen: &mut HashMap<u32, (T, Instant)>,
    index: u32,
    meaning: T,
    now: Instant,
    kind: &str,
) {
    if let Some((former, at)) = seen.get(&index)
        && *former != meaning
    {
        assert!(now >= *at + GRACE, "{kind} {index} was {former:?} {:?} ago and is {meaning:?}", now - *at);
    }
    seen.insert(index, (meaning, now));
}

/// That cluster IPs and their ranges are where the programs look.
fn assert_in_reach<A: Family>(fake: &Fake, reach: Prefix<A>)
where
    Fake: FamilyMaps<A>,
{
    let existing: Existing<A> = fake.existing().expect("a fake reads");
    let entries = existing.frontends.iter().filter(|(_, frontend)| frontend.flags & FrontendFlags::CLUSTER_IP != 0);
    for cidr in entries.map(|(key, _)| Cidr::of_address(key.address)).chain(existing.service_cidrs) {
        assert_eq!(Cidr::from_prefix(reach).map(|reach| reach.cover(cidr)), Cidr::from_prefix(reach), "{cidr}");
    }
}

struct Readers {
    v4: Reader<[u8; 4]>,
    v6: Reader<[u8; 16]>,
}

/// An agent, its maps, and those who read them.
struct World {
    maps: Faulty<Fake>,
    controller: Controller,
    readers: Rc<RefCell<Readers>>,
    now: Instant,
    starts: u32,
    roomy: bool,
}

fn settings(starts: u32) -> Settings {
    let first_generation = starts.wrapping_mul(1 << 20).wrapping_sub(5);
    let kinds = ObjectKind::ALL.into();
    let tuning = Tuning { grace: GRACE, first_generation };
    Settings { node_name: "here".into(), kinds, tuning, policy: Policy::default() }
}

impl World {
    fn new(capacities: Capacities, seed: u32) -> Self {
        let now = Instant::now();
        let readers = Rc::new(RefCell::new(Readers { v4: Reader::new(now), v6: Reader::new(now) }));
        let mut fake = Fake::new(capacities);
        let observers = Rc::clone(&readers);
        fake.observe(move |fake| {
            let mut readers = observers.borrow_mut();
            readers.v4.look(&fake.existing().expect("a fake reads"));
            readers.v6.look(&fake.existing().expect("a fake reads"));
            let config = fake.config().expect("a fake reads");
            assert_in_reach(fake, config.cluster_ips4);
            assert_in_reach(fake, config.cluster_ips6);
        });
        let mut controller = Controller::adopt(&fake, settings(0)).expect("a fake reads");
        controller.set_network(NodeNetwork::default());
        for kind in settings(0).kinds {
            controller.apply(SourceEvent::Replaced { kind, objects: Vec::new(), rejected: Vec::new() });
        }
        let maps = Faulty::new(fake, 0, seed);
        Self { maps, controller, readers, now, starts: 0, roomy: capacities == ROOMY }
    }

    fn desired(&self) -> (View<[u8; 4]>, View<[u8; 16]>) {
        let inputs = self.controller.inputs();
        let mut desired = DesiredState::new("here");
        let mut all: BTreeSet<ObjectKey> = inputs.services().cloned().collect();
        desired.claim(inputs, &Policy::default(), &mut all);
        let v4: Vec<_> = all.iter().flat_map(|service| desired.ports4(inputs, &Policy::default(), service)).collect();
        let v6: Vec<_> = all.iter().flat_map(|service| desired.ports6(inputs, &Policy::default(), service)).collect();
        (View::of_desired(&v4, inputs), View::of_desired(&v6, inputs))
    }

    fn actual(&mut self) -> (View<[u8; 4]>, View<[u8; 16]>) {
        let fake = self.maps.inner();
        let read = "a fake reads";
        (View::of_maps(&fake.existing().expect(read)), View::of_maps(&fake.existing().expect(read)))
    }

    fn sync(&mut self, rate: u32) {
        let (old4, old6) = self.actual();
        let (new4, new6) = self.desired();
        {
            let Readers { v4, v6 } = &mut *self.readers.borrow_mut();
            (v4.now, v4.old, v4.new) = (self.now, old4, new4);
            (v6.now, v6.old, v6.new) = (self.now, old6, new6);
            let strict = rate == 0 && self.roomy && self.controller.retry.is_empty();
            (v4.strict, v6.strict) = (strict, strict);
        }
        self.maps.set_rate(rate);
        let report = self.controller.sync(&mut self.maps, self.now);
        if rate == 0 && self.roomy {
            assert!(report.failures.is_empty(), "{:?}", report.failures);
        }
        // What failed, what is on its way out and what was left by others is no drift; a few elements at a time, so that
        // changes come in the midst of a pass.
        let report = self.controller.audit_some(&mut self.maps, 100, self.now);
        assert!(report.repairs.is_empty() && report.failures.is_empty(), "{:?} {:?}", report.repairs, report.failures);
    }

    /// A new agent on the same maps, given the same objects.
    fn restart(&mut self, objects: &BTreeMap<(ObjectKind, ObjectKey), Change>) {
        self.starts += 1;
        let mut readers = self.readers.borrow_mut();
        readers.v4.forget_times();
        readers.v6.forget_times();
        self.controller = Controller::adopt(self.maps.inner(), settings(self.starts)).expect("a fake reads");
        self.controller.set_network(NodeNetwork::default());
        for kind in settings(0).kinds {
            let of_kind = objects.iter().filter(|((other, _), _)| *other == kind);
            let objects = of_kind.map(|(_, change)| change.clone()).collect();
            self.controller.apply(SourceEvent::Replaced { kind, objects, rejected: Vec::new() });
        }
    }

    /// Lets time pass until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..100 {
            let Some(deadline) = self.controller.next_deadline() else { return };
            self.now = self.now.max(deadline);
            self.sync(0);
        }
        panic!("never done: {:?}", self.controller);
    }
}

#[derive(Clone, Debug)]
struct Round {
    changes: Vec<((ObjectKind, ObjectKey), Option<Change>)>,
    seconds: u64,
    rate: u32,
    restart: bool,
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn a_service(number: u8) -> impl Strategy<Value = Service> {
    let service_type =
        prop_oneof![Just(ServiceType::ClusterIp), Just(ServiceType::NodePort), Just(ServiceType::LoadBalancer)];
    let port = (0..2_u8, any::<bool>(), proptest::option::of(30_000..30_004_u16)).prop_map(|(name, tcp, node_port)| {
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        ServicePort { name: format!("p{name}").into(), protocol, port: 80 + u16::from(name), node_port }
    });
    let ports = proptest::collection::vec(port, 1..3);
    // Everybody seldom.
    let ranges = prop_oneof![Just(0_u8), 0..32_u8, 0..128_u8];
    (service_type, ports, policy(), policy(), any::<bool>(), 0..3_u8, 0..3_u32, 0..3_i64, ranges).prop_map(
        move |(service_type, ports, internal_policy, external_policy, dual, shared, affinity, created, ranges)| {
            Service {
                service_type,
                cluster_ips: [[10, 96, 0, number].into()]
                    .into_iter()
                    .chain(dual.then(|| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number].into()))
                    .collect(),
                external_ips: vec![[192, 0, 2, shared].into()],
                load_balancer_ips: vec![[192, 0, 2, 200 + shared].into()],
                source_ranges: (0..)
                    .zip(RANGES)
                    .filter(|(bit, _)| ranges & 1 << bit != 0)
                    .map(|(_, range)| net(range))
                    .collect(),
                ports,
                internal_policy,
                external_policy,
                affinity_seconds: Some(affinity),
                balance: None,
                health_check_node_port: None,
                uid: None,
                created,
            }
        },
    )
}

fn a_slice() -> impl Strategy<Value = EndpointSlice> {
    let one = (0..8_u8, any::<[bool; 5]>(), 0..3_usize).prop_map(|(host, [ready, serving, ending, here, v6], zone)| {
        let address = if v6 { format!("fd01::{host}") } else { format!("10.1.0.{host}") };
        Endpoint {
            ready,
            serving: serving || ready,
            terminating: ending && !ready,
            node_name: Some(if here { "here" } else { "there" }.into()),
            zone_hints: ["a", "b"].get(zone).map(|zone| (*zone).into()).into_iter().collect(),
            ..endpoint(&address)
        }
    });
    (0..6_u8, 8080..8082_u16, proptest::collection::vec(one, 0..5)).prop_map(|(service, port, endpoints)| {
        let slice_port = |name: &str, protocol| SlicePort { name: name.into(), protocol, port };
        let ports =
            vec![slice_port("p0", Protocol::Tcp), slice_port("p0", Protocol::Udp), slice_port("p1", Protocol::Tcp)];
        EndpointSlice { service: key(&format!("s{service}")), ports, endpoints, trigger: None }
    })
}

fn a_change() -> impl Strategy<Value = ((ObjectKind, ObjectKey), Option<Change>)> {
    let service = (0..6_u8)
        .prop_flat_map(|number| (Just(number), proptest::option::weighted(0.8, a_service(number))))
        .prop_map(|(number, service)| {
            let key = key(&format!("s{number}"));
            ((ObjectKind::Service, key.clone()), service.map(|service| Change::Service(key, Some(service))))
        });
    let slice = (0..8_u8, proptest::option::weighted(0.8, a_slice())).prop_map(|(number, slice)| {
        let key = key(&format!("e{number}"));
        ((ObjectKind::EndpointSlice, key.clone()), slice.map(|slice| Change::EndpointSlice(key, Some(slice))))
    });
    let node = (prop_oneof![Just("a"), Just("b"), Just("c")], any::<bool>()).prop_map(|(zone, inside)| {
        let internal_ips: [IpAddr; 1] = [[198, 51, if inside { 100 } else { 200 }, 1].into()];
        let node = Node { zone: Some(zone.into()), internal_ips: internal_ips.into(), ..Node::default() };
        ((ObjectKind::Node, ObjectKey::new("", "here")), Some(Change::Node(Some(node))))
    });
    let cidr = (0..2_usize, proptest::option::of(0..3_usize)).prop_map(|(number, cidr)| {
        let key = ObjectKey::new("", ["a", "b"][number]);
        let cidrs = cidr.map(|cidr| vec![net(["10.96.0.0/16", "10.98.0.0/24", "fd00::/108"][cidr])]);
        let change = cidrs.map(|cidrs| Change::ServiceCidr(key.clone(), Some(cidrs)));
        ((ObjectKind::ServiceCidr, key), change)
    });
    prop_oneof![8 => service, 12 => slice, 2 => node, 1 => cidr]
}

fn rounds() -> impl Strategy<Value = Vec<Round>> {
    let rate = prop_oneof![3 => Just(0), 1 => Just(50), 1 => Just(300)];
    let changes = proptest::collection::vec(a_change(), 0..5);
    let round = (changes, 0..15_u64, rate, proptest::bool::weighted(0.1))
        .prop_map(|(changes, seconds, rate, restart)| Round { changes, seconds, rate, restart });
    proptest::collection::vec(round, 1..25)
}

fn play(capacities: Capacities, rounds: Vec<Round>, seed: u32) {
    let mut world = World::new(capacities, seed);
    let mut objects = BTreeMap::new();
    for Round { changes, seconds, rate, restart } in rounds {
        for (key, change) in changes {
            let event = match (&change, &key) {
                (Some(change), _) => change.clone(),
                (None, (kind, key)) => Change::gone(*kind, key.clone()),
            };
            world.controller.apply(SourceEvent::Changed(event));
            match change {
                Some(change) => drop(objects.insert(key, change)),
                None => drop(objects.remove(&key)),
            }
        }
        if restart {
            world.restart(&objects);
        }
        world.now += Duration::from_secs(seconds);
        world.sync(rate);
    }
    if world.roomy {
        world.settle();
        assert_eq!(world.actual(), world.desired());
        world.restart(&objects);
        world.maps.inner().take_writes();
        world.sync(0);
        assert_eq!(world.maps.inner().take_writes(), BTreeMap::new(), "a restart on what is desired writes nothing");
    }
    for kind in [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::ServiceCidr] {
        world.controller.apply(SourceEvent::Replaced { kind, objects: Vec::new(), rejected: Vec::new() });
    }
    world.sync(0);
    world.settle();
    assert_eq!(world.actual(), world.desired(), "all is gone");
    let Controller { v4, v6, .. } = &world.controller;
    v4.assert_all_free(capacities);
    v6.assert_all_free(capacities);
}

proptest! {
    #[test]
    fn readers_always_see_old_or_new_and_in_the_end_what_is_desired(rounds in rounds(), seed: u32) {
        play(ROOMY, rounds, seed);
    }

    #[test]
    fn full_tables_leave_the_last_good_state(rounds in rounds(), seed: u32) {
        play(TIGHT, rounds, seed);
    }
}
