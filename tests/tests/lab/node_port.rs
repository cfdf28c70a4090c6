//! Clients outside the cluster, and node ports.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use lb_tests::lab::{
    Family, Host, Lab, Node, ReversePathFilter, UPLINK, agent,
    capture::Capture,
    client::{Ask, Conversation, Outcome, Transport, ways},
    cluster::Cluster,
    manifest::Service,
    sandbox::Sandbox,
    server::{ECHO_PORT, HTTP_PORT},
};

/// A cluster with two Services, of one pod of node1 and of one of node2.
fn start(sandbox: Sandbox, reverse_path_filter: ReversePathFilter) -> (Cluster, [Service; 2]) {
    start_on(Lab::new(sandbox, reverse_path_filter))
}

/// As [`start`], on a lab.
pub(crate) fn start_on(lab: Lab) -> (Cluster, [Service; 2]) {
    let on_node1 = Service::new("on-node1", 1).with_endpoints([&lab.nodes[0].pods[0]]);
    let on_node2 = Service::new("on-node2", 2).with_endpoints([&lab.nodes[1].pods[0]]);
    (Cluster::start(lab, [&on_node1, &on_node2]), [on_node1, on_node2])
}

pub(crate) fn a_backend_on_the_node_sees_the_client_and_one_elsewhere_sees_the_node(sandbox: Sandbox) {
    from_outside(sandbox, ReversePathFilter::Strict);
}

pub(crate) fn a_loose_reverse_path_filter_makes_no_difference(sandbox: Sandbox) {
    from_outside(sandbox, ReversePathFilter::Loose);
}

fn from_outside(sandbox: Sandbox, reverse_path_filter: ReversePathFilter) {
    let (cluster, services) = start(sandbox, reverse_path_filter);
    assert_seen_from_outside(&cluster, &services);
}

/// Who answers a client outside, and whom it sees, on every way.
pub(crate) fn assert_seen_from_outside(cluster: &Cluster, [local, remote]: &[Service; 2]) {
    let [node1, node2] = cluster.nodes();
    let client = &cluster.lab.client;
    for (family, transport) in ways() {
        let to = local.node_port_address(&node1.host, family, transport);
        let answer =
            Ask::new(transport, to).from(client).answer(format_args!("{to} over {transport}, backend on the node"));
        assert_eq!(answer.backend, node1.pods[0].name());
        assert_eq!(answer.peer, to);
        assert_eq!(answer.client_seen, SocketAddr::new(client.address(family), answer.local.port()));

        let to = remote.node_port_address(&node1.host, family, transport);
        let answer =
            Ask::new(transport, to).from(client).answer(format_args!("{to} over {transport}, backend elsewhere"));
        assert_eq!(answer.backend, node2.pods[0].name());
        assert_eq!(answer.peer, to);
        assert_eq!(answer.client_seen.ip(), node1.host.address(family));
        assert_in_pool(answer.client_seen.port());
    }
}

/// The port that the node lends must be one that no local socket and no node port uses: the kernel's default
/// `net.ipv4.ip_local_port_range` is 32768 to 60999, Kubernetes' default node ports are 30000 to 32767.
pub(crate) fn assert_in_pool(port: u16) {
    assert!(port >= 1024 && !(30000..=60999).contains(&port), "source port {port}");
}

pub(crate) fn the_wire_shows_right_addresses_and_checksums(sandbox: Sandbox) {
    let (cluster, [_, remote]) = start(sandbox, ReversePathFilter::Strict);
    assert_right_on_the_wire(&cluster, &remote);
}

/// Each leg to a backend elsewhere, seen on the wire.
pub(crate) fn assert_right_on_the_wire(cluster: &Cluster, remote: &Service) {
    let [node1, node2] = cluster.nodes();
    let (client, pod) = (&cluster.lab.client, &node2.pods[0]);
    let at_client = Capture::start(client, UPLINK);
    let at_node1 = Capture::start(&cluster.lab.router, node1.host.name());
    for (family, transport) in ways() {
        let to = remote.node_port_address(&node1.host, family, transport);
        let answer = Ask::new(transport, to).from(client).answer(format_args!("{to} over {transport}"));
        let [client_port, node_port, lent_port, pod_port] = [
            answer.local.port(),
            to.port(),
            answer.client_seen.port(),
            if transport == Transport::Http { HTTP_PORT } else { ECHO_PORT },
        ];
        let [client_ip, node_ip, pod_ip] = [client, &node1.host, pod].map(|host| host.address(family));
        let legs = [
            ("request to the node", (client_ip, client_port), (node_ip, node_port)),
            ("request to the pod", (node_ip, lent_port), (pod_ip, pod_port)),
            ("reply to the node", (pod_ip, pod_port), (node_ip, lent_port)),
            ("reply to the client", (node_ip, node_port), (client_ip, client_port)),
        ];
        for (leg, from, to) in legs {
            at_node1.wait_for(&format!("{leg} over {family} {transport}"), |packet| {
                packet.ports == Some((from.1, to.1)) && (packet.source, packet.destination) == (from.0, to.0)
            });
        }
    }
    for (place, capture) in [("client", at_client), ("node1", at_node1)] {
        let broken: Vec<_> = capture.packets().into_iter().filter(|packet| !packet.checksums_hold).collect();
        assert!(broken.is_empty(), "at {place}: {broken:#?}");
    }
}

