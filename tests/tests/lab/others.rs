//! What others on a node notice of Services: rules of netfilter, the sidecar of a pod, a cache at a cluster IP.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use lb_tests::lab::{
    Family, Host, Lab, ReversePathFilter,
    client::{Ask, Outcome, Transport, ways},
    cluster::Cluster,
    cluster_ips,
    manifest::Service,
    sandbox::Sandbox,
    server::{ECHO_PORT, Server},
};
use nix::sys::socket::{getsockopt, sockopt};

use crate::node_port::{self, run};

/// Hooks of netfilter that a packet passes which a node forwards.
const HOOKS: [&str; 3] = ["prerouting", "forward", "postrouting"];
/// Where the sidecar listens (Istio's number).
const SIDECAR_PORT: u16 = 15001;
const PATIENCE: Duration = Duration::from_secs(3);
/// The ranges of a cluster; manifests have none by themselves.
const SERVICE_CIDRS: &str = "\
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, 'fd00:10:96::/112']}
";
/// The number of a cluster IP that no Service has.
const UNUSED: u8 = 200;

pub(crate) fn what_is_sent_on_for_a_service_passes_no_hook_of_netfilter(sandbox: Sandbox) {
    let (cluster, [local, remote]) = node_port::start_on(Lab::new(sandbox, ReversePathFilter::Strict));
    let [node1, node2] = cluster.nodes();
    let client = &cluster.lab.client;
    // Before and after it is translated, and either way.
    count(&node1.host, "client", &[client]);
    count(&node1.host, "elsewhere", &[&node2.pods[0]]);
    for (family, transport) in ways() {
        let to = remote.node_port_address(&node1.host, family, transport);
        let answer = Ask::new(transport, to).from(client).answer(format_args!("{to} over {transport}"));
        assert_eq!(answer.backend, node2.pods[0].name());
    }
    for hook in HOOKS {
        assert_eq!([counted(&node1.host, "client", hook), counted(&node1.host, "elsewhere", hook)], [0, 0], "{hook}");
    }
    // Rules see what the stack forwards: by the endpoint's address, never by the Service's.
    count(&node1.host, "here", &[&node1.pods[0]]);
    count_frontends(&node1.host);
    for (family, transport) in ways() {
        let to = local.node_port_address(&node1.host, family, transport);
        Ask::new(transport, to).from(client).answer(format_args!("{to} over {transport}"));
        for service in [&local, &remote] {
            let to = service.cluster_address(family, transport);
            for host in [&node1.pods[1], &node1.vm, &node1.host] {
                Ask::new(transport, to).from(host).answer(format_args!("{} to {to} over {transport}", host.name()));
            }
        }
    }
    for hook in HOOKS {
        for what in ["client", "elsewhere", "here"] {
            assert_ne!(counted(&node1.host, what, hook), 0, "{what} at {hook}");
        }
        assert_eq!(counted(&node1.host, "frontends", hook), 0, "frontends at {hook}");
    }
}

/// As Docker leaves a node (`iptables -P FORWARD DROP`).
const FORWARDS_NOTHING: &str =
    "table inet firewall { chain forward { type filter hook forward priority 0; policy drop; }; }";

pub(crate) fn a_firewall_that_forwards_nothing_keeps_outside_from_endpoints_here_alone(sandbox: Sandbox) {
    let (cluster, [local, remote]) = node_port::start_on(Lab::new(sandbox, ReversePathFilter::Strict));
    let [node1, node2] = cluster.nodes();
    let client = &cluster.lab.client;
    let ask = |service: &Service, family, transport| {
        Ask::new(transport, service.node_port_address(&node1.host, family, transport)).from(client)
    };
    for (family, transport) in ways() {
        let outcome = ask(&local, family, transport);
        assert!(matches!(outcome, Outcome::Reached(_)), "without a firewall, {family} {transport}: {outcome:?}");
    }
    node1.host.run(|| run("nft", &[FORWARDS_NOTHING]));
    for (family, transport) in ways() {
        assert_eq!(ask(&local, family, transport), Outcome::TimedOut, "endpoint here, {family} {transport}");
        match ask(&remote, family, transport) {
            Outcome::Reached(answer) => assert_eq!(answer.backend, node2.pods[0].name()),
            outcome => panic!("endpoint elsewhere, {family} {transport}: {outcome:?}"),
        }
    }
}

/// Counts what comes from hosts or goes to them, at each of the hooks.
fn count(node: &Host, what: &str, hosts: &[&Host]) {
    let rules = |hook: &str| {
        let both = hosts.iter().flat_map(|host| {
            Family::BOTH.map(|family| (if family == Family::V4 { "ip" } else { "ip6" }, host.address(family)))
        });
        let rules = both.flat_map(|(table, address)| {
            ["saddr", "daddr"].map(|end| format!("{table} {end} {address} counter name {what}_{hook}; "))
        });
        rules.collect::<String>()
    };
    count_by(node, what, rules);
}

/// Counts what comes from or goes to addresses and ports of Services.
fn count_frontends(node: &Host) {
    count_by(node, "frontends", |hook| {
        let addresses = ["ip saddr 10.96.0.0/16", "ip daddr 10.96.0.0/16"];
        let addresses6 = ["ip6 saddr fd00:10:96::/112", "ip6 daddr fd00:10:96::/112"];
        let ports = ["th sport 30000-30199", "th dport 30000-30199"];
        let rule = |field: &str| format!("{field} counter name frontends_{hook}; ");
        [addresses, addresses6, ports].as_flattened().iter().map(|field| rule(field)).collect::<Vec<_>>().concat()
    });
}

