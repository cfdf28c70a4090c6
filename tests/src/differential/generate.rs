//! Scenarios made at random, from a seed: Services and slices that the API server accepts, and changes of them.
//!
//! The same seed makes the same scenario for ever; a change of the generator makes other ones, so what a seed has found is
//! kept as a file.

use serde_json::{Value, json};

use super::scenario::Scenario;

/// `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to one less than `count`.
    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).expect("below a usize")
    }

    /// True in `percent` of 100 cases.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// The pods that may be endpoints: IPv4, IPv6, node. Two of them are clients as well.
const PODS: [(&str, &str, &str); 6] = [
    ("10.1.1.1", "fd00:10:1:1::1", "node1"),
    ("10.1.1.2", "fd00:10:1:1::2", "node1"),
    ("10.1.1.3", "fd00:10:1:1::3", "node1"),
    ("10.1.2.1", "fd00:10:1:2::1", "node2"),
    ("10.1.2.2", "fd00:10:1:2::2", "node2"),
    ("10.1.2.3", "fd00:10:1:2::3", "node2"),
];
/// Ports of Services: name, protocol, number, and the number at the pods.
const PORTS: [(&str, &str, u16, u16); 3] = [("tcp", "TCP", 7, 9000), ("udp", "UDP", 7, 9000), ("web", "TCP", 80, 8080)];
const CLIENTS: [&str; 6] = ["pod", "vm", "node", "outside", "other-node", "remote-pod"];
/// How long a list of endpoints may be: more make no other cases, and cost tries.
const MOST_ENDPOINTS: usize = 4;

/// The documents of a scenario.
pub fn documents(seed: u64) -> Vec<Value> {
    let mut random = Random(seed);
    let first = random.below(CLIENTS.len());
    // Half of all clients, those that stand apart in the list.
    let clients: Vec<&str> = (0..3).map(|index| CLIENTS[(first + 2 * index) % CLIENTS.len()]).collect();
    let about = format!("Made by seed {seed}.");
    let mut documents = vec![json!({ "kind": "Scenario", "about": about, "clients": clients })];
    let services: Vec<Shape> = (0..=random.below(2)).map(|index| Shape::new(&mut random, index)).collect();
    for shape in &services {
        documents.push(shape.service());
        documents.extend(shape.slices(&mut random));
    }
    for number in 1..=random.below(3) {
        let shape = random.pick(&(0..services.len()).collect::<Vec<_>>());
        let shape = &services[shape];
        let mut header = json!({ "kind": "Step", "about": format!("change {number}") });
        let mut changed = Vec::new();
        match random.below(4) {
            0 | 1 => changed.extend(shape.slices(&mut random)),
            2 => changed.push(shape.changed(&mut random).service()),
            _ => header["delete"] = json!([format!("Service/{}", shape.name)]),
        }
        documents.push(header);
        documents.extend(changed);
    }
    documents
}

/// Documents as the text of a file.
pub fn text(documents: &[Value]) -> String {
    let texts = documents.iter().map(|document| serde_saphyr::to_string(document).expect("JSON is YAML"));
    texts.map(|text| text.trim_end().to_owned() + "\n").collect::<Vec<_>>().join("---\n")
}

/// Documents with one thing less, the largest things first. Each makes a scenario that can be read.
pub fn simpler(documents: &[Value]) -> Vec<Vec<Value>> {
    let mut found: Vec<Vec<Value>> = Vec::new();
    // From a step on.
    let steps = documents.iter().enumerate().filter(|(_, document)| document["kind"] == "Step");
    found.extend(steps.map(|(index, _)| documents[..index].to_vec()));
    let without = |index: usize| {
        let mut fewer = documents.to_vec();
        fewer.remove(index);
        fewer
    };
    found.extend((1..documents.len()).map(without));
    for (index, document) in documents.iter().enumerate() {
        for place in ["/spec/ports", "/endpoints", "/clients"] {
            let count = document.pointer(place).and_then(Value::as_array).map_or(0, Vec::len);
            // A Service must have a port; without clients everyone asks.
            let least = usize::from(place != "/endpoints");
            for item in (0..count).filter(|_| count > least) {
                let mut fewer = documents.to_vec();
                let list = fewer[index].pointer_mut(place).and_then(Value::as_array_mut);
                list.expect("it was counted").remove(item);
                found.push(fewer);
            }
        }
    }
    found.retain(|documents| Scenario::parse("simpler", &text(documents)).is_ok());
    found
}

/// A Service.
#[derive(Clone)]
struct Shape {
    name: String,
    number: usize,
    kind: &'static str,
    families: &'static [&'static str],
    internal: &'static str,
    external: &'static str,
    has_external_ips: bool,
    ports: Vec<(&'static str, &'static str, u16, u16)>,
}

