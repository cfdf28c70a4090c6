//! What is wrong with a configuration: where it stands, what was found, what was expected.

use std::{fmt, io, path::PathBuf};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("--config {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("--write-config-to {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Fields or flags do not hold what they must.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

/// Something wrong with one field or flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which one: `--flag`, or the file and the path of a field.
    pub place: String,
    /// What is wrong with it: what was found, what was expected.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
