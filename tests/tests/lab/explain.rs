//! What `lb-agent explain` says is what clients then meet, and to say it leaves no trace.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path as FilePath, process::Command};

use lb_common::abi::{ABI_VERSION, Disposition};
use lb_tests::lab::{
    Family, Host, Lab, Node, ReversePathFilter, agent,
    client::{Answer, Ask, Outcome, Transport},
    cluster::{Cluster, eventually},
    manifest::Service,
    path::{Path, paths},
    sandbox::Sandbox,
    server::ECHO_PORT,
};
use nix::errno::Errno;
use serde_json::{Value, json};

use crate::xdp;

/// What the data plane writes, as far as it is not counters of Services.
const WRITTEN: [&str; 7] = ["FLOWS4", "FLOWS6", "AFFINITY4", "AFFINITY6", "SOCKET_PEERS4", "SOCKET_PEERS6", "COUNTERS"];

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
fn explain(node: &Node, source: &str, destination: &str, more: &[&str]) -> Value {
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

pub(crate) fn what_is_explained_is_what_clients_meet(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let everywhere = Service::new("everywhere", 1).with_endpoints(lab.all_pods());
    let remote = Service::new("remote", 2).with_endpoints([&lab.nodes[1].pods[0]]);
    let nowhere = Service::new("nowhere", 3);
    let elsewhere = Service::new("elsewhere", 4)
        .internal_policy_local()
        .external_policy_local()
        .with_endpoints([&lab.nodes[1].pods[0]]);
    let cluster = Cluster::start(lab, [&everywhere, &remote, &nowhere, &elsewhere]);
    let (lab, node) = (&cluster.lab, cluster.nodes()[0]);
    // Where nobody answers, half of the ways will do.
    let paths = |all: bool| {
        paths(lab).filter(move |path| match path.transport {
            Transport::Tcp => all || path.family == Family::V4,
            Transport::Udp => all || path.family == Family::V6,
            Transport::Http | Transport::UdpConnected => false,
        })
    };

    let mut reached = Vec::new();
    for (service, count, reason) in [
        (&everywhere, 6, None),
        (&remote, 1, None),
        (&nowhere, 0, Some("no_endpoints")),
        (&elsewhere, 0, Some("no_local_endpoints")),
    ] {
        let explained: Vec<_> = without_a_trace(node, || {
            paths(count > 0).map(|path| (path, explain_path(node, path, service, None))).collect()
        });
        for (path, explanation) in explained {
            let context = format!("{path}, {}", service.name());
            let way = deciding(&explanation, node, path.client);
            let protocol = if path.transport == Transport::Tcp { "TCP" } else { "UDP" };
            let name = format!("lab/{}:echo-{}/{protocol}", service.name(), protocol.to_lowercase());
            assert_eq!((&explanation["service"], &way["reason"]), (&json!(name), &json!(reason)), "{context}: {way}");
            let from = [("client", "outside"), (node.host.name(), "node")];
            let from = from.iter().find(|(name, _)| *name == path.client.name()).map_or("pod", |(_, from)| from);
            assert_eq!(explanation["from"], from, "{context}");
            assert_eq!(endpoints(way).len(), count, "{context}: {way}");
            for (_, probability) in endpoints(way) {
                assert!((probability * f64::from(u32::try_from(count).expect("few")) - 1.0).abs() < 1e-9, "{context}");
            }
            let outcome = path.ask(service);
            assert_met(lab, way, &outcome, path.family, &context);
            match outcome {
                Outcome::Reached(answer) if way["asker"] == "packet" => reached.push((path, service, answer)),
                _ => {}
            }
        }
    }

    // Of a packet whose port is told, the very endpoint and the very source are explained: while its flow is known, and of a
    // new one in its place.
    // Of two Services in both families: datagrams of the pod; what the VM and the client outside send, by TCP and UDP.
    assert_eq!(reached.len(), 2 * 2 * (1 + 2 + 2));
    let assert_exact = |is_known: bool| {
        for (path, service, answer) in &reached {
            let context = format!("{path}, {}, known: {is_known}", service.name());
            let explanation = explain_path(node, *path, service, Some(answer.local.port()));
            let way = deciding(&explanation, node, path.client);
            assert_eq!(way["knownFlow"], is_known, "{context}: {way}");
            assert_eq!(way["endpoint"], json!(endpoint(lab, answer, path.family)), "{context}: {way}");
            assert_eq!(way["endpointSees"], json!(answer.client_seen), "{context}: {way}");
            let client = path.client.address(path.family);
            assert_eq!(way["masquerade"], answer.client_seen.ip() != client, "{context}: {way}");
            assert_eq!((&explanation["attachedBuild"], &way["foundBy"]), (&json!(true), &json!("run")), "{context}");
        }
    };
    without_a_trace(node, || assert_exact(true));
    agent::ask(node, &["flow", "flush", "--all"]);
    without_a_trace(node, || assert_exact(false));
}

/// A Service with affinity, whose load-balancer addresses only node1's VM may use.
const RESTRICTED: &str = "
apiVersion: v1
kind: Service
metadata: {name: kept, namespace: lab}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.70, 'fd00:10:96::46']
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: [10.1.1.3/32, 'fd00:10:1:1::3/128']
  ports: [{port: 7, protocol: TCP}]
