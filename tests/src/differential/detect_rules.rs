//! Announced differences in whom proxies take for pods of their node, and so in whom kube-proxy masquerades.

use serde_json::Value;

use super::{
    divergence::{Finding, is_here},
    history::Place,
    observation::{Aspect, Kind, Source},
    plan::PODS,
    probe::ClientKind,
    target::{FrontendKind, Target, list},
};

impl Finding<'_> {
    /// Whether the Service keeps such traffic on the node: now, if the exchange is one that is kept.
    fn is_local(&self) -> bool {
        let Target { kind, internal_local, external_local, .. } = self.target;
        let began = if *kind == FrontendKind::ClusterIp { *internal_local } else { *external_local };
        match self.history.map(|history| history.place) {
            Some(Place::Frontend { is_local }) => is_local,
            Some(Place::OtherPorts | Place::Nothing) | None => began,
        }
    }

    /// Whether it is about a pod of another node that kube-proxy gives any endpoint, and does not masquerade.
    fn is_from_other_nodes_pod(&self) -> bool {
        self.client == ClientKind::RemotePod && self.target.kind != FrontendKind::ClusterIp && self.is_local()
    }

    /// Whether it is about a client from elsewhere at a cluster IP of a family in which kube-proxy knows nobody's pods, and
    /// masquerades nobody.
    fn is_from_nobody_known(&self) -> bool {
        let is_v6 = self.target.address.is_ipv6();
        let of_family = |network: &str| !network.is_empty() && network.contains(':') == is_v6;
        matches!(self.proxy("detectLocalMode").as_str(), None | Some("" | "ClusterCIDR"))
            && self.proxy("clusterCIDR").as_str().is_some_and(|networks| !networks.split(',').any(of_family))
            && self.is_from_outside()
            && self.target.kind == FrontendKind::ClusterIp
            && !self.is_local()
    }

    /// Whether kube-proxy's exchange with an endpoint of another node hangs, since that answers the client directly.
    pub(super) fn hangs_elsewhere(&self) -> bool {
        self.is_from_other_nodes_pod() || self.is_from_nobody_known()
    }
}

/// Whether a slice says of a pod of the node that it is there.
fn says_that_it_is_here(finding: &Finding<'_>, pod: &str) -> bool {
    let Some(number) = pod.strip_prefix("node1-pod").and_then(|number| number.parse().ok()) else { return false };
    let Some((v4, v6, node)) = PODS.iter().filter(|(_, _, node)| *node == "node1").nth(number) else { return false };
    let is_it = |address: &Value| address == v4 || address == v6;
    let slices = finding.scenario.objects_after(finding.step).filter(|object| object["kind"] == "EndpointSlice");
    slices
        .flat_map(|slice| list(&slice["endpoints"]))
        .any(|endpoint| endpoint["nodeName"] == *node && list(&endpoint["addresses"]).iter().any(is_it))
}

pub(super) fn other_nodes_pod(finding: &Finding<'_>) -> bool {
    if let Aspect::Source(endpoint, theirs, ours) = &finding.aspect {
        return finding.is_from_other_nodes_pod()
            && theirs.iter().eq([&Source::Own])
            && ours.iter().eq([&Source::Node])
            && is_here(&endpoint.host)
            && !says_that_it_is_here(finding, &endpoint.host);
    }
    finding.is_from_other_nodes_pod()
        && matches!(&finding.aspect, Aspect::Verdict(theirs, _) if theirs.contains(&Kind::Dropped))
        // An endpoint that does not say that it is here is masqueraded, too.
        && finding.is_served(|host, source| *source == Source::Node || is_here(host) && *source == Source::Own)
        && finding.other.reached.keys().any(|endpoint| !is_here(&endpoint.host))
}

pub(super) fn pod_interfaces(finding: &Finding<'_>) -> bool {
    matches!(finding.proxy("detectLocalMode").as_str(), Some("BridgeInterface" | "InterfaceNamePrefix"))
        && finding.is_from_pod_here()
        && finding.target.external_local
        && finding.target.kind != FrontendKind::ClusterIp
        && matches!(&finding.aspect, Aspect::Endpoints(theirs, ours)
            if theirs.is_empty() && ours.iter().all(|endpoint| !is_here(&endpoint.host)))
}

pub(super) fn outside_cluster_ip(finding: &Finding<'_>) -> bool {
    finding.is_from_nobody_known()
        && matches!(&finding.aspect, Aspect::Verdict(theirs, _) if theirs.contains(&Kind::Dropped))
        && finding.is_served(|host, source| *source == if is_here(host) { Source::Own } else { Source::Node })
        && finding.other.reached.keys().any(|endpoint| !is_here(&endpoint.host))
}
