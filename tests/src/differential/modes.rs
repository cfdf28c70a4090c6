//! The table of what kube-proxy's modes differ in: data for the harness, and a table of `docs/divergence.md`.

use serde_json::Value;

use super::{
    divergence::{Difference, Finding, is_verdict},
    observation::{Aspect, Kind, Source},
    probe::ClientKind,
    target::FrontendKind,
};

/// In what kube-proxy's iptables mode differs from its nftables mode, as far as scenarios show it. We follow the latter,
/// so that a row here says what is not to be taken from the former.
pub const MODES: &[Difference] = &[
    Difference { id: "mode-localhost-node-port", explains: Some(mode_localhost_node_port) },
    Difference { id: "mode-node-port-addresses", explains: Some(mode_node_port_addresses) },
    Difference { id: "mode-unused-addresses", explains: Some(mode_unused_addresses) },
    Difference { id: "mode-undefined-ports", explains: Some(mode_undefined_ports) },
    Difference { id: "mode-own-refusals", explains: Some(mode_own_refusals) },
    Difference { id: "mode-source-ranges", explains: Some(mode_source_ranges) },
    Difference { id: "mode-restricted-external-ip", explains: Some(mode_restricted_external_ip) },
    Difference { id: "mode-own-endpoint", explains: Some(mode_own_endpoint) },
    Difference { id: "mode-name", explains: Some(mode_name) },
];

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
        && is_verdict(finding, Kind::Dropped, Kind::Unrouted)
}

fn mode_undefined_ports(finding: &Finding<'_>) -> bool {
    matches!(finding.target.kind, FrontendKind::Undefined | FrontendKind::Foreign)
        && is_verdict(finding, Kind::Refused, Kind::Unrouted)
}

fn mode_own_refusals(finding: &Finding<'_>) -> bool {
    finding.client == ClientKind::Node
        && matches!(finding.target.kind, FrontendKind::ExternalIp | FrontendKind::LoadBalancer)
        && is_verdict(finding, Kind::Refused, Kind::Unrouted)
}

fn mode_source_ranges(finding: &Finding<'_>) -> bool {
    finding.target.kind == FrontendKind::LoadBalancer
        && (is_verdict(finding, Kind::Dropped, Kind::Refused) || is_verdict(finding, Kind::Dropped, Kind::Unrouted))
}

fn mode_name(finding: &Finding<'_>) -> bool {
    if let Some((first, second)) = finding.answers("/configz") {
        let of_modes = [first, second].map(configuration);
        return of_modes.iter().all(Option::is_some) && of_modes[0] == of_modes[1];
    }
    finding.answers("/proxyMode").is_some_and(|(first, second)| first.replace("nftables", "iptables") == second)
}

/// What `/configz` says without the mode, the periods that stand in its section, and what it is the default of.
fn configuration(answer: &str) -> Option<Value> {
    let mut whole: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let configuration = whole.get_mut("kubeproxy.config.k8s.io")?;
    configuration["mode"].take().as_str()?;
    configuration["nodePortAddresses"].take();
    for section in ["iptables", "nftables"] {
        for period in ["syncPeriod", "minSyncPeriod"] {
            configuration[section][period].take().as_str()?;
        }
    }
    Some(whole)
}

/// An address that is a load-balancer address, which only some clients may use, and an external IP.
fn mode_restricted_external_ip(finding: &Finding<'_>) -> bool {
    let ip = finding.target.address.ip().to_string();
    matches!(finding.target.kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp)
        && is_verdict(finding, Kind::Dropped, Kind::Reached)
        && finding.scenario.services().any(|service| {
            let has = |list: &Value, address: fn(&Value) -> &Value| {
                list.as_array().is_some_and(|list| list.iter().any(|item| address(item) == ip.as_str()))
            };
            has(&service["spec"]["externalIPs"], |item| item)
                && has(&service["status"]["loadBalancer"]["ingress"], |item| &item["ip"])
        })
}

fn mode_own_endpoint(finding: &Finding<'_>) -> bool {
    matches!(finding.client, ClientKind::Pod | ClientKind::Vm | ClientKind::RemotePod)
        && finding.loses_itself()
        && finding.reaches_itself(|source| *source == Source::Node)
}
