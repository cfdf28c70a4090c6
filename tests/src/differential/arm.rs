//! Twins: the same small cluster, once for each proxy.

use std::{ffi::OsString, fs, path::Path};

use serde_json::{Map, Value};

use super::{
    kube_proxy::{self, KubeProxy, Mode},
    probe::{ClientKind, Ports},
};
use crate::lab::{
    Family, Lab, ReversePathFilter, UPLINK,
    agent::{self, Agent},
    interface::set_variables,
    sandbox::Sandbox,
    server::Server,
};

/// Whose proxy runs on node1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// kube-proxy in nftables mode: the reference.
    Nftables,
    /// kube-proxy in iptables mode.
    Iptables,
    /// `lb-agent`.
    Lb,
}

impl Implementation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nftables, Self::Iptables, Self::Lb];

    /// How it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "kube-proxy, nftables",
            Self::Iptables => "kube-proxy, iptables",
            Self::Lb => "lb-agent",
        }
    }

    /// What its namespaces begin with. Interfaces are not named so, and stay within 15 characters.
    fn label(self) -> &'static str {
        match self {
            Self::Nftables => "nft-",
            Self::Iptables => "ipt-",
            Self::Lb => "lb-",
        }
    }
}

enum Proxy {
    KubeProxy(KubeProxy),
    Lb(Agent),
}

/// One of the twins.
pub struct Arm {
    /// Who balances.
    pub implementation: Implementation,
    /// Its cluster.
    pub lab: Lab,
    /// The local ports of each kind of client.
    pub ports: [Ports; ClientKind::ALL.len()],
    proxy: Option<Proxy>,
    _servers: Vec<Server>,
}

/// How much of a proxy's log a report shows.
const LOG_LINES: usize = 20;

/// Where addresses of Services are: those that the API server gives out, those of load balancers, and external IPs.
/// From elsewhere they are routed to node1, as a router that knows them would.
const SERVICES: [(Family, &str); 7] = [
    (Family::V4, "10.96.0.0/16"),
    (Family::V4, "10.97.0.0/16"),
    (Family::V4, "203.0.113.0/24"),
    (Family::V4, "198.18.0.0/24"),
    (Family::V6, "fd00:10:96::/112"),
    (Family::V6, "2001:db8:203::/64"),
    (Family::V6, "2001:db8:198::/64"),
];

/// Lets routers and nodes answer each of many refused clients. The number of all errors in a second has a limit of its
/// own, which spares only types that are not in the mask (`icmp_global_allow` in net/ipv4/icmp.c).
const UNLIMITED: [(&str, &str); 4] = [
    ("ipv4/icmp_ratemask", "0"),
    ("ipv4/icmp_msgs_per_sec", "1000000"),
    ("ipv4/icmp_msgs_burst", "100000"),
    ("ipv6/icmp/ratemask", "\n"),
];

/// Builds all twins, without proxies.
pub fn build(sandbox: Sandbox) -> [Arm; 3] {
    let labels = Implementation::ALL.map(Implementation::label);
    let mut labs = Lab::twins(sandbox, labels, ReversePathFilter::Strict).into_iter();
    Implementation::ALL.map(|implementation| {
        let lab = labs.next().expect("as many labs as labels");
        route_services(&lab);
        let mut servers = lab.start_servers();
        // Endpoints on the network of their nodes.
        servers.extend(lab.nodes.iter().map(|node| Server::start(&node.host)));
        Arm { implementation, lab, ports: Default::default(), proxy: None, _servers: servers }
    })
}

