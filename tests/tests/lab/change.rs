//! What clients notice, and do not, when the endpoints change or the agent is not there.

use std::collections::BTreeMap;

use lb_tests::lab::{
    Family, Host, Lab, ReversePathFilter, agent,
    client::{Ask, DatagramSocket, Outcome, Transport},
    cluster::{Cluster, eventually},
    load::Load,
    manifest::Service,
    path::{Path, paths},
    sandbox::Sandbox,
};

fn start(sandbox: Sandbox) -> (Cluster, Service) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints(lab.all_pods());
    (Cluster::start(lab, [&service]), service)
}

pub(crate) fn connections_are_spread_over_all_backends(sandbox: Sandbox) {
    // With n = 400 exchanges over 6 backends each gets 67 on average with a standard deviation of 7.5. A bound five
    // deviations away fails by chance for one backend of 3 million; there are 6 backends and 16 paths.
    const EXCHANGES: usize = 400;
    const FEWEST: usize = 67 - 38;
    let (cluster, service) = start(sandbox);
    for path in paths(&cluster.lab).filter(|path| matches!(path.transport, Transport::Tcp | Transport::Udp)) {
        let mut backends = BTreeMap::new();
        for _ in 0..EXCHANGES {
            *backends.entry(path.ask(&service).answer(path).backend).or_insert(0) += 1;
        }
        assert_eq!(backends.len(), cluster.lab.all_pods().count(), "{path}: {backends:?}");
        assert!(backends.values().all(|count| *count >= FEWEST), "{path}: {backends:?}");
    }
}

pub(crate) fn endpoints_come_and_go_under_traffic_and_nobody_notices(sandbox: Sandbox) {
    let (cluster, service) = start(sandbox);
    let [node1, node2] = cluster.nodes();
    let mut load = Load::start(&cluster, &service);
    let (two, three) = ([&node1.pods[1], &node2.pods[0]], [&node1.pods[1], &node2.pods[0], &node2.vm]);
    for endpoints in [&two[..], &three] {
        cluster.manifests.apply(&service.clone().with_endpoints(endpoints.iter().copied()));
        load.wait_until_answered_by(endpoints);
        // Connections to endpoints that have left go on: their servers still run.
        load.assert_unharmed(&format!("with {} endpoints", endpoints.len()));
    }
}

