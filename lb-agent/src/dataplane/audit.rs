//! What a look at the maps found that nobody of us had written, and what became of it.

use std::fmt;

use lb_common::abi::maps;

use super::MapError;
use crate::model::{Family, TableNames};

/// How an element differs from what the agent wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// It was removed, or is no longer in use.
    Missing,
    /// It holds something else.
    Changed,
    /// Nobody wrote it.
    Stray,
}

/// An element, or the slots of one service port, that others had written to and that is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Name of the map.
    pub map: &'static str,
    /// What the element is of, as people name it.
    pub object: String,
    /// How it differed.
    pub drift: Drift,
    /// How many elements of the map that is.
    pub elements: usize,
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { map, object, drift, elements: _ } = self;
        let done = match drift {
            Drift::Missing => "had been removed, and is entered again",
            Drift::Changed => "had been changed, and is as it was",
            Drift::Stray => "had been entered by somebody else, and is removed",
        };
        write!(f, "{map}: {object} {done}")
    }
}

/// A map that could not be looked at, or an element that could not be put right. The next pass tries again.
#[derive(Debug, thiserror::Error)]
#[error("audit{}: {error}", object.as_ref().map(|object| format!(" of {object}")).unwrap_or_default())]
pub struct AuditFailure {
    /// What the element is of; `None` where it is not known what there is.
    pub object: Option<String>,
    /// Why.
    pub error: MapError,
}

/// Where a pass through all maps is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pass {
    /// There is more to look at.
    #[default]
    UnderWay,
    /// It has ended, and each element is as it was written.
    Completed,
    /// It has ended, and something could not be read or put right.
    Failed,
}

/// What one step of an audit did.
#[derive(Debug, Default)]
pub struct AuditReport {
    /// What was put right.
    pub repairs: Vec<Repair>,
    /// What could not be.
    pub failures: Vec<AuditFailure>,
    /// Map elements that were looked at.
    pub read: usize,
    /// Where the pass through all maps is now.
    pub pass: Pass,
}

impl AuditReport {
    /// Takes note of what an attempt to put elements right came to.
    pub(crate) fn note(
        &mut self,
        map: &'static str,
        object: impl fmt::Display,
        drift: Drift,
        elements: usize,
        written: Result<(), MapError>,
    ) {
        let object = object.to_string();
        match written {
            Ok(()) => self.repairs.push(Repair { map, object, drift, elements }),
            Err(error) => self.failures.push(AuditFailure { object: Some(object), error }),
        }
    }

    /// What was read, if it could be.
    pub(crate) fn look<T>(&mut self, read: Result<T, MapError>, count: impl FnOnce(&T) -> usize) -> Option<T> {
        match read {
            Ok(found) => {
                // An empty table has been looked at, too.
                self.read += count(&found).max(1);
                Some(found)
            }
            Err(error) => {
                self.read += 1;
                self.failures.push(AuditFailure { object: None, error });
                None
            }
        }
    }
}

/// The maps that are audited: all that the agent alone writes, but `XDP_DEVICES`, which says what came of an attempt.
pub fn audited_maps() -> impl Iterator<Item = &'static str> {
    [maps::CONFIG].into_iter().chain(of_family::<[u8; 4]>()).chain(of_family::<[u8; 16]>())
}

fn of_family<A: Family>() -> [&'static str; 9] {
    let TableNames {
        frontends,
        services,
        service_names,
        slots,
        backends,
        node_addresses,
        local_addresses,
        source_ranges,
        service_cidrs,
        // The programs write these.
        service_stats: _,
        flows: _,
        affinity: _,
        loads: _,
    } = A::TABLES;
    [frontends, services, service_names, slots, backends, node_addresses, local_addresses, source_ranges, service_cidrs]
}
