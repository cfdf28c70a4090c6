//! From desired state to map entries: allocation of indices, difference, and the maps themselves.

pub mod kernel;
mod maps;

pub use kernel::KernelMaps;
pub use maps::{Capacities, DataplaneMaps, Existing, FamilyMaps, MapError, Operation};
