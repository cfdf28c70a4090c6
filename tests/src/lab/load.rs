//! Traffic from every kind of client, and connections that stay open, while something happens that none of them must
//! notice.

use std::{net::SocketAddr, thread, time::Duration};

use super::{
    Host,
    client::{Conversation, Transport},
    cluster::{Cluster, eventually},
    manifest::Service,
    path::{Path, paths},
    traffic::Traffic,
};

/// Exchanges all the time, and open connections, on every path.
pub struct Load {
    traffic: Vec<(String, Traffic)>,
    conversations: Vec<(String, Conversation)>,
}

/// Pause between two exchanges on one path.
const PAUSE: Duration = Duration::from_millis(5);

impl Load {
    /// Opens the connections and starts the traffic.
    pub fn start(cluster: &Cluster, service: &Service) -> Self {
        Self::start_on(paths(&cluster.lab).map(|path| (path, path.address(service))))
    }

    /// As [`start`](Self::start), on paths of choice, each to an address.
    pub fn start_on<'a>(paths: impl IntoIterator<Item = (Path<'a>, SocketAddr)>) -> Self {
        let (mut traffic, mut conversations) = (Vec::new(), Vec::new());
        for (path, to) in paths {
            if path.transport == Transport::Tcp {
                match Conversation::open(path.client, to) {
                    Ok(conversation) => conversations.push((path.to_string(), conversation)),
                    Err(outcome) => panic!("{path}: {outcome:?}"),
                }
            }
            if matches!(path.transport, Transport::Tcp | Transport::Udp) {
                traffic.push((path.to_string(), Traffic::start(path.client, path.transport, to, PAUSE)));
            }
        }
        Self { traffic, conversations }
    }

    /// Lets the traffic go on for a while, and panics if an exchange has failed since the last look, if there were
    /// too few to tell, or if an open connection has ended. Gives the number of exchanges.
    pub fn assert_unharmed(&mut self, during: &str) -> u64 {
        thread::sleep(100 * PAUSE);
        for (name, conversation) in &mut self.conversations {
            conversation.say(during).unwrap_or_else(|error| panic!("{name}, open connection: {during}: {error}"));
        }
        let mut total = 0;
        for (name, traffic) in &self.traffic {
            let tally = traffic.take();
            let (failed, of) = (tally.failures, tally.answers.values().sum::<u64>());
            assert!(failed.is_empty(), "{name}: {during}: beside {of} good exchanges these failed: {failed:?}");
            assert!(of >= 5, "{name}: {during}: only {of} exchanges");
            total += of;
        }
        total
    }

    /// Waits until on every path each of these pods has answered since any other did.
    pub fn wait_until_answered_by(&self, pods: &[&Host]) {
        let mut names: Vec<&str> = pods.iter().map(|pod| pod.name()).collect();
        names.sort_unstable();
        let still_differs = |(path, traffic): &(String, Traffic)| {
            let answers: Vec<String> = traffic.tally().answers.into_keys().collect();
            if answers.iter().any(|name| !names.contains(&name.as_str())) {
                traffic.forget_answers();
            }
            (answers != names).then(|| format!("{path}: {answers:?}"))
        };
        let look = || self.traffic.iter().filter_map(still_differs).collect::<Vec<_>>();
        eventually(&format!("on every path {names:?} answer"), look, Vec::is_empty);
    }
}
