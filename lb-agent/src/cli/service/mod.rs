//! Service ports, in a line each or one by one.

mod list;
mod show;

pub(super) use list::list;
pub(super) use show::{ShowService, show};

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_agent::{dataplane::ServiceCounters, model::Family};
use lb_common::abi::{FrontendFlags, FrontendKey, ProtocolNumber, ServiceName};
use serde::Serialize;

use super::view::View;

/// What both tell of one port of a Service in one IP family.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the name that users of -o json see, beside the Service's own")]
struct Port {
    /// Index in the table.
    index: u32,
    /// `namespace/name:port/PROTOCOL`, or `<service N?>` where a frontend names a service that is not there.
    service: String,
    namespace: String,
    name: String,
    /// Empty where the port has no name.
    port_name: String,
    protocol: String,
    /// `IPv4` or `IPv6`.
    family: &'static str,
    frontends: Vec<Frontend>,
    /// 0 = none.
    affinity_seconds: u32,
    /// Flows that were given an endpoint.
    flows: u64,
    /// Packets translated on the packet path.
    packets: u64,
    /// Bytes of those packets, from the IP header on.
    bytes: u64,
    /// Flows refused or dropped.
    rejected: u64,
}

impl Port {
    fn new<A: Family>(
        view: &View<A>,
        counters: &ServiceCounters,
        index: u32,
        frontends: Vec<Frontend>,
    ) -> Result<Self> {
        let stats = counters.read(index)?;
        let (name, value) = view.services.get(&index).copied().unzip();
        let (namespace, service, port_name) = name.as_ref().map(ServiceName::parts).unwrap_or_default();
        Ok(Self {
            index,
            service: view.service(index),
            namespace: namespace.to_owned(),
            name: service.to_owned(),
            port_name: port_name.to_owned(),
            protocol: name.map(|name| ProtocolNumber(name.protocol.into()).to_string()).unwrap_or_default(),
            family: A::NAME,
            frontends,
            affinity_seconds: value.unwrap_or_default().affinity_seconds,
            flows: stats.flows,
            packets: stats.packets,
            bytes: stats.bytes,
            rejected: stats.rejected,
        })
    }

    /// What lists are sorted by.
    fn order(&self) -> (&str, &str) {
        (&self.service, self.family)
    }

    /// For people; `none` where there is no affinity.
    fn affinity(&self, none: &str) -> String {
        match self.affinity_seconds {
            0 => none.to_owned(),
            seconds => format!("{seconds}s"),
        }
    }
}

/// What clients ask.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Frontend {
    /// `null` for a node port: any of the node's addresses.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    protocol: String,
    /// Traffic goes to the endpoints on this node.
    local: bool,
    /// Reachable from outside the cluster.
    external: bool,
    /// Only clients in the Service's source ranges may use it.
    pub(super) restricted: bool,
}

impl Frontend {
    pub(super) fn new<A: Family>(key: &FrontendKey<A>, flags: u8) -> Self {
        Self {
            address: (key.address != A::UNSPECIFIED).then(|| key.address.to_ip()),
            port: key.port,
            protocol: ProtocolNumber(key.protocol.into()).to_string(),
            local: flags & FrontendFlags::LOCAL != 0,
            external: flags & FrontendFlags::EXTERNAL != 0,
            restricted: flags & FrontendFlags::SOURCE_RANGES != 0,
        }
    }

    /// Those of a service, in one cell of a table.
    fn texts(frontends: &[Self]) -> String {
        frontends.iter().map(Self::text).collect::<Vec<_>>().join(",")
    }

    pub(super) fn text(&self) -> String {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).to_string(),
            None => format!("*:{}", self.port),
        }
    }

    /// For people.
    pub(super) fn kind(&self) -> &'static str {
        match (self.address, self.external) {
            (None, _) => "node port",
            (_, true) => "external",
            (_, false) => "internal",
        }
    }

    /// For people.
    pub(super) fn policy(&self) -> &'static str {
        if self.local { "local" } else { "cluster" }
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
