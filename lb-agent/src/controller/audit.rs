//! When the maps are compared with what was written to them, and how much at once. The comparison is the reconcilers'.

use std::time::{Duration, Instant};

use lb_common::abi::maps;

use super::Controller;
use crate::dataplane::{AuditReport, DataplaneMaps, Drift, Pass};

/// Map elements that one step looks at, about: a few milliseconds of the thread that serves changes.
const STEP: usize = 8192;
/// Map elements that are looked at in a second. 10,000 Services of 10 endpoints in both families, in tables of the default
/// size, are 1.4 million: 35 s.
const RATE: u32 = 40_960;
/// From the beginning of a pass to that of the next, unless a pass takes longer.
const PERIOD: Duration = Duration::from_secs(30);
/// From the end of a pass in which something could not be put right to the next.
const RETRY: Duration = Duration::from_secs(5);

/// Whose turn it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Config,
    V4,
    V6,
}

/// Where the audit is.
#[derive(Debug, Default)]
pub(super) struct Auditor {
    turn: Turn,
    /// When to look again; `None` before the maps were written for the first time.
    due: Option<Instant>,
    /// When this pass began.
    began: Option<Instant>,
    /// Whether something failed in this pass.
    failed: bool,
}

impl Auditor {
    /// Begins, if it has not yet.
    pub(super) fn begin(&mut self, now: Instant) {
        self.due.get_or_insert(now);
    }

    /// Takes note of a step, and of whether it has ended a pass.
    fn note(&mut self, report: &mut AuditReport, ended: bool, now: Instant) {
        self.failed |= !report.failures.is_empty();
        let read = u32::try_from(report.read).unwrap_or(u32::MAX);
        let mut due = now + Duration::from_secs(1) * read / RATE;
        let began = *self.began.get_or_insert(now);
        if ended {
            (report.pass, due) = if self.failed {
                (Pass::Failed, due.max(now + RETRY))
            } else {
                (Pass::Completed, due.max(began + PERIOD))
            };
            (self.began, self.failed) = (None, false);
        }
        self.due = Some(due);
    }
}

impl Controller {
    /// When to call [`Self::audit`]; `None` before the first synchronization.
    pub fn next_audit(&self) -> Option<Instant> {
        self.auditor.due
    }

    /// Looks at some elements of the maps, and puts right what is not as it was written.
    pub fn audit<M: DataplaneMaps>(&mut self, maps: &mut M, now: Instant) -> AuditReport {
        self.audit_some(maps, STEP, now)
    }

    /// Looks at `budget` elements, about.
    pub(super) fn audit_some<M: DataplaneMaps>(&mut self, maps: &mut M, budget: usize, now: Instant) -> AuditReport {
        let mut report = AuditReport::default();
        let mut ended = false;
        while report.read < budget && !ended {
            self.auditor.turn = match self.auditor.turn {
                Turn::Config => {
                    self.audit_config(maps, &mut report);
                    Turn::V4
                }
                Turn::V4 if self.v4.audit(maps, budget, &mut report) => Turn::V6,
                Turn::V6 if self.v6.audit(maps, budget, &mut report) => {
                    ended = true;
                    Turn::Config
                }
                unfinished @ (Turn::V4 | Turn::V6) => unfinished,
            };
        }
        self.auditor.note(&mut report, ended, now);
        report
    }

    fn audit_config<M: DataplaneMaps>(&self, maps: &mut M, report: &mut AuditReport) {
        if let Some(found) = report.look(maps.config(), |_| 1)
            && found != self.config
        {
            let written = maps.set_config(&self.config);
            report.note(maps::CONFIG, "the configuration", Drift::Changed, 1, written);
        }
    }
}
