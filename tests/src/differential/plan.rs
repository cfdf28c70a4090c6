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

/// Whether what goes to a load balancer's address is the proxies' (`VIP`) or goes to the load balancer (`Proxy`).
pub(super) const IP_MODES: &[&str] = &["VIP", "Proxy"];

/// Fields of the configuration that both proxies are started with: mostly none, as each restart of them takes seconds.
pub(super) const CONFIGURATIONS: &[&str] = &[
    "{}",
    "{}",
    "{}",
    "{}",
    "{}",
    r#"{"detectLocalMode": "NodeCIDR"}"#,
    r#"{"nodePortAddresses": ["192.168.100.0/24"]}"#,
    r#"{"nftables": {"masqueradeAll": true}, "iptables": {"masqueradeAll": true}}"#,
];

pub(super) type Port = (&'static str, &'static str, u16, u16);

/// A scenario.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// One of [`CONFIGURATIONS`].
    pub proxy: &'static str,
    pub clients: Vec<&'static str>,
    pub services: Vec<(Service, Slices)>,
    /// Each of the Service with this index.
    pub changes: Vec<(usize, Change)>,
}

/// What may happen to a Service, or to the node.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Slices(Slices),
    Shape(Shape),
    /// All ports get another name: in the slices as well, or in the Service alone.
    Renamed {
        slices: bool,
    },
    /// Its second family goes, or comes.
    Families,
    Deleted,
    /// The node of the proxies is in this zone, or in none.
    Zone(Option<&'static str>),
}

/// What a Service keeps for as long as it is there, and what it does not.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub ports: Vec<Port>,
    /// How often its ports have been renamed.
    pub names: usize,
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
    /// Whether a label leaves it to another proxy.
    pub is_foreign: bool,
    pub ranges: Option<&'static [&'static str]>,
    /// One of [`IP_MODES`], if the status says so.
    pub ip_mode: Option<&'static str>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition(pub Option<(bool, bool, bool)>);

impl Condition {
    /// Whether it is said which of these counts where an endpoint is in two slices: the one that does not terminate, or
    /// both that are the same. Of others, kube-proxy takes the one that it comes to first (`addEndpoints` in
    /// `pkg/proxy/endpointslicecache.go`).
    pub(super) fn is_settled_with(self, other: Self) -> bool {
        let terminates = |Self(condition)| condition.is_some_and(|(_, _, terminating)| terminating);
        self == other || terminates(self) != terminates(other)
    }
}

impl Plan {
    /// The scenario.
    pub(super) fn documents(&self, about: &str) -> Vec<Value> {
        let mut documents = vec![header(about, &self.clients, self.proxy)];
        let mut current = self.services.clone();
        let mut is_there = vec![true; current.len()];
        for (index, (service, slices)) in current.iter().enumerate() {
            documents.push(service.document(index));
            documents.extend(slices.documents(index, service));
        }
        for (number, (index, change)) in (1..).zip(&self.changes) {
            let index = *index;
            let mut step = json!({ "kind": "Step", "about": format!("change {number}") });
            let delete = json!([format!("Service/{}", name(index))]);
            let mut applied = Vec::new();
            let (service, slices) = &mut current[index];
            let before = service.clone();
            let (has_service, has_slices) = match change {
                Change::Slices(other) => {
                    *slices = other.clone();
                    (false, true)
                }
                Change::Shape(shape) => {
                    service.shape = *shape;
                    (true, false)
                }
                Change::Renamed { slices } => {
                    service.names += 1;
                    (true, *slices)
                }
                Change::Families => {
                    service.families = other_families(service.families);
                    (true, true)
                }
                Change::Deleted => {
                    step["delete"] = delete.clone();
                    is_there[index] = false;
                    (false, false)
                }
                Change::Zone(zone) => {
                    applied.push(node_in(*zone));
                    (false, false)
                }
            };
            if has_service {
                // Having an address is not changed in place, and the families of what has none neither.
                let is_headless = |service: &Service| service.shape.kind == Type::Headless;
                let has_address =
                    |service: &Service| !matches!(service.shape.kind, Type::Headless | Type::ExternalName);
                let is_in_place = is_headless(&before) == is_headless(service)
                    && (before.families == service.families || has_address(&before) && has_address(service));
                if is_there[index] && !is_in_place {
                    step["delete"] = delete;
                }
                applied.push(service.document(index));
                is_there[index] = true;
            }
            if has_slices {
                applied.extend(slices.documents(index, service));
            }
            documents.push(step);
            documents.extend(applied);
        }
        documents
    }
}

/// With one family more, or one less: the first one stays.
fn other_families(families: &[&str]) -> &'static [&'static str] {
    let [both, reversed, first, second] = FAMILIES else { unreachable!("there are four") };
    match families {
        ["IPv4", _] => first,
        ["IPv6", _] => second,
        ["IPv4"] => both,
        _ => reversed,
    }
}

/// The Node of the proxies.
fn node_in(zone: Option<&str>) -> Value {
    let mut labels = json!({ "kubernetes.io/hostname": "node1" });
    if let Some(zone) = zone {
        labels["topology.kubernetes.io/zone"] = json!(zone);
    }
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node1", "labels": labels } })
}

fn name(index: usize) -> String {
    format!("random{index}")
}

impl Service {
    fn document(&self, index: usize) -> Value {
        let Self { ports, names, families, shape } = self;
        let Shape { kind, internal_local, external_local, has_external_ips, is_sticky, is_foreign, ranges, ip_mode } =
            *shape;
        let mut metadata = json!({ "name": name(index) });
        if is_foreign {
            metadata["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "another" });
        }
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
            json!({ "name": port_name(name, *names), "protocol": protocol, "port": port, "targetPort": target })
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
            let ingress = addresses("203.0.113", "2001:db8:203").into_iter().map(|ip| match ip_mode {
                Some(mode) => json!({ "ip": ip, "ipMode": mode }),
                None => json!({ "ip": ip }),
            });
            service["status"] = json!({ "loadBalancer": { "ingress": ingress.collect::<Vec<_>>() } });
        }
        service["spec"] = spec;
        service
    }
}

/// That of a port after so many renames.
fn port_name(name: &str, renamed: usize) -> String {
    if renamed == 0 { name.to_owned() } else { format!("{name}-{renamed}") }
}

fn policy(is_local: bool) -> &'static str {
    if is_local { "Local" } else { "Cluster" }
}

impl Slices {
    /// Two slices of each family.
    fn documents(&self, index: usize, service: &Service) -> Vec<Value> {
        let (name, Service { ports, names, families, .. }) = (name(index), service);
        let slice = |family: &'static str, is_second: bool| {
            let endpoints = self.endpoints.iter().filter_map(|endpoint| {
                let condition = if endpoint.in_second == is_second { Some(endpoint.condition) } else { endpoint.again };
                Some(endpoint.document(family, condition?, self.has_hints))
            });
            let ports = ports
                .iter()
                .map(|(name, protocol, _, target)| json!({ "name": port_name(name, *names), "protocol": protocol, "port": target }));
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
