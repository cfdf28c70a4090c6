//! The table of announced differences: data for the harness, and the rows of `docs/divergence.md`.

use super::{
    observation::{Aspect, Kind, Source},
    probe::ClientKind,
    target::{FrontendKind, Target},
};
use crate::lab::client::Transport;

/// Something in which `lb-agent` differs from kube-proxy's nftables mode.
#[derive(Debug)]
pub struct Finding<'a> {
    /// Who asked.
    pub client: ClientKind,
    /// The client's host.
    pub host: &'a str,
    /// Where.
    pub target: &'a Target,
    /// What kube-proxy and what we did.
    pub aspect: Aspect,
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
    Difference { id: "udp-stale", explains: None },
    Difference { id: "strict-addresses", explains: None },
    Difference { id: "cluster-ip-first", explains: None },
    Difference { id: "other-nodes-pod", explains: Some(other_nodes_pod) },
    Difference { id: "localhost-node-port", explains: Some(localhost_node_port) },
    Difference { id: "pod-interfaces", explains: Some(pod_interfaces) },
    Difference { id: "outside-cluster-ip", explains: Some(outside_cluster_ip) },
    Difference { id: "moved-slice", explains: Some(moved_slice) },
    Difference { id: "service-cidr-at-once", explains: Some(service_cidr_at_once) },
    Difference { id: "affinity-of-pods", explains: None },
    Difference { id: "other-protocols", explains: None },
    Difference { id: "manifest-checks", explains: None },
    Difference { id: "last-good-state", explains: None },
    Difference { id: "primary-only", explains: None },
    Difference { id: "source-range-refused", explains: None },
    Difference { id: "health-before-sync", explains: None },
    Difference { id: "health-check-families", explains: None },
    Difference { id: "health-without-node", explains: None },
    Difference { id: "proxy-mode", explains: None },
    Difference { id: "metrics-absent", explains: None },
    Difference { id: "events", explains: None },
    Difference { id: "unknown-field", explains: None },
    Difference { id: "flag-over-file", explains: None },
    Difference { id: "same-file", explains: None },
    Difference { id: "empty-address", explains: None },
];

/// The entries that explain a finding: exactly one, or the harness fails.
pub fn explanations(finding: &Finding<'_>) -> Vec<&'static Difference> {
    DIFFERENCES.iter().filter(|difference| difference.explains.is_some_and(|explains| explains(finding))).collect()
}

impl Finding<'_> {
    fn is_from_outside(&self) -> bool {
        matches!(self.client, ClientKind::Outside | ClientKind::OtherNode | ClientKind::RemotePod)
    }

    fn is_from_pod_here(&self) -> bool {
        matches!(self.client, ClientKind::Pod | ClientKind::Vm)
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
    finding.is_from_outside() && finding.keeps_own_address().is_some_and(|host| host.starts_with("node1"))
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

fn other_nodes_pod(finding: &Finding<'_>) -> bool {
    finding.client == ClientKind::RemotePod
        && finding.target.external_local
        && matches!(&finding.aspect, Aspect::Verdict(theirs, ours)
            if theirs.contains(&Kind::Dropped) && theirs != ours)
}

fn localhost_node_port(finding: &Finding<'_>) -> bool {
    finding.target.kind == FrontendKind::LocalhostNodePort
        && matches!(&finding.aspect, Aspect::Verdict(theirs, _) if theirs.iter().eq([&Kind::Refused]))
}

fn pod_interfaces(finding: &Finding<'_>) -> bool {
    finding.is_from_pod_here()
        && finding.target.external_local
        && finding.target.kind != FrontendKind::ClusterIp
        && matches!(&finding.aspect, Aspect::Endpoints(theirs, ours) if theirs.is_empty() && !ours.is_empty())
}

fn outside_cluster_ip(finding: &Finding<'_>) -> bool {
    finding.is_from_outside()
        && finding.target.kind == FrontendKind::ClusterIp
        && matches!(&finding.aspect, Aspect::Verdict(theirs, ours)
            if theirs.contains(&Kind::Dropped) && ours.iter().eq([&Kind::Reached]))
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
