use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Result, bail};
use clap::Args;
use lb_agent::{
    dataplane::{ClientList, FamilyMaps, KernelMaps, ServiceCounters},
    loader::Pins,
    model::Family,
};
use lb_common::abi::{BackendFlags, ServiceFlags};
use serde::Serialize;

use super::{
    super::{
        filter::{FamilyFilter, ServicePattern},
        output::{OutputArguments, table},
        view::View,
    },
    Port, frontends,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowService {
    /// [NAMESPACE/]NAME[:PORT], PORT being the port's name; or as a table shows it.
    service: ServicePattern,
    #[command(flatten)]
    family: FamilyFilter,
}

/// All that the maps hold of one port of a Service in one IP family.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceDetail {
    #[serde(flatten)]
    port: Port,
    /// Clients that may use the restricted frontends, as networks.
    source_ranges: Vec<String>,
    /// Some usable endpoint exists somewhere: where a list is empty, packets are then dropped, and else refused.
    has_endpoints: bool,
    endpoints: Vec<Endpoint>,
}

/// One endpoint address and port.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the document")]
struct Endpoint {
    /// `address:port`.
    address: SocketAddr,
    /// On this node.
    local: bool,
    /// New flows may get it; `false` while it is terminating.
    selectable: bool,
    /// Traffic to the cluster uses it.
    cluster_list: bool,
    /// Traffic to this node uses it.
    local_list: bool,
    /// Index in the table of backends.
    index: u32,
    generation: u32,
}

/// What `service show` prints for programs.
#[derive(Debug, Serialize)]
struct Details {
    items: Vec<ServiceDetail>,
}

pub(in crate::cli) fn show(pins: &Pins, asked: &ShowService, output: &OutputArguments) -> Result<()> {
    let mut items = of_family::<[u8; 4]>(pins, asked)?;
    items.extend(of_family::<[u8; 16]>(pins, asked)?);
    if items.is_empty() {
        bail!("no such Service is in the maps; `lb-agent service list` shows those that are");
    }
    items.sort_by(|a, b| a.port.order().cmp(&b.port.order()));
    let details = Details { items };
    output.print("ServiceDetailList", &details, || {
        details.items.iter().map(ServiceDetail::text).collect::<Vec<_>>().join("\n\n")
    })
}

fn of_family<A: Family>(pins: &Pins, asked: &ShowService) -> Result<Vec<ServiceDetail>>
where
    KernelMaps: FamilyMaps<A>,
{
    if !asked.family.includes::<A>() {
        return Ok(Vec::new());
    }
    let view = View::<A>::read(pins)?;
    let counters = ServiceCounters::open::<A>(|map| pins.open(map))?;
    let mut frontends = frontends(&view);
    let matching = view.services.iter().filter(|(_, (name, _))| asked.service.matches(name));
    matching
        .map(|(&index, (_, service))| {
            let own = frontends.extract_if(.., |(of, _)| *of == index).map(|(_, frontend)| frontend).collect();
            let port = Port::new(&view, &counters, index, own)?;
            // One, but in the moment of a change: each of its frontends names that of before or that of after.
            let named = view.existing.frontends.iter().filter(|(_, frontend)| frontend.service == index);
            let lists: BTreeSet<ClientList> = named.filter_map(|(_, frontend)| ClientList::of(*frontend)).collect();
            let ranges = view.existing.source_ranges.iter().filter(|(list, _)| lists.contains(list));
            let backends = view.backends.iter().filter(|(_, backend)| backend.service == index);
            let has = |flags: u16, flag| flags & flag != 0;
            let endpoints = backends.map(|(&index, backend)| Endpoint {
                address: SocketAddr::new(backend.address.to_ip(), backend.port),
                local: has(backend.flags, BackendFlags::LOCAL),
                selectable: has(backend.flags, BackendFlags::SELECTABLE),
                cluster_list: has(backend.flags, BackendFlags::IN_CLUSTER),
                local_list: has(backend.flags, BackendFlags::IN_LOCAL),
                index,
                generation: backend.generation,
            });
            Ok(ServiceDetail {
                port,
                source_ranges: ranges.map(|(_, clients)| clients.to_string()).collect(),
                has_endpoints: service.flags & ServiceFlags::HAS_ENDPOINTS != 0,
                endpoints: endpoints.collect(),
            })
        })
        .collect()
}

impl ServiceDetail {
    fn text(&self) -> String {
        let Self { port, source_ranges, has_endpoints, endpoints } = self;
        let Port { service, family, frontends, flows, packets, bytes, rejected, .. } = port;
        let ranges = if source_ranges.is_empty() { "any".to_owned() } else { source_ranges.join(",") };
        let fields = [
            ("Service:", format!("{service} {family}")),
            ("Affinity:", port.affinity("none")),
            ("Traffic:", format!("{flows} flows, {packets} packets, {bytes} bytes, {rejected} rejected")),
        ];
        let fields = fields.map(|(name, value)| format!("{name:<10}{value}")).join("\n");
        let frontends = frontends.iter().map(|frontend| {
            let clients = if frontend.restricted { &ranges } else { "any" };
            vec![frontend.text(), frontend.kind().to_owned(), frontend.policy().to_owned(), clients.to_owned()]
        });
        let frontends = table(&["FRONTEND", "KIND", "POLICY", "CLIENTS"], frontends);
        if endpoints.is_empty() {
            let becomes = if *has_endpoints { "dropped: none is usable here" } else { "refused" };
            return format!("{fields}\n\n{frontends}\n\nNo endpoints: traffic is {becomes}.");
        }
        let endpoints = endpoints.iter().map(|endpoint| {
            let Endpoint { address, local, selectable, cluster_list, local_list, index: _, generation: _ } = endpoint;
            let lists = match (cluster_list, local_list) {
                (true, true) => "cluster,local",
                (true, false) => "cluster",
                (false, true) => "local",
                (false, false) => "-",
            };
            vec![address.to_string(), local.to_string(), selectable.to_string(), lists.to_owned()]
        });
        let endpoints = table(&["ENDPOINT", "ON THIS NODE", "SELECTABLE", "USED FOR"], endpoints);
        format!("{fields}\n\n{frontends}\n\n{endpoints}")
    }
}
