//! What a row's tables hold, as the Kubernetes objects that the agent compiles them from.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_agent::model::{
    Balance, Change, DetectLocal, Endpoint, EndpointSlice, Family, Node, NodeNetwork, ObjectKey, ObjectKind, Policy,
    Protocol, Service, ServicePort, ServiceType, SlicePort, SourceEvent, TrafficPolicy,
};
use lb_common::{abi::LocalAddressFlags, ports::Reserved};

use super::{Interface, Net, World};

/// Name of the node that the programs run on.
pub const THIS_NODE: &str = "this-node";
const OTHER_NODE: &str = "other-node";
/// Name of the only port of each Service.
const PORT: &str = "p";

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Local,
    /// On another node.
    Remote,
    /// On a node that the slice does not name: an endpoint made by hand.
    Unnamed,
}

/// A Service with one port, and its endpoints.
#[derive(Clone, Debug)]
#[must_use]
pub struct TestService {
    /// Its name.
    pub key: ObjectKey,
    /// The Service.
    pub service: Service,
    /// Its endpoints, one slice for each, so that their ports may differ.
    pub slices: Vec<EndpointSlice>,
}

/// The network that an address is in, of which so many bits count.
pub fn network(address: IpAddr, bits: u8) -> IpNet {
    IpNet::new_assert(address, bits).trunc()
}

impl TestService {
    /// A Service of this name on one port of its cluster IP.
    pub fn new(name: &str, protocol: Protocol, frontend: SocketAddr) -> Self {
        let service = Service {
            cluster_ips: vec![frontend.ip()],
            ports: vec![ServicePort { name: PORT.into(), protocol, port: frontend.port(), node_port: None }],
            ..Service::default()
        };
        Self { key: ObjectKey::new("tests", name), service, slices: Vec::new() }
    }

    /// With a node port.
    pub fn node_port(mut self, port: u16) -> Self {
        self.service.service_type = ServiceType::NodePort;
        for service_port in &mut self.service.ports {
            service_port.node_port = Some(port);
        }
        self
    }

    /// With an address of a load balancer.
    pub fn load_balancer(mut self, address: IpAddr) -> Self {
        self.service.service_type = ServiceType::LoadBalancer;
        self.service.load_balancer_ips.push(address);
        self
    }

    /// With `externalTrafficPolicy: Local`.
    pub fn external_local(mut self) -> Self {
        self.service.external_policy = TrafficPolicy::Local;
        self
    }

    /// With `internalTrafficPolicy: Local`.
    pub fn internal_local(mut self) -> Self {
        self.service.internal_policy = TrafficPolicy::Local;
        self
    }

    /// With `sessionAffinity: ClientIP`.
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.service.affinity_seconds = Some(seconds);
        self
    }

    /// With endpoints in turn.
    pub fn round_robin(mut self) -> Self {
        self.service.balance = Some(Balance::RoundRobin);
        self
    }

    /// With new flows going to the endpoint of two that has fewer.
    pub fn least_conn(mut self) -> Self {
        self.service.balance = Some(Balance::LeastConn);
        self
    }

    /// With `loadBalancerSourceRanges`.
    pub fn source_range(mut self, address: IpAddr, bits: u8) -> Self {
        self.service.source_ranges.push(network(address, bits));
        self
    }

    /// With a ready endpoint.
    pub fn endpoint(self, endpoint: SocketAddr, place: Place) -> Self {
        self.endpoint_in(endpoint, place, false)
    }

    /// With an endpoint that is terminating but still serves.
    pub fn terminating(self, endpoint: SocketAddr, place: Place) -> Self {
        self.endpoint_in(endpoint, place, true)
    }

    fn endpoint_in(mut self, endpoint: SocketAddr, place: Place, terminating: bool) -> Self {
        let node = match place {
            Place::Local => Some(THIS_NODE),
            Place::Remote => Some(OTHER_NODE),
            Place::Unnamed => None,
        };
        let protocol = self.service.ports[0].protocol;
        self.slices.push(EndpointSlice {
            trigger: None,
            service: self.key.clone(),
            ports: vec![SlicePort { name: PORT.into(), protocol, port: endpoint.port() }],
            endpoints: vec![Endpoint {
                address: endpoint.ip(),
                ready: !terminating,
                serving: true,
                terminating,
                node_name: node.map(Into::into),
                zone_hints: Vec::new(),
                node_hints: Vec::new(),
            }],
        });
        self
    }
}

