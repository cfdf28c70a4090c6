//! Lists of clients (`loadBalancerSourceRanges`) that change, with a reader who looks after every single write.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use lb_common::abi::maps;

use super::tests::{GRACE, World};
use crate::{
    dataplane::{Capacities, ClientList, Existing, Fake, FamilyMaps, TableFill},
    model::{
        Change, Cidr, Endpoint, Service, ServiceType,
        testing::{endpoint, key, service, slice},
    },
};

/// A Service of this number, the last octet of load-balancer addresses, and clients' networks.
type Asked<'a> = (u8, &'a [u8], &'a [&'a str]);
/// Who holds each restricted load-balancer address, by the last octet, and whom it lets in.
type Seen = BTreeMap<u8, (String, Vec<String>)>;

fn restricted((number, addresses, ranges): Asked<'_>) -> Service {
    Service {
        service_type: ServiceType::LoadBalancer,
        load_balancer_ips: addresses.iter().map(|address| [192, 0, 2, *address].into()).collect(),
        source_ranges: ranges.iter().map(|range| range.parse().expect("a network")).collect(),
        ..service(&format!("10.96.0.{number}"))
    }
}

fn change(asked: Asked<'_>) -> Change {
    Change::Service(key(&format!("s{}", asked.0)), Some(restricted(asked)))
}

