//! `v1` Node: this node's own, as `proxy_health.go` and `topology.go` of kube-proxy use it.

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use super::{Problem, Reduce, not_a_network, quote};
use crate::{
    model::{Change, Node, ObjectKey, ObjectKind},
    source::address::{parse_cidr_sloppy, parse_ip_sloppy},
};

/// The zone that a node is in.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

impl Reduce for api::Node {
    const KIND: ObjectKind = ObjectKind::Node;

    fn change(&self, _key: &ObjectKey, left_out: &mut Vec<Problem>) -> Result<Change, Problem> {
        let addresses = self.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
        let taints = self.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let (mut internal_ips, mut external_ips) = (Vec::new(), Vec::new());
        for (index, address) in addresses.iter().enumerate() {
            let of_type = match address.type_.as_str() {
                "InternalIP" => &mut internal_ips,
                "ExternalIP" => &mut external_ips,
                _ => continue,
            };
            match parse_ip_sloppy(&address.address) {
                Some(address) => of_type.push(address),
                // The status is the kubelet's: the rest of the node stays usable.
                None => left_out.push(Problem::new(
                    format!("status.addresses[{index}].address"),
                    format!("is {}, expected an IP address", quote(&address.address)),
                )),
            }
        }
        let pod_cidrs = self.spec.as_ref().map(|spec| pod_cidrs(spec, left_out)).unwrap_or_default();
        Ok(Change::Node(Some(Node {
            zone: self
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(ZONE_LABEL))
                .map(|zone| zone.as_str().into()),
            internal_ips,
            external_ips,
            pod_cidrs,
            deleting: self.metadata.deletion_timestamp.is_some(),
            taints: taints.iter().map(|taint| taint.key.as_str().into()).collect(),
        })))
    }
}

/// `podCIDRs`, or `podCIDR`, which is its first element where an API server filled both in.
fn pod_cidrs(spec: &api::NodeSpec, left_out: &mut Vec<Problem>) -> Vec<IpNet> {
    let listed = spec.pod_cidrs.as_deref().unwrap_or_default();
    let listed = if listed.is_empty() { spec.pod_cidr.as_slice() } else { listed };
    let mut networks = Vec::with_capacity(listed.len());
    for (index, text) in listed.iter().enumerate() {
        match parse_cidr_sloppy(text) {
            Some(network) => networks.push(network),
            None => left_out.push(not_a_network(format!("spec.podCIDRs[{index}]"), text)),
        }
    }
    networks
}
