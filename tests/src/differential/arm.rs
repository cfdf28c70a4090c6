//! Twins: the same small cluster, once for each proxy.

use std::{ffi::OsString, path::Path};

use serde_json::{Map, Value};

use super::{
    kube_proxy::{KubeProxy, Mode},
    probe::{ClientKind, Ports},
};
use crate::lab::{Family, Lab, ReversePathFilter, UPLINK, agent::Agent, sandbox::Sandbox, server::Server};

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

/// Where addresses of Services are: those that the API server gives out, those of load balancers, and external IPs.
/// From elsewhere they are routed to node1, as a router that knows them would.
const SERVICES: [(Family, &str); 6] = [
    (Family::V4, "10.96.0.0/16"),
    (Family::V4, "203.0.113.0/24"),
    (Family::V4, "198.18.0.0/24"),
    (Family::V6, "fd00:10:96::/112"),
    (Family::V6, "2001:db8:203::/64"),
    (Family::V6, "2001:db8:198::/64"),
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
/// answers with "unreachable", so that it is seen at once and told from a drop.
fn route_services(lab: &Lab) {
    let [node1, node2] = &lab.nodes;
    for (family, range) in SERVICES {
        let route = format!("route add {range} via {}", node1.host.address(family));
        let version = if family == Family::V4 { "" } else { "-6 " };
        lab.router.ip(format!("{route}\n"));
        node2.host.ip(format!("{route} dev {UPLINK}\n"));
        let rule = format!("rule add iif nodes to {range} unreachable");
        lab.router.run(move || {
            let arguments = format!("{version}{rule}");
            let status = std::process::Command::new("ip").args(arguments.split(' ')).status().expect("run ip");
            assert!(status.success(), "ip {arguments}");
        });
    }
}

impl Arm {
    /// Starts its proxy, in place of one that runs.
    pub fn start_proxy(&mut self, kubeconfig: &Path, changed: &Map<String, Value>) {
        let node = &self.lab.nodes[0];
        if let Some(Proxy::Lb(agent)) = self.proxy.take() {
            agent.kill();
        }
        let kube_proxy = |mode| Proxy::KubeProxy(KubeProxy::start(node, mode, kubeconfig, changed));
        self.proxy = Some(match self.implementation {
            Implementation::Nftables => kube_proxy(Mode::Nftables),
            Implementation::Iptables => kube_proxy(Mode::Iptables),
            Implementation::Lb => {
                Proxy::Lb(Agent::start_configured(node, kubeconfig, &agent_arguments(&node.directory(), changed)))
            }
        });
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

/// What `lb-agent` is started with for a scenario that changes kube-proxy's configuration.
///
/// Nothing yet: it has no `--config`. Once it has, this writes [`super::kube_proxy::configuration`] to a file in
/// `directory` and names it.
fn agent_arguments(directory: &Path, changed: &Map<String, Value>) -> Vec<OsString> {
    let _ = (directory, changed);
    Vec::new()
}