fn world(capacities: Capacities, services: &[Asked<'_>]) -> World {
    let mut world = World::new(Fake::new(capacities));
    world.change_all(services.iter().copied().map(change));
    world.sync_all();
    world.now += GRACE;
    world.sync_all();
    world.maps.take_writes();
    world
}

const ROOMY: Capacities = Capacities { frontends: 100, services: 100, slots: 100, backends: 100, source_ranges: 100 };

fn seen(existing: &Existing<[u8; 4]>) -> Seen {
    let restricted = existing.frontends.iter().filter_map(|(key, frontend)| Some((key, ClientList::of(*frontend)?)));
    restricted
        .map(|(key, list)| {
            let holder = existing.services.iter().find(|(index, ..)| *index == list.service);
            let clients = existing.source_ranges.iter().filter(|(of, _)| *of == list);
            let holder = holder.map_or_else(String::new, |(_, name, _)| name.parts().1.to_owned());
            (key.address[3], (holder, clients.map(|(_, clients)| clients.to_string()).collect()))
        })
        .collect()
}

fn expected(services: &[Asked<'_>]) -> Seen {
    let of = |(number, addresses, ranges): &Asked<'_>| {
        let value = (format!("s{number}"), ranges.iter().map(|range| (*range).to_owned()).collect::<Vec<_>>());
        addresses.iter().map(|address| (*address, value.clone())).collect::<Vec<_>>()
    };
    services.iter().flat_map(of).collect()
}

/// Changes Services in one synchronization. Each address that is there before and after has at every moment its holder and
/// list of before or its holder and list of after.
fn changes_in_one_write(before: &[Asked<'_>], after: &[Asked<'_>]) {
    let mut world = world(ROOMY, before);
    let (old, new) = (expected(before), expected(after));
    assert_eq!(seen(&world.existing()), old);
    let moments = Rc::new(RefCell::new(Vec::new()));
    let observed = Rc::clone(&moments);
    world.maps.observe(move |fake| observed.borrow_mut().push(seen(&fake.existing().expect("a fake reads"))));
    world.change_all(after.iter().copied().map(change));
    world.sync_all();
    world.now += GRACE;
    world.sync_all();
    for moment in &*moments.borrow() {
        for (address, value) in &old {
            let new = new.get(address);
            let now = moment.get(address);
            assert!(now == Some(value) || now == new, "192.0.2.{address} is {now:?}, not {value:?} and not {new:?}");
        }
    }
    let existing = world.existing();
    assert_eq!(seen(&existing), new);
    let networks: usize = after.iter().map(|(_, _, ranges)| ranges.len()).sum();
    assert_eq!(existing.source_ranges.len(), networks, "nothing is left of the former lists");
    assert_eq!(world.controller.next_deadline(), None);
}

const A: &str = "198.51.100.1/32";
const B: &str = "198.51.100.2/32";
const C: &str = "198.51.100.3/32";
const D: &str = "198.51.100.4/32";

#[test]
fn an_address_that_moves_to_a_service_whose_list_changes_never_lets_in_whom_that_let_in_before() {
    changes_in_one_write(&[(1, &[80, 81], &[A]), (2, &[82], &[C])], &[(1, &[81], &[A]), (2, &[80, 82], &[D])]);
    changes_in_one_write(&[(1, &[81], &[C]), (2, &[80, 82], &[A])], &[(1, &[80, 81], &[D]), (2, &[82], &[A])]);
}

#[test]
fn an_address_that_leaves_a_service_whose_list_changes_never_lets_in_whom_that_lets_in_now() {
    changes_in_one_write(&[(1, &[80, 81], &[A]), (2, &[82], &[C])], &[(1, &[81], &[B]), (2, &[80, 82], &[C])]);
    changes_in_one_write(&[(1, &[81], &[C]), (2, &[80, 82], &[A])], &[(1, &[80, 81], &[C]), (2, &[82], &[B])]);
}

#[test]
fn services_that_swap_addresses_and_change_their_lists_let_in_those_of_before_or_those_of_after() {
    changes_in_one_write(&[(1, &[80], &[A]), (2, &[81], &[B])], &[(1, &[81], &[C]), (2, &[80], &[D])]);
    changes_in_one_write(&[(1, &[80], &[A]), (2, &[81], &[B])], &[(1, &[81], &[B, C]), (2, &[80], &[A, D])]);
}

#[test]
fn a_changed_list_is_never_both_lists() {
    changes_in_one_write(&[(1, &[80, 81], &[A, B])], &[(1, &[80, 81], &[B, C, D])]);
}

#[test]
fn a_former_list_is_whole_for_the_grace_period_and_in_force_again_by_one_write() {
    let mut world = world(ROOMY, &[(1, &[80], &[A, B])]);
    let list = |edition| ClientList { service: 0, edition };
    let network = |host| Cidr::of_address([198, 51, 100, host]);
    let (old, new) = ([(list(0), network(1)), (list(0), network(2))], [(list(1), network(2)), (list(1), network(3))]);
    world.change_all([change((1, &[80], &[B, C]))]);
    world.sync_all();
    assert_eq!(world.maps.take_writes(), BTreeMap::from([(maps::FRONTENDS4, 1), (maps::SOURCE_RANGES4, 2)]));
    assert_eq!(world.existing().source_ranges, [old, new].concat());
    assert_eq!(world.controller.next_deadline(), Some(world.now + GRACE));

    world.change_all([change((1, &[80], &[A, B]))]);
    world.sync_all();
    assert_eq!(world.maps.take_writes(), BTreeMap::from([(maps::FRONTENDS4, 1)]));
    assert_eq!(seen(&world.existing()), expected(&[(1, &[80], &[A, B])]));
    world.now += GRACE;
    world.sync_all();
    assert_eq!(world.existing().source_ranges, old);
    assert_eq!(world.maps.take_writes(), BTreeMap::from([(maps::SOURCE_RANGES4, 2)]));
}

#[test]
fn a_list_that_does_not_change_keeps_its_number_whatever_else_does_and_over_a_restart() {
    let mut world = world(ROOMY, &[(1, &[80], &[A, B])]);
    world.change_all([change((1, &[80], &[C]))]);
    world.sync_all();
    world.now += GRACE;
    world.sync_all();
    let network = Cidr::of_address([198, 51, 100, 3]);
    let only = [(ClientList { service: 0, edition: 1 }, network)];
    assert_eq!(world.existing().source_ranges, only);
    world.maps.take_writes();
    world.restart();
    world.sync_all();
    assert_eq!(world.maps.take_writes(), BTreeMap::new());
    world.slice("s1", &["10.0.0.1"]);
    world.change_all([change((1, &[80, 81], &[C]))]);
    world.sync_all();
    let writes = world.maps.take_writes();
    assert_eq!((writes.get(maps::SOURCE_RANGES4), writes.get(maps::FRONTENDS4)), (None, Some(&1)));
    assert_eq!(world.existing().source_ranges, only);
}

#[test]
fn lists_that_no_frontend_names_do_not_outlive_a_restart_and_those_that_one_names_are_replaced() {
    let mut world = world(ROOMY, &[(1, &[80, 81], &[A])]);
    let list = |edition| ClientList { service: 0, edition };
    let network = |host| Cidr::of_address([198, 51, 100, host]);
    // The former agent was stopped when it had given one frontend a new list, and had begun a third one.
    let (moved, frontend) =
        world.existing().frontends.into_iter().find(|(key, _)| key.address[3] == 81).expect("it is");
    for (edition, host) in [(1, 2), (2, 1), (2, 9)] {
        world.maps.set_source_range(list(edition), network(host)).expect("a fake");
    }
    world.maps.set_frontend(&moved, lb_common::abi::Frontend { edition: 1, ..frontend }).expect("a fake");
    world.maps.take_writes();
    world.restart();
    world.sync_all();
    assert_eq!(seen(&world.existing()), expected(&[(1, &[80, 81], &[A])]));
    assert_eq!(world.existing().source_ranges, [(list(0), network(1)), (list(1), network(2))], "the second one rests");
    assert_eq!(world.maps.take_writes(), BTreeMap::from([(maps::FRONTENDS4, 1), (maps::SOURCE_RANGES4, 2)]));
    world.now += GRACE;
    world.sync_all();
    assert_eq!(world.existing().source_ranges, [(list(0), network(1))]);
}

#[test]
fn a_list_stays_in_force_where_there_is_no_room_for_another_beside_it_until_there_is() {
    let mut world = world(Capacities { source_ranges: 5, ..ROOMY }, &[(1, &[80], &[A, B, C]), (2, &[81], &[A, B])]);
    let before = world.existing();
    world.change_all([change((1, &[80, 82], &[B, C, D]))]);
    let told = "default/s1:http/TCP: table SOURCE_RANGES4 is full: a new list of 3 networks of clients is entered beside \
                what is in force, and there is room for 0";
    assert_eq!(world.failures(), [told]);
    assert_eq!(world.existing(), before);
    assert_eq!(world.maps.take_writes(), BTreeMap::new());

    // Room that is not enough, and a restart meanwhile.
    world.service("s2", None);
    world.sync_all();
    world.restart();
    assert_eq!(world.failures(), [told.replace("for 0", "for 2")]);
    assert_eq!(seen(&world.existing()), expected(&[(1, &[80], &[A, B, C])]));

    // A shorter one fits; when the long one has gone, so does what did not.
    world.change_all([change((1, &[80, 82], &[D]))]);
    world.sync_all();
    assert_eq!(seen(&world.existing()), expected(&[(1, &[80, 82], &[D])]));
    world.change_all([change((1, &[80, 82], &[B, C, D]))]);
    assert_eq!(world.failures(), [told.replace("for 0", "for 1")]);
    for _ in 0..10 {
        let Some(deadline) = world.controller.next_deadline() else { break };
        world.now = world.now.max(deadline);
        world.failures();
    }
    assert_eq!((world.failures(), world.controller.next_deadline()), (Vec::new(), None));
    assert_eq!(seen(&world.existing()), expected(&[(1, &[80, 82], &[B, C, D])]));
    assert_eq!(world.existing().source_ranges.len(), 3);
}

/// The lines of a dump that are of a Service's port 80, each from what its endpoints are on.
fn served(world: &World, name: &str) -> Vec<String> {
    let of = format!("default/{name}:http/TCP ");
    world.dump().iter().filter_map(|line| Some(line.split_once(&of)?.1.to_owned())).collect()
}

#[test]
fn endpoints_follow_where_a_list_of_clients_has_no_room() {
    let mut world = world(Capacities { source_ranges: 4, ..ROOMY }, &[(1, &[80], &[A, B, C])]);
    world.service("s2", Some(Service { source_ranges: Vec::new(), ..restricted((2, &[81], &[])) }));
    for name in ["s1", "s2"] {
        world.slice(name, &["10.0.0.1", "10.0.0.2"]);
    }
    world.sync_all();
    let of_both = "cluster [10.0.0.1:8080 10.0.0.2:8080] local []";
    let of_one = of_both.replace("10.0.0.1:8080 ", "");
    assert_eq!(served(&world, "s2"), [of_both, of_both]);

    // One is to have another list and the other is to have one; and an endpoint of both goes.
    world.change_all([change((1, &[80, 82], &[B, C, D])), change((2, &[81], &[A, B]))]);
    for name in ["s1", "s2"] {
        world.slice(name, &["10.0.0.2"]);
    }
    let report = world.controller.sync(&mut world.maps, world.now);
    let told: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("list of 3 networks") && told[1].contains("list of 2 networks"), "{told:?}");
    assert_eq!(report.changes.len(), 2, "what changed is told: {:?}", report.changes);
    let clients = format!("clients [{A} {B} {C}]");
    for _ in 0..2 {
        // Who was let in is, and nobody else; an address that is new waits for the list.
        assert_eq!(served(&world, "s1"), [of_one.clone(), format!("{of_one} {clients}")]);
        assert_eq!(served(&world, "s2"), [&*of_one, &*of_one]);
        assert_eq!(world.controller.services_behind(), 2);
        world.restart();
        world.failures();
    }

    // An address that is given up goes at once, though the list cannot come yet.
    world.change_all([change((1, &[], &[])), change((2, &[], &[A, B]))]);
    world.sync_all();
    assert_eq!((served(&world, "s1").len(), served(&world, "s2").len()), (1, 1));
    world.now += GRACE;
    world.sync_all();
    world.change_all([change((1, &[80, 82], &[B, C, D]))]);
    world.sync_all();
    assert_eq!(seen(&world.existing()), expected(&[(1, &[80, 82], &[B, C, D])]));
}

