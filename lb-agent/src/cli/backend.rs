use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_agent::{
    dataplane::{FamilyMaps, KernelMaps},
    loader::Pins,
    model::Family,
};
use lb_common::abi::BackendFlags;
use serde::Serialize;

use super::{output::OutputArguments, view::View};

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
    /// `namespace/name:port/PROTOCOL` of the service port that it belongs to.
    service: String,
}

pub(super) fn list(pins: &Pins, output: &OutputArguments) -> Result<()> {
    let mut backends = of_family::<[u8; 4]>(pins)?;
    backends.extend(of_family::<[u8; 16]>(pins)?);
    let header = ["INDEX", "BACKEND", "GENERATION", "LOCAL", "SELECTABLE", "SERVICE"];
    output.list(&backends, &header, |backend| {
        vec![
            backend.index.to_string(),
            SocketAddr::new(backend.address, backend.port).to_string(),
            backend.generation.to_string(),
            backend.local.to_string(),
            backend.selectable.to_string(),
            backend.service.clone(),
        ]
    })
}

fn of_family<A: Family>(pins: &Pins) -> Result<Vec<Backend>>
where
    KernelMaps: FamilyMaps<A>,
{
    let view = View::<A>::read(pins)?;
    let backends = view.backends.iter().map(|(index, backend)| Backend {
        index: *index,
        family: A::NAME,
        address: backend.address.to_ip(),
        port: backend.port,
        generation: backend.generation,
        local: backend.flags & BackendFlags::LOCAL != 0,
        selectable: backend.flags & BackendFlags::SELECTABLE != 0,
        service: view.service(backend.service),
    });
    Ok(backends.collect())
}
