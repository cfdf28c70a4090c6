//! From desired state to map entries: allocation of indices, difference, and the maps themselves.

mod audit;
mod backends;
mod check;
mod client_lists;
mod fake;
mod faulty;
pub mod kernel;
mod maps;
mod ranges;
mod reconciler;
mod recount;
mod report;
mod scrape;
mod seen;
mod table;
mod tracker;

pub use audit::{AuditFailure, AuditReport, Drift, Pass, Repair, audited_maps};
pub use check::{Violation, check};
pub use fake::{Fake, HasTables, Observer, Tables};
pub use faulty::Faulty;
pub use kernel::KernelMaps;
pub use maps::{
    Capacities, ClientList, DataplaneMaps, Existing, FamilyMaps, MapError, Operation, Page, Prefixes, SourcePrefix,
};
pub use reconciler::{AdoptedEndpoint, AdoptedPort, Reconciler, Tuning};
pub use recount::{Recount, RecountError, Recounter};
pub use report::{ApplyError, ChangeKind, Failure, NodeChange, PortChange, SyncReport};
pub use scrape::{Scrape, Scraper, ServiceTraffic, TableFill};
pub use seen::{Affinities, Counters, Flows, Loads, ServiceCounters};
pub(crate) use table::HashTable;
