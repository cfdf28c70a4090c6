//! What the log says of what the dataplane thread does.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use lb_agent::dataplane::{AuditReport, ChangeKind, NodeChange, PortChange, SyncReport};

/// How often it is said again that something fails, and for how long a failure must not be seen to be new again. Longer
/// than the pause before what failed is tried again.
const REPEATED: Duration = Duration::from_secs(60);

/// One line for each change, conflict and failure, with the names of its objects, however many there are: each is told
/// when it comes about. Of failures that stay there is one line a minute.
#[derive(Debug, Default)]
pub(super) struct Log {
    failures: Failures,
}

impl Log {
    /// One line a change, a conflict, and a failure that is new.
    pub(super) fn report(&mut self, report: &SyncReport) {
        let SyncReport {
            changes,
            node_changes,
            failures,
            conflicts,
            writes: _,
            programmed: _,
            health_checks_changed: _,
        } = report;
        for PortChange { name, family, kind, frontends, cluster, local } in changes {
            let what = match kind {
                ChangeKind::Added => "added",
                ChangeKind::Updated => "updated",
                ChangeKind::Removed => "removed",
            };
            tracing::info!(service = %name, family, frontends, endpoints = cluster, local, "{what}");
        }
        for change in node_changes {
            match change {
                NodeChange::Address { address, node_ports: Some(node_ports) } => {
                    tracing::info!(%address, node_ports, "address of the node");
                }
                NodeChange::Address { address, node_ports: None } => {
                    tracing::info!(%address, "address of the node removed");
                }
                NodeChange::ServiceCidr { network, present: true } => tracing::info!(network, "ServiceCIDR added"),
                NodeChange::ServiceCidr { network, present: false } => tracing::info!(network, "ServiceCIDR removed"),
            }
        }
        for conflict in conflicts {
            tracing::warn!("{conflict}");
        }
        for failure in failures {
            self.failed(&failure.to_string());
        }
    }

    /// One line for each element that others had written to, and for a failure that is new.
    pub(super) fn audited(&mut self, report: &AuditReport) {
        let AuditReport { repairs, failures, read: _, pass: _ } = report;
        for repair in repairs {
            tracing::warn!("drift: {repair}");
        }
        for failure in failures {
            self.failed(&failure.to_string());
        }
    }

    /// Logs something that failed and is tried again.
    pub(super) fn failed(&mut self, text: &str) {
        match self.failures.note(text, Instant::now()) {
            Said::First => tracing::error!("{text}; trying again"),
            Said::Again { others: 0 } => tracing::error!("{text}; still trying again"),
            Said::Again { others } => {
                tracing::error!(others, "{text}; still trying again, as with others that were logged when they began");
            }
            Said::Nothing => {}
        }
    }
}

/// What is to be said of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    First,
    /// It stays; with how many others.
    Again {
        others: usize,
    },
    Nothing,
}

/// What fails at the moment.
#[derive(Debug, Default)]
struct Failures {
    /// When each was seen last.
    seen: HashMap<String, Instant>,
    /// When it was last said that one of them stays, or began first.
    said: Option<Instant>,
}

impl Failures {
    fn note(&mut self, text: &str, now: Instant) -> Said {
        let due = self.said.is_none_or(|said| now >= said + REPEATED);
        if due {
            self.said = Some(now);
            self.seen.retain(|_, at| now < *at + REPEATED);
        }
        match self.seen.get_mut(text) {
            None => {
                self.seen.insert(text.to_owned(), now);
                Said::First
            }
            Some(seen) => {
                *seen = now;
                if due { Said::Again { others: self.seen.len() - 1 } } else { Said::Nothing }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_named_when_it_begins_and_one_a_minute_while_they_stay() {
        let start = Instant::now();
        let mut failures = Failures::default();
        let names: Vec<_> = (0..5000).map(|number| format!("default/web-{number}: table SLOTS4 is full")).collect();
        let mut said: Vec<(u64, Said)> = Vec::new();
        for second in (0..=120).step_by(10) {
            let now = start + Duration::from_secs(second);
            said.extend(names.iter().map(|name| (second, failures.note(name, now))));
        }
        said.retain(|(_, said)| *said != Said::Nothing);
        let (first, again): (Vec<_>, Vec<_>) = said.into_iter().partition(|(_, said)| *said == Said::First);
        assert_eq!((first.len(), first.iter().all(|(second, _)| *second == 0)), (5000, true));
        assert_eq!(again, [(60, Said::Again { others: 4999 }), (120, Said::Again { others: 4999 })]);
    }

    #[test]
    fn a_failure_that_was_mended_is_new_when_it_comes_back() {
        let start = Instant::now();
        let mut failures = Failures::default();
        assert_eq!(failures.note("a", start), Said::First);
        assert_eq!(failures.note("b", start + REPEATED / 2), Said::First);
        assert_eq!(failures.note("b", start + REPEATED), Said::Again { others: 0 });
        assert_eq!(failures.note("a", start + REPEATED), Said::First);
        assert_eq!(failures.note("b", start + REPEATED * 3 / 2), Said::Nothing);
        assert_eq!(failures.note("b", start + 2 * REPEATED), Said::Again { others: 0 });
    }
}
