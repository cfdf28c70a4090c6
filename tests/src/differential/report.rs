//! What came of a scenario.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What came of a scenario; goes from the process that ran it to the one that reports it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Differences that the tables do not explain, and what went wrong, each as a text for people.
    pub failures: Vec<String>,
    /// Entries of the tables that were seen.
    pub shown: BTreeSet<String>,
    /// Differences that the tables explain, each as a text for people.
    pub explained: Vec<String>,
    /// How many frontends were asked, by how many clients, in how many steps: their product.
    pub cells: usize,
    /// What it made could not be removed: its session is no place for another scenario.
    pub is_last: bool,
    /// How long it took.
    pub seconds: f64,
}
