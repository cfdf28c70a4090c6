//! What a [generated](super::generate) scenario is made of, before it is documents.

use serde_json::{Value, json};

use super::generate::header;

/// The pods that may be endpoints: IPv4, IPv6, node. Two of them are clients as well.
pub(super) const PODS: [(&str, &str, &str); 6] = [
    ("10.1.1.1", "fd00:10:1:1::1", "node1"),
    ("10.1.1.2", "fd00:10:1:1::2", "node1"),
    ("10.1.1.3", "fd00:10:1:1::3", "node1"),
    ("10.1.2.1", "fd00:10:1:2::1", "node2"),
    ("10.1.2.2", "fd00:10:1:2::2", "node2"),
    ("10.1.2.3", "fd00:10:1:2::3", "node2"),
];
/// Ports of Services: name, protocol, number, and the number at the pods.
pub(super) const PORTS: [Port; 3] = [("tcp", "TCP", 7, 9000), ("udp", "UDP", 7, 9000), ("web", "TCP", 80, 8080)];
pub(super) const CLIENTS: [&str; 6] = ["pod", "vm", "node", "outside", "other-node", "remote-pod"];
pub(super) const FAMILIES: &[&[&str]] = &[&["IPv4", "IPv6"], &["IPv6", "IPv4"], &["IPv4"], &["IPv6"]];
pub(super) const ZONES: &[&str] = &["zone1", "zone2"];
/// Who may use a load balancer: clients outside, pods, everybody by IPv4.
pub(super) const RANGES: &[&[&str]] =
    &[&["198.51.100.0/24", "2001:db8::/64"], &["10.1.0.0/16", "fd00:10:1::/48"], &["0.0.0.0/0"]];

pub(super) type Port = (&'static str, &'static str, u16, u16);

/// A scenario.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub clients: Vec<&'static str>,
    pub services: Vec<(Service, Slices)>,
    /// Each of the Service with this index.
    pub changes: Vec<(usize, Change)>,
}

/// What may happen to a Service.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Slices(Slices),
    Shape(Shape),
    Deleted,
}

/// What a Service keeps for as long as it is there, and what it does not.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub ports: Vec<Port>,
    pub families: &'static [&'static str],
    pub shape: Shape,
}

/// What may change of a Service.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of a Service that has two values")]
pub(super) struct Shape {
    pub kind: Type,
    pub internal_local: bool,
    pub external_local: bool,
    pub has_external_ips: bool,
    pub is_sticky: bool,
    pub ranges: Option<&'static [&'static str]>,
}

/// The type of a Service; a headless one is of type `ClusterIP` and has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
    Headless,
    ExternalName,
}

/// The endpoints of a Service: they are the same in each of its families.
#[derive(Clone, Debug)]
pub(super) struct Slices {
    pub endpoints: Vec<Endpoint>,
    pub has_hints: bool,
}

/// An endpoint.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// Its index in [`PODS`].
    pub pod: usize,
    pub node: NodeName,
    pub condition: Condition,
    /// Whether it is in the second slice of its family.
    pub in_second: bool,
    /// Whether it is in the other slice, too, and in which state.
    pub again: Option<Condition>,
    /// Its hints, where there are some.
    pub zone: &'static str,
    pub for_node: Option<&'static str>,
}

/// Which node an endpoint says it is on.
#[derive(Clone, Copy, Debug)]
pub(super) enum NodeName {
    Own,
    Omitted,
    /// One that there is not.
    OfNone,
}

/// Ready, serving and terminating; ready where they are not said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition(pub Option<(bool, bool, bool)>);

impl Plan {
    /// The scenario.
    pub(super) fn documents(&self, about: &str) -> Vec<Value> {
        let mut documents = vec![header(about, &self.clients)];
        let mut services: Vec<Option<Service>> = Vec::new();
        for (index, (service, slices)) in self.services.iter().enumerate() {
            documents.push(service.document(index));
            documents.extend(slices.documents(index, service));
            services.push(Some(service.clone()));
        }
        for (number, (index, change)) in (1..).zip(&self.changes) {
            let mut step = json!({ "kind": "Step", "about": format!("change {number}") });
            let delete = json!([format!("Service/{}", name(*index))]);
            let mut applied = Vec::new();
            let first = &self.services[*index].0;
            match change {
                Change::Slices(slices) => applied = slices.documents(*index, first),
                Change::Deleted => {
                    step["delete"] = delete;
                    services[*index] = None;
                }
                Change::Shape(shape) => {
                    let service = Service { shape: *shape, ..first.clone() };
                    // Having an address is not changed in place.
                    let is_headless = |service: &Service| service.shape.kind == Type::Headless;
                    if services[*index].as_ref().is_some_and(|before| is_headless(before) != is_headless(&service)) {
                        step["delete"] = delete;
                    }
                    applied.push(service.document(*index));
                    services[*index] = Some(service);
                }
            }
            documents.push(step);
            documents.extend(applied);
        }
        documents
    }
}

