//! What is particular to processes whose socket calls are translated.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{node_port, own};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use lb_agent::jiffies::Jiffies;
use lb_common::abi::{ABI_VERSION, Address, PeerDirection, SocketPeer, SocketPeerKey, maps};
use lb_tests::lab::{
    Family, Host, Lab, Node, ReversePathFilter,
    client::{Ask, DatagramSocket, Outcome, Transport, ways},
    cluster::{Cluster, eventually},
    manifest::Service,
    sandbox::Sandbox,
    server::ECHO_PORT,
};

/// Far less than a client waits that is not answered.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A cluster with one Service, of a pod of node1 or of node2.
fn start(sandbox: Sandbox, number_of_node: usize) -> (Cluster, Service) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints([&lab.nodes[number_of_node - 1].pods[1]]);
    (Cluster::start(lab, [&service]), service)
}

/// The address as an `AF_INET6` socket names it (RFC 4291, 2.5.5.2).
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

pub(crate) fn sockets_of_both_families_reach_ipv4_frontends(sandbox: Sandbox) {
    let (cluster, service) = start(sandbox, 2);
    let [node1, node2] = cluster.nodes();
    let pod = &node2.pods[1];
    for client in [&node1.pods[0], &node1.vm, &node1.host] {
        for transport in Transport::ALL {
            let frontends = [
                service.cluster_address(Family::V4, transport),
                service.node_port_address(&node1.host, Family::V4, transport),
            ];
            for to in frontends.map(mapped) {
                let path = format!("{} to {to} over {transport}", client.name());
                let answer = Ask::new(transport, to).from(client).answer(&path);
                assert_eq!(answer.backend, pod.name(), "{path}");
                assert_eq!(answer.peer, to, "{path}: what the client believes it talked to");
                assert!(answer.client_seen.is_ipv4(), "{path}: {}", answer.client_seen);
            }
        }
    }
    let nobody = SocketAddr::new(Ipv4Addr::new(10, 96, 0, 1).to_ipv6_mapped().into(), 9);
    let outcome = Ask::new(Transport::Tcp, nobody).from(&node1.host);
    assert!(!matches!(outcome, Outcome::Reached(_)), "a port that the Service does not have: {outcome:?}");
}

/// The node port of a Service on a host's own loopback address.
fn on_localhost(service: &Service, host: &Host, family: Family, transport: Transport) -> SocketAddr {
    let loopback: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(loopback, service.node_port_address(host, family, transport).port())
}

pub(crate) fn node_ports_answer_on_localhost_of_the_node_and_nowhere_else(sandbox: Sandbox) {
    let (cluster, service) = start(sandbox, 2);
    let [node1, node2] = cluster.nodes();
    let pod = &node2.pods[1];
    for (family, transport) in ways() {
        let to = on_localhost(&service, &node1.host, family, transport);
        let path = format!("{} to {to} over {transport}", node1.host.name());
        let answer = Ask::new(transport, to).from(&node1.host).answer(&path);
        assert_eq!((&*answer.backend, answer.peer), (pod.name(), to), "{path}");
        assert_eq!(answer.client_seen.ip(), node1.host.address(family), "{path}: a loopback address must not leave");
        // On the loopback address of another host nobody listens.
        for client in [&node1.pods[0], &node1.vm, &cluster.lab.client] {
            let outcome = Ask::new(transport, to).from(client);
            assert_eq!(outcome, Outcome::Refused, "{} to {to} over {transport}", client.name());
        }
    }
}

pub(crate) fn a_connect_to_a_local_policy_without_a_local_backend_fails_at_once(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).internal_policy_local().with_endpoints([&lab.nodes[1].pods[1]]);
    let cluster = Cluster::start(lab, [&service]);
    let [node1, node2] = cluster.nodes();
    for family in Family::BOTH {
        for transport in [Transport::Tcp, Transport::Http] {
            let to = service.cluster_address(family, transport);
            for client in [&node1.pods[0], &node1.host] {
                let start = Instant::now();
                let outcome = Ask::new(transport, to).from(client);
                // EHOSTUNREACH.
                let expected = Outcome::Failed("No route to host (os error 113)".to_owned());
                assert_eq!(outcome, expected, "{} to {to}", client.name());
                assert!(start.elapsed() < AT_ONCE, "{} to {to}: after {:?}", client.name(), start.elapsed());
            }
            // Its packets are dropped, as with kube-proxy.
            assert_eq!(Ask::new(transport, to).from(&node1.vm), Outcome::TimedOut, "{to}");
            let answer = Ask::new(transport, to).from(&node2.pods[0]).answer(format_args!("node2-pod0 to {to}"));
            assert_eq!(answer.backend, node2.pods[1].name());
        }
    }
}

/// One socket asks two Services of one endpoint, and the endpoint itself.
pub(crate) fn a_socket_hears_each_answer_from_whom_it_asked(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let pod = &lab.nodes[1].pods[1];
    let services = [1, 2].map(|number| Service::new(&format!("web{number}"), number).with_endpoints([pod]));
    let cluster = Cluster::start(lab, &services);
    let [node1, node2] = cluster.nodes();
    let pod = &node2.pods[1];
    for family in Family::BOTH {
        let [first, second] = services.each_ref().map(|service| service.cluster_address(family, Transport::Udp));
        let endpoint = SocketAddr::new(pod.address(family), ECHO_PORT);
        let socket = DatagramSocket::open(&node1.host, Transport::Udp, first);
        for to in [first, second, first, endpoint, first, endpoint, second] {
            let answer = socket.ask_at(to).answer(format_args!("{to}"));
            assert_eq!((&*answer.backend, answer.peer), (pod.name(), to));
        }
    }
}

