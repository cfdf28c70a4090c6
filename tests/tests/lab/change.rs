//! What clients notice, and do not, when the endpoints change or the agent is not there.

use std::{collections::BTreeMap, thread, time::Duration};

use lb_tests::lab::{
    Family, Host, Lab, Node, ReversePathFilter, agent,
    client::{Ask, Conversation, DatagramSocket, Outcome, Transport, ways},
    cluster::{Cluster, eventually},
    manifest::Service,
    sandbox::Sandbox,
    traffic::Traffic,
};

/// Long enough for dozens of exchanges on each path.
const A_WHILE: Duration = Duration::from_millis(500);

fn start(sandbox: Sandbox) -> (Cluster, Service) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints(lab.all_pods());
    (Cluster::start(lab, [&service]), service)
}

/// Clients of every path, each with the Service's address that it uses.
fn paths<'a>(
    cluster: &'a Cluster,
    service: &Service,
    family: Family,
    transport: Transport,
) -> [(&'a Host, std::net::SocketAddr); 4] {
    let [node1, _] = cluster.nodes();
    let cluster_ip = service.cluster_address(family, transport);
    let node_port = service.node_port_address(&node1.host, family, transport);
    [(&node1.pods[0], cluster_ip), (&node1.vm, cluster_ip), (&node1.host, cluster_ip), (&cluster.lab.client, node_port)]
}

/// New connections all the time, on every path.
fn traffic_on_all_paths(cluster: &Cluster, service: &Service) -> Vec<(String, Traffic)> {
    let mut traffic = Vec::new();
    for family in Family::BOTH {
        for transport in [Transport::Tcp, Transport::Udp] {
            for (client, to) in paths(cluster, service, family, transport) {
                let name = format!("{} to {to} over {transport}", client.name());
                traffic.push((name, Traffic::start(client, transport, to, Duration::from_millis(5))));
            }
        }
    }
    traffic
}

fn conversations_on_all_paths(cluster: &Cluster, service: &Service) -> Vec<(String, Conversation)> {
    let mut conversations = Vec::new();
    for family in Family::BOTH {
        for (client, to) in paths(cluster, service, family, Transport::Tcp) {
            let name = format!("{} to {to}", client.name());
            let opened = Conversation::open(client, to);
            conversations.push((name.clone(), opened.unwrap_or_else(|outcome| panic!("{name}: {outcome:?}"))));
        }
    }
    conversations
}

fn all_say(conversations: &mut [(String, Conversation)], line: &str) {
    for (name, conversation) in conversations {
        conversation.say(line).unwrap_or_else(|error| panic!("{name} ({line}): {error}"));
    }
}

/// Panics if any exchange of this traffic failed, or too few were made to tell.
fn assert_unharmed(traffic: &[(String, Traffic)], during: &str) {
    for (name, traffic) in traffic {
        let tally = traffic.take();
        assert!(
            tally.failures.is_empty(),
            "{during}, {name}: of {} exchanges these failed: {:?}",
            tally.total(),
            tally.failures
        );
        assert!(tally.total() >= 5, "{during}, {name}: only {} exchanges", tally.total());
    }
}

pub(crate) fn connections_are_spread_over_all_backends(sandbox: Sandbox) {
    // With n = 400 exchanges over 6 backends each gets 67 on average with a standard deviation of 7.5. A bound five
    // deviations away fails by chance for one backend of 3 million; there are 6 backends and 16 paths.
    const EXCHANGES: usize = 400;
    const FEWEST: usize = 67 - 38;
    let (cluster, service) = start(sandbox);
    for family in Family::BOTH {
        for transport in [Transport::Tcp, Transport::Udp] {
            for (client, to) in paths(&cluster, &service, family, transport) {
                let mut backends = BTreeMap::new();
                for _ in 0..EXCHANGES {
                    let answer = Ask::new(transport, to).from(client).answer();
                    *backends.entry(answer.backend).or_insert(0) += 1;
                }
                let path = format!("{} to {to} over {transport}", client.name());
                assert_eq!(backends.len(), cluster.lab.all_pods().count(), "{path}: {backends:?}");
                assert!(backends.values().all(|count| *count >= FEWEST), "{path}: {backends:?}");
            }
        }
    }
}

pub(crate) fn endpoints_come_and_go_under_traffic_and_nobody_notices(sandbox: Sandbox) {
    let (cluster, service) = start(sandbox);
    let [node1, node2] = cluster.nodes();
    let (leaver, remaining) = (&node2.pods[1], [&node1.pods[1], &node2.pods[0]]);
    let traffic = traffic_on_all_paths(&cluster, &service);
    let mut conversations = conversations_on_all_paths(&cluster, &service);

    cluster.manifests.apply(&service.clone().with_endpoints(remaining));
    wait_until_answered_by(&traffic, &remaining);
    all_say(&mut conversations, "after endpoints left");

    cluster.manifests.apply(&service.with_endpoints(remaining.into_iter().chain([leaver])));
    for (name, traffic) in &traffic {
        eventually(
            &format!("{name}: the new endpoint answers"),
            || traffic.tally().backends,
            |seen| seen.contains_key(leaver.name()),
        );
    }
    all_say(&mut conversations, "after an endpoint came");
    thread::sleep(A_WHILE);
    assert_unharmed(&traffic, "while endpoints left and came");
}

/// Waits until no exchange of the traffic ends at any other host.
fn wait_until_answered_by(traffic: &[(String, Traffic)], pods: &[&Host]) {
    for (name, traffic) in traffic {
        let look = || {
            traffic.forget_answers();
            thread::sleep(Duration::from_millis(100));
            traffic.tally().backends
        };
        let names: Vec<&str> = pods.iter().map(|pod| pod.name()).collect();
        eventually(&format!("{name}: only {names:?} answer"), look, |seen| {
            !seen.is_empty() && seen.keys().all(|backend| names.contains(&backend.as_str()))
        });
    }
}

pub(crate) fn a_datagram_flow_moves_on_when_its_backend_leaves(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let [first, second] =
        [&lab.nodes[0].pods[1], &lab.nodes[1].pods[1]].map(|pod| Service::new("web", 1).with_endpoints([pod]));
    let cluster = Cluster::start(lab, [&first]);
    let [node1, node2] = cluster.nodes();
    let mut sockets = Vec::new();
    for (family, transport) in
        ways().filter(|(_, transport)| matches!(transport, Transport::Udp | Transport::UdpConnected))
    {
        for (client, to) in paths(&cluster, &first, family, transport) {
            // A connected socket of the node is translated once, by `connect`: like TCP it stays where it is.
            if transport == Transport::Udp || client.name() != node1.host.name() {
                sockets.push((
                    format!("{} to {to} over {transport}", client.name()),
                    DatagramSocket::open(client, transport, to),
                ));
            }
        }
    }
    let all_reach = |pod: &Host| {
        for (name, socket) in &sockets {
            let answered =
                |outcome: &Outcome| matches!(outcome, Outcome::Reached(answer) if answer.backend == pod.name());
            eventually(&format!("{name} reaches {}", pod.name()), || socket.ask(), answered);
        }
    };
    all_reach(&node1.pods[1]);
    cluster.manifests.apply(&second);
    all_reach(&node2.pods[1]);
}

pub(crate) fn services_appear_and_disappear_while_the_agent_runs(sandbox: Sandbox) {
    let (cluster, existing) = start(sandbox);
    let [node1, _] = cluster.nodes();
    let late = Service::new("late", 2).with_endpoints([&node1.pods[0]]);
    cluster.manifests.apply(&late);
    for (family, transport) in ways() {
        for (client, to) in paths(&cluster, &late, family, transport) {
            let reached = |outcome: &Outcome| matches!(outcome, Outcome::Reached(_));
            eventually(&format!("{} reaches {to}", client.name()), || Ask::new(transport, to).from(client), reached);
        }
    }
    cluster.manifests.delete(&late);
    let to = late.node_port_address(&node1.host, Family::V4, Transport::Tcp);
    // Without a Service, nobody listens on the port.
    eventually(
        "the node port is closed",
        || Ask::new(Transport::Tcp, to).from(&cluster.lab.client),
        |outcome| *outcome == Outcome::Refused,
    );
    for (client, to) in paths(&cluster, &existing, Family::V4, Transport::Tcp) {
        Ask::new(Transport::Tcp, to).from(client).answer();
    }
}

pub(crate) fn an_agent_that_is_killed_and_started_again_is_not_noticed(sandbox: Sandbox) {
    let (mut cluster, service) = start(sandbox);
    let traffic = traffic_on_all_paths(&cluster, &service);
    let mut conversations = conversations_on_all_paths(&cluster, &service);
    thread::sleep(A_WHILE);
    assert_unharmed(&traffic, "before");

    cluster.kill_agents();
    thread::sleep(A_WHILE);
    all_say(&mut conversations, "while the agents are dead");
    assert_unharmed(&traffic, "while the agents are dead");

    cluster.restart_agents();
    thread::sleep(A_WHILE);
    all_say(&mut conversations, "after the agents came back");
    assert_unharmed(&traffic, "after the agents came back");
}

pub(crate) fn what_changed_while_the_agent_was_down_is_caught_up(sandbox: Sandbox) {
    let (mut cluster, service) = start(sandbox);
    cluster.kill_agents();
    let only = cluster.nodes()[1].pods[0].name().to_owned();
    cluster.manifests.apply(&service.clone().with_endpoints([&cluster.lab.nodes[1].pods[0]]));
    cluster.restart_agents();
    for (family, transport) in ways() {
        for (client, to) in paths(&cluster, &service, family, transport) {
            // By chance one old endpoint of six would be the right one; ten times in a row it is not (1 in 60 million).
            for _ in 0..10 {
                let answer = Ask::new(transport, to).from(client).answer();
                assert_eq!(answer.backend, only, "{} to {to} over {transport}", client.name());
            }
        }
    }
}

pub(crate) fn an_agent_that_is_asked_to_end_leaves_the_data_plane_and_cleanup_removes_it(sandbox: Sandbox) {
    let (mut cluster, service) = start(sandbox);
    for agent in cluster.agents.iter_mut().filter_map(Option::take) {
        let status = agent.terminate();
        assert!(status.success(), "{status}");
    }
    let cluster_paths = paths(&cluster, &service, Family::V4, Transport::Tcp);
    for (client, to) in cluster_paths {
        Ask::new(Transport::Tcp, to).from(client).answer();
    }
    for node in cluster.nodes() {
        agent::ask(node, &["cleanup"]);
        assert_eq!(pins(node), Vec::<String>::new());
    }
    for (client, to) in cluster_paths {
        let outcome = Ask::new(Transport::Tcp, to).from(client);
        assert!(!matches!(outcome, Outcome::Reached(_)), "{} to {to}: {outcome:?}", client.name());
    }
}

/// What is in a node's BPF file system.
fn pins(node: &Node) -> Vec<String> {
    let entries = std::fs::read_dir(node.bpffs()).expect("it is mounted").flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}
