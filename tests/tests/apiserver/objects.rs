//! Services as users write them, and slices as the endpoint slice controller does.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::EndpointSlice,
};
use lb_tests::lab::{
    Family, Host,
    client::Transport,
    manifest::{SERVICE_ECHO_PORT, SERVICE_HTTP_PORT},
    path::Path,
    server::{ECHO_PORT, HTTP_PORT},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The namespace of all Services here.
pub(crate) const NAMESPACE: &str = "default";

/// An object of the API from its JSON.
pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("a valid object")
}

/// A dual-stack Service of type `NodePort`, all addresses and node ports left to the API server.
pub(crate) fn web(name: &str) -> Service {
    object(json!({
        "metadata": { "name": name },
        "spec": {
            "type": "NodePort",
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                { "name": "echo-tcp", "protocol": "TCP", "port": SERVICE_ECHO_PORT, "targetPort": ECHO_PORT },
                { "name": "echo-udp", "protocol": "UDP", "port": SERVICE_ECHO_PORT, "targetPort": ECHO_PORT },
                { "name": "http", "protocol": "TCP", "port": SERVICE_HTTP_PORT, "targetPort": HTTP_PORT },
            ],
        },
    }))
}

/// What the controller says of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It takes traffic.
    Ready,
    /// It is being deleted, and still serves.
    Terminating,
    /// It is not ready and does not serve.
    Down,
}

/// Pods that are all ready.
pub(crate) fn ready<'a>(pods: &[&'a Host]) -> Vec<(&'a Host, State)> {
    pods.iter().map(|pod| (*pod, State::Ready)).collect()
}

/// The slices of a [`web`] Service, one of each family.
pub(crate) fn slices(service: &str, pods: &[(&Host, State)]) -> [EndpointSlice; 2] {
    Family::BOTH.map(|family| {
        let endpoints = pods.iter().map(|(pod, state)| {
            let (node, _) = pod.name().split_once('-').expect("pods are named after their nodes");
            json!({
                "addresses": [pod.address(family)],
                "nodeName": node,
                "conditions": {
                    "ready": *state == State::Ready,
                    "serving": *state != State::Down,
                    "terminating": *state == State::Terminating,
                },
            })
        });
        object(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{family}").to_lowercase(),
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": family.to_string(),
            "ports": [
                { "name": "echo-tcp", "protocol": "TCP", "port": ECHO_PORT },
                { "name": "echo-udp", "protocol": "UDP", "port": ECHO_PORT },
                { "name": "http", "protocol": "TCP", "port": HTTP_PORT },
            ],
            "endpoints": endpoints.collect::<Vec<_>>(),
        }))
    })
}

/// Where a client on a path finds a Service that the API server has completed.
pub(crate) fn address(service: &Service, path: &Path) -> SocketAddr {
    let port = port(service, path.transport);
    match path.node_port_of {
        Some(node) => SocketAddr::new(node.address(path.family), number(port.node_port.expect("it has node ports"))),
        None => SocketAddr::new(cluster_ip(service, path.family), number(port.port)),
    }
}

/// The cluster IP of a family.
pub(crate) fn cluster_ip(service: &Service, family: Family) -> IpAddr {
    let listed = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
    let mut parsed = listed.map(|text| text.parse::<IpAddr>().expect("the API server writes addresses"));
    parsed.find(|ip| ip.is_ipv4() == (family == Family::V4)).expect("it has both families")
}

/// The port for a transport.
pub(crate) fn port(service: &Service, transport: Transport) -> &ServicePort {
    let name = match transport {
        Transport::Tcp => "echo-tcp",
        Transport::Http => "http",
        Transport::Udp | Transport::UdpConnected => "echo-udp",
    };
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.into_iter().find(|port| port.name.as_deref() == Some(name)).expect("it has all ports")
}

fn number(port: i32) -> u16 {
    port.try_into().expect("the API server checks ports")
}
