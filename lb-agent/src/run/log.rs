//! What the log says of a synchronization.

use std::time::{Duration, Instant};

use lb_agent::dataplane::{ChangeKind, PortChange, SyncReport};

use super::dataplane::Dataplane;

/// More changes than this in one synchronization are counted on one line.
const CHANGES_LOGGED: usize = 64;
/// A failure that repeats is logged once in this time.
const FAILURE_REPEATED: Duration = Duration::from_secs(60);

impl Dataplane {
    pub(super) fn log(&mut self, report: &SyncReport, start: Instant) {
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
            tracing::warn!("{conflict}");
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
            tracing::error!("{text}; trying again");
        }
    }
}
