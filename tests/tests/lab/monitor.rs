//! What `lb-agent monitor` shows of real traffic.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use lb_common::abi::ABI_VERSION;
use lb_tests::lab::{
    Family, Lab, Node, ReversePathFilter, agent,
    client::{Ask, Conversation, DatagramSocket, Outcome, Transport},
    cluster::Cluster,
    manifest::Service,
    sandbox::Sandbox,
};
use serde_json::{Value, json};

/// How long an event may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// For how long programs go on after a watcher was killed, and more.
const AFTERWARDS: Duration = Duration::from_secs(5);

struct Monitor {
    process: Child,
    events: Receiver<Value>,
}

impl Monitor {
    fn start(node: &Node) -> Self {
        let mut command = Command::new(agent::program());
        command.args(["monitor", "-o", "json", "--bpffs"]).arg(node.bpffs()).stdout(Stdio::piped());
        let mut process = node.host.run(move || command.spawn()).expect("start the agent's program");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let (send, events) = channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if send.send(event).is_err() {
                    break;
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        while dump(node, "MONITOR")[0]["formatted"]["value"]["until"] == 0 {
            assert!(Instant::now() < deadline, "it does not watch");
            thread::sleep(Duration::from_millis(20));
        }
        Self { process, events }
    }

    /// The next event that is like this, field by field. Whatever comes before is of something else.
    fn wait_for(&self, what: &str, like: &Value) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut others = Vec::new();
        while let Ok(event) = self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if like.as_object().expect("fields").iter().all(|(field, value)| event[field] == *value) {
                return event;
            }
            others.push(event);
        }
        panic!("{what}: no {like} among {others:#?}")
    }
}

/// A map of a node, as bpftool shows it.
fn dump(node: &Node, map: &str) -> Value {
    let path = node.bpffs().join(format!("lb/v{ABI_VERSION}/maps/{map}"));
    let output = Command::new("bpftool").args(["--json", "map", "dump", "pinned"]).arg(path).output();
    serde_json::from_slice(&output.expect("bpftool starts").stdout).expect("JSON")
}

