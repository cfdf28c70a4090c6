use std::collections::{BTreeSet, HashMap};

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
        view::View,
    },
    Frontend, Port, frontends,
};

/// One port of a Service in one IP family.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Service {
    #[serde(flatten)]
    port: Port,
    /// Endpoints that traffic to the cluster uses: `address:port`, or `<backend N?>`.
    endpoints: Vec<String>,
    /// Endpoints that traffic to this node uses.
    local_endpoints: Vec<String>,
}

const COLUMNS: &[Column<Service>] = &[
    Column::new("SERVICE", |service| service.port.service.clone()),
    Column::new("FAMILY", |service| service.port.family.to_owned()),
    Column::new("FRONTENDS", |service| Frontend::texts(&service.port.frontends)),
    Column::new("ENDPOINTS", |service| service.endpoints.len().to_string()),
    Column::new("LOCAL", |service| service.local_endpoints.len().to_string()),
    Column::new("FLOWS", |service| service.port.flows.to_string()),
    Column::new("REJECTED", |service| service.port.rejected.to_string()),
    Column::wide("PACKETS", |service| service.port.packets.to_string()),
    Column::wide("BYTES", |service| service.port.bytes.to_string()),
    Column::wide("AFFINITY", |service| service.port.affinity("-")),
    Column::wide("ADDRESSES", |service| service.endpoints.join(",")),
];

pub(in crate::cli) fn list(pins: &Pins, filter: &ServiceFilter, output: &ListOutputArguments) -> Result<()> {
    let mut services = of_family::<[u8; 4]>(pins, filter)?;
    services.extend(of_family::<[u8; 16]>(pins, filter)?);
    services.sort_by(|a, b| a.port.order().cmp(&b.port.order()));
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
    let indices: BTreeSet<u32> = named.chain(of_service.keys().copied()).collect();
    indices
        .into_iter()
        .filter(|index| wanted.contains(*index))
        .map(|index| {
            let port = Port::new(&view, &counters, index, of_service.remove(&index).unwrap_or_default())?;
            let (_, value) = view.services.get(&index).copied().unzip();
            let value = value.unwrap_or_default();
            let endpoints = |range| view.backends_in(range).map(|index| view.backend(index, None)).collect();
            Ok(Service { port, endpoints: endpoints(value.cluster), local_endpoints: endpoints(value.local) })
        })
        .collect()
}
