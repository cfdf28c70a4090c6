//! Metrics, and the server that shows them. `docs/metrics.md` lists them for operators.
//!
//! ```text
//! dataplane thread, sources ──> Metrics (counters in memory)  ┐
//! BPF maps, /proc           ──> Collected (read when asked)   ┴─> text ──> /metrics
//! ```
//!
//! A scrape reads the maps in a thread of its own: nothing that serves waits for it.

mod collected;
mod process;
mod recorded;
mod server;
mod text;

pub(crate) use collected::Collected;
pub(crate) use recorded::{Metrics, Pending};
pub(crate) use server::MetricsServer;

#[cfg(test)]
mod documented;
