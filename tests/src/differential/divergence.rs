//! The table of announced differences: data for the harness, and the rows of `docs/divergence.md`.

use serde_json::Value;

use super::{
    observation::{Aspect, Kind, Observation, Source},
    probe::ClientKind,
    scenario::Scenario,
    target::{FrontendKind, Target},
};
use crate::lab::client::Transport;

/// Something in which `lb-agent`, or kube-proxy's iptables mode, differs from kube-proxy's nftables mode.
#[derive(Debug)]
pub struct Finding<'a> {
    /// What the proxies were started with, among others.
    pub scenario: &'a Scenario,
    /// Who asked.
    pub client: ClientKind,
    /// The client's host.
    pub host: &'a str,
    /// Where.
    pub target: &'a Target,
    /// What kube-proxy in nftables mode did, and what the other one.
    pub aspect: Aspect,
    /// All that the other one's clients saw; nothing where servers of the proxies themselves were asked.
    pub other: &'a Observation,
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
    Difference { id: "node-udp-connected", explains: Some(node_udp_connected) },
    Difference { id: "udp-stale", explains: Some(udp_stale) },
    Difference { id: "strict-addresses", explains: None },
    Difference { id: "cluster-ip-first", explains: None },
    Difference { id: "other-nodes-pod", explains: Some(other_nodes_pod) },
    Difference { id: "localhost-node-port", explains: Some(localhost_node_port) },
    Difference { id: "node-ports-without-mode", explains: Some(node_ports_without_mode) },
    Difference { id: "pod-interfaces", explains: Some(pod_interfaces) },
    Difference { id: "outside-cluster-ip", explains: Some(outside_cluster_ip) },
    Difference { id: "moved-slice", explains: Some(moved_slice) },
    Difference { id: "service-cidr-at-once", explains: Some(service_cidr_at_once) },
    Difference { id: "affinity-of-pods", explains: None },
    Difference { id: "other-protocols", explains: None },
    Difference { id: "error-sources", explains: None },
    Difference { id: "manifest-checks", explains: None },
    Difference { id: "last-good-state", explains: None },
    Difference { id: "primary-only", explains: None },
    Difference { id: "source-range-refused", explains: None },
    Difference { id: "health-before-sync", explains: None },
    Difference { id: "health-check-families", explains: Some(health_check_families) },
    Difference { id: "health-without-node", explains: None },
    Difference { id: "proxy-mode", explains: Some(proxy_mode) },
    Difference { id: "metrics-headers", explains: Some(metrics_headers) },
    Difference { id: "metrics-absent", explains: None },
    Difference { id: "events", explains: None },
    Difference { id: "unknown-field", explains: None },
    Difference { id: "flag-over-file", explains: None },
    Difference { id: "same-file", explains: None },
    Difference { id: "empty-address", explains: None },
];

/// What is not built yet, and differs until it is.
pub const LIMITS: &[Difference] = &[
    Difference { id: "fragments", explains: None },
    Difference { id: "icmp-quote", explains: None },
    Difference { id: "sctp", explains: None },
];

/// In what kube-proxy's iptables mode differs from its nftables mode, as far as scenarios show it. We follow the latter,
/// so that a row here says what is not to be taken from the former.
pub const MODES: &[Difference] = &[
    Difference { id: "mode-localhost-node-port", explains: Some(mode_localhost_node_port) },
    Difference { id: "mode-node-port-addresses", explains: Some(mode_node_port_addresses) },
    Difference { id: "mode-unused-addresses", explains: Some(mode_unused_addresses) },
    Difference { id: "mode-undefined-ports", explains: Some(mode_undefined_ports) },
    Difference { id: "mode-own-refusals", explains: Some(mode_own_refusals) },
    Difference { id: "mode-source-ranges", explains: Some(mode_source_ranges) },
    Difference { id: "mode-name", explains: Some(mode_name) },
];

