//! The configuration of kube-proxy, understood: its file (`KubeProxyConfiguration`, v1alpha1) and its flags.
//!
//! ```text
//! --config FILE ┐
//!               ├─ read ──> file::KubeProxyConfiguration ── defaults ── validate ──> Effective ──> Policy, addresses, ..
//! flags ────────┘   (a flag goes before the file)
//! ```
//!
//! What every field means here is one table, [`FIELDS`]; `docs/configuration.md` holds it for people.

mod defaults;
mod duration;
mod effective;
mod error;
mod feature_gates;
mod fields;
mod file;
mod read;
mod validate;

#[cfg(test)]
mod tests;

pub use duration::{GoDuration, TimeOrDuration};
pub use effective::{Effective, Given, INTERFACE};
pub use error::{ConfigurationError, Problem};
pub use fields::{FIELDS, Field, Kind, Treatment};
pub use file::KubeProxyConfiguration;
pub use read::Flag;
