//! Announced differences of [kept](super::kept) UDP exchanges.

use super::{
    divergence::{Finding, is_here},
    history::{History, Place},
    observation::{Aspect, Endpoint, Kind},
    probe::ClientKind,
    target::FrontendKind,
};
use crate::lab::client::Transport;

impl Finding<'_> {
    /// Whether it is about a UDP exchange whose socket is not connected to its endpoint itself.
    fn is_translated_udp(&self) -> bool {
        self.target.kept
            && matches!(self.target.transport, Transport::Udp | Transport::UdpConnected)
            && !self.is_connected_by_the_node()
    }

    fn is_connected_by_the_node(&self) -> bool {
        self.target.kept && self.client == ClientKind::Node && self.target.transport == Transport::UdpConnected
    }

    /// Whether kube-proxy's exchange would hang where it is, at such an endpoint that has served there.
    fn hangs_at(&self, is_such: impl Fn(&Endpoint) -> bool) -> bool {
        let was_at = |endpoint: &&Endpoint| !is_here(&endpoint.host) && is_such(endpoint);
        self.hangs_elsewhere() && self.history.is_some_and(|history| history.known.iter().any(|at| was_at(&at)))
    }

    /// Whether all these are endpoints that serve where the exchange was opened, whosever they are.
    fn serve<'a>(&self, mut endpoints: impl Iterator<Item = &'a Endpoint>) -> bool {
        self.history.is_some_and(|history| endpoints.all(|endpoint| history.serving.contains(endpoint)))
    }
}

/// What may come of a datagram that begins an exchange at the frontend now, if nobody serves it there.
fn not_served(finding: &Finding<'_>, history: &History) -> &'static [Kind] {
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer};
    // A call of the node's own fails instead.
    const DROPPED: &[Kind] = &[Kind::Dropped, Kind::Unreachable];
    match (history.place, finding.target.kind) {
        (Place::Frontend { .. }, _) if history.serving.is_empty() => &[Kind::Refused],
        (Place::Frontend { is_local: true }, kind) => {
            // At other frontends, what comes from the node and its pods is not kept on the node.
            let is_kept_here = kind == ClusterIp || finding.is_from_outside();
            let is_served = history.serving.iter().any(|endpoint| is_here(&endpoint.host)) || !is_kept_here;
            if is_served { &[] } else { DROPPED }
        }
        (Place::Frontend { is_local: false }, _) => &[],
        (Place::Nothing, ClusterIp) => DROPPED,
        (_, LoadBalancer | ExternalIp) => &[Kind::Unrouted],
        // A port that the cluster IP does not have, or one of the node's own that nobody listens on.
        (Place::OtherPorts | Place::Nothing, _) => &[Kind::Refused],
    }
}

/// A datagram that kube-proxy still sends to an endpoint that has left the Service port, or whose Service port has gone
/// from there, by an entry of its connection tracking. We refuse it, or have the Service serve it that has the frontend now.
pub(super) fn udp_stale(finding: &Finding<'_>) -> bool {
    let Some(history) = finding.history else { return false };
    let has_left = |endpoint: &Endpoint| !history.is_there || !history.serving.contains(endpoint);
    finding.is_translated_udp()
        && finding.reference.reached.keys().all(has_left)
        && match &finding.aspect {
            Aspect::Verdict(theirs, ours) => {
                let is_sent_there = theirs.iter().eq([&Kind::Reached])
                    || theirs.iter().eq([&Kind::Dropped]) && finding.hangs_at(|endpoint| has_left(endpoint));
                is_sent_there && not_served(finding, history).iter().any(|kind| ours.iter().eq([kind]))
            }
            Aspect::Endpoints(theirs, ours) => {
                let is_of_former = !theirs.is_empty() && theirs.is_disjoint(&history.serving);
                !history.is_there && is_of_former && !ours.is_empty() && finding.serve(ours.iter())
            }
            Aspect::Source(..) | Aspect::Stickiness(..) | Aspect::Stray(_) | Aspect::Answer(..) => false,
        }
}

/// An exchange that we have moved, since its Service port was gone in between or lost a frontend, and kube-proxy has not,
/// since the endpoint still serves there.
pub(super) fn udp_anew(finding: &Finding<'_>) -> bool {
    finding.is_translated_udp()
        && finding.history.is_some_and(|history| history.was_interrupted)
        && match &finding.aspect {
            Aspect::Endpoints(theirs, ours) => {
                let was_moved = !theirs.is_empty() && !ours.is_empty();
                was_moved && finding.serve(theirs.iter()) && finding.serve(ours.iter())
            }
            Aspect::Verdict(theirs, ours) => {
                let stayed = theirs.iter().eq([&Kind::Dropped]) && finding.hangs_at(|_| true);
                let is_here_now = finding.other.reached.keys().all(|endpoint| is_here(&endpoint.host));
                stayed && ours.iter().eq([&Kind::Reached]) && is_here_now && finding.serve(finding.other.reached.keys())
            }
            Aspect::Source(..) | Aspect::Stickiness(..) | Aspect::Stray(_) | Aspect::Answer(..) => false,
        }
}

/// A socket that is connected to an endpoint, which has left the Service port at some time, or whose Service port has gone.
pub(super) fn node_udp_connected(finding: &Finding<'_>) -> bool {
    let Some(history) = finding.history else { return false };
    let stayed = |endpoint: &Endpoint| history.left.contains(endpoint) || history.was_interrupted;
    finding.is_connected_by_the_node()
        && finding.other.reached.keys().all(stayed)
        && match &finding.aspect {
            Aspect::Endpoints(theirs, ours) => !theirs.is_empty() && !ours.is_empty(),
            // nftables mode refuses there, whatever the endpoints are.
            Aspect::Verdict(..) if finding.target.kind == FrontendKind::LocalhostNodePort => false,
            Aspect::Verdict(theirs, ours) => !theirs.contains(&Kind::Reached) && ours.iter().eq([&Kind::Reached]),
            Aspect::Source(..) | Aspect::Stickiness(..) | Aspect::Stray(_) | Aspect::Answer(..) => false,
        }
}