/// The entries of a table that explain a finding: exactly one, or the harness fails.
pub fn explanations(table: &'static [Difference], finding: &Finding<'_>) -> Vec<&'static Difference> {
    table.iter().filter(|difference| difference.explains.is_some_and(|explains| explains(finding))).collect()
}

impl Finding<'_> {
    fn is_from_outside(&self) -> bool {
        matches!(self.client, ClientKind::Outside | ClientKind::OtherNode | ClientKind::RemotePod)
    }

    /// A field of the configuration that the scenario gives.
    fn proxy(&self, field: &str) -> &Value {
        self.scenario.header.proxy.get(field).unwrap_or(&Value::Null)
    }

    /// Whether the other one's clients were all served, by hosts that may see such an address of theirs.
    fn is_served(&self, may_see: impl Fn(&str, &Source) -> bool) -> bool {
        let Observation { reached, others } = self.other;
        others.is_empty()
            && !reached.is_empty()
            && reached.iter().all(|(at, sources)| sources.iter().all(|source| may_see(&at.host, source)))
    }

    fn is_from_pod_here(&self) -> bool {
        matches!(self.client, ClientKind::Pod | ClientKind::Vm)
    }

    fn is_kept_udp(&self) -> bool {
        self.target.kept && matches!(self.target.transport, Transport::Udp | Transport::UdpConnected)
    }

    fn is_connected_by_the_node(&self) -> bool {
        self.client == ClientKind::Node && self.target.transport == Transport::UdpConnected
    }

    /// The answers of servers, if this is about a path of theirs.
    fn answers(&self, path: &str) -> Option<(&str, &str)> {
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

/// A datagram that kube-proxy still sends to an endpoint that the Service no longer has, by an entry of its connection
/// tracking.
fn udp_stale(finding: &Finding<'_>) -> bool {
    finding.is_kept_udp()
        && !finding.is_connected_by_the_node()
        && matches!(&finding.aspect, Aspect::Verdict(theirs, ours)
            if theirs.iter().eq([&Kind::Reached])
                && [Kind::Refused, Kind::Dropped, Kind::Unreachable].iter().any(|kind| ours.iter().eq([kind])))
}

fn node_udp_connected(finding: &Finding<'_>) -> bool {
    finding.is_kept_udp() && finding.is_connected_by_the_node() && matches!(finding.aspect, Aspect::Endpoints(..))
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

fn health_check_families(finding: &Finding<'_>) -> bool {
    finding.answers("/").is_some_and(|(theirs, ours)| {
        theirs.starts_with("Connection refused") && ours.starts_with("HTTP/1.1 200 OK\r\n")
    })
}

fn other_nodes_pod(finding: &Finding<'_>) -> bool {
    finding.client == ClientKind::RemotePod
        && finding.target.external_local
        && matches!(&finding.aspect, Aspect::Verdict(theirs, _) if theirs.contains(&Kind::Dropped))
        // An endpoint that does not say that it is here is masqueraded, too.
        && finding.is_served(|host, source| *source == Source::Node || is_here(host) && *source == Source::Own)
        && finding.other.reached.keys().any(|endpoint| !is_here(&endpoint.host))
}

fn localhost_node_port(finding: &Finding<'_>) -> bool {
    finding.target.kind == FrontendKind::LocalhostNodePort && is_verdict(finding, Kind::Refused, Kind::Reached)
}

fn node_ports_without_mode(finding: &Finding<'_>) -> bool {
    finding.scenario.header.kubeadm
        && finding.target.kind == FrontendKind::SecondNodePort
        && is_verdict(finding, Kind::Refused, Kind::Reached)
}

fn pod_interfaces(finding: &Finding<'_>) -> bool {
    matches!(finding.proxy("detectLocalMode").as_str(), Some("BridgeInterface" | "InterfaceNamePrefix"))
        && finding.is_from_pod_here()
        && finding.target.external_local
        && finding.target.kind != FrontendKind::ClusterIp
        && matches!(&finding.aspect, Aspect::Endpoints(theirs, ours)
            if theirs.is_empty() && ours.iter().all(|endpoint| !is_here(&endpoint.host)))
}

fn outside_cluster_ip(finding: &Finding<'_>) -> bool {
    let detects_nobody = matches!(finding.proxy("detectLocalMode").as_str(), None | Some("" | "ClusterCIDR"))
        && finding.proxy("clusterCIDR") == "";
    detects_nobody
        && finding.is_from_outside()
        && finding.target.kind == FrontendKind::ClusterIp
        && !finding.target.internal_local
        && matches!(&finding.aspect, Aspect::Verdict(theirs, _) if theirs.contains(&Kind::Dropped))
        && finding.is_served(|host, source| *source == if is_here(host) { Source::Own } else { Source::Node })
        && finding.other.reached.keys().any(|endpoint| !is_here(&endpoint.host))
}

/// Whether a host is the node whose proxies are compared, or a pod of it.
fn is_here(host: &str) -> bool {
    host.starts_with("node1")
}

fn moved_slice(finding: &Finding<'_>) -> bool {
    finding.target.service.starts_with("default/former:")
        && matches!(&finding.aspect, Aspect::Endpoints(theirs, ours) if !theirs.is_empty() && ours.is_empty())
}

fn service_cidr_at_once(finding: &Finding<'_>) -> bool {
    finding.target.kind == FrontendKind::Foreign
        && matches!(&finding.aspect, Aspect::Verdict(theirs, ours)
            if theirs.iter().eq([&Kind::Unreachable]) && ours.iter().eq([&Kind::Dropped]))
}

/// Whether it is a verdict that is always this in nftables mode, and always that in iptables mode.
fn is_verdict(finding: &Finding<'_>, nftables: Kind, iptables: Kind) -> bool {
    matches!(&finding.aspect, Aspect::Verdict(first, second)
        if first.iter().eq([&nftables]) && second.iter().eq([&iptables]))
}

fn mode_localhost_node_port(finding: &Finding<'_>) -> bool {
    finding.target.kind == FrontendKind::LocalhostNodePort
        && matches!(&finding.aspect, Aspect::Verdict(first, _) if first.iter().eq([&Kind::Refused]))
}

fn mode_node_port_addresses(finding: &Finding<'_>) -> bool {
    // A bindAddress is the primary one in the place of the first.
    let is_primary = match finding.target.kind {
        FrontendKind::NodePort => finding.proxy("bindAddress").is_null(),
        FrontendKind::SecondNodePort => false,
        _ => return false,
    };
    !is_primary && is_verdict(finding, Kind::Refused, Kind::Reached)
}

fn mode_unused_addresses(finding: &Finding<'_>) -> bool {
    use FrontendKind::{ClusterIp, Foreign, Unallocated, Undefined};
    matches!(finding.target.kind, ClusterIp | Foreign | Unallocated | Undefined)
        && is_verdict(finding, Kind::Dropped, Kind::Unreachable)
}

fn mode_undefined_ports(finding: &Finding<'_>) -> bool {
    matches!(finding.target.kind, FrontendKind::Undefined | FrontendKind::Foreign)
        && is_verdict(finding, Kind::Refused, Kind::Unreachable)
}

fn mode_own_refusals(finding: &Finding<'_>) -> bool {
    finding.client == ClientKind::Node
        && matches!(finding.target.kind, FrontendKind::ExternalIp | FrontendKind::LoadBalancer)
        && is_verdict(finding, Kind::Refused, Kind::Unreachable)
}

fn mode_source_ranges(finding: &Finding<'_>) -> bool {
    finding.target.kind == FrontendKind::LoadBalancer
        && (is_verdict(finding, Kind::Dropped, Kind::Refused) || is_verdict(finding, Kind::Dropped, Kind::Unreachable))
}

fn mode_name(finding: &Finding<'_>) -> bool {
    finding.answers("/proxyMode").is_some_and(|(first, second)| first.replace("nftables", "iptables") == second)
}