impl Shape {
    fn new(random: &mut Random, index: usize) -> Self {
        let mut ports: Vec<_> = PORTS.into_iter().filter(|_| random.chance(50)).collect();
        if ports.is_empty() {
            ports.push(PORTS[0]);
        }
        let shape = Self {
            name: format!("random{index}"),
            number: 100 + index,
            kind: "ClusterIP",
            families: random.pick(&[&["IPv4", "IPv6"] as &[_], &["IPv6", "IPv4"], &["IPv4"], &["IPv6"]]),
            internal: "Cluster",
            external: "Cluster",
            has_external_ips: false,
            ports,
        };
        shape.changed(random)
    }

    /// The same Service with another type and other policies.
    fn changed(&self, random: &mut Random) -> Self {
        Self {
            kind: random.pick(&["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]),
            internal: random.pick(&["Cluster", "Cluster", "Local"]),
            external: random.pick(&["Cluster", "Local"]),
            has_external_ips: random.chance(40),
            ..self.clone()
        }
    }

    fn address(&self, family: &str, v4: &str, v6: &str) -> String {
        let Self { number, .. } = self;
        if family == "IPv4" { format!("{v4}.{number}") } else { format!("{v6}::{number:x}") }
    }

    fn service(&self) -> Value {
        let Self { name, kind, families, internal, external, has_external_ips, ports, .. } = self;
        let addresses = |v4, v6| families.iter().map(|family| self.address(family, v4, v6)).collect::<Vec<_>>();
        let cluster_ips = addresses("10.96.0", "fd00:10:96");
        let ports = ports.iter().map(|(name, protocol, port, target)| {
            json!({ "name": name, "protocol": protocol, "port": port, "targetPort": target })
        });
        let mut service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name },
            "spec": {
                "type": kind,
                "clusterIP": cluster_ips[0],
                "clusterIPs": cluster_ips,
                "ipFamilies": families,
                "ipFamilyPolicy": if families.len() == 2 { "RequireDualStack" } else { "SingleStack" },
                "internalTrafficPolicy": internal,
                "ports": ports.collect::<Vec<_>>(),
            },
        });
        if *has_external_ips {
            service["spec"]["externalIPs"] = json!(addresses("198.18.0", "2001:db8:198"));
        }
        if *kind != "ClusterIP" || *has_external_ips {
            service["spec"]["externalTrafficPolicy"] = json!(external);
        }
        if *kind == "LoadBalancer" {
            let ingress = addresses("203.0.113", "2001:db8:203").into_iter().map(|ip| json!({ "ip": ip }));
            service["status"] = json!({ "loadBalancer": { "ingress": ingress.collect::<Vec<_>>() } });
        }
        service
    }

    fn slices(&self, random: &mut Random) -> Vec<Value> {
        let Self { name, ports, families, .. } = self;
        let chosen: Vec<usize> = (0..PODS.len()).filter(|_| random.chance(45)).take(MOST_ENDPOINTS).collect();
        let has_hints = random.chance(25);
        let states: Vec<Value> = chosen.iter().map(|_| conditions(random)).collect();
        let hints: Vec<Value> = chosen.iter().map(|_| hints(random)).collect();
        let slice = |family: &&str| {
            let endpoints = chosen.iter().zip(&states).zip(&hints).map(|((pod, state), hints)| {
                let (v4, v6, node) = PODS[*pod];
                let address = if *family == "IPv4" { v4 } else { v6 };
                let mut endpoint = json!({ "addresses": [address], "nodeName": node, "conditions": state });
                if has_hints {
                    endpoint["hints"] = hints.clone();
                }
                endpoint
            });
            let ports = ports
                .iter()
                .map(|(name, protocol, _, target)| json!({ "name": name, "protocol": protocol, "port": target }));
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}", family.to_lowercase()),
                    "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": family,
                "ports": ports.collect::<Vec<_>>(),
                "endpoints": endpoints.collect::<Vec<_>>(),
            })
        };
        families.iter().map(slice).collect()
    }
}

fn conditions(random: &mut Random) -> Value {
    let (ready, serving, terminating) = match random.below(10) {
        0 => (false, true, true),
        1 => (false, false, true),
        2 => (false, false, false),
        3 => (false, true, false),
        _ => return json!({ "ready": true }),
    };
    json!({ "ready": ready, "serving": serving, "terminating": terminating })
}

fn hints(random: &mut Random) -> Value {
    let zone = json!([{ "name": random.pick(&["zone1", "zone2"]) }]);
    let node = json!([{ "name": random.pick(&["node1", "node2"]) }]);
    match random.below(4) {
        0 => json!({ "forZones": zone, "forNodes": node }),
        _ => json!({ "forZones": zone }),
    }
}
