//! The table of announced differences: data for the harness, and the rows of `docs/divergence.md`.

use ipnet::IpNet;
use serde_json::Value;

use super::{
    detect_rules::{other_nodes_pod, outside_cluster_ip, pod_interfaces},
    history::{History, is_balanced},
    kept_rules::{node_udp_connected, udp_anew, udp_stale},
    localhost::localhost_node_port,
    node_source::node_source,
    observation::{Aspect, Kind, Observation, Source},
    probe::ClientKind,
    scenario::Scenario,
    target::{FrontendKind, Target, address, list, text},
};
use crate::lab::client::Transport;

/// Something in which `lb-agent`, or kube-proxy's iptables mode, differs from kube-proxy's nftables mode.
#[derive(Debug)]
pub struct Finding<'a> {
    /// What the proxies were started with, among others.
    pub scenario: &'a Scenario,
    /// The number of the last step that was taken, from 0.
    pub step: usize,
    /// Who asked.
    pub client: ClientKind,
    /// The client's host.
    pub host: &'a str,
    /// Where.
    pub target: &'a Target,
    /// What kube-proxy in nftables mode did, and what the other one.
    pub aspect: Aspect,
    /// All that clients of nftables mode saw; nothing where servers of the proxies themselves were asked.
    pub reference: &'a Observation,
    /// All that the other one's clients saw.
    pub other: &'a Observation,
    /// What the same client saw of nftables mode where the Service port is served by the same endpoints, if this is about a
    /// loopback address, where that mode serves nothing.
    pub elsewhere: Option<&'a Observation>,
    /// What became of what it was asked at, if the exchange is one that is kept.
    pub history: Option<&'a History>,
}

/// An announced difference.
#[derive(Debug)]
pub struct Difference {
    /// As in `docs/divergence.md`.
    pub id: &'static str,
    /// Whether it explains a finding; `None` where another test shows it, which the document names.
    pub explains: Option<fn(&Finding<'_>) -> bool>,
}

/// What a report says of a difference that no entry explains.
pub const NOT_ANNOUNCED: &str = "not announced";

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    Difference { id: "client-address", explains: Some(client_address) },
    Difference { id: "pod-address", explains: Some(pod_address) },
    Difference { id: "own-address", explains: Some(own_address) },
    Difference { id: "no-wait", explains: Some(no_wait) },
    Difference { id: "node-source", explains: Some(node_source) },
    Difference { id: "bound-source", explains: None },
    Difference { id: "node-udp-connected", explains: Some(node_udp_connected) },
    Difference { id: "udp-stale", explains: Some(udp_stale) },
    Difference { id: "udp-anew", explains: Some(udp_anew) },
    Difference { id: "strict-addresses", explains: None },
    Difference { id: "cluster-ip-first", explains: None },
    Difference { id: "older-keeps", explains: None },
    Difference { id: "virtual-uplinks", explains: None },
    Difference { id: "own-endpoint", explains: Some(own_endpoint) },
    Difference { id: "other-nodes-pod", explains: Some(other_nodes_pod) },
    Difference { id: "localhost-node-port", explains: Some(localhost_node_port) },
    Difference { id: "link-local-node-port", explains: None },
    Difference { id: "node-ports-without-mode", explains: Some(node_ports_without_mode) },
    Difference { id: "pod-interfaces", explains: Some(pod_interfaces) },
    Difference { id: "outside-cluster-ip", explains: Some(outside_cluster_ip) },
    Difference { id: "moved-slice", explains: Some(moved_slice) },
    Difference { id: "service-cidr-at-once", explains: Some(service_cidr_at_once) },
    Difference { id: "affinity-of-pods", explains: None },
    Difference { id: "affinity-returns", explains: None },
    Difference { id: "other-protocols", explains: None },
    Difference { id: "error-sources", explains: None },
    Difference { id: "netfilter", explains: None },
    Difference { id: "forward-policy", explains: None },
    Difference { id: "refusal-by-rst", explains: None },
    Difference { id: "original-destination", explains: None },
    Difference { id: "local-listener", explains: None },
    Difference { id: "own-cluster-ip", explains: None },
    Difference { id: "manifest-checks", explains: None },
    Difference { id: "last-good-state", explains: None },
    Difference { id: "primary-only", explains: None },
    Difference { id: "node-addresses-followed", explains: None },
    Difference { id: "source-range-refused", explains: None },
    Difference { id: "health-before-sync", explains: None },
    Difference { id: "node-events", explains: None },
    Difference { id: "health-check-families", explains: Some(health_check_families) },
    Difference { id: "health-without-node", explains: None },
    Difference { id: "proxy-mode", explains: Some(proxy_mode) },
    Difference { id: "server-paths", explains: None },
    Difference { id: "metrics-headers", explains: Some(metrics_headers) },
    Difference { id: "metrics-absent", explains: None },
    Difference { id: "events", explains: None },
    Difference { id: "unknown-field", explains: None },
    Difference { id: "one-document", explains: None },
    Difference { id: "gate-dependencies", explains: None },
    Difference { id: "flag-over-file", explains: None },
    Difference { id: "same-file", explains: None },
    Difference { id: "conntrack-settings", explains: None },
    Difference { id: "empty-address", explains: None },
    Difference { id: "one-shot-flags", explains: None },
];

