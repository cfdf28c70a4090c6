//! `least-conn`: new connections go where fewer are held.

use std::{collections::BTreeMap, thread, time::Duration};

use lb_tests::lab::{
    Lab, ReversePathFilter, agent,
    client::{Conversation, Transport},
    cluster::{Cluster, eventually_within},
    manifest::Service,
    path::{Path, paths},
    sandbox::Sandbox,
};
use serde_json::Value;

/// Connections that each client holds on an endpoint.
const HELD: usize = 10;
/// Longer than from one count of the agent's to the next (`lb-agent/src/run/recount.rs`).
const COUNTED: Duration = Duration::from_secs(7);

/// Connects so many times.
fn connect(path: &Path<'_>, service: &Service) -> Vec<Conversation> {
    let to = path.address(service);
    let open = |_| Conversation::open(path.client, to).unwrap_or_else(|outcome| panic!("{path}: {outcome:?}"));
    (0..HELD).map(open).collect()
}

/// How many of these connections each endpoint has.
fn shares(connections: &[Conversation]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for connection in connections {
        *shares.entry(connection.answer.backend.as_str()).or_default() += 1;
    }
    shares
}

/// How many flows a node counts for its backends of a Service's TCP port, the least first.
fn flows(cluster: &Cluster, service: &Service, family: &str) -> Vec<u64> {
    let list = agent::ask(cluster.nodes()[0], &["backend", "list", "-o", "json"]);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let port = format!("lab/{}:echo-tcp/TCP", service.name());
    let items = list["items"].as_array().expect("a list").iter();
    let ours = items.filter(|item| item["service"] == *port && item["family"] == *family);
    let mut flows: Vec<_> = ours.map(|item| item["flows"].as_u64().expect("they are counted")).collect();
    flows.sort_unstable();
    flows
}

pub(crate) fn new_connections_go_where_fewer_are_held(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let [one, other] = [&lab.nodes[0].pods[1], &lab.nodes[1].pods[0]];
    let (one, other) = (one.name().to_owned(), other.name().to_owned());
    // A Service for each client of each kind, so that they do not count one another's.
    let clients: Vec<_> = ["by-pod-socket", "by-vm", "by-node-socket", "from-outside"]
        .into_iter()
        .zip(1..)
        .map(|(name, number)| Service::new(name, number).balance("least-conn"))
        .collect();
    let with = |pods: &[&lb_tests::lab::Host]| -> Vec<Service> {
        clients.iter().map(|service| service.clone().with_endpoints(pods.iter().copied())).collect()
    };
    let first = with(&[&lab.nodes[0].pods[1]]);
    let both = with(&[&lab.nodes[0].pods[1], &lab.nodes[1].pods[0]]);
    let cluster = Cluster::start(lab, &first);
    let ways: Vec<_> = paths(&cluster.lab).filter(|path| path.transport == Transport::Tcp).collect();
    let service = |path: &Path<'_>| match path {
        Path { node_port_of: Some(_), .. } => &both[3],
        path if path.client.name() == cluster.nodes()[0].host.name() => &both[2],
        path if path.client.name() == cluster.nodes()[0].vm.name() => &both[1],
        _ => &both[0],
    };
    assert_eq!(ways.len(), 2 * clients.len());

    let mut held: Vec<_> = ways.iter().map(|path| connect(path, service(path))).collect();
    for (path, connections) in ways.iter().zip(&held) {
        assert_eq!(shares(connections), BTreeMap::from([(one.as_str(), HELD)]), "{path}");
    }
    for service in &both {
        cluster.manifests.apply(service);
    }
    thread::sleep(COUNTED);
    // They are counted as long as they are held: nothing passes by them.
    for (path, connections) in ways.iter().zip(&held) {
        let counted = flows(&cluster, service(path), &path.family.to_string());
        assert_eq!(counted, [0, connections.len() as u64], "{path}");
    }
    let new: Vec<_> = ways.iter().map(|path| connect(path, service(path))).collect();
    for (path, connections) in ways.iter().zip(&new) {
        assert_eq!(shares(connections), BTreeMap::from([(other.as_str(), HELD)]), "{path}");
    }

    // Where they end, there is room.
    held.clear();
    for path in &ways {
        let counted = || flows(&cluster, service(path), &path.family.to_string());
        eventually_within(2 * COUNTED, &path.to_string(), counted, |flows| *flows == [0, HELD as u64]);
    }
    let again: Vec<_> = ways.iter().map(|path| connect(path, service(path))).collect();
    for (path, connections) in ways.iter().zip(&again) {
        assert_eq!(shares(connections), BTreeMap::from([(one.as_str(), HELD)]), "{path}");
    }
}
