//! Which devices the node has, what each is to the data plane, and which addresses are the node's own; followed live.
//!
//! ```text
//! rtnetlink (dump, then events) ──> tables (links, addresses, routes) ──> Network ──> watch channel
//! ```
//!
//! Links and addresses follow their events one by one, so that a pod's interface is known the moment it exists. Routes
//! are read again when one with a gateway changes: events do not tell all that a replaced route takes away.

mod follow;
mod messages;
mod tables;
mod way;

#[cfg(test)]
mod tables_tests;

pub(crate) use follow::local_ports;
pub use follow::{NetworkError, Options, Watcher};
pub use way::{device_towards, link_layer_address};

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    loader::{Device, Obstacle},
    model::NodeNetwork,
};

/// What the loader and the reconciler must know of the node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Devices with a way out of the node.
    pub uplinks: BTreeSet<Device>,
    /// Indices of those that are no place for XDP, and why.
    pub obstacles: BTreeMap<u32, Obstacle>,
    /// The node's ends of pods' interfaces.
    pub pods: BTreeSet<Device>,
    /// Names of uplinks that the operator gave and that are not there.
    pub missing: BTreeSet<String>,
    /// Addresses and ports.
    pub node: NodeNetwork,
    /// The node's `InternalIP`s that all this follows from; `None` while they were not known.
    pub internal: Option<Vec<IpAddr>>,
}