status:
  loadBalancer: {ingress: [{ip: 192.0.2.77}, {ip: 'fd00:192::77'}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kept-4, namespace: lab, labels: {kubernetes.io/service-name: kept}}
addressType: IPv4
ports: [{port: 9000, protocol: TCP}]
endpoints: [{addresses: [10.1.1.1], nodeName: node1}, {addresses: [10.1.2.1], nodeName: node2}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kept-6, namespace: lab, labels: {kubernetes.io/service-name: kept}}
addressType: IPv6
ports: [{port: 9000, protocol: TCP}]
endpoints: [{addresses: ['fd00:10:1:1::1'], nodeName: node1}, {addresses: ['fd00:10:1:2::1'], nodeName: node2}]
";

pub(crate) fn affinity_and_source_ranges_are_explained_as_they_are_applied(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let cluster = Cluster::start(lab, []);
    let (lab, node) = (&cluster.lab, cluster.nodes()[0]);
    cluster.manifests.write("kept.yaml", RESTRICTED);
    eventually("the Service is there", || agent::list_services(node).len(), |count| *count == 2);
    let addresses = |family| {
        let addresses = match family {
            Family::V4 => ["10.96.0.70:7", "192.0.2.77:7"],
            Family::V6 => ["[fd00:10:96::46]:7", "[fd00:192::77]:7"],
        };
        addresses.map(|address| address.parse::<SocketAddr>().expect("an address"))
    };
    let explain = |client: &Host, family, to: SocketAddr| {
        let is_node = client.name() == node.host.name();
        let source = if is_node { "node".to_owned() } else { client.address(family).to_string() };
        explain(node, &source, &to.to_string(), &[])
    };

    // Who may ask: judged at the socket for the node, at the packet for the others.
    let cases = [
        (&node.vm, "packet", None),
        (&node.pods[0], "packet", Some("source_not_allowed")),
        (&node.host, "socket", Some("source_not_allowed")),
    ];
    let cases = || Family::BOTH.into_iter().flat_map(move |family| cases.map(|case| (family, case)));
    let explanations: Vec<_> = without_a_trace(node, || {
        cases().map(|(family, (client, ..))| explain(client, family, addresses(family)[1])).collect()
    });
    for ((family, (client, asker, reason)), explanation) in cases().zip(explanations) {
        let [_, balancer] = addresses(family);
        let context = format!("{} to {balancer}", client.name());
        let way = deciding(&explanation, node, client);
        assert_eq!((&way["asker"], &way["reason"]), (&json!(asker), &json!(reason)), "{context}: {explanation}");
        let vm = format!("{}/{}", node.vm.address(family), if family == Family::V4 { 32 } else { 128 });
        assert_eq!(explanation["sourceRanges"], json!([vm]), "{context}");
        assert_eq!(explanation["frontend"]["restricted"], true, "{context}");
        assert_met(lab, way, &Ask::new(Transport::Tcp, balancer).from(client), family, &context);
    }

    // Whom affinity holds to what: nobody until it has asked, then each to its endpoint, by any frontend.
    let cases = || Family::BOTH.into_iter().flat_map(|family| [&node.vm, &node.host].map(|client| (family, client)));
    let explanations = || -> Vec<_> {
        without_a_trace(node, || {
            cases().map(|(family, client)| explain(client, family, addresses(family)[0])).collect()
        })
    };
    let asked_before = |client: &Host| client.name() == node.vm.name();
    for ((family, client), explanation) in cases().zip(explanations()) {
        let context = format!("{} in {family}", client.name());
        let way = deciding(&explanation, node, client);
        assert_eq!(explanation["affinitySeconds"], 10800, "{context}");
        assert_eq!(way["affinity"].is_string(), asked_before(client), "{context}: {way}");
        let expected: &[f64] = if asked_before(client) { &[1.0] } else { &[0.5, 0.5] };
        let probabilities: Vec<_> = endpoints(way).into_iter().map(|(_, probability)| probability).collect();
        assert_eq!(probabilities, expected, "{context}: {way}");
    }
    let ask = |family, client: &Host| {
        let to = addresses(family)[0];
        endpoint(
            lab,
            &Ask::new(Transport::Tcp, to).from(client).answer(format_args!("{} to {to}", client.name())),
            family,
        )
    };
    let answered: Vec<_> = cases().map(|(family, client)| ask(family, client)).collect();
    for (((family, client), explanation), expected) in cases().zip(explanations()).zip(answered) {
        let context = format!("{} in {family}", client.name());
        let way = deciding(&explanation, node, client);
        assert_eq!(way["affinity"], json!(expected), "{context}: {way}");
        assert_eq!(endpoints(way), [(expected, 1.0)], "{context}: {way}");
        for _ in 0..4 {
            assert_eq!(ask(family, client), expected, "{context}");
        }
    }
}

pub(crate) fn a_service_is_explained_by_its_name_with_no_more_privileges_than_the_agent_has(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints([&lab.nodes[1].pods[0]]);
    let cluster = Cluster::start(lab, [&service]);
    let node = cluster.nodes()[0];
    // A pod asks the cluster IP, somebody outside the node port; a port may be told by its name or its number.
    for (source, destination, asked) in [
        ("10.1.1.1", "lab/web:http", "10.96.0.1:80"),
        ("10.1.1.1", "web:80", "10.96.0.1:80"),
        ("198.51.100.2", "web:http", "192.168.100.1:30101"),
        ("198.51.100.2", "web:80", "10.96.0.1:80"),
        ("2001:db8::2", "lab/web:http", "[fd00:192:168:100::1]:30101"),
    ] {
        let explanation = explain(node, source, destination, &["-p", "tcp"]);
        assert_eq!(explanation["destination"], asked, "{source} {destination}");
        assert_eq!(explanation["service"], "lab/web:http/TCP", "{source} {destination}");
    }
    let bpffs = node.bpffs();
    let command = |arguments: &[&str]| {
        agent::command(node, &[&["explain", "--bpffs", bpffs.to_str().expect("UTF-8")], arguments].concat())
    };
    let printed = command(&["198.51.100.2:40000", "lab/web:echo-udp", "-4"]);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let text = String::from_utf8(printed.stdout).expect("UTF-8");
    for line in [
        "From:     outside 198.51.100.2:40000\n",
        "To:       192.168.100.1:30001/UDP\n",
        "Service:  lab/web:echo-udp/UDP\n",
        "Frontend: *:30001 node port, policy cluster, clients any\n",
        "Picking:  by hash, no affinity\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let endpoint = ["packet", "10.1.2.1:9000", "false", "100.0%", "this", "packet's"];
    assert!(rows.iter().any(|row| *row == endpoint), "{text}");
    assert!(rows.iter().any(|row| row.starts_with(&["packet", "uplinkIngress"]) && row.contains(&"yes")), "{text}");

    for (arguments, code, message) in [
        (&["198.51.100.2", "lab/other"][..], 1, "no such Service"),
        (&["198.51.100.2", "10.96.0.1"], 64, "an address needs a port"),
        (&["198.51.100.2", "web", "--device", "lo"], 1, "--device lo: uplink_ingress is not attached there"),
        (&["node", "web", "--from", "pod"], 1, "`node` is no address"),
    ] {
        let failed = command(arguments);
        let error = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}

pub(crate) fn xdp_is_what_answers_where_it_is_attached(sandbox: Sandbox) {
    let (cluster, services) = xdp::start(sandbox);
    let (lab, node) = (&cluster.lab, cluster.nodes()[0]);
    let mut answered = Vec::new();
    for (service, family) in services.iter().flat_map(|service| Family::BOTH.map(|family| (service, family))) {
        let path = Path { client: &lab.client, node_port_of: Some(&node.host), family, transport: Transport::Udp };
        // The neighbour may have to be found first, which is TC's to do.
        path.ask(service).answer(path);
        answered.push((path, service, path.ask(service).answer(path)));
    }
    let assert_exact = |is_known: bool| {
        for (path, service, answer) in &answered {
            let context = format!("{path}, {}, known: {is_known}", service.name());
            let explanation = explain_path(node, *path, service, Some(answer.local.port()));
            let way = deciding(&explanation, node, path.client);
            assert_eq!(way["hooks"], json!(["uplinkXdp"]), "{context}: {way}");
            assert_eq!(way["knownFlow"], is_known, "{context}: {way}");
            assert_eq!(way["endpoint"], json!(endpoint(lab, answer, path.family)), "{context}: {way}");
            assert_eq!(way["endpointSees"], json!(answer.client_seen), "{context}: {way}");
        }
    };
    without_a_trace(node, || assert_exact(true));
    agent::ask(node, &["flow", "flush", "--all"]);
    without_a_trace(node, || assert_exact(false));
}
