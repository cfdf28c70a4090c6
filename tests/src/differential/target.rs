//! What is asked: the frontends of the Services that the API server holds.

use std::{collections::BTreeMap, fmt, net::IpAddr, net::SocketAddr};

use serde::Deserialize;
use serde_json::Value;

use super::{probe::ClientKind, scenario::Also};
use crate::lab::{Addresses, Family, client::Transport};

/// Kinds of addresses that a Service is asked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum FrontendKind {
    /// Its cluster IP.
    ClusterIp,
    /// Its node port at the node's own address.
    NodePort,
    /// Its node port at another address of the node.
    SecondNodePort,
    /// Its node port at `127.0.0.1` or `::1`.
    LocalhostNodePort,
    /// An ingress address of its load balancer.
    LoadBalancer,
    /// An external IP.
    ExternalIp,
    /// A port or protocol that it does not have, at one of its addresses.
    Undefined,
    /// An address of a range of Services that no Service has.
    Unallocated,
    /// Something that is no business of a proxy.
    Foreign,
    /// A server of the proxy itself.
    Server,
}

/// A frontend in one family and protocol.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own that predicates ask")]
pub struct Target {
    /// Whose it is: `namespace/name:port`.
    pub service: String,
    /// What kind of address.
    pub kind: FrontendKind,
    /// Where it is.
    pub address: SocketAddr,
    /// By which protocol.
    pub transport: Transport,
    /// How many endpoints could answer at most.
    pub endpoints: usize,
    /// Whether the Service keeps clients at one endpoint.
    pub has_affinity: bool,
    /// Whether the Service keeps outside traffic on the node.
    pub external_local: bool,
    /// Whether the Service keeps inside traffic on the node.
    pub internal_local: bool,
    /// Whether it is asked by an exchange that began after the first step, not by new ones.
    pub kept: bool,
}

impl Target {
    /// Its family.
    pub fn family(&self) -> Family {
        if self.address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Whether another one is of the same Service port, family and protocol, maybe of another kind.
    pub fn is_like(&self, other: &Self) -> bool {
        self.service == other.service && self.family() == other.family() && self.transport == other.transport
    }

    /// The exchanges that are kept at it: a connection, or a UDP socket that is connected and one that is not.
    pub fn to_keep(&self) -> Vec<Self> {
        let ways: &[Transport] = match self.transport {
            Transport::Tcp | Transport::Http => &[Transport::Tcp],
            Transport::Udp | Transport::UdpConnected => &[Transport::Udp, Transport::UdpConnected],
        };
        ways.iter().map(|way| Self { transport: *way, kept: true, ..self.clone() }).collect()
    }

    /// Whether a client of this kind asks here: loopback addresses are the node's own, and what a pod of another node
    /// sends to other addresses than a node's is that node's proxy's to serve.
    pub fn concerns(&self, client: ClientKind) -> bool {
        match (client, self.kind) {
            (ClientKind::Node, _) => true,
            (_, FrontendKind::LocalhostNodePort | FrontendKind::Server) => false,
            (ClientKind::RemotePod, kind) => kind == FrontendKind::NodePort,
            _ => true,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, kind, address, transport, kept, .. } = self;
        let kept = if *kept { "kept at " } else { "" };
        write!(f, "{kept}{kind:?} {address} {transport} of {service}")
    }
}

/// The frontends of Services, and what is asked beside them. `node` has the node ports.
pub fn targets(services: &[Value], slices: &[Value], also: &[Also], node: Addresses) -> Vec<Target> {
    let endpoints = endpoints(slices);
    let mut targets: Vec<Target> =
        services.iter().flat_map(|service| of_service(service, &endpoints, node)).flatten().collect();
    targets.extend(also.iter().map(|Also { what, address, port, protocol }| Target {
        service: "nobody".to_owned(),
        kind: *what,
        address: SocketAddr::new(*address, *port),
        transport: protocol.transport(),
        endpoints: 3,
        has_affinity: false,
        external_local: false,
        internal_local: false,
        kept: false,
    }));
    targets
}

/// The number of endpoints of each Service and family, whatever their state: no port can have more.
fn endpoints(slices: &[Value]) -> BTreeMap<(String, bool), usize> {
    let mut counts = BTreeMap::new();
    for slice in slices {
        let labels = &slice["metadata"]["labels"];
        let service =
            format!("{}/{}", text(&slice["metadata"]["namespace"]), text(&labels["kubernetes.io/service-name"]));
        let number = list(&slice["endpoints"]).len() * list(&slice["ports"]).len().max(1);
        *counts.entry((service, slice["addressType"] == "IPv4")).or_default() += number;
    }
    counts
}

fn of_service<'a>(
    service: &'a Value,
    endpoints: &'a BTreeMap<(String, bool), usize>,
    node: Addresses,
) -> impl Iterator<Item = Vec<Target>> + 'a {
    let name = format!("{}/{}", text(&service["metadata"]["namespace"]), text(&service["metadata"]["name"]));
    let spec = &service["spec"];
    list(&spec["ports"]).iter().filter_map(move |port| {
        let transport = match text(&port["protocol"]) {
            "TCP" => Transport::Tcp,
            "UDP" => Transport::Udp,
            _ => return None,
        };
        let mut places = Vec::new();
        let number = port["port"].as_u64();
        let mut add = |kind, ips: &mut dyn Iterator<Item = &Value>| {
            places.extend(ips.filter_map(|ip| Some((kind, address(text(ip))?, number?))));
        };
        add(FrontendKind::ClusterIp, &mut list(&spec["clusterIPs"]).iter());
        add(FrontendKind::ExternalIp, &mut list(&spec["externalIPs"]).iter());
        let ingress = list(&service["status"]["loadBalancer"]["ingress"]).iter();
        add(FrontendKind::LoadBalancer, &mut ingress.map(|ingress| &ingress["ip"]));
        if let Some(node_port) = port["nodePort"].as_u64().filter(|port| *port != 0) {
            for family in Family::BOTH {
                let localhost = match family {
                    Family::V4 => IpAddr::from([127, 0, 0, 1]),
                    Family::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
                };
                places.push((FrontendKind::NodePort, node.of(family), node_port));
                places.push((FrontendKind::LocalhostNodePort, localhost, node_port));
            }
        }
        let target = |(kind, ip, number): (FrontendKind, IpAddr, u64)| Target {
            service: format!("{name}:{}", port_label(port)),
            kind,
            address: SocketAddr::new(ip, u16::try_from(number).expect("the API server checks ports")),
            transport,
            endpoints: endpoints.get(&(name.clone(), ip.is_ipv4())).copied().unwrap_or_default(),
            has_affinity: spec["sessionAffinity"] == "ClientIP",
            external_local: spec["externalTrafficPolicy"] == "Local",
            internal_local: spec["internalTrafficPolicy"] == "Local",
            kept: false,
        };
        Some(places.into_iter().map(target).collect())
    })
}

/// How a port of a Service is called: by its name, or by its number if it has none.
pub(super) fn port_label(port: &Value) -> String {
    port["name"].as_str().map_or_else(|| port["port"].to_string(), str::to_owned)
}

/// An address, also one with leading zeros, which Kubernetes reads as decimal.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let without_zeros = || {
        let parts = text.split('.').map(|part| part.parse::<u8>().ok()).collect::<Option<Vec<_>>>()?;
        Some(IpAddr::from(<[u8; 4]>::try_from(parts).ok()?))
    };
    text.parse().ok().or_else(without_zeros)
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
