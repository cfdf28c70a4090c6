use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use lb_common::abi::{Config, LocalAddressFlags};

use super::{Cidr, DetectLocal, Family, Inputs, NodeNetwork, NodePortAddresses, Policy};

/// What the tables of one family should say of the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredNode<A> {
    /// `NODE_ADDRESSES*`.
    pub masquerade: BTreeMap<u32, A>,
    /// `LOCAL_ADDRS*`.
    pub local_addresses: BTreeMap<A, u32>,
    /// `SERVICE_CIDRS*`.
    #[expect(clippy::zero_sized_map_values, reason = "compared with what the map holds, like the other two")]
    pub service_cidrs: BTreeMap<Cidr<A>, ()>,
}

impl DesiredNode<[u8; 4]> {
    /// The IPv4 tables.
    pub fn v4(network: &NodeNetwork, policy: &Policy, inputs: &Inputs) -> Self {
        Self::new(network.masquerade4.clone(), network, policy, inputs)
    }
}

impl DesiredNode<[u8; 16]> {
    /// The IPv6 tables.
    pub fn v6(network: &NodeNetwork, policy: &Policy, inputs: &Inputs) -> Self {
        Self::new(network.masquerade6.clone(), network, policy, inputs)
    }
}

impl<A: Family> DesiredNode<A> {
    fn new(masquerade: BTreeMap<u32, A>, network: &NodeNetwork, policy: &Policy, inputs: &Inputs) -> Self {
        let primary = policy.primary(inputs.node());
        let flags = |(ip, flags): (&IpAddr, &u32)| {
            let address = A::from_ip(*ip)?;
            let is_primary = primary == Some(address);
            let node_ports = if answers(*ip, is_primary, policy) { LocalAddressFlags::NODE_PORTS } else { 0 };
            Some((address, flags & !LocalAddressFlags::NODE_PORTS | node_ports))
        };
        let cidrs = inputs.service_cidrs().chain(policy.service_cidrs.iter().copied());
        Self {
            masquerade,
            local_addresses: network.local_addresses.iter().filter_map(flags).collect(),
            service_cidrs: cidrs.filter_map(Cidr::from_net).map(|cidr| (cidr, ())).collect(),
        }
    }

    /// The smallest network that holds all of `service_cidrs`.
    pub fn service_cidr_cover(&self) -> Option<Cidr<A>> {
        self.service_cidrs.keys().copied().reduce(Cidr::cover)
    }
}

/// Whether node ports answer on an address of the node, as `NewNodePortAddresses` and `GetNodeIPs` of
/// `pkg/proxy/util/nodeport_addresses.go` decide: a family of which no network is listed is not limited by the list. On
/// loopback only where `localhost_node_ports` allows it and no list of networks leaves it out: `primary`, which no operator
/// may have chosen, does not.
fn answers(ip: IpAddr, is_primary: bool, policy: &Policy) -> bool {
    if ip.is_loopback() && !policy.localhost_node_ports {
        return false;
    }
    match &policy.node_port_addresses {
        NodePortAddresses::All => true,
        NodePortAddresses::Primary => is_primary || ip.is_loopback(),
        NodePortAddresses::Within(networks) => {
            let mut own = networks.iter().filter(|network| network.addr().is_ipv4() == ip.is_ipv4()).peekable();
            own.peek().is_none() || own.any(|network| network.contains(&ip))
        }
    }
}

