//! The announced difference of node ports on loopback addresses: where we serve them, and to whom they lead.

use ipnet::IpNet;

use super::{
    divergence::{Finding, is_verdict},
    observation::Kind,
    target::{FrontendKind, list, text},
};

/// A process of the node that reaches a node port on a loopback address, as our settings say, and there the endpoints that
/// nftables mode gives it elsewhere: those that the Service port has for the node by its policies.
pub(super) fn localhost_node_port(finding: &Finding<'_>) -> bool {
    finding.target.kind == FrontendKind::LocalhostNodePort
        && is_verdict(finding, Kind::Refused, Kind::Reached)
        && is_to_be_served(finding)
        && match (finding.history, finding.elsewhere) {
            // What is kept may be at an endpoint that has left.
            (Some(history), _) => finding.other.reached.keys().all(|endpoint| history.known.contains(endpoint)),
            (None, Some(elsewhere)) => elsewhere.reached.keys().eq(finding.other.reached.keys()),
            (None, None) => false,
        }
}

/// Whether the settings that we were started with let node ports be served at the loopback address that was asked.
fn is_to_be_served(finding: &Finding<'_>) -> bool {
    // That file has neither of the settings.
    if finding.scenario.header.kubeadm {
        return true;
    }
    let asked = finding.target.address.ip();
    let networks = list(finding.proxy("nodePortAddresses")).iter().filter_map(|network| text(network).parse().ok());
    let of_family: Vec<IpNet> =
        networks.filter(|network: &IpNet| network.addr().is_ipv4() == asked.is_ipv4()).collect();
    finding.proxy("iptables")["localhostNodePorts"] != false
        && (of_family.is_empty() || of_family.iter().any(|network| network.contains(&asked)))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{
        differential::{
            history::History,
            observation::{Aspect, Endpoint, Observation, Source, Verdict},
            probe::ClientKind,
            scenario::Scenario,
            target::Target,
        },
        lab::client::Transport,
    };

    fn endpoint(host: &str) -> Endpoint {
        Endpoint { host: host.to_owned(), port: 9000 }
    }

    fn reached(hosts: &[&str]) -> Observation {
        let reached = hosts.iter().map(|host| (endpoint(host), BTreeSet::from([Source::Own])));
        Observation { reached: reached.collect(), others: BTreeSet::new() }
    }

    /// Whether it is explained that we reach these hosts there, where nftables mode reaches those elsewhere.
    fn explains(
        header: &str,
        address: &str,
        hosts: &[&str],
        elsewhere: Option<&[&str]>,
        history: Option<&History>,
    ) -> bool {
        let text = format!("kind: Scenario\nabout: a test\n{header}");
        let scenario = Scenario::parse("test", &text).unwrap_or_else(|error| panic!("{error}"));
        let target = Target {
            service: "default/web:http".to_owned(),
            kind: FrontendKind::LocalhostNodePort,
            address: address.parse().expect("an address with a port"),
            transport: Transport::Tcp,
            endpoints: 2,
            has_affinity: false,
            external_local: false,
            internal_local: false,
            kept: history.is_some(),
        };
        let refused = Observation { reached: BTreeMap::new(), others: BTreeSet::from([Verdict::Refused]) };
        let elsewhere = elsewhere.map(reached);
        localhost_node_port(&Finding {
            scenario: &scenario,
            step: 0,
            client: ClientKind::Node,
            host: "node1",
            target: &target,
            aspect: Aspect::Verdict(BTreeSet::from([Kind::Refused]), BTreeSet::from([Kind::Reached])),
            reference: &refused,
            other: &reached(hosts),
            elsewhere: elsewhere.as_ref(),
            history,
        })
    }

    #[test]
    fn it_is_explained_where_our_settings_serve_it_and_nowhere_else() {
        let one = ["node2-pod0"];
        let is_served = |header: &str, address: &str| explains(header, address, &one, Some(&one), None);
        let (v4, v6) = ("127.0.0.1:30001", "[::1]:30001");
        for (header, expected) in [
            ("", [true, true]),
            ("proxy: {iptables: {localhostNodePorts: true}}", [true, true]),
            ("proxy: {iptables: {localhostNodePorts: false}}", [false, false]),
            // The file that kubeadm writes has nothing of what the other one says.
            ("kubeadm: true\nproxy: {iptables: {localhostNodePorts: false}}", [true, true]),
            ("proxy: {nodePortAddresses: [primary]}", [true, true]),
            ("proxy: {nodePortAddresses: [192.168.100.0/24]}", [false, true]),
            ("proxy: {nodePortAddresses: [192.168.100.0/24, 'fd00::/8']}", [false, false]),
            ("proxy: {nodePortAddresses: [127.0.0.0/8, '::/0']}", [true, true]),
            ("proxy: {nodePortAddresses: ['::/0'], iptables: {localhostNodePorts: false}}", [false, false]),
        ] {
            assert_eq!([is_served(header, v4), is_served(header, v6)], expected, "{header}");
        }
    }

    #[test]
    fn who_is_reached_must_be_who_is_reached_elsewhere() {
        let is_explained =
            |hosts: &[&str], elsewhere: Option<&[&str]>| explains("", "[::1]:30001", hosts, elsewhere, None);
        assert!(is_explained(&["node1-pod0", "node2-pod0"], Some(&["node1-pod0", "node2-pod0"])));
        assert!(!is_explained(&["node1-pod0"], Some(&["node1-pod0", "node2-pod0"])));
        assert!(!is_explained(&["node1-pod0", "node2-pod0"], Some(&["node1-pod0"])));
        assert!(!is_explained(&["node2-pod1"], Some(&["node2-pod0"])));
        assert!(!is_explained(&["node2-pod0"], Some(&[])), "nothing that it could be compared with");
        assert!(!is_explained(&["node2-pod0"], None), "nothing that it could be compared with");
    }

    #[test]
    fn an_exchange_that_is_kept_is_at_an_endpoint_that_has_served_there() {
        let mut history = History::default();
        history.known.insert(endpoint("node2-pod0"));
        let is_explained = |host| explains("", "127.0.0.1:30001", &[host], None, Some(&history));
        assert!(is_explained("node2-pod0"));
        assert!(!is_explained("node2-pod1"));
    }
}