/// A source's list of all objects of a kind.
pub fn replaced(kind: ObjectKind, objects: Vec<Change>) -> SourceEvent {
    SourceEvent::Replaced { kind, objects, rejected: Vec::new() }
}

/// Everything that the programs' tables are compiled from.
#[derive(Clone, Debug)]
#[must_use]
pub struct Tables {
    /// The Services.
    pub services: Vec<TestService>,
    /// Whether the node has addresses to masquerade with.
    pub node_addresses: bool,
    /// Size of the pool of source ports for masquerading, from [`Self::FIRST_SNAT_PORT`] on. One makes them predictable.
    pub snat_ports: u16,
    /// The `ServiceCIDR`s.
    pub service_cidrs: Vec<IpNet>,
    /// How pods are told from others.
    pub detect_local: DetectLocal,
}

impl Tables {
    /// First port of the pool for masquerading.
    pub const FIRST_SNAT_PORT: u16 = 20_000;

    /// Tables of these Services on a node with addresses and one port to masquerade with.
    pub fn new(services: impl IntoIterator<Item = TestService>) -> Self {
        Self {
            services: services.into_iter().collect(),
            node_addresses: true,
            snat_ports: 1,
            service_cidrs: Vec::new(),
            detect_local: DetectLocal::Interface,
        }
    }

    /// The kinds of objects that sources list.
    pub const KINDS: [ObjectKind; 4] =
        [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node, ObjectKind::ServiceCidr];

    /// What the operator would have decided.
    pub fn policy(&self) -> Policy {
        Policy { detect_local: self.detect_local.clone(), ..Policy::default() }
    }

    /// The lists that sources would give.
    pub fn events(&self) -> [SourceEvent; 4] {
        let services = self.services.iter().map(|test| Change::Service(test.key.clone(), Some(test.service.clone())));
        let slices = self.services.iter().flat_map(|test| {
            test.slices.iter().enumerate().map(|(number, slice)| {
                let key = ObjectKey::new(test.key.namespace.clone(), format!("{}-{number}", test.key.name));
                Change::EndpointSlice(key, Some(slice.clone()))
            })
        });
        let node = Change::Node(Some(Node::default()));
        let cidrs = Change::ServiceCidr(ObjectKey::new("", "tests"), Some(self.service_cidrs.clone()));
        [
            replaced(ObjectKind::Service, services.collect()),
            replaced(ObjectKind::EndpointSlice, slices.collect()),
            replaced(ObjectKind::Node, vec![node]),
            replaced(ObjectKind::ServiceCidr, vec![cidrs]),
        ]
    }

    /// What the loader would find out about the node.
    pub fn network(&self, world: World) -> NodeNetwork {
        let (uplink, narrow) = (world.index(Interface::Uplink), world.index(Interface::Narrow));
        let addresses = |net: Net| [(0, net.node), (uplink, net.node), (narrow, net.narrow_node)];
        let of_node = |net: Net| addresses(net).into_iter().filter(|_| self.node_addresses);
        let answering = LocalAddressFlags::NODE_PORTS;
        let loopback = answering | LocalAddressFlags::LOOPBACK;
        let node_ports = |net: Net| [(net.node, answering), (net.narrow_node, answering), (net.loopback, loopback)];
        NodeNetwork {
            masquerade4: of_node(Net::V4).filter_map(|(index, ip)| Some((index, <[u8; 4]>::from_ip(ip)?))).collect(),
            masquerade6: of_node(Net::V6).filter_map(|(index, ip)| Some((index, <[u8; 16]>::from_ip(ip)?))).collect(),
            local_addresses: [Net::V4, Net::V6].into_iter().flat_map(node_ports).collect(),
            // All that is not reserved is the pool.
            local_ports: Reserved { first: 1024, last: Self::FIRST_SNAT_PORT - 1 },
            node_ports: Reserved { first: Self::FIRST_SNAT_PORT + self.snat_ports, last: u16::MAX },
        }
    }
}
