//! What `lb-agent explain` says is what clients then meet, and to say it leaves no trace.

mod services;
mod ways;

pub(crate) use services::{
    a_service_is_explained_by_its_name_with_no_more_privileges_than_the_agent_has,
    affinity_and_source_ranges_are_explained_as_they_are_applied, shares_of_a_maglev_table_are_those_of_its_slots,
};
pub(crate) use ways::{
    a_port_that_is_lent_already_is_not_promised, what_is_explained_is_what_clients_meet,
    what_no_service_answers_is_explained_as_well, xdp_is_what_answers_where_it_is_attached,
};

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path as FilePath, process::Command};

use lb_common::abi::{ABI_VERSION, Disposition};
use lb_tests::lab::{
    Family, Host, Lab, Node, agent,
    client::{Answer, Outcome, Transport},
    cluster::eventually,
    manifest::Service,
    path::Path,
    server::ECHO_PORT,
};
use nix::errno::Errno;
use serde_json::Value;

/// What the data plane writes, as far as it is not counters of Services.
const WRITTEN: [&str; 9] =
    ["FLOWS4", "FLOWS6", "AFFINITY4", "AFFINITY6", "LOADS4", "LOADS6", "SOCKET_PEERS4", "SOCKET_PEERS6", "COUNTERS"];

/// Everything that a question could have changed: each of those tables byte by byte, what Services have counted, every pin,
/// and the program at every hook.
fn traces(node: &Node) -> Vec<String> {
    let root = node.bpffs().join(format!("lb/v{ABI_VERSION}"));
    let dump = |map| {
        let mut bpftool = Command::new("bpftool");
        let output = bpftool.args(["--json", "map", "dump", "pinned"]).arg(root.join("maps").join(map)).output();
        let output = output.expect("bpftool starts");
        assert!(output.status.success(), "{map}: {}", String::from_utf8_lossy(&output.stderr));
        format!("{map} {}", String::from_utf8_lossy(&output.stdout))
    };
    let pins = ["maps", "programs", "links"].map(|directory| format!("{:?}", names(&root.join(directory))));
    let services = agent::ask(node, &["service", "list", "-o", "json"]);
    let status: Value = serde_json::from_str(&agent::ask(node, &["status", "-o", "json"])).expect("JSON");
    WRITTEN.map(dump).into_iter().chain(pins).chain([services, status["hooks"].to_string()]).collect()
}

fn names(directory: &FilePath) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Does `work`, which must leave no trace. What was sent before is waited for.
fn without_a_trace<R>(node: &Node, work: impl FnOnce() -> R) -> R {
    let mut last = traces(node);
    eventually(
        "the connections of before have ended",
        || std::mem::replace(&mut last, traces(node)) == last,
        |is_quiet| *is_quiet,
    );
    let before = traces(node);
    let result = work();
    for (before, after) in before.into_iter().zip(traces(node)) {
        assert_eq!(after, before);
    }
    result
}

/// What is explained of one question.
pub(crate) fn explain(node: &Node, source: &str, destination: &str, more: &[&str]) -> Value {
    let question = [&["explain", source, destination, "-o", "json"], more].concat();
    let printed = agent::ask(node, &question);
    let mut list: Value = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    let items = list["items"].as_array_mut().unwrap_or_else(|| panic!("no list: {printed}"));
    assert_eq!(items.len(), 1, "{question:?}: {printed}");
    items.remove(0)
}

fn explain_path(node: &Node, path: Path<'_>, service: &Service, port: Option<u16>) -> Value {
    let ip = path.client.address(path.family);
    let source = match port {
        _ if path.client.name() == node.host.name() => "node".to_owned(),
        Some(port) => SocketAddr::new(ip, port).to_string(),
        None => ip.to_string(),
    };
    let protocol = if path.transport == Transport::Tcp { "tcp" } else { "udp" };
    explain(node, &source, &path.address(service).to_string(), &["-p", protocol])
}

/// Whether the node sees the sockets of a client.
fn has_sockets(node: &Node, client: &Host) -> bool {
    client.name() == node.host.name() || node.pods.iter().any(|pod| pod.name() == client.name())
}

/// The way that decides for a client.
fn deciding<'a>(explanation: &'a Value, node: &Node, client: &Host) -> &'a Value {
    let ways = explanation["ways"].as_array().expect("a list").iter();
    let mut met = ways.filter(|way| way["asker"] == "packet" || has_sockets(node, client));
    let decides = met.clone().find(|way| way["verdict"] != "pass");
    decides.or_else(|| met.next_back()).unwrap_or_else(|| panic!("nobody decides: {explanation}"))
}

/// The address of the pod that answered.
fn endpoint(lab: &Lab, answer: &Answer, family: Family) -> SocketAddr {
    let pod = lab.all_pods().find(|pod| pod.name() == answer.backend);
    SocketAddr::new(pod.expect("an answer of a pod").address(family), ECHO_PORT)
}

/// The endpoints that may be got, each with its probability.
fn endpoints(way: &Value) -> Vec<(SocketAddr, f64)> {
    let endpoints = way["endpoints"].as_array().expect("a list").iter();
    let share = |share: &Value| {
        let address = serde_json::from_value(share["address"].clone()).expect("an address");
        (address, share["probability"].as_f64().expect("a number"))
    };
    endpoints.map(share).filter(|(_, probability)| *probability > 0.0).collect()
}

/// That a client met what was explained of the way that decides.
fn assert_met(lab: &Lab, way: &Value, outcome: &Outcome, family: Family, context: &str) {
    let met = match outcome {
        Outcome::Reached(answer) => {
            let endpoint = endpoint(lab, answer, family);
            assert!(endpoints(way).iter().any(|(address, _)| *address == endpoint), "{context}: {endpoint}: {way}");
            Disposition::Translate
        }
        Outcome::Refused => Disposition::Refuse,
        Outcome::TimedOut => {
            assert_eq!(way["asker"], "packet", "{context}: {way}");
            Disposition::Drop
        }
        Outcome::Failed(error) => {
            assert_eq!(*error, std::io::Error::from(Errno::EHOSTUNREACH).to_string(), "{context}");
            assert_eq!(way["asker"], "socket", "{context}: {way}");
            Disposition::Drop
        }
    };
    assert_eq!(way["verdict"], met.name(), "{context}: {outcome:?}: {way}");
    let found_by = if way["asker"] == "packet" { "run" } else { "tables" };
    assert_eq!(way["foundBy"], found_by, "{context}: {way}");
}
