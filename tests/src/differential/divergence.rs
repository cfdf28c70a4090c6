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

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    Difference { id: "client-address", explains: Some(client_address) },
    Difference { id: "pod-address", explains: Some(pod_address) },
    Difference { id: "own-address", explains: Some(own_address) },
    Difference { id: "no-wait", explains: Some(no_wait) },
    Difference { id: "udp-stale", explains: None },
    Difference { id: "strict-addresses", explains: None },
    Difference { id: "cluster-ip-first", explains: None },
    Difference { id: "localhost-node-port", explains: Some(localhost_node_port) },
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
    finding.is_from_pod_here()
        && finding.target.kind != FrontendKind::ClusterIp
        && finding.keeps_own_address().is_some_and(|host| host != finding.host)
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

fn localhost_node_port(finding: &Finding<'_>) -> bool {
    finding.target.kind == FrontendKind::LocalhostNodePort
        && matches!(&finding.aspect, Aspect::Verdict(theirs, _) if theirs.iter().eq([&Kind::Refused]))
}
