//! Service ports, in a line each or one by one.

mod list;
mod show;

pub(super) use list::list;
pub(super) use show::{ShowService, show};

use std::net::{IpAddr, SocketAddr};

use lb_agent::model::Family;
use lb_common::abi::{FrontendFlags, FrontendKey};
use serde::Serialize;

use super::view::{View, protocol};

/// What clients ask.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Frontend {
    /// `null` for a node port: any of the node's addresses.
    address: Option<IpAddr>,
    port: u16,
    protocol: String,
    /// Traffic goes to the endpoints on this node.
    local: bool,
    /// Reachable from outside the cluster.
    external: bool,
    /// Only clients in the Service's source ranges may use it.
    restricted: bool,
}

impl Frontend {
    fn new<A: Family>(key: &FrontendKey<A>, flags: u16) -> Self {
        Self {
            address: (key.address != A::UNSPECIFIED).then(|| key.address.to_ip()),
            port: key.port,
            protocol: protocol(key.protocol),
            local: flags & FrontendFlags::LOCAL != 0,
            external: flags & FrontendFlags::EXTERNAL != 0,
            restricted: flags & FrontendFlags::SOURCE_RANGES != 0,
        }
    }

    fn text(&self) -> String {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).to_string(),
            None => format!("*:{}", self.port),
        }
    }
}

/// The frontends of every service, each with its service: by address, node ports, whose address is unspecified, last.
fn frontends<A: Family>(view: &View<A>) -> Vec<(u32, Frontend)> {
    let mut frontends = view.existing.frontends.clone();
    // That a cluster IP is one has an entry of its own, which nobody connects to.
    frontends.retain(|(_, frontend)| frontend.flags & FrontendFlags::CLUSTER_IP == 0);
    frontends.sort_by_key(|(key, _)| (key.address == A::UNSPECIFIED, *key));
    frontends.iter().map(|(key, frontend)| (frontend.service, Frontend::new(key, frontend.flags))).collect()
}
