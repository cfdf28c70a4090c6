//! Where objects come from: the Kubernetes API or a directory of manifests, both reduced to [`crate::model`]'s types
//! and told to one channel.
//!
//! A source never gives up by itself: what breaks is told as a [`WatchState`], the last good state stays in force,
//! and the source recovers when its origin does. It ends when the receiving end of the channel is dropped.

mod address;
mod reduce;

pub mod kubernetes;
pub mod manifests;

use std::{fmt, path::PathBuf};

pub use address::{parse_cidr_sloppy, parse_ip_sloppy};
pub use reduce::{Problem, Reduce, Reduced, reduce, reduce_json};

use crate::model::{ObjectKind, Rejection, SourceEvent};

/// How many messages a source's channel should hold: enough that a burst of changes does not stop the source, little
/// enough that it is back-pressure for a model that is busy.
pub const CHANNEL_CAPACITY: usize = 1024;

/// One message of a source. Messages of one source are in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceMessage {
    /// Objects changed.
    Event(SourceEvent),
    /// An object or a part of one was not taken. Sent before the event of the same object, if there is one.
    Rejected(Rejection),
    /// Something that is watched broke or works again.
    State(WatchState),
}

/// Whether something that is watched works. The first state of each watch is sent when it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchState {
    /// What is watched.
    pub watch: Watch,
    /// What is wrong with it, for people; `None` where it works.
    pub problem: Option<String>,
}

/// Something that a source watches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Watch {
    /// One kind of object at the Kubernetes API.
    Api(ObjectKind),
    /// The directory of manifests.
    Directory(PathBuf),
    /// One file of it. Its problems are those that have no object: it cannot be read, or a document is not YAML.
    File(PathBuf),
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(kind) => write!(f, "watch of {}s", kind.name()),
            Self::Directory(path) => write!(f, "directory {}", path.display()),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}