/// What is not built yet, and differs until it is.
pub const LIMITS: &[Difference] = &[
    Difference { id: "fragments", explains: None },
    Difference { id: "too-big", explains: None },
    Difference { id: "icmp-quote", explains: None },
    Difference { id: "own-exchanges", explains: None },
    Difference { id: "one-port", explains: None },
    Difference { id: "any-ip", explains: None },
    Difference { id: "sctp", explains: Some(sctp) },
];

/// In what we differ: what may explain a finding about us.
pub const OURS: &[&[Difference]] = &[DIFFERENCES, LIMITS];

/// The entries of tables that explain a finding: exactly one, or the harness fails.
pub fn explanations(tables: &[&'static [Difference]], finding: &Finding<'_>) -> Vec<&'static Difference> {
    tables
        .iter()
        .copied()
        .flatten()
        .filter(|difference| difference.explains.is_some_and(|explains| explains(finding)))
        .collect()
}

impl Finding<'_> {
    pub(super) fn is_from_outside(&self) -> bool {
        matches!(self.client, ClientKind::Outside | ClientKind::OtherNode | ClientKind::RemotePod)
    }

    /// A field of the configuration that the scenario gives.
    pub(super) fn proxy(&self, field: &str) -> &Value {
        self.scenario.header.proxy.get(field).unwrap_or(&Value::Null)
    }

    /// The Services that there are, as they were written last.
    pub(super) fn services(&self) -> impl Iterator<Item = &Value> {
        self.scenario.objects_after(self.step).filter(|object| object["kind"] == "Service")
    }

    /// Whether the other one's clients were all served, by hosts that may see such an address of theirs.
    pub(super) fn is_served(&self, may_see: impl Fn(&str, &Source) -> bool) -> bool {
        let Observation { reached, others } = self.other;
        others.is_empty()
            && !reached.is_empty()
            && reached.iter().all(|(at, sources)| sources.iter().all(|source| may_see(&at.host, source)))
    }

    pub(super) fn is_from_pod_here(&self) -> bool {
        matches!(self.client, ClientKind::Pod | ClientKind::Vm)
    }

    /// Whether tries of a client that is an endpoint itself are left unanswered in nftables mode, and it never reaches
    /// itself.
    pub(super) fn loses_itself(&self) -> bool {
        matches!(&self.aspect, Aspect::Verdict(theirs, _) if theirs.contains(&Kind::Dropped))
            && self.reference.reached.keys().all(|endpoint| endpoint.host != self.host)
    }

    /// Whether the other one's clients were all served, and those who reached themselves saw such an address of theirs.
    pub(super) fn reaches_itself(&self, may_see: impl Fn(&Source) -> bool) -> bool {
        self.other.reached.keys().any(|endpoint| endpoint.host == self.host)
            && self.is_served(|host, source| host != self.host || may_see(source))
    }

    /// The answers of servers, if this is about a path of theirs.
    pub(super) fn answers(&self, path: &str) -> Option<(&str, &str)> {
        let asked = self.target.service.split_once(' ').is_some_and(|(_, asked)| asked == path);
        match &self.aspect {
            Aspect::Answer(theirs, ours) if asked => Some((theirs, ours)),
            _ => None,
        }
    }

    /// Whether kube-proxy showed an endpoint the node's address, and we the client's own; gives the endpoint's host.
    fn keeps_own_address(&self) -> Option<&str> {
        match &self.aspect {
            Aspect::Source(endpoint, theirs, ours)
                if theirs.iter().eq([&Source::Node]) && ours.iter().eq([&Source::Own]) =>
            {
                Some(&endpoint.host)
            }
            _ => None,
        }
    }
}

fn client_address(finding: &Finding<'_>) -> bool {
    finding.is_from_outside() && finding.keeps_own_address().is_some_and(is_here)
}

fn pod_address(finding: &Finding<'_>) -> bool {
    finding.is_from_pod_here() && finding.keeps_own_address().is_some_and(|host| host != finding.host)
}

fn own_address(finding: &Finding<'_>) -> bool {
    finding.client == ClientKind::Pod
        && finding.target.transport == Transport::Tcp
        && finding.keeps_own_address().is_some_and(|host| host == finding.host)
}

fn no_wait(finding: &Finding<'_>) -> bool {
    matches!(finding.client, ClientKind::Pod | ClientKind::Node)
        && matches!(&finding.aspect, Aspect::Verdict(theirs, ours)
            if theirs.iter().eq([&Kind::Dropped]) && ours.iter().eq([&Kind::Unreachable]))
}

