//! The tables. Each module says what one kind of packet must become.

mod affinity;
mod cluster_ips;
mod flows;
mod forward;
mod fragments;
mod hairpin;
mod headers;
mod icmp;
mod inside;
mod lifetimes;
mod malformed;
mod own;
mod refuse;
mod sources;
mod stack;
mod too_big;

use std::net::{IpAddr, SocketAddr};

use lb_agent::model::objects::Protocol;

use super::{Net, Packet, Place, Row, Tables, TestService};
pub(super) use lifetimes::quieten_all;

/// Port of the frontends.
const PORT: u16 = 80;
/// Port of the endpoints.
pub(super) const TARGET: u16 = 8080;
/// A node port.
const NODE_PORT: u16 = 30_080;
/// Port of the clients.
const CLIENT_PORT: u16 = 40_000;

/// A family and a protocol, with the ends of the flows that most rows are about.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The family.
    pub net: &'static Net,
    /// The protocol.
    pub protocol: Protocol,
}

/// A socket address.
pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

impl Case {
    /// "TCP" or "UDP".
    pub const fn protocol_name(self) -> &'static str {
        match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        }
    }

    fn row(self, sentence: &str, tables: Tables) -> Row {
        Row::new(format!("{} {}: {sentence}", self.net.name, self.protocol_name()), tables)
    }

    /// The first packet of a flow.
    pub(super) fn first(self, source: SocketAddr, destination: SocketAddr) -> Packet {
        match self.protocol {
            Protocol::Tcp => Packet::syn(source, destination),
            Protocol::Udp => Packet::udp(source, destination),
        }
    }

    /// Its answer.
    pub(super) fn answer(self, source: SocketAddr, destination: SocketAddr) -> Packet {
        match self.protocol {
            Protocol::Tcp => Packet::syn(source, destination).tcp_header(|tcp| {
                tcp.ack = true;
                tcp.acknowledgment_number = 0x0102_0305;
            }),
            Protocol::Udp => Packet::udp(source, destination),
        }
    }

    /// Any other packet of a flow.
    pub(super) fn later(self, source: SocketAddr, destination: SocketAddr) -> Packet {
        match self.protocol {
            Protocol::Tcp => Packet::tcp(source, destination),
            Protocol::Udp => Packet::udp(source, destination),
        }
    }

    fn pod(self) -> SocketAddr {
        at(self.net.pod, CLIENT_PORT)
    }

    fn client(self) -> SocketAddr {
        at(self.net.client, CLIENT_PORT)
    }

    pub(super) fn cluster_ip(self) -> SocketAddr {
        at(self.net.cluster_ip, PORT)
    }

    fn load_balancer(self) -> SocketAddr {
        at(self.net.load_balancer, PORT)
    }

    pub(super) fn node_port(self) -> SocketAddr {
        at(self.net.node, NODE_PORT)
    }

    pub(super) fn local(self) -> SocketAddr {
        at(self.net.local_backend, TARGET)
    }

    pub(super) fn remote(self) -> SocketAddr {
        at(self.net.remote_backend, TARGET)
    }

    /// What masqueraded packets come from, while the pool has one port.
    pub(super) fn masqueraded(self) -> SocketAddr {
        at(self.net.node, Tables::FIRST_SNAT_PORT)
    }

    /// A Service on all kinds of frontends, without endpoints yet.
    pub(super) fn service(self) -> TestService {
        let name = format!("web-{}-{}", self.net.name, self.protocol_name());
        TestService::new(&name, self.protocol, self.cluster_ip())
            .node_port(NODE_PORT)
            .load_balancer(self.net.load_balancer)
    }

    /// Tables of that Service with one endpoint.
    fn one(self, endpoint: SocketAddr, place: Place) -> Tables {
        Tables::new([self.service().endpoint(endpoint, place)])
    }

    /// Tables of that Service with an endpoint on this node.
    fn one_local(self) -> Tables {
        self.one(self.local(), Place::Local)
    }

    /// Tables of that Service with two endpoints.
    pub(super) fn two_backends(self) -> Tables {
        Tables::new([self.service().endpoint(self.local(), Place::Local).endpoint(self.remote(), Place::Remote)])
    }

    /// Tables of that Service with an endpoint behind the narrow uplink.
    pub(super) fn one_narrow(self) -> Tables {
        self.one(at(self.net.narrow_backend, TARGET), Place::Remote)
    }

    /// The first packet of a client outside to the node port.
    pub(super) fn first_to_node_port(self) -> Packet {
        self.first(self.client(), self.node_port())
    }

    /// Tables of that Service with an endpoint on the other node.
    pub(super) fn one_remote(self) -> Tables {
        self.one(self.remote(), Place::Remote)
    }
}

/// Every case.
pub const CASES: [Case; 4] = [
    Case { net: &Net::V4, protocol: Protocol::Tcp },
    Case { net: &Net::V4, protocol: Protocol::Udp },
    Case { net: &Net::V6, protocol: Protocol::Tcp },
    Case { net: &Net::V6, protocol: Protocol::Udp },
];

/// Tables with a Service of every case, on endpoints here and elsewhere, and one without endpoints.
pub fn mixed_tables() -> Tables {
    let empty = |case: Case| {
        let name = format!("empty-{}-{}", case.net.name, case.protocol_name());
        TestService::new(&name, case.protocol, at(case.net.second_cluster_ip, PORT))
    };
    let services = CASES.iter().flat_map(|case| {
        let with_endpoints = case.service().endpoint(case.local(), Place::Local).endpoint(case.remote(), Place::Remote);
        [with_endpoints, empty(*case)]
    });
    Tables { snat_ports: 1000, ..Tables::new(services) }
}

/// All rows.
pub fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for case in CASES {
        rows.extend(stack::rows(case));
        rows.extend(own::rows(case));
        rows.extend(forward::rows(case));
        rows.extend(too_big::rows(case));
        rows.extend(hairpin::rows(case));
        rows.extend(refuse::rows(case));
        rows.extend(cluster_ips::rows(case));
        rows.extend(inside::rows(case));
        rows.extend(sources::rows(case));
        rows.extend(affinity::rows(case));
        rows.extend(flows::rows(case));
        rows.extend(lifetimes::rows(case));
        rows.extend(headers::rows(case));
        rows.extend(malformed::rows(case));
        rows.extend(icmp::rows(case));
        rows.extend(fragments::rows(case));
    }
    rows.extend(headers::of_one_family());
    rows.extend(malformed::of_one_family());
    rows
}
