//! The ways from clients to Services.

use std::{fmt, net::SocketAddr};

use super::{
    Family, Host, Lab,
    client::{Ask, Outcome, Transport, ways},
    manifest::Service,
};

/// Who talks to a Service, and how.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    /// Who is the client.
    pub client: &'a Host,
    /// The node whose node port it uses; `None` for one that uses the cluster IP.
    pub node_port_of: Option<&'a Host>,
    /// In which family.
    pub family: Family,
    /// By which transport.
    pub transport: Transport,
}

impl Path<'_> {
    /// The address that the client connects to.
    pub fn address(&self, service: &Service) -> SocketAddr {
        match self.node_port_of {
            Some(node) => service.node_port_address(node, self.family, self.transport),
            None => service.cluster_address(self.family, self.transport),
        }
    }

    /// One exchange with the Service.
    pub fn ask(&self, service: &Service) -> Outcome {
        Ask::new(self.transport, self.address(service)).from(self.client)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, node_port_of, family, transport } = self;
        match node_port_of {
            Some(node) => write!(f, "{} to node port of {}, {family} {transport}", client.name(), node.name()),
            None => write!(f, "{} to cluster IP, {family} {transport}", client.name()),
        }
    }
}

/// Every way from one client of each kind, all by node1: a pod by the socket hooks, a pod by the packet path, the node
/// itself, and the client outside.
pub fn paths(lab: &Lab) -> impl Iterator<Item = Path<'_>> {
    let node1 = &lab.nodes[0];
    let clients = [(&node1.pods[0], None), (&node1.vm, None), (&node1.host, None), (&lab.client, Some(&node1.host))];
    clients.into_iter().flat_map(|(client, node_port_of)| {
        ways().map(move |(family, transport)| Path { client, node_port_of, family, transport })
    })
}
