//! What the log says of what the dataplane thread hears and does.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use lb_agent::{
    dataplane::{ChangeKind, PortChange, SyncReport},
    model::Rejection,
};

use crate::burst::Burst;

/// More changes than this in one synchronization are counted on one line.
const CHANGES_LOGGED: usize = 64;
/// A failure that repeats is logged once in this time.
const FAILURE_REPEATED: Duration = Duration::from_secs(60);

/// Keeps the log short: what repeats is said once in a while, and of a burst the first lines and a count.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// When each failure was logged.
    failures: HashMap<String, Instant>,
    rejected: Burst,
    conflicting: Burst,
    failing: Burst,
}

impl Log {
    /// When [`Self::end_bursts`] has something to say.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [&self.rejected, &self.conflicting, &self.failing].into_iter().filter_map(Burst::deadline).min()
    }

    /// Says how many lines were left out, where it was too many for some time.
    pub(super) fn end_bursts(&mut self) {
        let now = Instant::now();
        if let Some(more) = self.rejected.end(now) {
            tracing::warn!(more, "more was rejected than is logged here; --log-level debug shows all");
        }
        if let Some(more) = self.conflicting.end(now) {
            tracing::warn!(more, "more conflicts than are logged here; --log-level debug shows all");
        }
        if let Some(more) = self.failing.end(now) {
            tracing::error!(more, "more failures than are logged here; --log-level debug shows all");
        }
    }

    pub(super) fn rejected(&mut self, rejection: &Rejection) {
        if self.rejected.admits(Instant::now()) {
            tracing::warn!("rejected: {rejection}");
        } else {
            tracing::debug!("rejected: {rejection}");
        }
    }

    /// One line a change, or a count of many.
    pub(super) fn report(&mut self, report: &SyncReport, start: Instant) {
        let SyncReport { changes, failures, conflicts, writes, programmed: _, health_checks_changed: _ } = report;
        if changes.len() > CHANGES_LOGGED {
            let elapsed = start.elapsed();
            tracing::info!(changes = changes.len(), writes, ?elapsed, "many service ports changed");
        }
        for PortChange { name, family, kind, frontends, cluster, local } in changes {
            let what = match kind {
                ChangeKind::Added => "added",
                ChangeKind::Updated => "updated",
                ChangeKind::Removed => "removed",
            };
            if changes.len() > CHANGES_LOGGED {
                tracing::debug!(service = %name, family, frontends, endpoints = cluster, local, "{what}");
            } else {
                tracing::info!(service = %name, family, frontends, endpoints = cluster, local, "{what}");
            }
        }
        for conflict in conflicts {
            if self.conflicting.admits(start) {
                tracing::warn!("{conflict}");
            } else {
                tracing::debug!("{conflict}");
            }
        }
        self.failures.retain(|_, at| at.elapsed() < FAILURE_REPEATED);
        for failure in failures {
            self.failed(&failure.to_string());
        }
    }

    /// Logs a failure, unless the same one was logged a moment ago.
    pub(super) fn failed(&mut self, text: &str) {
        let now = Instant::now();
        let logged = self.failures.get(text).is_some_and(|at| now.duration_since(*at) < FAILURE_REPEATED);
        if !logged {
            self.failures.insert(text.to_owned(), now);
            if self.failing.admits(now) {
                tracing::error!("{text}; trying again");
            } else {
                tracing::debug!("{text}; trying again");
            }
        }
    }
}