fn name(index: usize) -> String {
    format!("random{index}")
}

impl Service {
    fn document(&self, index: usize) -> Value {
        let Self { ports, families, shape } = self;
        let Shape { kind, internal_local, external_local, has_external_ips, is_sticky, ranges } = *shape;
        let metadata = json!({ "name": name(index) });
        if kind == Type::ExternalName {
            let spec = json!({ "type": "ExternalName", "externalName": "db.example.com" });
            return json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec });
        }
        let addresses = |v4: &str, v6: &str| -> Vec<String> {
            let number = 100 + index;
            let address = |family: &&str| {
                if *family == "IPv4" { format!("{v4}.{number}") } else { format!("{v6}::{number:x}") }
            };
            families.iter().map(address).collect()
        };
        let cluster_ips =
            if kind == Type::Headless { vec!["None".to_owned()] } else { addresses("10.96.0", "fd00:10:96") };
        let ports = ports.iter().map(|(name, protocol, port, target)| {
            json!({ "name": name, "protocol": protocol, "port": port, "targetPort": target })
        });
        let mut spec = json!({
            "type": match kind {
                Type::NodePort => "NodePort",
                Type::LoadBalancer => "LoadBalancer",
                Type::ClusterIp | Type::Headless | Type::ExternalName => "ClusterIP",
            },
            "clusterIP": cluster_ips[0],
            "clusterIPs": cluster_ips,
            "ipFamilies": families,
            "ipFamilyPolicy": if families.len() == 2 { "RequireDualStack" } else { "SingleStack" },
            "internalTrafficPolicy": policy(internal_local),
            "sessionAffinity": if is_sticky { "ClientIP" } else { "None" },
            "ports": ports.collect::<Vec<_>>(),
        });
        let has_external_ips = has_external_ips && kind != Type::Headless;
        if has_external_ips {
            spec["externalIPs"] = json!(addresses("198.18.0", "2001:db8:198"));
        }
        if matches!(kind, Type::NodePort | Type::LoadBalancer) || has_external_ips {
            spec["externalTrafficPolicy"] = json!(policy(external_local));
        }
        let mut service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata });
        if kind == Type::LoadBalancer {
            if let Some(ranges) = ranges {
                spec["loadBalancerSourceRanges"] = json!(ranges);
            }
            let ingress = addresses("203.0.113", "2001:db8:203").into_iter().map(|ip| json!({ "ip": ip }));
            service["status"] = json!({ "loadBalancer": { "ingress": ingress.collect::<Vec<_>>() } });
        }
        service["spec"] = spec;
        service
    }
}

fn policy(is_local: bool) -> &'static str {
    if is_local { "Local" } else { "Cluster" }
}

impl Slices {
    /// Two slices of each family.
    fn documents(&self, index: usize, service: &Service) -> Vec<Value> {
        let (name, Service { ports, families, .. }) = (name(index), service);
        let slice = |family: &'static str, is_second: bool| {
            let endpoints = self.endpoints.iter().filter_map(|endpoint| {
                let condition = if endpoint.in_second == is_second { Some(endpoint.condition) } else { endpoint.again };
                Some(endpoint.document(family, condition?, self.has_hints))
            });
            let ports = ports
                .iter()
                .map(|(name, protocol, _, target)| json!({ "name": name, "protocol": protocol, "port": target }));
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}-{}", family.to_lowercase(), if is_second { "b" } else { "a" }),
                    "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": family,
                "ports": ports.collect::<Vec<_>>(),
                "endpoints": endpoints.collect::<Vec<_>>(),
            })
        };
        families.iter().flat_map(|family| [slice(family, false), slice(family, true)]).collect()
    }
}

impl Endpoint {
    fn document(&self, family: &str, Condition(condition): Condition, has_hints: bool) -> Value {
        let (v4, v6, node) = PODS[self.pod];
        let mut endpoint = json!({ "addresses": [if family == "IPv4" { v4 } else { v6 }] });
        match self.node {
            NodeName::Own => endpoint["nodeName"] = json!(node),
            NodeName::Omitted => {}
            NodeName::OfNone => endpoint["nodeName"] = json!("gone-node"),
        }
        if let Some((ready, serving, terminating)) = condition {
            endpoint["conditions"] = json!({ "ready": ready, "serving": serving, "terminating": terminating });
        }
        if has_hints {
            endpoint["hints"] = json!({ "forZones": [{ "name": self.zone }] });
            if let Some(name) = self.for_node {
                endpoint["hints"]["forNodes"] = json!([{ "name": name }]);
            }
        }
        endpoint
    }
}