pub(crate) fn new_flows_refusals_and_drops_are_shown_until_the_watcher_is_killed(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let web = Service::new("web", 1).with_endpoints([&lab.nodes[1].pods[1]]);
    let empty = Service::new("empty", 2);
    let elsewhere = Service::new("local", 3).with_endpoints([&lab.nodes[1].pods[1]]).external_policy_local();
    let mut cluster = Cluster::start(lab, [&web, &empty, &elsewhere]);
    // All of it without agents.
    cluster.kill_agents();
    let [node1, node2] = cluster.nodes();
    let mut monitor = Monitor::start(node1);
    let (pod, vm, client) = (&node1.pods[0], &node1.vm, &cluster.lab.client);
    let mut callers = BTreeSet::new();
    for family in Family::BOTH {
        let backend = |port: u16| SocketAddr::new(node2.pods[1].address(family), port);
        let name = if family == Family::V4 { "IPv4" } else { "IPv6" };

        // A flow of the packet path, from a machine behind an interface of the node, and from outside.
        for (host, to, device) in [
            (vm, web.cluster_address(family, Transport::Udp), None),
            (client, web.node_port_address(&node1.host, family, Transport::Udp), Some("eth0")),
        ] {
            let socket = DatagramSocket::open(host, Transport::Udp, to);
            let answer = socket.ask().answer(format!("{} to {to}", host.name()));
            let from = SocketAddr::new(host.address(family), answer.local.port());
            let event = monitor.wait_for(
                "a datagram",
                &json!({
                    "type": "newFlow", "client": from, "frontend": to, "family": name, "protocol": "UDP", "place": "tc",
                    "service": "lab/web:echo-udp/UDP", "reason": null, "process": null, "direction": "request",
                }),
            );
            let answered: SocketAddr = serde_json::from_value(event["backend"].clone()).expect("an address");
            assert_eq!(answered.ip(), backend(0).ip(), "{event}");
            assert!(event["device"].is_string() && device.is_none_or(|device| event["device"] == device), "{event}");
            // The next one is of a known flow, and is not shown.
            socket.ask().answer("once more");
        }

        // A socket's, with the process that made the call.
        let to = web.cluster_address(family, Transport::Tcp);
        let conversation = Conversation::open(pod, to).unwrap_or_else(|outcome| panic!("{outcome:?}"));
        let event = monitor.wait_for(
            "a connection",
            &json!({ "type": "newFlow", "place": "socket", "frontend": to, "family": name, "device": null, "client": null }),
        );
        // This one, by its number outside of the sandbox.
        let process = event["process"].as_u64().unwrap_or_else(|| panic!("{event}"));
        callers.insert(process);
        drop(conversation);

        // Refusals.
        let to = empty.cluster_address(family, Transport::Udp);
        for (host, place) in [(pod, "tc"), (vm, "tc"), (&node1.host, "socket")] {
            assert_eq!(Ask::new(Transport::Udp, to).from(host), Outcome::Refused, "{}", host.name());
            let like = json!({
                "type": "refusal", "reason": "no_endpoints", "service": "lab/empty:echo-udp/UDP", "frontend": to,
                "place": place, "backend": null,
            });
            let event = monitor.wait_for("a refusal", &like);
            if place == "socket" {
                callers.insert(event["process"].as_u64().unwrap_or_else(|| panic!("{event}")));
            } else {
                let from: SocketAddr = serde_json::from_value(event["client"].clone()).expect("an address");
                assert_eq!(from.ip(), host.address(family), "{event}");
            }
        }

        // A drop.
        let to = elsewhere.node_port_address(&node1.host, family, Transport::Udp);
        assert_eq!(Ask::new(Transport::Udp, to).from(client), Outcome::TimedOut);
        let like = json!({
            "type": "drop", "reason": "no_local_endpoints", "service": "lab/local:echo-udp/UDP", "frontend": to,
        });
        let event = monitor.wait_for("a drop", &like);
        let from: SocketAddr = serde_json::from_value(event["client"].clone()).expect("an address");
        assert_eq!(from.ip(), client.address(family), "{event}");
    }
    assert!(callers.len() == 1 && !callers.contains(&0), "{callers:?}");
    // No datagram of a known flow, of which there was one for each, was among them: nothing is left.
    let more = monitor.events.try_iter().filter(|event| event["type"] == "newFlow" && event["protocol"] == "UDP");
    assert_eq!(more.collect::<Vec<_>>(), Vec::<Value>::new());

    // A question is no event, though it runs the programs.
    let before = dump(node1, "EVENT_COUNTS");
    let to = web.node_port_address(&node1.host, Family::V4, Transport::Udp).to_string();
    let from = client.address(Family::V4).to_string();
    let explained = agent::ask(node1, &["explain", &from, &to, "-p", "udp", "-o", "json"]);
    let explained: Value = serde_json::from_str(&explained).expect("JSON");
    assert_eq!(explained["items"][0]["ways"][0]["verdict"], "translate", "{explained}");
    assert_eq!(dump(node1, "EVENT_COUNTS"), before);

    // Nobody is told that it was killed.
    monitor.process.kill().expect("kill one's own child");
    monitor.process.wait().expect("wait for one's own child");
    thread::sleep(AFTERWARDS);
    let before = dump(node1, "EVENT_COUNTS");
    for host in [pod, vm, &node1.host] {
        let to = empty.cluster_address(Family::V4, Transport::Udp);
        assert_eq!(Ask::new(Transport::Udp, to).from(host), Outcome::Refused, "{}", host.name());
        Ask::new(Transport::Udp, web.cluster_address(Family::V4, Transport::Udp)).from(host).answer(host.name());
    }
    assert_eq!(dump(node1, "EVENT_COUNTS"), before);
}
