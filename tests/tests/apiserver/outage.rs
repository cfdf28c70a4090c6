//! The API server is away, or the agent is.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_tests::{
    lab::{
        Family, Host, Lab, Node, agent,
        client::{Outcome, Transport},
        cluster::{eventually, eventually_within},
        load::Load,
        path::{Path, paths},
        sandbox::Sandbox,
    },
    trial,
};

use crate::{
    cluster::{Cluster, ask, wait_until_reached},
    objects::{self, ready},
};

/// How long it may take until an agent has heard of what changed at an API server that is back. After the first failure
/// the agent waits 0.8 s before it tries again, then twice as long each time, 30 s at most, and up to as much again by
/// chance, as client-go's reflectors do; a connection that is not answered takes 5 s to fail. Here the API server is
/// away for about 10 s.
const NOTICED_WITHIN: Duration = Duration::from_secs(45);

/// Pods for the Service that traffic goes to, and for others. None of them is a client.
fn pods_of(lab: &Lab) -> ([&Host; 2], [&Host; 2]) {
    let [node1, node2] = &lab.nodes;
    ([&node1.pods[1], &node2.pods[0]], [&node2.pods[1], &node2.vm])
}

pub(crate) fn the_api_server_is_killed_and_comes_back_under_traffic(sandbox: Sandbox) {
    let mut cluster = Cluster::start(sandbox);
    let lab = Arc::clone(&cluster.lab);
    let (pods, others) = pods_of(&lab);
    let doomed = cluster.create(objects::web("doomed"));
    let web = cluster.create(objects::web("web"));
    cluster.set_endpoints("web", &ready(&pods));
    cluster.set_endpoints("doomed", &ready(&others));
    for path in paths(&lab) {
        wait_until_reached(&path, &doomed);
        wait_until_reached(&path, &web);
    }
    let mut load = Load::start_on(paths(&lab).map(|path| (path, objects::address(&web, &path))));

    cluster.kill_api_server();
    load.assert_unharmed("the API server is dead");
    cluster.cut_api_server_off();
    cluster.resume_api_server();
    // What the agents could only learn by watching is over when they are back: they have to list.
    cluster.delete("doomed");
    let late = cluster.create(objects::web("late"));
    cluster.set_endpoints("late", &ready(&others));
    cluster.set_endpoints("web", &ready(&pods[1..]));
    load.assert_unharmed("the API server is out of reach");
    for path in paths(&lab) {
        ask(&path, &doomed).answer(format_args!("{path}: the last good state stays in force"));
    }

    cluster.reconnect_api_server();
    let start = Instant::now();
    for path in one_a_client(&lab) {
        let reached = |outcome: &Outcome| matches!(outcome, Outcome::Reached(_));
        eventually_within(NOTICED_WITHIN, &format!("{path}: late"), || ask(&path, &late), reached);
        let gone = |outcome: &Outcome| !matches!(outcome, Outcome::Reached(_));
        eventually_within(NOTICED_WITHIN, &format!("{path}: doomed"), || ask(&path, &doomed), gone);
    }
    trial::measured(format_args!("changes were noticed {:.1?} after the API server was back", start.elapsed()));
    load.wait_until_answered_by(&pods[1..]);
    load.assert_unharmed("the API server is back");
    // The watches work again: what changes now is there at once.
    cluster.set_endpoints("web", &ready(&pods[..1]));
    load.wait_until_answered_by(&pods[..1]);
    load.assert_unharmed("a change after that");
    for node in cluster.nodes() {
        let log = agent::log(node);
        assert!(!log.contains(" ERROR "), "an API server that is away is no error of the agent:\n{log}");
        // At the start, and when the API server is back: for a watch that never failed, not at all.
        let works = || {
            let log = agent::log(node);
            log.lines().filter(|line| line.contains("Services") && line.contains("works")).count()
        };
        eventually_within(NOTICED_WITHIN, "the log says that the watch works again, once", works, |times| *times == 2);
    }
}

/// One path from each client.
fn one_a_client(lab: &Lab) -> impl Iterator<Item = Path<'_>> {
    paths(lab).filter(|path| path.transport == Transport::Tcp && path.family == Family::V4)
}

pub(crate) fn agents_are_killed_and_start_again_under_traffic(sandbox: Sandbox) {
    let mut cluster = Cluster::start(sandbox);
    let lab = Arc::clone(&cluster.lab);
    let (pods, others) = pods_of(&lab);
    let [web, doomed] = [("web", pods), ("doomed", others)].map(|(name, pods)| {
        let service = cluster.create(objects::web(name));
        cluster.set_endpoints(name, &ready(&pods));
        service
    });
    for path in paths(&lab) {
        wait_until_reached(&path, &web);
        wait_until_reached(&path, &doomed);
    }
    let mut load = Load::start_on(paths(&lab).map(|path| (path, objects::address(&web, &path))));
    load.assert_unharmed("before");

    cluster.kill_agents();
    load.assert_unharmed("the agents are dead");
    cluster.start_agents();
    load.assert_unharmed("the agents are back");
    for node in cluster.nodes() {
        assert_eq!(first_writes(node), "0", "{}: nothing had changed", agent::log(node));
    }

    cluster.kill_agents();
    cluster.delete("doomed");
    cluster.set_endpoints("web", &ready(&pods[1..]));
    let late = cluster.create(objects::web("late"));
    cluster.set_endpoints("late", &ready(&others[..1]));
    load.assert_unharmed("much changes while the agents are dead");
    cluster.start_agents();
    // An agent that says that it is ready has caught up.
    for path in paths(&lab) {
        assert_eq!(ask(&path, &late).answer(path).backend, others[0].name(), "{path}");
    }
    for path in one_a_client(&lab) {
        let outcome = ask(&path, &doomed);
        assert!(!matches!(outcome, Outcome::Reached(_)), "{path}: {outcome:?}");
    }
    load.wait_until_answered_by(&pods[1..]);
    load.assert_unharmed("the agents have caught up");
    for node in cluster.nodes() {
        assert_ne!(first_writes(node), "0", "{}: much had changed", agent::log(node));
    }

    cluster.kill_agents();
    cluster.kill_api_server();
    cluster.start_agents_without_waiting();
    load.assert_unharmed("agents start while the API server is dead");
    for node in cluster.nodes() {
        let unavailable = |health: &io::Result<u16>| matches!(health, Ok(503));
        eventually("the agent says that it is not ready", || agent::health(node), unavailable).expect("it answers");
    }
    cluster.resume_api_server();
    cluster.wait_until_ready();
    load.assert_unharmed("the API server is back");
    for node in cluster.nodes() {
        assert_eq!(first_writes(node), "0", "{}: nothing had changed", agent::log(node));
    }
}

/// How many map elements the agent of a node wrote or removed when it started last.
fn first_writes(node: &Node) -> String {
    let log = agent::log(node);
    let line = log.lines().rfind(|line| line.contains("first synchronization done"));
    let line = line.unwrap_or_else(|| panic!("{}: no synchronization:\n{log}", node.host.name()));
    let writes = line.split(' ').find_map(|field| field.strip_prefix("writes="));
    writes.unwrap_or_else(|| panic!("no number of writes in {line:?}")).to_owned()
}