/// Such a client sees what it sees where kube-proxy knows that the endpoint is on the node.
fn own_endpoint(finding: &Finding<'_>) -> bool {
    let by_socket = finding.client == ClientKind::Pod && finding.target.transport == Transport::Tcp;
    finding.is_from_pod_here()
        && finding.loses_itself()
        && finding.reaches_itself(|source| *source == if by_socket { Source::Own } else { Source::Node })
}

/// A Service whose ports are all SCTP: its cluster IP is one that no Service has, and its health is not asked for.
fn sctp(finding: &Finding<'_>) -> bool {
    let Target { kind, address, .. } = finding.target;
    let mut services = finding.scenario.services().filter(|service| {
        let ports = service["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
        !ports.is_empty() && ports.iter().all(|port| port["protocol"] == "SCTP")
    });
    if let Some((theirs, ours)) = finding.answers("/") {
        return theirs.starts_with("HTTP/1.1 ")
            && ours.starts_with("Connection refused")
            && services.any(|service| service["spec"]["healthCheckNodePort"] == address.port());
    }
    let ip = address.ip().to_string();
    let mut has_address = services.filter_map(|service| service["spec"]["clusterIPs"].as_array()).flatten();
    *kind == FrontendKind::Undefined
        && (is_verdict(finding, Kind::Refused, Kind::Dropped) || is_verdict(finding, Kind::Refused, Kind::Unreachable))
        && has_address.any(|address| address == ip.as_str())
}

fn proxy_mode(finding: &Finding<'_>) -> bool {
    finding.answers("/proxyMode").is_some_and(|(theirs, ours)| {
        theirs.replace("Content-Length: 8", "Content-Length: 2").replace("nftables", "lb") == ours
    })
}

fn metrics_headers(finding: &Finding<'_>) -> bool {
    finding.answers("/metrics").is_some_and(|(theirs, ours)| {
        let theirs = theirs.replace("; escaping=underscores", "");
        without(&theirs, ["Process-Start-Time-Unix", "Transfer-Encoding"])
            == without(ours, ["X-Content-Type-Options", "Content-Length"])
    })
}

/// An answer without some headers.
fn without(answer: &str, names: [&str; 2]) -> String {
    let is_other = |line: &&str| !line.split_once(": ").is_some_and(|(name, _)| names.contains(&name));
    answer.split("\r\n").filter(is_other).collect::<Vec<_>>().join("\r\n")
}

/// The server of a Service that is there, and is not of the family that it is asked in.
fn health_check_families(finding: &Finding<'_>) -> bool {
    let asked = finding.target.address;
    let is_of_other_family = |service: &Value| {
        let spec = &service["spec"];
        let ips = list(&spec["clusterIPs"]).iter().chain([&spec["clusterIP"]]);
        spec["healthCheckNodePort"] == asked.port()
            && is_balanced(service)
            && ips.filter_map(|ip| address(text(ip))).all(|ip| ip.is_ipv4() != asked.is_ipv4())
    };
    finding.answers("/").is_some_and(|(theirs, ours)| {
        theirs.starts_with("Connection refused") && ours.starts_with("HTTP/1.1 200 OK\r\n")
    }) && finding.services().any(is_of_other_family)
}

fn node_ports_without_mode(finding: &Finding<'_>) -> bool {
    finding.scenario.header.kubeadm
        && finding.target.kind == FrontendKind::SecondNodePort
        && is_verdict(finding, Kind::Refused, Kind::Reached)
}

/// Whether a host is the node whose proxies are compared, or a pod of it.
pub(super) fn is_here(host: &str) -> bool {
    host.starts_with("node1")
}

fn moved_slice(finding: &Finding<'_>) -> bool {
    finding.target.service.starts_with("default/former:")
        && matches!(&finding.aspect, Aspect::Endpoints(theirs, ours) if !theirs.is_empty() && ours.is_empty())
}

/// An address of a range that the scenario has added, and no Service has.
fn service_cidr_at_once(finding: &Finding<'_>) -> bool {
    let ip = finding.target.address.ip();
    let ranges = finding.scenario.objects_after(finding.step).filter(|object| object["kind"] == "ServiceCIDR");
    let holds_it = |range: &Value| text(range).parse::<IpNet>().is_ok_and(|range| range.contains(&ip));
    finding.target.kind == FrontendKind::Foreign
        && ranges.flat_map(|object| list(&object["spec"]["cidrs"])).any(holds_it)
        && matches!(&finding.aspect, Aspect::Verdict(theirs, ours)
            if theirs.iter().eq([&Kind::Unrouted])
                && [Kind::Dropped, Kind::Unreachable].iter().any(|kind| ours.iter().eq([kind])))
}

/// Whether it is a verdict that is always this in nftables mode, and always that of the other one.
pub(super) fn is_verdict(finding: &Finding<'_>, nftables: Kind, other: Kind) -> bool {
    matches!(&finding.aspect, Aspect::Verdict(first, second)
        if first.iter().eq([&nftables]) && second.iter().eq([&other]))
}
