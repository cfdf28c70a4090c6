//! What the picture shows of a node, read from the agent's pinned maps: it is there while the agent is dead, too.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use aya::maps::PerCpuArray;
use lb_agent::{
    dataplane::{Existing, FamilyMaps, KernelMaps},
    loader::Pins,
};
use lb_common::abi::{Address, FrontendFlags, Protocol, Reason, maps::COUNTERS};
use lb_tests::lab::Node;

/// A port of a Service, as the maps of both families hold it.
#[derive(Default)]
pub(crate) struct ServicePort {
    /// Cluster IPs with the port.
    pub(crate) addresses: Vec<String>,
    /// Its node port.
    pub(crate) node_port: Option<u16>,
    /// Its backends.
    pub(crate) backends: Vec<SocketAddr>,
}

/// All that is read at one time.
pub(crate) struct Observation {
    /// By `namespace/name`, port name and protocol.
    pub(crate) services: BTreeMap<(String, String, &'static str), ServicePort>,
    /// How often each reason was given, on all CPUs; only reasons that were.
    pub(crate) verdicts: BTreeMap<Reason, u64>,
}

/// Reads the maps of a node.
pub(crate) fn observe(node: &Node) -> Result<Observation> {
    let pins = Pins::new(&node.bpffs());
    let maps = KernelMaps::open(|name| pins.open(name))?;
    let mut services = BTreeMap::new();
    add::<[u8; 4]>(&mut services, &maps.existing()?);
    add::<[u8; 16]>(&mut services, &maps.existing()?);
    Ok(Observation { services, verdicts: verdicts(&pins)? })
}

fn add<A: Address + Into<IpAddr>>(
    services: &mut BTreeMap<(String, String, &'static str), ServicePort>,
    existing: &Existing<A>,
) {
    let slots: BTreeMap<u32, u32> = existing.slots.iter().copied().collect();
    let backends: BTreeMap<u32, SocketAddr> = existing
        .backends
        .iter()
        .map(|(index, backend)| (*index, SocketAddr::new(backend.address.into(), backend.port)))
        .collect();
    for (index, name, service) in &existing.services {
        let (namespace, service_name, port) = name.parts();
        let protocol = match Protocol::from_number(name.protocol) {
            Some(Protocol::Tcp) => "TCP",
            Some(Protocol::Udp) => "UDP",
            None => "?",
        };
        let entry: &mut ServicePort =
            services.entry((format!("{namespace}/{service_name}"), port.to_owned(), protocol)).or_default();
        let own = existing.frontends.iter().filter(|(_, frontend)| frontend.service == *index);
        for (key, _) in own.filter(|(_, frontend)| frontend.flags & FrontendFlags::CLUSTER_IP == 0) {
            if key.address == A::UNSPECIFIED {
                entry.node_port = Some(key.port);
            } else {
                entry.addresses.push(SocketAddr::new(key.address.into(), key.port).to_string());
            }
        }
        let range = service.cluster.first..service.cluster.first + service.cluster.count;
        entry.backends.extend(range.filter_map(|slot| backends.get(slots.get(&slot)?)));
    }
}

fn verdicts(pins: &Pins) -> Result<BTreeMap<Reason, u64>> {
    let counters: PerCpuArray<_, u64> = pins.open(COUNTERS)?.try_into().context("COUNTERS")?;
    let mut verdicts = BTreeMap::new();
    for reason in Reason::ALL {
        let total: u64 = counters.get(&(*reason as u32), 0).context("COUNTERS")?.iter().sum();
        if total > 0 {
            verdicts.insert(*reason, total);
        }
    }
    Ok(verdicts)
}
