//! Whether the node serves its Services: what probes are told.

mod proxy;
mod server;
pub(crate) mod service_checks;

pub(crate) use proxy::{Families, Now, ProxyHealth};
pub(crate) use server::{Answered, HealthServer};