/// So many that all of them go to the first of two endpoints once in 2^31.
const SOCKETS: usize = 32;
/// Seconds after which a quiet UDP exchange is over.
const UDP: u64 = 120;

pub(crate) fn a_socket_that_was_silent_is_balanced_anew(sandbox: Sandbox) {
    let (cluster, service) = start(sandbox, 1);
    let [node1, node2] = cluster.nodes();
    let [former, other] = [&node1.pods[1], &node2.pods[1]];
    let ways = Family::BOTH.map(|family| {
        let to = service.cluster_address(family, Transport::Udp);
        (family, to, [(); SOCKETS].map(|()| DatagramSocket::open(&node1.host, Transport::Udp, to)))
    });
    let strayed = |sockets: &[DatagramSocket; SOCKETS]| {
        let backend = |socket: &DatagramSocket| socket.ask().answer("an endpoint that serves").backend;
        sockets.iter().filter(|socket| backend(socket) == other.name()).count()
    };
    for (_, _, sockets) in &ways {
        assert_eq!(strayed(sockets), 0, "there is one endpoint");
    }
    cluster.manifests.apply(&service.with_endpoints([former, other]));
    for (family, to, sockets) in &ways {
        let new = || {
            let sockets = [(); SOCKETS].map(|()| DatagramSocket::open(&node1.host, Transport::Udp, *to));
            strayed(&sockets)
        };
        eventually("new sockets use the new endpoint", new, |strayed| *strayed > 0);
        assert_eq!(strayed(sockets), 0, "{family}: who talks to an endpoint stays with it");
        age(node1, *family, UDP - 5, |_| true);
        assert_eq!(strayed(sockets), 0, "{family}: so does who was silent for less than the lifetime of an exchange");
        age(node1, *family, UDP + 1, |direction| direction == PeerDirection::Send as u8);
        assert_eq!(strayed(sockets), 0, "{family}: and who was silent while the endpoint was not");
        age(node1, *family, UDP + 1, |_| true);
        assert!((1..SOCKETS).contains(&strayed(sockets)), "{family}: {} of {SOCKETS} moved", strayed(sockets));
    }
}

/// Makes the datagrams of unconnected sockets, one way or both, as many seconds older.
fn age(node: &Node, family: Family, seconds: u64, is_wanted: impl Fn(u8) -> bool) {
    match family {
        Family::V4 => age_entries::<[u8; 4]>(node, maps::SOCKET_PEERS4, seconds, is_wanted),
        Family::V6 => age_entries::<[u8; 16]>(node, maps::SOCKET_PEERS6, seconds, is_wanted),
    }
}

fn age_entries<A: Address>(node: &Node, name: &str, seconds: u64, is_wanted: impl Fn(u8) -> bool)
where
    SocketPeerKey<A>: Pod,
    SocketPeer<A>: Pod,
{
    let path = node.bpffs().join(format!("lb/v{ABI_VERSION}/maps/{name}"));
    let map = MapData::from_pin(&path).expect("a pinned map");
    let mut map: HashMap<_, SocketPeerKey<A>, SocketPeer<A>> =
        Map::LruHashMap(map).try_into().expect("its keys and values are these");
    let ticks = seconds * Jiffies::now().expect("the kernel tells its ticks").per_second;
    let ticks = u32::try_from(ticks).expect("a few minutes");
    let entries: Vec<_> = map.iter().map(|entry| entry.expect("nobody writes meanwhile")).collect();
    assert!(!entries.is_empty());
    for (key, mut peer) in entries.into_iter().filter(|(key, _)| is_wanted(key.direction)) {
        peer.last_seen = peer.last_seen.wrapping_sub(ticks);
        map.insert(&key, &peer, 0).expect("it is there");
    }
}

/// Addresses that the node has, and to which no other host knows a way.
const UNKNOWN_ELSEWHERE: [&str; 2] = ["172.31.0.1", "fd00:172:31::1"];

pub(crate) fn a_socket_of_the_node_keeps_the_source_that_it_is_bound_to(sandbox: Sandbox) {
    let (cluster, [local, remote]) = node_port::start_on(Lab::new(sandbox, ReversePathFilter::Strict));
    let [node1, _] = cluster.nodes();
    let unknown = UNKNOWN_ELSEWHERE.map(|address| address.parse::<IpAddr>().expect("an address"));
    node_port::add_addresses(&node1.host, unknown);
    let ask = |from: IpAddr, service: &Service| {
        let family = if from.is_ipv4() { Family::V4 } else { Family::V6 };
        let to = service.cluster_address(family, Transport::Tcp);
        node1.host.run(move || own::ask_by_stream(SocketAddr::new(from, 0), to))
    };
    for from in unknown {
        let said = ask(from, &local).unwrap_or_else(|error| panic!("{from}: {error}"));
        let seen = said.trim_end().strip_prefix("pod=node1-pod0 client=").and_then(|seen| seen.parse().ok());
        assert_eq!(seen.map(|seen: SocketAddr| seen.ip()), Some(from), "{said}");
        // The answers go elsewhere.
        assert_eq!(ask(from, &remote).map_err(|error| error.kind()), Err(ErrorKind::TimedOut), "{from}");
    }
    for service in [&local, &remote] {
        // Nothing leaves by a device with such a source (`__mkroute_output` in net/ipv4/route.c: `route_localnet`).
        let refused = ask(Ipv4Addr::LOCALHOST.into(), service).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::InvalidInput), "{}", service.name());
        // Nobody takes what comes by a device with such a source (`ip6_rcv_core` in net/ipv6/ip6_input.c).
        let unheard = ask(Ipv6Addr::LOCALHOST.into(), service).map_err(|error| error.kind());
        assert_eq!(unheard, Err(ErrorKind::TimedOut), "{}", service.name());
    }
}
