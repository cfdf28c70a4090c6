use std::collections::HashMap;

use anyhow::Result;
use lb_agent::{
    dataplane::{FamilyMaps, KernelMaps, ServiceCounters},
    loader::Pins,
    model::Family,
};
use serde::Serialize;

use super::{
    super::{
        filter::ServiceFilter,
        output::{Column, ListOutputArguments},
        view::{View, protocol},
    },
    Frontend, frontends,
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

const COLUMNS: &[Column<Service>] = &[
    Column::new("SERVICE", |service| service.label.clone()),
    Column::new("FAMILY", |service| service.family.to_owned()),
    Column::new("FRONTENDS", |service| service.frontends.iter().map(Frontend::text).collect::<Vec<_>>().join(",")),
    Column::new("ENDPOINTS", |service| service.endpoints.len().to_string()),
    Column::new("LOCAL", |service| service.local_endpoints.len().to_string()),
    Column::new("FLOWS", |service| service.flows.to_string()),
    Column::new("REJECTED", |service| service.rejected.to_string()),
    Column::wide("PACKETS", |service| service.packets.to_string()),
    Column::wide("BYTES", |service| service.bytes.to_string()),
    Column::wide("AFFINITY", |service| match service.affinity_seconds {
        0 => "-".to_owned(),
        seconds => format!("{seconds}s"),
    }),
    Column::wide("ADDRESSES", |service| service.endpoints.join(",")),
];

pub(in crate::cli) fn list(pins: &Pins, filter: &ServiceFilter, output: &ListOutputArguments) -> Result<()> {
    let mut services = of_family::<[u8; 4]>(pins, filter)?;
    services.extend(of_family::<[u8; 16]>(pins, filter)?);
    services.sort_by(|a, b| (&a.label, a.family).cmp(&(&b.label, b.family)));
    output.list("ServiceList", COLUMNS, |list| services.iter().try_for_each(|service| list.push(service)))
}

fn of_family<A: Family>(pins: &Pins, filter: &ServiceFilter) -> Result<Vec<Service>>
where
    KernelMaps: FamilyMaps<A>,
{
    if !filter.family.includes::<A>() {
        return Ok(Vec::new());
    }
    let view = View::<A>::read(pins)?;
    let counters = ServiceCounters::open::<A>(|map| pins.open(map))?;
    let mut of_service: HashMap<u32, Vec<Frontend>> = HashMap::new();
    for (service, frontend) in frontends(&view) {
        of_service.entry(service).or_default().push(frontend);
    }
    let wanted = filter.services(&view);
    let named = view.services.keys().copied();
    let indices: std::collections::BTreeSet<u32> = named.chain(of_service.keys().copied()).collect();
    indices
        .into_iter()
        .filter(|index| wanted.contains(*index))
        .map(|index| {
            let stats = counters.read(index)?;
            let (name, value) = view.services.get(&index).copied().unzip();
            let parts = name.as_ref().map(lb_common::abi::ServiceName::parts);
            let (namespace, service, port_name) = parts.unwrap_or_default();
            let value = value.unwrap_or_default();
            let endpoints = |range| view.backends_in(range).map(|index| view.backend(index, None)).collect();
            Ok(Service {
                index,
                label: view.service(index),
                namespace: namespace.to_owned(),
                name: service.to_owned(),
                port_name: port_name.to_owned(),
                protocol: name.map(|name| protocol(name.protocol)).unwrap_or_default(),
                family: A::NAME,
                frontends: of_service.remove(&index).unwrap_or_default(),
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
