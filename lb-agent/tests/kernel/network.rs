use std::{fs, net::IpAddr};

use lb_agent::network::{Network, Options, Watcher};
use lb_common::ports::Reserved;
use tokio::sync::watch;

use crate::{
    agent::PATIENCE,
    sandbox::{self, Elsewhere, ip},
};

fn options(devices: Option<&str>) -> Options {
    let devices = devices.map(|names| names.split(',').map(str::to_owned).collect());
    Options { devices, node_ports: Reserved { first: 30000, last: 32767 } }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future);
}

fn names(network: &Network) -> (Vec<&str>, Vec<&str>) {
    (
        network.uplinks.iter().map(|device| device.name.as_str()).collect(),
        network.pods.iter().map(|device| device.name.as_str()).collect(),
    )
}

/// Follows the network from what it was first. What comes out waits until something holds.
fn follow(watcher: Watcher, first: Network) -> impl AsyncFnMut(&str, fn(&Network) -> bool) {
    let (internal_sender, internal) = watch::channel(Some(Vec::new()));
    let (sender, mut changes) = watch::channel(first);
    tokio::spawn(watcher.run(internal, sender));
    async move |what, holds| {
        // It ends with the watcher's other end.
        let _open = &internal_sender;
        let seen = tokio::time::timeout(PATIENCE, changes.wait_for(holds)).await.is_ok();
        assert!(seen, "{what}: {:?}", *changes.borrow());
    }
}

pub(crate) fn pods_addresses_and_routes_are_followed_as_they_come_and_go() {
    sandbox::run(|_| {
        let elsewhere = Elsewhere::new();
        elsewhere.pair("eth0");
        ip("link set eth0 up");
        ip("addr add 10.0.0.1/24 dev eth0");
        ip("addr add fd00::1/64 dev eth0 nodad");
        ip("route add default via 10.0.0.254");
        block_on(async {
            let mut watcher = Watcher::start(options(None)).await.unwrap_or_else(|error| panic!("{error}"));
            let first = watcher.network(Some(&[]));
            assert_eq!(names(&first), (vec!["eth0"], vec![]));
            let eth0 = nix::net::if_::if_nametoindex("eth0").expect("an index");
            assert_eq!(first.node.masquerade4, [(0, [10, 0, 0, 1]), (eth0, [10, 0, 0, 1])].into());
            assert_eq!(first.node.masquerade6.len(), 2);

            let mut until = follow(watcher, first);

            elsewhere.pair("vpod1");
            until("a pod came", |network| names(network).1 == ["vpod1"]).await;
            ip("link del vpod1");
            until("a pod went", |network| names(network).1.is_empty()).await;

            ip("addr add 10.0.0.7/24 dev eth0");
            until("an address came", |network| network.node.local_addresses.contains_key(&IpAddr::from([10, 0, 0, 7])))
                .await;
            ip("addr del 10.0.0.7/24 dev eth0");
            until("an address went", |network| {
                !network.node.local_addresses.contains_key(&IpAddr::from([10, 0, 0, 7]))
            })
            .await;

            ip("route del default");
            elsewhere.pair("eth1");
            until("an uplink stays one", |network| names(network) == (vec!["eth0"], vec!["eth1"])).await;
            ip("link set eth1 up");
            ip("addr add 10.1.0.1/24 dev eth1");
            ip("route add 10.9.0.0/16 via 10.1.0.254");
            until("a route makes an uplink", |network| names(network).0 == ["eth0", "eth1"]).await;
        });
    });
}

pub(crate) fn named_devices_are_uplinks_as_soon_as_they_are_there_and_missing_until_then() {
    sandbox::run(|_| {
        let elsewhere = Elsewhere::new();
        elsewhere.pair("eth0");
        block_on(async {
            let mut watcher =
                Watcher::start(options(Some("eth0,eth7"))).await.unwrap_or_else(|error| panic!("{error}"));
            let first = watcher.network(Some(&[]));
            assert_eq!((names(&first), &first.missing), ((vec!["eth0"], vec![]), &["eth7".to_owned()].into()));

            let mut until = follow(watcher, first);
            elsewhere.pair("eth7");
            until("it came", |network| names(network).0 == ["eth0", "eth7"] && network.missing.is_empty()).await;
            ip("link del eth0");
            until("another went", |network| names(network).0 == ["eth7"] && network.missing.contains("eth0")).await;
        });
    });
}

pub(crate) fn the_range_of_local_ports_is_that_of_the_namespace() {
    sandbox::run(|_| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 41000").expect("the namespace is the test's own");
        block_on(async {
            let mut watcher = Watcher::start(options(None)).await.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(watcher.network(Some(&[])).node.local_ports, Reserved { first: 40000, last: 41000 });
        });
    });
}
