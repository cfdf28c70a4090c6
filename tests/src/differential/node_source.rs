//! The announced difference of what a process of the node counts as, where a Service asks who is there.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{
    divergence::{Finding, is_verdict},
    observation::Kind,
    probe::ClientKind,
    target::{FrontendKind, Target, list, text},
};
use crate::lab::addresses;

/// A process of the node that asks at a restricted load-balancer address, from a node with another IPv6 address near it: the
/// ranges hold the one of the two and not the other.
pub(super) fn node_source(finding: &Finding<'_>) -> bool {
    let Target { service, kind, address, .. } = finding.target;
    if finding.client != ClientKind::Node || *kind != FrontendKind::LoadBalancer {
        return false;
    }
    let primary = IpAddr::V6(addresses::node(1).v6);
    let Some(selected) = selected_source(primary, &finding.scenario.header.node_addresses, address.ip()) else {
        return false;
    };
    let is_it = |object: &&Value| service.starts_with(&format!("default/{}:", text(&object["metadata"]["name"])));
    finding.services().filter(is_it).any(|service| match [selected, primary].map(|source| allows(service, source)) {
        [true, false] => is_verdict(finding, Kind::Reached, Kind::Unreachable),
        [false, true] => is_verdict(finding, Kind::Dropped, Kind::Reached),
        [true, true] | [false, false] => false,
    })
}

/// What the kernel prefers to the node's primary address as the source of what goes to an address, if that is neither of
/// IPv4 nor the node's own: an address with a longer prefix in common (RFC 6724, rule 8).
fn selected_source(primary: IpAddr, others: &[String], to: IpAddr) -> Option<IpAddr> {
    let others = others.iter().filter_map(|text| text.parse::<IpNet>().ok()).map(|network| network.addr());
    let in_common = |address: &IpAddr| match (address, to) {
        (IpAddr::V6(address), IpAddr::V6(to)) => (address.to_bits() ^ to.to_bits()).leading_zeros(),
        _ => 0,
    };
    let nearest = others.max_by_key(in_common).filter(|nearest| in_common(nearest) > in_common(&primary))?;
    (nearest != to).then_some(nearest)
}

/// Whether a Service's ranges let this address use its load balancer.
fn allows(service: &Value, source: IpAddr) -> bool {
    let ranges = list(&service["spec"]["loadBalancerSourceRanges"]);
    ranges.is_empty()
        || ranges.iter().any(|range| text(range).parse::<IpNet>().is_ok_and(|range| range.contains(&source)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(others: &[&str], to: &str) -> Option<String> {
        let others: Vec<String> = others.iter().map(|text| (*text).to_owned()).collect();
        let to = to.parse().expect("an address");
        selected_source(IpAddr::V6(addresses::node(1).v6), &others, to).map(|address| address.to_string())
    }

    #[test]
    fn only_an_address_that_is_nearer_than_the_primary_one_is_selected_in_its_place() {
        let near = "2001:db8:203::a9/128";
        assert_eq!(selected(&[near], "2001:db8:203::a8").as_deref(), Some("2001:db8:203::a9"));
        assert_eq!(selected(&[near], "fd00:10:96::a8"), None);
        assert_eq!(selected(&[], "2001:db8:203::a8"), None);
        assert_eq!(selected(&[near, "2001:db8:203::a8/128"], "2001:db8:203::a8"), None);
        assert_eq!(selected(&["203.0.113.9/32"], "203.0.113.8"), None);
    }
}
