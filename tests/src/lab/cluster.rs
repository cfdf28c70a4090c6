//! A lab that works: servers in all pods, an agent on each node, and the manifests that they follow.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    Lab, Node,
    agent::Agent,
    manifest::{Manifests, Service},
    server::Server,
};

/// A running cluster.
pub struct Cluster {
    /// Its hosts.
    pub lab: Lab,
    /// What the agents follow.
    pub manifests: Manifests,
    /// The agents of node1 and node2; `None` while one is down.
    pub agents: [Option<Agent>; 2],
    servers: Vec<Server>,
}

impl Cluster {
    /// Starts servers and agents; the agents have taken in the Services when this returns.
    pub fn start<'a>(lab: Lab, services: impl IntoIterator<Item = &'a Service>) -> Self {
        let manifests = Manifests::create("/run/manifests", lab.nodes.iter().map(|node| &node.host));
        Self::start_on(lab, manifests, services)
    }

    /// As [`start`](Self::start), with the manifests in a directory of choice.
    pub fn start_on<'a>(lab: Lab, manifests: Manifests, services: impl IntoIterator<Item = &'a Service>) -> Self {
        services.into_iter().for_each(|service| manifests.apply(service));
        let servers = lab.start_servers();
        let mut cluster = Self { lab, manifests, agents: [None, None], servers };
        cluster.restart_agents();
        cluster
    }

    /// node1 and node2.
    pub fn nodes(&self) -> [&Node; 2] {
        self.lab.nodes.each_ref()
    }

    /// Ends the servers of all pods: their ports are closed from then on.
    pub fn stop_servers(&mut self) {
        self.servers.clear();
    }

    /// Kills the agents with `SIGKILL`.
    pub fn kill_agents(&mut self) {
        self.agents.iter_mut().filter_map(Option::take).for_each(Agent::kill);
    }

    /// Starts the agents that are down, and waits until they are ready.
    pub fn restart_agents(&mut self) {
        self.try_restart_agents().unwrap_or_else(|problem| panic!("{problem}"));
    }

    /// As [`restart_agents`](Self::restart_agents), where somebody else may have changed the manifests.
    ///
    /// # Errors
    /// What was seen last of an agent that does not get ready. It may still do so, and is left.
    pub fn try_restart_agents(&mut self) -> Result<(), String> {
        for (node, agent) in self.lab.nodes.iter().zip(&mut self.agents) {
            agent.get_or_insert_with(|| Agent::start(node, &self.manifests));
        }
        for (node, agent) in self.lab.nodes.iter().zip(self.agents.iter_mut().flatten()) {
            agent.try_wait_ready(node)?;
        }
        Ok(())
    }
}

/// How long a change of the manifests may take to reach clients on a loaded machine.
const PROPAGATION: Duration = Duration::from_secs(5);

/// Waits until something has come true. Panics with what was seen last if it does not.
pub fn eventually<S: std::fmt::Debug>(what: &str, look: impl FnMut() -> S, holds: impl Fn(&S) -> bool) -> S {
    eventually_within(PROPAGATION, what, look, holds)
}

/// As [`eventually`], for what may take another time.
pub fn eventually_within<S: std::fmt::Debug>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> S,
    holds: impl Fn(&S) -> bool,
) -> S {
    let deadline = Instant::now() + limit;
    loop {
        let seen = look();
        if holds(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "not after {limit:?}: {what}; last seen: {seen:?}");
        thread::sleep(Duration::from_millis(10));
    }
}
