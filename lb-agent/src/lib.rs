//! The node agent: watches Services, `EndpointSlices` and its own Node, compiles them into BPF maps, and loads the
//! programs that balance traffic by them.
//!
//! ```text
//! source::kubernetes ┐
//!                    ├─> model::Inputs ──> model::DesiredState ──> dataplane::Reconciler ──> dataplane::Maps
//! source::manifests  ┘        (reduced objects)     (pure)         (difference, allocation)  (Kernel | Fake | Faulty)
//! ```
//!
//! Only [`loader`], [`network`], [`takeover`], [`preflight`], [`dataplane::KernelMaps`] and the readers beside it touch the
//! kernel. Everything else runs, and is tested, anywhere.

pub mod configuration;
pub mod controller;
pub mod dataplane;
pub mod jiffies;
pub mod loader;
pub mod model;
pub mod network;
pub mod object;
pub mod preflight;
pub mod source;
pub mod takeover;
pub mod watch;