pub(crate) fn pods_and_nodes_reach_node_ports_of_every_node(sandbox: Sandbox) {
    let (cluster, services) = start(sandbox, ReversePathFilter::Strict);
    assert_reached_from_inside(&cluster, &services);
}

/// Pods and nodes reach every node port of every node.
pub(crate) fn assert_reached_from_inside(cluster: &Cluster, services: &[Service; 2]) {
    let [node1, node2] = cluster.nodes();
    for (family, transport) in ways() {
        for (service, node) in services.iter().zip([node1, node2]) {
            for client in [&node1.pods[1], &node1.vm, &node1.host] {
                for entered in [node1, node2] {
                    let to = service.node_port_address(&entered.host, family, transport);
                    let path = format!("{} to {to} of {} over {transport}", client.name(), service.name());
                    let answer = Ask::new(transport, to).from(client).answer(&path);
                    assert_eq!(answer.backend, node.pods[0].name(), "{path}");
                    assert_eq!(answer.peer, to, "{path}");
                }
            }
        }
    }
}

pub(crate) fn a_local_policy_keeps_to_the_node_and_drops_where_it_has_no_backend(sandbox: Sandbox) {
    assert_local_policy(Lab::new(sandbox, ReversePathFilter::Strict));
}

/// A Service with the policy serves on the node that has a backend, and is silent on the other.
pub(crate) fn assert_local_policy(lab: Lab) {
    let service = Service::new("local", 1).external_policy_local().with_endpoints(lab.nodes[0].all_pods());
    let cluster = Cluster::start(lab, [&service]);
    let [node1, node2] = cluster.nodes();
    let client = &cluster.lab.client;
    for family in Family::BOTH {
        for transport in [Transport::Tcp, Transport::Udp] {
            let to = service.node_port_address(&node1.host, family, transport);
            let answer = Ask::new(transport, to).from(client).answer(format_args!("{to} over {transport}"));
            assert_eq!(answer.client_seen.ip(), client.address(family));
            let to = service.node_port_address(&node2.host, family, transport);
            assert_eq!(Ask::new(transport, to).from(client), Outcome::TimedOut, "{to} over {transport}");
        }
    }
}

pub(crate) fn large_transfers_from_outside_arrive_whole(sandbox: Sandbox) {
    let (cluster, services) = start(sandbox, ReversePathFilter::Strict);
    assert_large_transfers(&cluster, &services);
}

/// 10 MB each way, and full datagrams.
pub(crate) fn assert_large_transfers(cluster: &Cluster, services: &[Service; 2]) {
    let [node1, _] = cluster.nodes();
    for family in Family::BOTH {
        for service in services {
            let to = service.node_port_address(&node1.host, family, Transport::Tcp);
            let path = format!("{} at {to}", service.name());
            let opened = Conversation::open(&cluster.lab.client, to);
            let conversation = opened.unwrap_or_else(|outcome| panic!("{path}: {outcome:?}"));
            conversation.send_and_check(10_000_000).unwrap_or_else(|error| panic!("{path}: {error}"));
            Ask::new(Transport::Udp, to).datagram_size(1452).from(&cluster.lab.client).answer(&path);
        }
    }
}

/// Bytes of an IP packet that the ways out of node1 take in [`who_sends_what_does_not_fit_the_way_out_is_told_what_does`]:
/// less than all links do, and enough for IPv6.
const NARROW: &str = "1400";

/// Loses no packet but those too big for the route: a transfer ends, and ends whole, only if each sender learns what fits.
pub(crate) fn who_sends_what_does_not_fit_the_way_out_is_told_what_does(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let remote = Service::new("remote", 1).with_endpoints([&lab.nodes[1].pods[0]]);
    let itself = Service::new("itself", 2).with_endpoints([&lab.nodes[0].vm]);
    let cluster = Cluster::start(lab, [&remote, &itself]);
    let [node1, _] = cluster.nodes();
    let (client, vm) = (&cluster.lab.client, &node1.vm);
    narrow_routes(&node1.host);
    for family in Family::BOTH {
        // Of a datagram, its sender hears at once; the next one is cut up before it is sent.
        for (host, to) in [
            (client, remote.node_port_address(&node1.host, family, Transport::Udp)),
            (vm, itself.cluster_address(family, Transport::Udp)),
        ] {
            let path = format!("a datagram from {} to {to}", host.name());
            let outcome = Ask::new(Transport::UdpConnected, to).datagram_size(1452).from(host);
            assert_eq!(
                outcome,
                Outcome::Failed(std::io::Error::from(nix::errno::Errno::EMSGSIZE).to_string()),
                "{path}"
            );
        }
    }
    // What was learned of datagrams holds for all that goes there: other ways, of which nothing is known yet.
    forget_routes(client);
    forget_routes(vm);
    for family in Family::BOTH {
        for (host, to) in [
            (client, remote.node_port_address(&node1.host, family, Transport::Tcp)),
            // Large segments, cut up and summed only when they leave a device: those are for the node to see.
            (vm, itself.cluster_address(family, Transport::Tcp)),
        ] {
            let before = counted(node1, "too_big");
            let path = format!("{} to {to}", host.name());
            let opened = Conversation::open(host, to);
            let conversation = opened.unwrap_or_else(|outcome| panic!("{path}: {outcome:?}"));
            conversation.send_and_check(1_000_000).unwrap_or_else(|error| panic!("{path}: {error}"));
            // The request's way and the answer's.
            let told = counted(node1, "too_big") - before;
            assert!(told >= 2, "{path}: told {told} times");
        }
    }
}

