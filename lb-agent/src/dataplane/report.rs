use std::{fmt, net::IpAddr};

use super::MapError;
use crate::model::{ChangeTrigger, Conflict, ServicePortName};

/// Why a part of the desired state is not in the maps yet.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A table has no room. Nothing was changed; the service port is as it was before.
    #[error("table {table} is full")]
    Full {
        /// Name of the table.
        table: &'static str,
    },
    /// A table has no room for a list of clients beside what is in force. Who may use the service port's frontends stays
    /// as it was; its endpoints are what they should be.
    #[error(
        "table {table} is full: a new list of {clients} networks of clients is entered beside what is in force, and there \
         is room for {room}"
    )]
    NoRoomBeside {
        /// Name of the table.
        table: &'static str,
        /// How many networks the list has.
        clients: usize,
        /// How many there is room for.
        room: usize,
    },
    /// A map could not be written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A part of the service port's name is longer than Kubernetes allows.
    #[error("a label of its name is longer than {} bytes", lb_common::abi::MAX_LABEL)]
    NameTooLong,
}

impl ApplyError {
    /// Whether it takes room, not another attempt, to get on.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } | Self::NoRoomBeside { .. } => true,
            Self::Map(error) => error.is_full(),
            Self::NameTooLong => false,
        }
    }

    /// Whether the endpoints of the service port are what they should be all the same.
    pub fn concerns_clients_only(&self) -> bool {
        matches!(self, Self::NoRoomBeside { .. })
    }

    /// Whether the IPv4 tables are behind by it.
    pub fn concerns_v4(&self) -> bool {
        self.table().is_none_or(|table| !table.ends_with('6'))
    }

    /// Whether the IPv6 tables are behind by it.
    pub fn concerns_v6(&self) -> bool {
        self.table().is_none_or(|table| !table.ends_with('4'))
    }

    /// The table that is full or could not be written.
    pub fn table(&self) -> Option<&'static str> {
        match self {
            Self::Full { table } | Self::NoRoomBeside { table, .. } => Some(table),
            Self::Map(error) => Some(error.map),
            Self::NameTooLong => None,
        }
    }
}

/// Something that failed and will be tried again.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", service_port.as_ref().map_or_else(|| "clean-up and node".to_owned(), ToString::to_string))]
pub struct Failure {
    /// The service port that keeps its last good state for now; `None` for removals of what is no longer wanted and
    /// for the node's own data.
    pub service_port: Option<ServicePortName>,
    /// Why.
    pub error: ApplyError,
}

/// What became of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new in the maps.
    Added,
    /// It was there and is different now.
    Updated,
    /// It is gone.
    Removed,
}

/// A service port whose entries changed, for one line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortChange {
    /// The service port.
    pub name: ServicePortName,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// What became of it.
    pub kind: ChangeKind,
    /// How many frontends it has now.
    pub frontends: usize,
    /// How many endpoints traffic to the cluster uses now.
    pub cluster: usize,
    /// How many endpoints traffic to this node uses now.
    pub local: usize,
}

impl fmt::Display for PortChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, family, kind, frontends, cluster, local } = self;
        match kind {
            ChangeKind::Removed => return write!(f, "{name} {family} removed"),
            ChangeKind::Added => write!(f, "{name} {family} added")?,
            ChangeKind::Updated => write!(f, "{name} {family} updated")?,
        }
        write!(f, ": {frontends} frontends, {cluster} endpoints, {local} on this node")
    }
}

/// What programs know of the node itself since now, or no longer, for one line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// An address of the node.
    Address {
        /// Itself.
        address: IpAddr,
        /// Whether node ports answer at it; `None` where the node has it no more.
        node_ports: Option<bool>,
    },
    /// A network that cluster IPs are given out from.
    ServiceCidr {
        /// Address and length of the prefix.
        network: String,
        /// Whether it is one now.
        present: bool,
    },
}

/// What a synchronization did.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Service ports whose entries changed.
    pub changes: Vec<PortChange>,
    /// What is different of the node's own addresses and of the networks of cluster IPs.
    pub node_changes: Vec<NodeChange>,
    /// What failed; it is tried again by itself.
    pub failures: Vec<Failure>,
    /// Frontends that two service ports claim, each reported once.
    pub conflicts: Vec<Conflict>,
    /// What made the endpoints change that are in the maps now.
    pub programmed: Vec<ChangeTrigger>,
    /// Whether [`Controller::health_checks`](crate::controller::Controller::health_checks) says something else now.
    pub health_checks_changed: bool,
    /// Map elements written and removed.
    pub writes: u64,
}

impl SyncReport {
    /// Adds errors that belong to no service port.
    pub(crate) fn add_errors(&mut self, errors: impl IntoIterator<Item = MapError>) {
        let failure = |error| Failure { service_port: None, error: ApplyError::Map(error) };
        self.failures.extend(errors.into_iter().map(failure));
    }
}
