//! The Kubernetes API as a source: Services, `EndpointSlice`s, `ServiceCIDR`s and this node's own Node, each watched as
//! kube-proxy's informers watch them.
//!
//! ```text
//! kube's watcher ──> Arrived (reduced while it is parsed) ──> watch ──> channel
//! ```
//!
//! No whole object is ever kept: an object is reduced inside its deserialisation, so that even a page of a list is
//! already small.

mod arrived;
mod client;
mod requests;
mod watch;

#[cfg(test)]
mod tests;

pub use client::{ConnectError, connect};
pub use requests::{Observer, Requested};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{Api, Client, runtime::watcher};
use tokio::sync::mpsc;

use super::{
    SourceMessage,
    reduce::{HEADLESS_LABEL, PROXY_NAME_LABEL},
};

/// Watches until the receiving end of `sender` is dropped. `node` is the name of this node.
///
/// Each kind tells its first complete list as [`Replaced`](crate::model::SourceEvent::Replaced), and another one
/// whenever a watch was lost for so long that it had to start over. While the API server is away nothing is told but a
/// [`WatchState`](super::WatchState).
pub async fn run(client: Client, node: &str, sender: mpsc::Sender<SourceMessage>) {
    let services = watcher::Config::default().labels(&format!("!{PROXY_NAME_LABEL}")).fields("spec.clusterIP!=None");
    let slices = watcher::Config::default().labels(&format!("!{HEADLESS_LABEL}"));
    let own_node = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let watches = async {
        tokio::join!(
            Box::pin(watch::watch::<Service>(Api::all(client.clone()), services, &sender)),
            Box::pin(watch::watch::<EndpointSlice>(Api::all(client.clone()), slices, &sender)),
            Box::pin(watch::watch::<Node>(Api::all(client.clone()), own_node, &sender)),
            Box::pin(watch::watch::<ServiceCIDR>(Api::all(client), watcher::Config::default(), &sender)),
        )
    };
    tokio::select! {
        _ = watches => {}
        () = sender.closed() => {}
    }
}