fn count_by(node: &Host, what: &str, rules: impl Fn(&str) -> String) {
    let chains = HOOKS.map(|hook| {
        let chain = format!("chain {hook} {{ type filter hook {hook} priority -300; {} }}; ", rules(hook));
        format!("counter {what}_{hook} {{ }}; {chain}")
    });
    let table = format!("table inet {what} {{ {} }}", chains.concat());
    node.run(move || run("nft", &[&table]));
}

/// How many packets [`count`] has counted at a hook.
fn counted(node: &Host, what: &str, hook: &str) -> u64 {
    let (table, name) = (what.to_owned(), format!("{what}_{hook}"));
    let text = node.run(move || run("nft", &["list", "counter", "inet", &table, &name]));
    let packets = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number of packets: {text}"))
}

pub(crate) fn a_sidecar_is_told_that_the_endpoint_was_the_destination(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints([&lab.nodes[1].pods[1]]);
    let cluster = Cluster::start(lab, [&service]);
    let [node1, node2] = cluster.nodes();
    let (in_cgroup, beyond) = (&node1.pods[0], &node1.vm);
    for host in [in_cgroup, beyond] {
        // As sidecars do: all connections that the pod opens.
        let rule = format!(
            "table inet sidecar {{ chain output {{ type nat hook output priority -100; \
             ip protocol tcp redirect to :{SIDECAR_PORT}; meta l4proto tcp redirect to :{SIDECAR_PORT}; }}; }}"
        );
        host.run(move || run("nft", &[&rule]));
    }
    for family in Family::BOTH {
        let to = service.cluster_address(family, Transport::Tcp);
        let endpoint = SocketAddr::new(node2.pods[1].address(family), ECHO_PORT);
        assert_eq!(original_destination(in_cgroup, to), endpoint, "of a pod whose sockets the agent translates");
        // As with kube-proxy.
        assert_eq!(original_destination(beyond, to), to, "of a pod outside of the agent's cgroup");
    }
}

/// What a sidecar is told of a connection that its pod opens (`SO_ORIGINAL_DST`).
fn original_destination(pod: &Host, to: SocketAddr) -> SocketAddr {
    pod.run(move || {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let sidecar = TcpListener::bind((any, SIDECAR_PORT)).expect("listen");
        let _client = TcpStream::connect_timeout(&to, PATIENCE).unwrap_or_else(|error| panic!("{to}: {error}"));
        let (stream, _) = sidecar.accept().expect("a connection that is open");
        if to.is_ipv4() {
            let told = getsockopt(&stream, sockopt::OriginalDst).expect("a connection that was redirected");
            SocketAddr::new(IpAddr::from(told.sin_addr.s_addr.to_ne_bytes()), u16::from_be(told.sin_port))
        } else {
            let told = getsockopt(&stream, sockopt::Ip6tOriginalDst).expect("a connection that was redirected");
            SocketAddr::new(IpAddr::from(told.sin6_addr.s6_addr), u16::from_be(told.sin6_port))
        }
    })
}

/// The cluster IP of a Service and one that no Service has, on the node that has them itself: as `NodeLocal` `DNSCache` is.
fn with_a_cache(sandbox: Sandbox) -> (Cluster, Service, Server) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("kube-dns", 1).with_endpoints([&lab.nodes[1].pods[0]]);
    let [node1, _] = &lab.nodes;
    let addresses = [1, UNUSED].map(cluster_ips);
    node_port::add_addresses(&node1.host, addresses.iter().flat_map(|of| Family::BOTH.map(|family| of.of(family))));
    let cache = Server::start(&node1.host);
    let mut cluster = Cluster::start(lab, [&service]);
    cluster.manifests.write("service-cidrs.yaml", SERVICE_CIDRS);
    // It has read the file when it is ready again.
    cluster.kill_agents();
    cluster.restart_agents();
    (cluster, service, cache)
}

pub(crate) fn a_cache_at_a_services_cluster_ip_is_not_asked(sandbox: Sandbox) {
    let (cluster, service, _cache) = with_a_cache(sandbox);
    let [node1, node2] = cluster.nodes();
    for family in Family::BOTH {
        for transport in [Transport::Tcp, Transport::Udp] {
            let to = service.cluster_address(family, transport);
            for host in [&node1.pods[0], &node1.vm] {
                let path = format!("{} to {to} over {transport}", host.name());
                assert_eq!(Ask::new(transport, to).from(host).answer(&path).backend, node2.pods[0].name(), "{path}");
            }
        }
    }
}

pub(crate) fn what_no_service_has_at_a_cluster_ip_of_the_nodes_own_is_the_nodes(sandbox: Sandbox) {
    let (cluster, service, _cache) = with_a_cache(sandbox);
    let [node1, node2] = cluster.nodes();
    for family in Family::BOTH {
        let unused = SocketAddr::new(cluster_ips(UNUSED).of(family), ECHO_PORT);
        let undefined = SocketAddr::new(service.cluster_address(family, Transport::Tcp).ip(), ECHO_PORT);
        for to in [unused, undefined] {
            for host in [&node1.pods[0], &node1.vm, &node1.host] {
                let path = format!("{} to {to}", host.name());
                assert_eq!(Ask::new(Transport::Tcp, to).from(host).answer(&path).backend, node1.host.name(), "{path}");
            }
            // On a node that has no such address it is what it is without.
            let outcome = Ask::new(Transport::Tcp, to).from(&node2.pods[0]);
            assert!(!matches!(outcome, Outcome::Reached(_)), "{to}: {outcome:?}");
        }
    }
}