/// Says in `config` which source addresses are pods' (`getLocalDetectors` of `cmd/kube-proxy/app/server_linux.go`: the
/// first network of each family). No network, or one that is not known yet, holds nothing.
pub(crate) fn detect_pods(config: &mut Config, policy: &Policy, inputs: &Inputs) {
    let networks: &[IpNet] = match &policy.detect_local {
        DetectLocal::ClusterCidr(networks) => networks,
        DetectLocal::NodeCidr => inputs.node().map(|node| node.pod_cidrs.as_slice()).unwrap_or_default(),
        DetectLocal::Interface | DetectLocal::Nothing => &[],
    };
    config.flags = policy.detect_local.flags();
    config.pods4 = Cidr::first_of(networks).map(Cidr::prefix).unwrap_or_default();
    config.pods6 = Cidr::first_of(networks).map(Cidr::prefix).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Node, SourceEvent};

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn node_ports_answer_where_the_policy_says() {
        let own = ["10.0.0.1", "10.0.0.2", "127.0.0.1", "192.0.2.1", "::1", "fd00::1", "fd00::2"];
        let network = NodeNetwork {
            local_addresses: own.iter().map(|ip| (ip.parse().expect("an address"), 0)).collect(),
            ..NodeNetwork::default()
        };
        let mut inputs = Inputs::new([]);
        let internal_ips = ["10.0.0.2", "10.0.0.1", "fd00::2"].map(|ip| ip.parse().expect("an address")).into();
        let node = Node { internal_ips, ..Node::default() };
        inputs.apply(SourceEvent::Changed(Change::Node(Some(node))));
        let within = |texts: &[&str]| NodePortAddresses::Within(nets(texts));
        let unbound: Option<IpAddr> = None;
        let bind = |text: &str| text.parse().ok();
        for (node_port_addresses, bind_address, localhost_node_ports, expected) in [
            (NodePortAddresses::All, unbound, true, "10.0.0.1 10.0.0.2 127.0.0.1 192.0.2.1 ::1 fd00::1 fd00::2"),
            (NodePortAddresses::All, unbound, false, "10.0.0.1 10.0.0.2 192.0.2.1 fd00::1 fd00::2"),
            (NodePortAddresses::All, bind("10.0.0.1"), false, "10.0.0.1 10.0.0.2 192.0.2.1 fd00::1 fd00::2"),
            (NodePortAddresses::Primary, unbound, true, "10.0.0.2 127.0.0.1 ::1 fd00::2"),
            (NodePortAddresses::Primary, unbound, false, "10.0.0.2 fd00::2"),
            (NodePortAddresses::Primary, bind("192.0.2.1"), false, "192.0.2.1 fd00::2"),
            (NodePortAddresses::Primary, bind("fd00::1"), false, "10.0.0.2 fd00::1"),
            (NodePortAddresses::Primary, bind("203.0.113.1"), false, "fd00::2"),
            (NodePortAddresses::Primary, bind("127.0.0.1"), false, "fd00::2"),
            (within(&["10.0.0.0/24"]), unbound, false, "10.0.0.1 10.0.0.2 fd00::1 fd00::2"),
            (within(&["10.0.0.0/24", "fd00::2/128"]), unbound, true, "10.0.0.1 10.0.0.2 fd00::2"),
            (within(&["127.0.0.0/8", "192.0.2.0/24", "::1/128"]), unbound, true, "127.0.0.1 192.0.2.1 ::1"),
            (within(&["127.0.0.0/8", "192.0.2.0/24", "::1/128"]), unbound, false, "192.0.2.1"),
            (within(&["172.16.0.0/12", "::/0"]), unbound, false, "fd00::1 fd00::2"),
        ] {
            let policy = Policy { bind_address, node_port_addresses, localhost_node_ports, ..Policy::default() };
            let v4 = DesiredNode::v4(&network, &policy, &inputs).local_addresses;
            let v6 = DesiredNode::v6(&network, &policy, &inputs).local_addresses;
            assert_eq!((v4.len(), v6.len()), (4, 3), "all are the node's own");
            let serving = |flags: &u32| flags & LocalAddressFlags::NODE_PORTS != 0;
            let v4 = v4.into_iter().filter(|(_, flags)| serving(flags)).map(|(ip, _)| ip.to_ip().to_string());
            let v6 = v6.into_iter().filter(|(_, flags)| serving(flags)).map(|(ip, _)| ip.to_ip().to_string());
            assert_eq!(v4.chain(v6).collect::<Vec<_>>().join(" "), expected, "{policy:?}");
        }
    }
}
