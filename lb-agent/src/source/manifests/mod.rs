//! A directory of manifests as a source: Services, `EndpointSlice`s and Nodes in `.yaml`, `.yml` and `.json` files,
//! followed as they change.
//!
//! ```text
//! inotify ──> directory (which files to read, when) ──> document (a file's objects) ──> store (what changed) ──> channel
//! ```
//!
//! Subdirectories and files whose names begin with a dot are not read. Objects of other kinds are ignored,
//! unless their kind or version can only be a mistake.

mod defaults;
mod directory;
mod document;
mod file;
mod kinds;
mod refuse;
mod slips;
mod store;

#[cfg(test)]
mod tests;

pub use directory::{ManifestsError, spawn};
