use std::net::IpAddr;

use anyhow::Result;
use lb_agent::{
    dataplane::{FamilyMaps, KernelMaps, ServiceCounters},
    loader::Pins,
    model::Family,
};
use lb_common::abi::{FrontendFlags, FrontendKey};
use serde::Serialize;

use super::{
    output::OutputArguments,
    view::{View, protocol},
};

/// One port of a Service in one IP family.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    /// Index in the table.
    index: u32,
    /// `namespace/name:port/PROTOCOL`, or `<service N?>` where a frontend names a service that is not there.
    #[serde(rename = "service")]
    label: String,
    namespace: String,
    name: String,
    /// Empty where the port has no name.
    port_name: String,
    protocol: String,
    /// `IPv4` or `IPv6`.
    family: &'static str,
    frontends: Vec<Frontend>,
    /// Endpoints that traffic to the cluster uses: `address:port`, or `<backend N?>`.
    endpoints: Vec<String>,
    /// Endpoints that traffic to this node uses.
    local_endpoints: Vec<String>,
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

#[derive(Debug, Serialize)]
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
}

pub(super) fn list(pins: &Pins, output: &OutputArguments) -> Result<()> {
    let mut services = of_family::<[u8; 4]>(pins)?;
    services.extend(of_family::<[u8; 16]>(pins)?);
    services.sort_by(|a, b| (&a.label, a.family).cmp(&(&b.label, b.family)));
    let header = ["SERVICE", "FAMILY", "FRONTENDS", "ENDPOINTS", "LOCAL", "FLOWS", "PACKETS", "BYTES", "REJECTED"];
    output.list(&services, &header, |service| {
        vec![
            service.label.clone(),
            service.family.to_owned(),
            service.frontends.iter().map(Frontend::text).collect::<Vec<_>>().join(","),
            service.endpoints.len().to_string(),
            service.local_endpoints.len().to_string(),
            service.flows.to_string(),
            service.packets.to_string(),
            service.bytes.to_string(),
            service.rejected.to_string(),
        ]
    })
}

fn of_family<A: Family>(pins: &Pins) -> Result<Vec<Service>>
where
    KernelMaps: FamilyMaps<A>,
{
    let view = View::<A>::read(pins)?;
    let counters = ServiceCounters::open::<A>(|map| pins.open(map))?;
    let named = view.services.keys().copied();
    let used = view.existing.frontends.iter().map(|(_, frontend)| frontend.service);
    let indices: std::collections::BTreeSet<u32> = named.chain(used).collect();
    let mut frontends = view.existing.frontends.clone();
    // That a cluster IP is one has an entry of its own, which nobody connects to.
    frontends.retain(|(_, frontend)| frontend.flags & FrontendFlags::CLUSTER_IP == 0);
    // Node ports, whose address is unspecified, last.
    frontends.sort_by_key(|(key, _)| (key.address == A::UNSPECIFIED, *key));
    indices
        .into_iter()
        .map(|index| {
            let stats = counters.read(index)?;
            let (name, value) = view.services.get(&index).copied().unzip();
            let parts = name.as_ref().map(lb_common::abi::ServiceName::parts);
            let (namespace, service, port_name) = parts.unwrap_or_default();
            let value = value.unwrap_or_default();
            let endpoints = |range| view.backends_in(range).map(|index| view.backend(index, None)).collect();
            let own = frontends.iter().filter(|(_, frontend)| frontend.service == index);
            Ok(Service {
                index,
                label: view.service(index),
                namespace: namespace.to_owned(),
                name: service.to_owned(),
                port_name: port_name.to_owned(),
                protocol: name.map(|name| protocol(name.protocol)).unwrap_or_default(),
                family: A::NAME,
                frontends: own.map(|(key, frontend)| Frontend::new(key, frontend.flags)).collect(),
                endpoints: endpoints(value.cluster),
                local_endpoints: endpoints(value.local),
                affinity_seconds: value.affinity_seconds,
                flows: stats.flows,
                packets: stats.packets,
                bytes: stats.bytes,
                rejected: stats.rejected,
            })
        })
        .collect()
}

impl Frontend {
    fn new<A: Family>(key: &FrontendKey<A>, flags: u16) -> Self {
        Self {
            address: (key.address != A::UNSPECIFIED).then(|| key.address.to_ip()),
            port: key.port,
            protocol: protocol(key.protocol),
            local: flags & FrontendFlags::LOCAL != 0,
            external: flags & FrontendFlags::EXTERNAL != 0,
        }
    }

    fn text(&self) -> String {
        match self.address {
            Some(address) => std::net::SocketAddr::new(address, self.port).to_string(),
            None => format!("*:{}", self.port),
        }
    }
}