#[test]
fn a_load_balancer_learns_of_endpoints_that_go_though_a_list_of_clients_has_no_room() {
    let mut world = world(Capacities { source_ranges: 5, ..ROOMY }, &[]);
    let ask = |world: &mut World, ranges, endpoints: &[Endpoint]| {
        let service = Service { health_check_node_port: Some(32_000), ..restricted((1, &[80], ranges)) };
        world.service("s1", Some(service));
        world.change_all([Change::EndpointSlice(key("s1"), Some(slice("s1", endpoints)))]);
    };
    let here = |address| Endpoint { node_name: Some("here".into()), ..endpoint(address) };
    let counted = |world: &World| world.controller.health_checks()[&key("s1")].local4;
    ask(&mut world, &[A, B, C], &[here("10.0.0.1"), here("10.0.0.2")]);
    world.sync_all();
    assert_eq!(counted(&world), Some(2));
    ask(&mut world, &[B, C, D], &[here("10.0.0.2")]);
    let report = world.controller.sync(&mut world.maps, world.now);
    assert_eq!((report.failures.len(), report.health_checks_changed), (1, true));
    assert_eq!(counted(&world), Some(1));
}

#[test]
fn the_fill_of_the_table_of_clients_is_told_with_the_lists_that_rest() {
    let mut world = world(ROOMY, &[(1, &[80], &[A, B])]);
    let fill = |world: &World, table| world.controller.fill(&world.maps).into_iter().find(|fill| fill.table == table);
    let of = |table, used| Some(TableFill { table, used, capacity: 100 });
    let (v4, v6) = (maps::SOURCE_RANGES4, maps::SOURCE_RANGES6);
    assert_eq!((fill(&world, v4), fill(&world, v6)), (of(v4, 2), of(v6, 0)));
    world.change_all([change((1, &[80], &[C]))]);
    world.sync_all();
    assert_eq!(fill(&world, v4), of(v4, 3));
    world.now += GRACE;
    world.sync_all();
    assert_eq!(fill(&world, v4), of(v4, 1));
}
