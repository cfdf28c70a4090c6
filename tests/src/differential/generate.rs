//! Scenarios made at random, from a seed: Services and slices that the API server accepts, and changes of them.
//!
//! A strategy of proptest makes [plans](super::plan), which become documents. The same seed makes the same scenario; a
//! change of the strategy makes other ones, so what a seed has found is kept as a file.

use proptest::{
    option,
    prelude::{Just, Strategy, any},
    prop_oneof, sample,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};

use super::plan::{
    CLIENTS, CONFIGURATIONS, Change, Condition, Endpoint, FAMILIES, IP_MODES, NodeName, PODS, PORTS, Plan, RANGES,
    Service, Shape, Slices, Type, ZONES,
};

/// How long a list of endpoints may be: more make no other cases, and cost tries.
const MOST_ENDPOINTS: usize = 4;
/// How many Services there are, and changes of them or of the node, at most.
const MOST_SERVICES: usize = 2;
const MOST_CHANGES: usize = 2;

/// The scenario of a seed, and what it can be made simpler to.
pub struct Generated(Box<dyn ValueTree<Value = Plan>>);

impl Generated {
    /// That of this seed.
    pub fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        Self(plan().boxed().new_tree(&mut runner).expect("nothing is filtered"))
    }

    /// As documents.
    pub fn documents(&self, about: &str) -> Vec<Value> {
        self.0.current().documents(about)
    }

    /// Makes it simpler in one thing, if there is one.
    pub fn simplify(&mut self) -> bool {
        self.0.simplify()
    }

    /// Takes the last simplification back in part, if it can be.
    pub fn complicate(&mut self) -> bool {
        self.0.complicate()
    }
}

/// Documents as the text of a file.
pub fn text(documents: &[Value]) -> String {
    let texts = documents.iter().map(|document| serde_saphyr::to_string(document).expect("JSON is YAML"));
    texts.map(|text| text.trim_end().to_owned() + "\n").collect::<Vec<_>>().join("---\n")
}

fn plan() -> impl Strategy<Value = Plan> {
    let services = proptest::collection::vec((service(), slices()), 1..=MOST_SERVICES);
    let changes = proptest::collection::vec((any::<sample::Index>(), change()), 0..=MOST_CHANGES);
    // Half of all kinds: the other seeds have the others.
    let clients = sample::subsequence(CLIENTS.to_vec(), 3);
    let proxy = sample::select(CONFIGURATIONS);
    (proxy, clients, services, changes).prop_map(|(proxy, clients, services, changes)| {
        let changes = changes.into_iter().map(|(index, change)| (index.index(services.len()), change)).collect();
        Plan { proxy, clients, services, changes }
    })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => slices().prop_map(Change::Slices),
        2 => shape().prop_map(Change::Shape),
        1 => any::<bool>().prop_map(|slices| Change::Renamed { slices }),
        1 => Just(Change::Families),
        1 => Just(Change::Deleted),
        1 => option::of(sample::select(ZONES)).prop_map(Change::Zone),
    ]
}

fn service() -> impl Strategy<Value = Service> {
    let ports = sample::subsequence(PORTS.to_vec(), 1..=PORTS.len());
    (ports, sample::select(FAMILIES), shape()).prop_map(|(ports, families, shape)| Service {
        ports,
        names: 0,
        families,
        shape,
    })
}

fn shape() -> impl Strategy<Value = Shape> {
    let kind = prop_oneof![
        2 => Just(Type::ClusterIp),
        2 => Just(Type::NodePort),
        4 => Just(Type::LoadBalancer),
        1 => Just(Type::Headless),
        1 => Just(Type::ExternalName),
    ];
    let ranges = prop_oneof![3 => Just(None), 1 => sample::select(RANGES).prop_map(Some)];
    let flags = (option::weighted(0.3, Just(())), any::<bool>(), option::weighted(0.4, Just(())));
    let rare = (option::weighted(0.25, Just(())), option::weighted(0.1, Just(())));
    let ip_mode = option::weighted(0.25, sample::select(IP_MODES));
    (kind, flags, rare, ranges, ip_mode).prop_map(|(kind, flags, (sticky, foreign), ranges, ip_mode)| {
        let (internal_local, external_local, external_ips) = flags;
        Shape {
            kind,
            internal_local: internal_local.is_some(),
            external_local,
            has_external_ips: external_ips.is_some(),
            is_sticky: sticky.is_some(),
            is_foreign: foreign.is_some(),
            ranges,
            ip_mode,
        }
    })
}

fn slices() -> impl Strategy<Value = Slices> {
    let chosen = sample::subsequence((0..PODS.len()).collect::<Vec<_>>(), 0..=MOST_ENDPOINTS);
    let endpoints = chosen.prop_flat_map(|pods| pods.into_iter().map(endpoint).collect::<Vec<_>>());
    (endpoints, option::weighted(0.25, Just(())))
        .prop_map(|(endpoints, hints)| Slices { endpoints, has_hints: hints.is_some() })
}

fn endpoint(pod: usize) -> impl Strategy<Value = Endpoint> {
    let node = prop_oneof![8 => Just(NodeName::Own), 1 => Just(NodeName::Omitted), 1 => Just(NodeName::OfNone)];
    let second = option::weighted(0.15, condition());
    let hints = (sample::select(ZONES), option::weighted(0.25, sample::select(&["node1", "node2"][..])));
    (node, condition(), any::<bool>(), second, hints).prop_map(move |(node, condition, in_second, again, hints)| {
        let again = again.filter(|again| condition.is_settled_with(*again));
        Endpoint { pod, node, condition, in_second, again, zone: hints.0, for_node: hints.1 }
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    let of = |ready, serving, terminating| Just(Condition(Some((ready, serving, terminating))));
    prop_oneof![
        6 => Just(Condition(None)),
        1 => of(true, true, false),
        // As the controller says it of a Service with `publishNotReadyAddresses`.
        1 => of(true, true, true),
        1 => of(false, true, true),
        1 => of(false, false, true),
        1 => of(false, false, false),
        1 => of(false, true, false),
    ]
}

/// The header of a scenario that asks from these clients, of proxies with these fields of their configuration.
pub(super) fn header(about: &str, clients: &[&str], proxy: &str) -> Value {
    let proxy: Value = serde_json::from_str(proxy).expect("one of a few texts");
    json!({ "kind": "Scenario", "about": about, "clients": clients, "proxy": proxy })
}