pub(crate) fn a_datagram_flow_moves_on_when_its_backend_leaves(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let [first, second] =
        [&lab.nodes[0].pods[1], &lab.nodes[1].pods[1]].map(|pod| Service::new("web", 1).with_endpoints([pod]));
    let cluster = Cluster::start(lab, [&first]);
    let [node1, node2] = cluster.nodes();
    // A connected socket of the node is translated once, by `connect`: like TCP it stays where it is.
    let moves = |path: &Path| {
        path.transport == Transport::Udp
            || path.transport == Transport::UdpConnected && path.client.name() != node1.host.name()
    };
    let sockets: Vec<_> = paths(&cluster.lab)
        .filter(moves)
        .map(|path| (path, DatagramSocket::open(path.client, path.transport, path.address(&first))))
        .collect();
    let all_reach = |pod: &Host| {
        for (path, socket) in &sockets {
            let answered =
                |outcome: &Outcome| matches!(outcome, Outcome::Reached(answer) if answer.backend == pod.name());
            eventually(&format!("{path} reaches {}", pod.name()), || socket.ask(), answered);
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
    for path in paths(&cluster.lab) {
        let reached = |outcome: &Outcome| matches!(outcome, Outcome::Reached(_));
        eventually(&path.to_string(), || path.ask(&late), reached);
    }
    cluster.manifests.delete(&late);
    let to = late.node_port_address(&node1.host, Family::V4, Transport::Tcp);
    // Without a Service, nobody listens on the port.
    eventually(
        "the node port is closed",
        || Ask::new(Transport::Tcp, to).from(&cluster.lab.client),
        |outcome| *outcome == Outcome::Refused,
    );
    for path in paths(&cluster.lab) {
        path.ask(&existing).answer(path);
    }
}

pub(crate) fn an_agent_that_is_killed_and_started_again_is_not_noticed(sandbox: Sandbox) {
    let (mut cluster, service) = start(sandbox);
    let mut load = Load::start(&cluster, &service);
    load.assert_unharmed("before");
    cluster.kill_agents();
    load.assert_unharmed("while the agents are dead");
    cluster.restart_agents();
    load.assert_unharmed("after the agents came back");
}

pub(crate) fn what_changed_while_the_agent_was_down_is_caught_up(sandbox: Sandbox) {
    let (mut cluster, service) = start(sandbox);
    cluster.kill_agents();
    let only = cluster.nodes()[1].pods[0].name().to_owned();
    cluster.manifests.apply(&service.clone().with_endpoints([&cluster.lab.nodes[1].pods[0]]));
    cluster.restart_agents();
    for path in paths(&cluster.lab) {
        // By chance one old endpoint of six would be the right one; ten times in a row it is not (1 in 60 million).
        for _ in 0..10 {
            assert_eq!(path.ask(&service).answer(path).backend, only, "{path}");
        }
    }
}

pub(crate) fn an_agent_that_starts_with_broken_manifests_leaves_what_was_served(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let web = Service::new("web", 1).with_endpoints(lab.all_pods());
    let other = Service::new("other", 2).with_endpoints([&lab.nodes[1].pods[0]]);
    let mut cluster = Cluster::start(lab, [&web, &other]);
    let mut load = Load::start(&cluster, &web);
    cluster.kill_agents();
    // One of which nobody can say what is in it, and one whose Service is known to exist.
    cluster.manifests.write("web.yaml", &web.to_string().replace("metadata: {", "metadata: {{"));
    cluster.manifests.write("other.yaml", &other.to_string().replace("port: 80,", "port: 70000,"));
    cluster.restart_agents();
    load.assert_unharmed("after a start with broken manifests");
    for path in paths(&cluster.lab).filter(|path| path.transport == Transport::Http) {
        assert_eq!(path.ask(&other).answer(path).backend, "node2-pod0", "{path}");
    }
    let log = agent::log(cluster.nodes()[0]);
    for expected in ["/run/manifests/web.yaml: line ", "other.yaml:", "spec.ports[2].port: is 70000"] {
        assert!(log.contains(expected), "{expected:?} is not in the log:\n{log}");
    }

    // The agent follows what was mended, and removes what is gone.
    let [node1, node2] = cluster.nodes();
    let few = [&node1.pods[1], &node2.pods[0]];
    cluster.manifests.apply(&web.clone().with_endpoints(few));
    load.wait_until_answered_by(&few);
    load.assert_unharmed("after web.yaml was mended");
    cluster.manifests.delete(&other);
    let to = other.node_port_address(&node1.host, Family::V4, Transport::Tcp);
    eventually(
        "the node port of the Service that was never good is closed",
        || Ask::new(Transport::Tcp, to).from(&cluster.lab.client),
        |outcome| *outcome == Outcome::Refused,
    );
}

pub(crate) fn an_agent_that_is_asked_to_end_leaves_the_data_plane_and_cleanup_removes_it(sandbox: Sandbox) {
    let (mut cluster, service) = start(sandbox);
    for agent in cluster.agents.iter_mut().filter_map(Option::take) {
        let status = agent.terminate();
        assert!(status.success(), "{status}");
    }
    for path in paths(&cluster.lab) {
        path.ask(&service).answer(path);
    }
    for node in cluster.nodes() {
        agent::ask(node, &["cleanup"]);
        assert!(!node.bpffs().join("lb").exists(), "pins of {} are left", node.host.name());
    }
    // One transport will do: where nobody answers, each takes its time to give up.
    for path in paths(&cluster.lab).filter(|path| path.transport == Transport::Http) {
        let outcome = path.ask(&service);
        assert!(!matches!(outcome, Outcome::Reached(_)), "{path}: {outcome:?}");
    }
}
