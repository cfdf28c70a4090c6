//! What clients saw, and in what two observations differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::Serialize;

/// What came of one try.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// An endpoint answered, and saw the client with an address of this class.
    Reached(Endpoint, Source),
    /// RST, ICMP port unreachable, or `ECONNREFUSED` from the call itself.
    Refused,
    /// Nothing came.
    Dropped,
    /// Host unreachable: `EHOSTUNREACH` from the call itself, which is how `lb-agent` says that it would drop.
    Unreachable,
    /// Network unreachable: the lab router's answer to packets for Services that no proxy took.
    Unrouted,
    /// Something else.
    Broken(String),
}

/// A server: the host's name and the port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Name of the host.
    pub host: String,
    /// The port that the server listens on.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Which address of the client an endpoint saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The client's own.
    Own,
    /// That of the node whose proxy is under test.
    Node,
    /// Another one.
    Other(IpAddr),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Node => f.write_str("node"),
            Self::Other(address) => write!(f, "{address}"),
        }
    }
}

/// What came of all tries of one client at one frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Which endpoints answered, and as whom each saw the client.
    pub reached: BTreeMap<Endpoint, BTreeSet<Source>>,
    /// What else came.
    pub others: BTreeSet<Verdict>,
}

impl Observation {
    pub(super) fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Reached(endpoint, source) => drop(self.reached.entry(endpoint).or_default().insert(source)),
            other => drop(self.others.insert(other)),
        }
    }

    /// The kinds of outcomes, without who was reached.
    pub(super) fn kinds(&self) -> BTreeSet<Kind> {
        let others = self.others.iter().map(|verdict| match verdict {
            Verdict::Reached(..) => Kind::Reached,
            Verdict::Refused => Kind::Refused,
            Verdict::Dropped => Kind::Dropped,
            Verdict::Unreachable => Kind::Unreachable,
            Verdict::Unrouted => Kind::Unrouted,
            Verdict::Broken(_) => Kind::Broken,
        });
        others.chain((!self.reached.is_empty()).then_some(Kind::Reached)).collect()
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reached = self.reached.iter().map(|(endpoint, sources)| format!("{endpoint} sees {}", join(sources)));
        let others = self.others.iter().map(|verdict| match verdict {
            Verdict::Broken(how) => format!("broken ({how})"),
            Verdict::Refused => "refused".to_owned(),
            Verdict::Unreachable => "host unreachable".to_owned(),
            Verdict::Unrouted => "not routed".to_owned(),
            Verdict::Dropped | Verdict::Reached(..) => "dropped".to_owned(),
        });
        f.write_str(&reached.chain(others).collect::<Vec<_>>().join(", "))
    }
}

/// An outcome without its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// An endpoint answered.
    Reached,
    /// See [`Verdict::Refused`].
    Refused,
    /// See [`Verdict::Dropped`].
    Dropped,
    /// See [`Verdict::Unreachable`].
    Unreachable,
    /// See [`Verdict::Unrouted`].
    Unrouted,
    /// See [`Verdict::Broken`].
    Broken,
}

/// One thing in which a second observation differs from a first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// The kinds of outcomes.
    Verdict(BTreeSet<Kind>, BTreeSet<Kind>),
    /// Both were served, by different sets of endpoints: those of only one of them.
    Endpoints(BTreeSet<Endpoint>, BTreeSet<Endpoint>),
    /// An endpoint saw different addresses of the client.
    Source(Endpoint, BTreeSet<Source>, BTreeSet<Source>),
    /// Session affinity: how many endpoints answered one client.
    Stickiness(usize, usize),
    /// Session affinity: the second one's client was at endpoints that are not served to it without.
    Stray(BTreeSet<Endpoint>),
    /// What a server of the proxy's own answered.
    Answer(String, String),
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(one, other) => write!(f, "verdict {one:?} or {other:?}"),
            Self::Endpoints(one, other) => write!(f, "endpoints {{{}}} or {{{}}}", join(one), join(other)),
            Self::Source(endpoint, one, other) => write!(f, "source at {endpoint}: {} or {}", join(one), join(other)),
            Self::Stickiness(one, other) => write!(f, "{one} or {other} endpoints for one client"),
            Self::Stray(endpoints) => write!(f, "{{{}}}, which it does not reach without affinity", join(endpoints)),
            Self::Answer(one, other) => write!(f, "answer {one:?} or {other:?}"),
        }
    }
}

fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join("+")
}

/// In what two observations differ.
pub fn differences(first: &Observation, second: &Observation) -> Vec<Aspect> {
    let (kinds, other_kinds) = (first.kinds(), second.kinds());
    if kinds != other_kinds {
        return vec![Aspect::Verdict(kinds, other_kinds)];
    }
    // Where tries are left unanswered, the set was not searched to its end.
    if kinds.contains(&Kind::Dropped) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let missing = |here: &Observation, there: &Observation| -> BTreeSet<Endpoint> {
        here.reached.keys().filter(|endpoint| !there.reached.contains_key(endpoint)).cloned().collect()
    };
    let (only_first, only_second) = (missing(first, second), missing(second, first));
    if !only_first.is_empty() || !only_second.is_empty() {
        found.push(Aspect::Endpoints(only_first, only_second));
    }
    for (endpoint, sources) in &first.reached {
        if let Some(others) = second.reached.get(endpoint).filter(|others| *others != sources) {
            found.push(Aspect::Source(endpoint.clone(), sources.clone(), others.clone()));
        }
    }
    found
}