/// Lets the addresses of Services lead to node1, and nowhere from there: what its proxy does not take, the router
/// answers with "network unreachable", so that it is seen at once and told from a drop, and from the "host unreachable" that
/// `lb-agent` has calls fail with.
fn route_services(lab: &Lab) {
    let [node1, node2] = &lab.nodes;
    for (family, range) in SERVICES {
        let route = format!("route add {range} via {}", node1.host.address(family));
        lab.router.ip(format!("{route}\n"));
        node2.host.ip(format!("{route} dev {UPLINK}\n"));
    }
    // Not as unreachable routes: what those answer is limited to a few a second, in a way that namespaces cannot change.
    let mut rules =
        "add table inet lab\nadd chain inet lab forward { type filter hook forward priority 0; }\n".to_owned();
    for (family, range) in SERVICES {
        let version = if family == Family::V4 { "ip" } else { "ip6" };
        let matched = format!("iifname nodes {version} daddr {range}");
        rules.extend([format!("add rule inet lab forward {matched} reject with icmpx type no-route\n")]);
    }
    lab.router.run(move || kube_proxy::nft(&rules));
    for host in [&lab.router, &node1.host, &node2.host] {
        host.run(|| set_variables(&UNLIMITED));
    }
}

impl Arm {
    /// Starts its proxy, in place of one that runs.
    pub fn start_proxy(&mut self, kubeconfig: &Path, changed: &Map<String, Value>, kubeadm: bool) {
        let node = &self.lab.nodes[0];
        if let Some(Proxy::Lb(agent)) = self.proxy.take() {
            agent.kill();
        }
        let kube_proxy = |mode| Proxy::KubeProxy(KubeProxy::start(node, mode, kubeconfig, changed));
        self.proxy = Some(match self.implementation {
            Implementation::Nftables => kube_proxy(Mode::Nftables),
            Implementation::Iptables => kube_proxy(Mode::Iptables),
            Implementation::Lb => Proxy::Lb(Agent::start_configured(
                node,
                kubeconfig,
                &agent_arguments(&node.directory(), kubeconfig, changed, kubeadm),
            )),
        });
    }

    /// Gives the node more addresses, or takes them (`add` or `del`).
    pub fn node_addresses(&self, verb: &str, addresses: &[String]) {
        for address in addresses {
            let nodad = if verb == "add" && address.contains(':') { " nodad" } else { "" };
            self.lab.nodes[0].host.ip(format!("addr {verb} {address} dev {UPLINK}{nodad}\n"));
        }
    }

    /// The last that its proxy logged.
    pub fn last_log_lines(&self) -> String {
        let log = agent::log(&self.lab.nodes[0]);
        let skipped = log.lines().count().saturating_sub(LOG_LINES);
        log.lines().skip(skipped).flat_map(|line| ["  ", line, "\n"]).collect()
    }

    /// Panics if its proxy has ended by itself.
    pub fn assert_alive(&mut self) {
        match self.proxy.as_mut() {
            Some(Proxy::KubeProxy(proxy)) => proxy.assert_alive(),
            Some(Proxy::Lb(agent)) => agent.assert_alive(),
            None => panic!("{}: not started", self.implementation.name()),
        }
    }
}

/// What kubeadm puts below `config.conf` of its `ConfigMap`, and the network of pods that it has been told.
const KUBEADM: &str = include_str!("../../../lb-agent/src/configuration/testdata/kubeadm.yaml");
const KUBEADM_PODS: &str = "clusterCIDR: 10.244.0.0/16";

/// What `lb-agent` is started with: the configuration that kube-proxy gets in nftables mode, which we follow; or kubeadm's.
fn agent_arguments(directory: &Path, kubeconfig: &Path, changed: &Map<String, Value>, kubeadm: bool) -> Vec<OsString> {
    let file = directory.join("lb-agent.yaml");
    let text = if kubeadm {
        assert!(KUBEADM.contains(KUBEADM_PODS), "kubeadm's file has changed");
        KUBEADM.replace(KUBEADM_PODS, &format!("clusterCIDR: {}", kube_proxy::PODS))
    } else {
        kube_proxy::configuration_of(Mode::Nftables, kubeconfig, changed).to_string()
    };
    fs::write(&file, text).expect("write in /run");
    vec!["--config".into(), file.into()]
}