/// Makes every route of a node that is taken here as narrow as [`NARROW`]. (What is forwarded goes by a route's MTU only
/// where that is locked: `ip_mtu_from_fib_result` in `net/ipv4/route.c`, `ip6_mtu_from_fib6` in `net/ipv6/route.c`.)
pub(crate) fn narrow_routes(node: &Host) {
    node.run(|| {
        for family in ["-4", "-6"] {
            let routes = run("ip", &[family, "route", "show", "table", "main"]);
            for route in routes.lines().filter(|route| !route.starts_with("fe80") && !route.contains("kernel")) {
                let mut change: Vec<_> =
                    [family, "route", "change"].into_iter().chain(route.split_whitespace()).collect();
                change.extend(["mtu", "lock", NARROW]);
                run("ip", &change);
            }
        }
    });
}

/// Makes a host forget what it learned of the ways to others.
pub(crate) fn forget_routes(host: &Host) {
    host.run(|| {
        for family in ["-4", "-6"] {
            run("ip", &[family, "route", "flush", "cache"]);
        }
    });
}

/// Gives a host addresses that no other host knows a way to.
pub(crate) fn add_addresses(host: &Host, addresses: impl IntoIterator<Item = IpAddr>) {
    let addresses: Vec<String> = addresses.into_iter().map(|address| address.to_string()).collect();
    host.run(move || {
        for address in addresses {
            // The kernel derives an IPv6 address' scope from the address.
            let scope: &[&str] = if address.contains(':') { &["nodad"] } else { &["scope", "host"] };
            run("ip", &[&["addr", "add", &address, "dev", "lo"][..], scope].concat());
        }
    });
}

pub(crate) fn addresses_of_every_scope_have_node_ports(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let own = ["172.31.0.1", "fd00:172:31::1"].map(|address| address.parse::<IpAddr>().expect("an address"));
    add_addresses(&lab.nodes[0].host, own);
    let (cluster, services) = start_on(lab);
    let [node1, _] = cluster.nodes();
    for (family, transport) in ways() {
        for service in &services {
            let port = service.node_port_address(&node1.host, family, transport).port();
            let to = SocketAddr::new(own[usize::from(family == Family::V6)], port);
            for client in [&node1.pods[1], &node1.vm, &node1.host] {
                let path = format!("{} to {to} of {} over {transport}", client.name(), service.name());
                let answer = Ask::new(transport, to).from(client).answer(&path);
                assert_eq!(answer.peer, to, "{path}");
            }
        }
    }
}

/// The kernel takes packets to all of such a network (`AnyIP`), but no device has an address of it.
pub(crate) fn an_address_that_is_local_by_a_route_alone_has_no_node_ports(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let networks = [("-4", "172.31.7.0/24"), ("-6", "fd00:172:31:7::/64")];
    let addresses = ["172.31.7.1", "fd00:172:31:7::1"].map(|address| address.parse::<IpAddr>().expect("an address"));
    lab.nodes[0].host.run(move || {
        for (family, network) in networks {
            run("ip", &[family, "route", "add", "local", network, "dev", "lo"]);
        }
    });
    let (cluster, services) = start_on(lab);
    let [node1, _] = cluster.nodes();
    for family in Family::BOTH {
        let assigned = services[0].node_port_address(&node1.host, family, Transport::Tcp);
        let by_route = SocketAddr::new(addresses[usize::from(family == Family::V6)], assigned.port());
        for client in [&node1.pods[1], &node1.vm, &node1.host] {
            Ask::new(Transport::Tcp, assigned).from(client).answer(format_args!("{} to {assigned}", client.name()));
            // The node's kernel answers that nobody listens there.
            let outcome = Ask::new(Transport::Tcp, by_route).from(client);
            assert_eq!(outcome, Outcome::Refused, "{} to {by_route}", client.name());
        }
    }
}

/// Runs a program on the calling thread's host.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {error}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How often a node's agent has counted a reason.
pub(crate) fn counted(node: &Node, reason: &str) -> u64 {
    let status = agent::ask(node, &["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let counters = status["counters"].as_array().expect("a list of counters");
    let of_reason = counters.iter().find(|counter| counter["reason"] == reason);
    of_reason.map_or(0, |counter| counter["count"].as_u64().expect("a number"))
}
