//! Short ways to write objects in tests.

use super::objects::{Endpoint, EndpointSlice, ObjectKey, Protocol, Service, ServicePort, SlicePort};

/// An object of namespace `default`.
pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// A Service of one TCP port, 80, named `http`.
pub(crate) fn service(cluster_ip: &str) -> Service {
    Service {
        cluster_ips: vec![cluster_ip.parse().expect("an address")],
        ports: vec![port("http", 80)],
        ..Service::default()
    }
}

/// A TCP port of a Service.
pub(crate) fn port(name: &str, port: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol: Protocol::Tcp, port, node_port: None }
}

/// A slice of a Service of namespace `default`, port `http` being 8080.
pub(crate) fn slice(service: &str, endpoints: &[Endpoint]) -> EndpointSlice {
    EndpointSlice {
        trigger: None,
        service: key(service),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.to_vec(),
    }
}

/// A ready endpoint on a node of which nothing is known.
pub(crate) fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().expect("an address"),
        ready: true,
        serving: true,
        terminating: false,
        node_name: None,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    }
}
