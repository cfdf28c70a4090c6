use std::net::IpAddr;

use lb_common::{abi::LocalAddressFlags, ports::Reserved};

use crate::loader::{LinkLayer, Obstacle, Role};

use super::{
    Network,
    tables::{Address, Kind, Link, Route, Tables},
};

const PORTS: [Reserved; 2] = [Reserved { first: 32768, last: 60999 }, Reserved { first: 30000, last: 32767 }];

fn link(name: &str, kind: Kind) -> Link {
    Link { name: name.to_owned(), kind, is_port: false, vlan_of: None }
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

fn address(device: u32, text: &str) -> Address {
    Address { device, ip: ip(text), global: true, preferred: true }
}

/// A node with a NIC, a bond, an overlay, a CNI bridge and pods, some on the bridge.
fn node() -> Tables {
    let port = |name: &str, kind| Link { is_port: true, ..link(name, kind) };
    Tables {
        links: [
            (1, link("lo", Kind::Loopback)),
            (2, link("eth0", Kind::Physical)),
            (3, port("eth1", Kind::Physical)),
            (4, link("bond0", Kind::Virtual)),
            (5, link("flannel.1", Kind::Tunnel)),
            (6, link("cni0", Kind::Virtual)),
            (7, port("vethbridged", Kind::Pod)),
            (8, link("vethrouted", Kind::Pod)),
            (9, link("dummy0", Kind::Virtual)),
        ]
        .into(),
        addresses: vec![
            Address { global: false, ..address(1, "127.0.0.1") },
            address(1, "192.0.2.9"),
            address(2, "10.0.0.1"),
            address(2, "10.0.0.2"),
            Address { preferred: false, ..address(2, "fd00::1") },
            address(2, "fd00::2"),
            Address { global: false, ..address(2, "fe80::1") },
            address(4, "172.16.0.1"),
            address(6, "10.244.0.1"),
            address(9, "198.51.100.1"),
        ],
        routes: [
            Route { ipv6: false, default: true, priority: 100, device: 4 },
            Route { ipv6: false, default: false, priority: 0, device: 5 },
        ]
        .into(),
        once_uplinks: [].into(),
        inherited: [].into(),
    }
}

fn names(network: &Network) -> (Vec<&str>, Vec<&str>) {
    (
        network.uplinks.iter().map(|device| device.name.as_str()).collect(),
        network.pods.iter().map(|device| device.name.as_str()).collect(),
    )
}

#[test]
fn uplinks_are_nics_and_what_has_a_route_out() {
    let network = node().network(None, Some(&[]), PORTS);
    assert_eq!(names(&network), (vec!["eth0", "bond0", "flannel.1"], vec!["vethbridged", "vethrouted"]));
}

#[test]
fn the_device_of_the_nodes_own_address_is_an_uplink() {
    let network = node().network(None, Some(&[ip("198.51.100.1")]), PORTS);
    assert!(names(&network).0.contains(&"dummy0"));
}

#[test]
fn a_pair_that_carries_the_default_route_is_an_uplink_and_no_pod() {
    let mut tables = node();
    tables.routes.insert(Route { ipv6: true, default: true, priority: 1024, device: 8 });
    let network = tables.network(None, Some(&[]), PORTS);
    assert_eq!(names(&network), (vec!["eth0", "bond0", "flannel.1", "vethrouted"], vec!["vethbridged"]));
}

#[test]
fn a_tunnels_end_with_an_address_is_an_uplink_and_a_foreign_device_is_none() {
    let mut tables = node();
    let tunnels = [("vxlan0", Kind::Tunnel), ("wg0", Kind::Bare), ("tunl0", Kind::Foreign)];
    for (index, (name, kind)) in (10..).zip(tunnels) {
        tables.links.insert(index, link(name, kind));
    }
    tables.routes.insert(Route { ipv6: false, default: false, priority: 0, device: 12 });
    let before = ["eth0", "bond0", "flannel.1"];
    assert_eq!(names(&tables.network(None, Some(&[]), PORTS)).0, before);
    tables.addresses.extend([address(10, "10.244.1.0"), address(11, "10.244.1.1"), address(12, "10.244.1.2")]);
    let network = tables.network(None, Some(&[]), PORTS);
    assert_eq!(names(&network).0, [&before[..], &["vxlan0", "wg0"]].concat());
    let links: Vec<_> = network.uplinks.iter().map(|device| device.link).collect();
    let ethernet = LinkLayer::Ethernet;
    assert_eq!(links, [ethernet, ethernet, ethernet, ethernet, LinkLayer::Bare]);
    assert_eq!(network.node.masquerade4.get(&11), Some(&[10, 244, 1, 1]));
    assert_eq!(network.obstacles.get(&11), Some(&Obstacle::Bare));

    let named = ["wg0", "tunl0"].map(str::to_owned);
    let network = tables.network(Some(&named), Some(&[]), PORTS);
    assert_eq!((names(&network).0, &network.missing), (vec!["wg0"], &["tunl0".to_owned()].into()));
}

#[test]
fn named_devices_are_the_only_uplinks() {
    let network = node().network(Some(&["vethrouted".to_owned()]), Some(&[]), PORTS);
    assert_eq!(names(&network), (vec!["vethrouted"], vec!["vethbridged"]));
}

#[test]
fn each_uplink_masquerades_with_its_first_fit_address_and_all_else_with_that_of_the_default_route() {
    let node = node().network(None, Some(&[]), PORTS).node;
    assert_eq!(node.masquerade4, [(0, [172, 16, 0, 1]), (2, [10, 0, 0, 1]), (4, [172, 16, 0, 1])].into());
    let fd00_2 = "fd00::2".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    // The device of the default route has no IPv6 address.
    assert_eq!(node.masquerade6, [(0, fd00_2), (2, fd00_2)].into());
}

#[test]
fn the_nodes_own_address_masquerades_where_it_is() {
    let node = node().network(None, Some(&[ip("10.0.0.2")]), PORTS).node;
    assert_eq!(node.masquerade4.get(&2), Some(&[10, 0, 0, 2]));
}

#[test]
fn an_uplink_without_an_address_masquerades_with_the_nodes_own_wherever_it_is() {
    let own = [192, 0, 2, 9];
    let mut tables = node();
    tables.remove_address(4, ip("172.16.0.1"));
    let node = tables.network(None, Some(&[ip("192.0.2.9")]), PORTS).node;
    // By bond0 is the default route.
    assert_eq!(node.masquerade4, [(0, own), (2, [10, 0, 0, 1]), (4, own), (5, own)].into());
    assert_eq!(node.masquerade6.len(), 2, "the node's own is IPv4");
    // A pod's device, a bridge and one that is nothing to us may hold it as well.
    for address in ["10.244.0.1", "198.51.100.1"] {
        let octets = address.parse::<std::net::Ipv4Addr>().expect("an address").octets();
        let node = tables.network(Some(&["bond0".to_owned()]), Some(&[ip(address)]), PORTS).node;
        assert_eq!(node.masquerade4, [(0, octets), (4, octets)].into());
    }
    // One that is not the node's own is in nobody's place where an uplink has one, and the last resort.
    let node = tables.network(None, Some(&[]), PORTS).node;
    assert_eq!(node.masquerade4, [(0, [10, 0, 0, 1]), (2, [10, 0, 0, 1])].into());
    tables.addresses.push(address(1, "127.0.0.53"));
    tables.addresses.retain(|address| address.device != 2);
    let node = tables.network(None, None, PORTS).node;
    assert_eq!((node.masquerade4, node.masquerade6.len()), ([(0, own)].into(), 0));
}

#[test]
fn the_nodes_own_addresses_are_those_of_every_scope_but_of_an_ipv6_link() {
    let mut tables = node();
    let narrow = |device, text| Address { global: false, ..address(device, text) };
    // Given with `scope host` and `scope link`; the last one is of a loopback network, and on every host.
    tables.addresses.extend([narrow(1, "10.255.0.1"), narrow(9, "169.254.20.10"), narrow(1, "127.0.0.53")]);
    let node = tables.network(None, Some(&[]), PORTS).node;
    let expected = ["192.0.2.9", "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2", "172.16.0.1", "10.244.0.1"];
    let expected = expected.into_iter().chain(["198.51.100.1", "10.255.0.1", "169.254.20.10"]);
    let loopback = ["127.0.0.1", "::1"].map(|address| (ip(address), LocalAddressFlags::LOOPBACK));
    let expected = expected.map(|address| (ip(address), 0)).chain(loopback);
    assert_eq!(node.local_addresses, expected.collect());
    // Others may not know a way to such an address: nothing is masqueraded with it.
    assert!(node.masquerade4.values().all(|address| ![[10, 255, 0, 1], [169, 254, 20, 10]].contains(address)));
}

#[test]
fn what_is_removed_is_gone() {
    let mut tables = node();
    tables.remove_address(2, ip("10.0.0.1"));
    assert_eq!(tables.network(None, Some(&[]), PORTS).node.masquerade4.get(&2), Some(&[10, 0, 0, 2]));
    tables.remove_link(2);
    let network = tables.network(None, Some(&[]), PORTS);
    assert!(!names(&network).0.contains(&"eth0"));
    assert!(!network.node.local_addresses.contains_key(&ip("10.0.0.2")));
}

#[test]
fn an_uplink_stays_one_until_it_is_gone() {
    let mut tables = node();
    let pair = Route { ipv6: false, default: true, priority: 0, device: 8 };
    tables.routes.insert(pair);
    assert!(names(&tables.network(None, Some(&[]), PORTS)).0.contains(&"vethrouted"));
    tables.routes.remove(&pair);
    assert!(names(&tables.network(None, Some(&[]), PORTS)).0.contains(&"vethrouted"));
    tables.remove_link(8);
    tables.links.insert(8, link("vethrouted", Kind::Pod));
    assert!(names(&tables.network(None, Some(&[]), PORTS)).1.contains(&"vethrouted"));
}

#[test]
fn uplinks_of_a_former_agent_stay_until_the_nodes_addresses_are_known() {
    let former = [(8, Some(Role::Uplink)), (9, Some(Role::Uplink)), (7, None), (6, None), (3, Some(Role::Uplink))];
    let former = former.into_iter().chain([(5, Some(Role::Pod)), (77, None)]).collect();
    let mut tables = node();
    tables.inherit(&former);
    // Not eth1, which is a port by now, nor vethbridged, of which nobody knows what it was.
    let (all, pods) = (["eth0", "bond0", "flannel.1", "cni0", "vethrouted", "dummy0"], ["vethbridged"]);
    for _ in 0..2 {
        assert_eq!(names(&tables.network(None, None, PORTS)), (all.to_vec(), pods.to_vec()));
    }
    let network = tables.network(None, Some(&[ip("198.51.100.1")]), PORTS);
    assert_eq!(names(&network), (vec!["eth0", "bond0", "flannel.1", "dummy0"], vec!["vethbridged", "vethrouted"]));
    // They are known for good: who forgets them inherits nothing again.
    assert!(!names(&tables.network(None, None, PORTS)).0.contains(&"cni0"));
    let mut tables = node();
    tables.inherit(&former);
    assert_eq!(names(&tables.network(Some(&["eth0".to_owned()]), None, PORTS)).0, ["eth0"]);
}

#[test]
fn each_family_masquerades_by_its_own_default_route() {
    let mut tables = node();
    tables.addresses.push(address(4, "fd00::4"));
    tables.routes.insert(Route { ipv6: true, default: true, priority: 1024, device: 2 });
    let node = tables.network(None, Some(&[]), PORTS).node;
    assert_eq!(node.masquerade4.get(&0), Some(&[172, 16, 0, 1]));
    assert_eq!(node.masquerade6.get(&0), node.masquerade6.get(&2));
}

#[test]
fn virtual_uplinks_and_those_with_vlan_devices_are_no_place_for_xdp() {
    let mut tables = node();
    assert_eq!(
        tables.network(None, Some(&[]), PORTS).obstacles,
        [(4, Obstacle::Virtual), (5, Obstacle::Virtual)].into()
    );
    tables.links.insert(10, Link { vlan_of: Some(2), ..link("eth0.7", Kind::Virtual) });
    assert_eq!(tables.network(None, Some(&[]), PORTS).obstacles.get(&2), Some(&Obstacle::Vlans));
    tables.remove_link(10);
    assert_eq!(tables.network(None, Some(&[]), PORTS).obstacles.get(&2), None);
}
