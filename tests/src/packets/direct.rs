//! What the agent does not write yet, written from the tables without it: marks of backends, source ranges, cluster IPs
//! by themselves, networks. Each part goes when the agent's model has it.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use lb_agent::{
    dataplane::{DataplaneMaps as _, Existing, FamilyMaps, KernelMaps},
    model::{Cidr, Family},
};
use lb_common::{
    abi::{Backend, BackendFlags, Config, Frontend, FrontendFlags, FrontendKey, Prefix},
    hash,
};

use super::{Dataplane, Tables, tables::Network};

impl Dataplane {
    /// Brings the maps from what the agent writes to what the tables say.
    pub(super) fn complete(&mut self, tables: &Tables) -> Result<()> {
        mark_backends::<[u8; 4]>(&mut self.maps)?;
        mark_backends::<[u8; 16]>(&mut self.maps)?;
        restrict::<[u8; 4]>(&mut self.maps, tables)?;
        restrict::<[u8; 16]>(&mut self.maps, tables)?;
        enter_cluster_ips::<[u8; 4]>(&mut self.maps, tables)?;
        enter_cluster_ips::<[u8; 16]>(&mut self.maps, tables)?;
        let config = Config {
            flags: tables.detect_local,
            cluster_ips4: prefix(&tables.cluster_ips),
            cluster_ips6: prefix(&tables.cluster_ips),
            pods4: prefix(&tables.pods),
            pods6: prefix(&tables.pods),
            ..self.maps.config()?
        };
        Ok(self.maps.set_config(&config)?)
    }
}

/// The first network of a family.
fn prefix<A: Family>(networks: &[Network]) -> Prefix<A> {
    let cidr = networks.iter().find_map(Network::cidr::<A>);
    cidr.map_or(Prefix::NOTHING, |cidr| Prefix::new(cidr.address, cidr.bits))
}

/// Tells each backend which lists of its service it is in.
fn mark_backends<A: Family>(maps: &mut KernelMaps) -> Result<()>
where
    KernelMaps: FamilyMaps<A>,
{
    let Existing { services, slots, backends, .. } = FamilyMaps::<A>::existing(maps)?;
    for (index, backend) in backends {
        let (_, _, service) =
            services.iter().find(|(service, ..)| *service == backend.service).context("a backend of no service")?;
        let is_in = |range: lb_common::abi::SlotRange| {
            slots
                .iter()
                .any(|(slot, backend)| (range.first..range.first + range.count).contains(slot) && *backend == index)
        };
        let mut flags = backend.flags & !(BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL);
        if is_in(service.cluster) {
            flags |= BackendFlags::IN_CLUSTER;
        }
        if is_in(service.local) {
            flags |= BackendFlags::IN_LOCAL;
        }
        maps.set_backend(index, Backend { flags, ..backend })?;
    }
    Ok(())
}

/// Enters the source ranges of each Service that has some, and marks its load balancers' addresses.
fn restrict<A: Family>(maps: &mut KernelMaps, tables: &Tables) -> Result<()>
where
    KernelMaps: FamilyMaps<A>,
    FrontendKey<A>: Copy,
{
    let Existing { frontends, source_ranges, .. } = FamilyMaps::<A>::existing(maps)?;
    for (service, clients) in source_ranges {
        maps.remove_source_range(service, clients)?;
    }
    for (key, value) in frontends {
        let address = key.address.to_ip();
        let owner = tables.services.iter().find(|test| {
            let port = &test.service.ports[0];
            test.service.load_balancer_ips.contains(&address)
                && (port.port, port.protocol as u8) == (key.port, key.protocol)
        });
        let ranges: Vec<Cidr<A>> =
            owner.iter().flat_map(|test| &test.source_ranges).filter_map(Network::cidr::<A>).collect();
        for clients in &ranges {
            maps.set_source_range(value.service, *clients)?;
        }
        let mark = if ranges.is_empty() { 0 } else { FrontendFlags::SOURCE_RANGES };
        maps.set_frontend(&key, Frontend { flags: value.flags & !FrontendFlags::SOURCE_RANGES | mark, ..value })?;
    }
    Ok(())
}

/// Enters cluster IPs without a port, and the networks that they are from.
fn enter_cluster_ips<A: Family>(maps: &mut KernelMaps, tables: &Tables) -> Result<()>
where
    KernelMaps: FamilyMaps<A>,
    FrontendKey<A>: Copy,
{
    let Existing { frontends, service_cidrs, .. } = FamilyMaps::<A>::existing(maps)?;
    for cidr in service_cidrs {
        maps.remove_service_cidr(cidr)?;
    }
    for cidr in tables.service_cidrs.iter().filter_map(Network::cidr::<A>) {
        maps.set_service_cidr(cidr)?;
    }
    let cluster_ips: HashSet<A> = tables
        .services
        .iter()
        .flat_map(|test| &test.service.cluster_ips)
        .filter_map(|address| A::from_ip(*address))
        .collect();
    let (former, frontends): (Vec<_>, Vec<_>) = frontends.into_iter().partition(|(key, _)| key.port == 0);
    for (key, _) in former {
        maps.remove_frontend(&key)?;
    }
    for (key, value) in frontends {
        if cluster_ips.contains(&key.address) {
            let bare = FrontendKey::new(key.address, 0, 0);
            let owner = hash::frontend_owner(&bare);
            maps.set_frontend(&bare, Frontend { service: value.service, owner, flags: FrontendFlags::CLUSTER_IP })?;
        }
    }
    Ok(())
}
