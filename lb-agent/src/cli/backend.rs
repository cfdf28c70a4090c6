use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use clap::Args;
use lb_agent::{
    dataplane::{FamilyMaps, KernelMaps, Loads},
    loader::Pins,
    model::Family,
};
use lb_common::abi::{BackendFlags, Load, LoadKey, ServiceFlags};
use serde::Serialize;

use super::{
    filter::{EndPattern, ServiceFilter},
    output::{Column, List, ListOutputArguments},
    view::View,
};

/// Which backends.
#[derive(Debug, Args)]
pub(super) struct BackendFilter {
    #[command(flatten)]
    service: ServiceFilter,
    /// This one: ADDRESS, ADDRESS:PORT or NETWORK/BITS.
    #[arg(short, long, value_name = "BACKEND")]
    backend: Option<EndPattern>,
}

/// One endpoint address and port of one service port.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Backend {
    /// Index in the table.
    index: u32,
    /// `IPv4` or `IPv6`.
    family: &'static str,
    address: IpAddr,
    port: u16,
    /// Changes whenever the index is taken for another endpoint or service port.
    generation: u32,
    /// On this node.
    local: bool,
    /// New flows may get it; `false` while it is terminating.
    selectable: bool,
    /// Its flows by this node, where new ones are balanced by that: as counted last, and those begun since.
    flows: Option<u64>,
    /// `namespace/name:port/PROTOCOL` of the service port that it belongs to.
    service: String,
}

const COLUMNS: &[Column<Backend>] = &[
    Column::new("BACKEND", |backend| SocketAddr::new(backend.address, backend.port).to_string()),
    Column::new("SERVICE", |backend| backend.service.clone()),
    Column::new("LOCAL", |backend| backend.local.to_string()),
    Column::new("SELECTABLE", |backend| backend.selectable.to_string()),
    Column::wide("FLOWS", |backend| backend.flows.map_or_else(|| "-".to_owned(), |flows| flows.to_string())),
    Column::wide("INDEX", |backend| backend.index.to_string()),
    Column::wide("GENERATION", |backend| backend.generation.to_string()),
];

pub(super) fn list(pins: &Pins, filter: &BackendFilter, output: &ListOutputArguments) -> Result<()> {
    output.list("BackendList", COLUMNS, |list| {
        of_family::<[u8; 4]>(pins, filter, list)?;
        of_family::<[u8; 16]>(pins, filter, list)
    })
}

fn of_family<A: Family>(pins: &Pins, filter: &BackendFilter, list: &mut List<Backend>) -> Result<()>
where
    KernelMaps: FamilyMaps<A>,
{
    let BackendFilter { service, backend: end } = filter;
    if !service.family.includes::<A>() {
        return Ok(());
    }
    let view = View::<A>::read(pins)?;
    let wanted = service.services(&view);
    let loads: HashMap<LoadKey, Load> = Loads::open::<A>(|map| pins.open(map))?.read()?.into_iter().collect();
    let flows = |backend: u32, generation, service| {
        let (_, service) = view.services.get(&service)?;
        let load = loads.get(&LoadKey { backend, generation });
        (service.flags & ServiceFlags::LEAST_CONN != 0).then(|| load.map_or(0, |load| load.flows))
    };
    let is_wanted = |backend: &lb_common::abi::Backend<A>| {
        let address = SocketAddr::new(backend.address.to_ip(), backend.port);
        wanted.contains(backend.service) && end.is_none_or(|end| end.matches(address))
    };
    view.backends.iter().filter(|(_, backend)| is_wanted(backend)).try_for_each(|(index, backend)| {
        list.push(&Backend {
            index: *index,
            family: A::NAME,
            address: backend.address.to_ip(),
            port: backend.port,
            generation: backend.generation,
            local: backend.flags & BackendFlags::LOCAL != 0,
            selectable: backend.flags & BackendFlags::SELECTABLE != 0,
            flows: flows(*index, backend.generation, backend.service),
            service: view.service(backend.service),
        })
    })
}
