//! From desired state to map entries: allocation of indices, difference, and the maps themselves.

mod maps;

pub use maps::{Capacities, DataplaneMaps, Existing, FamilyMaps, MapError, Operation};
