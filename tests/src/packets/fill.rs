//! Fills the maps until the agent's own reconciler does.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Result;
use aya::Pod;
use lb_agent::{
    dataplane::{DataplaneMaps as _, FamilyMaps, KernelMaps},
    model::objects::TrafficPolicy,
};
use lb_common::{
    abi::{
        ABI_VERSION, Backend, BackendFlags, Config, Frontend, FrontendFlags, FrontendKey, NODE_PORT_LOOPBACK,
        PortRange, Service, ServiceFlags, SlotRange, Tuple, Flow,
    },
    hash,
};

use super::{Interface, Net, Tables, World, dataplane::MapAddress, tables::THIS_NODE};

pub(super) fn fill(kernel: &mut KernelMaps, tables: &Tables, world: World) -> Result<()> {
    let mut snat_ports = [PortRange::default(); 4];
    snat_ports[0] = PortRange { first: Tables::FIRST_SNAT_PORT, count: tables.snat_ports };
    kernel.set_config(&Config {
        abi_version: ABI_VERSION,
        node_port_min: 30_000,
        node_port_max: 32_767,
        snat_ports,
        snat_port_count: tables.snat_ports.into(),
        ..Config::default()
    })?;
    family::<[u8; 4]>(kernel, tables, world, &Net::V4)?;
    family::<[u8; 16]>(kernel, tables, world, &Net::V6)
}

fn family<A: MapAddress>(kernel: &mut KernelMaps, tables: &Tables, world: World, net: &Net) -> Result<()>
where
    KernelMaps: FamilyMaps<A>,
    FrontendKey<A>: Pod + Ord,
    Backend<A>: Pod,
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    let mut frontends = BTreeMap::new();
    let mut services = Vec::new();
    let mut slots: Vec<u32> = Vec::new();
    let mut backends: Vec<Backend<A>> = vec![Backend::default()];
    for test in &tables.services {
        let port = &test.service.ports[0];
        let mut all = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for slice in &test.slices {
            let endpoint = &slice.endpoints[0];
            let Some(address) = A::of(endpoint.address) else { continue };
            let local = endpoint.node_name.as_deref() == Some(THIS_NODE);
            let index = backends.len() as u32;
            backends.push(Backend {
                generation: 0,
                address,
                port: slice.ports[0].port,
                flags: if local { BackendFlags::LOCAL } else { 0 },
            });
            let kind = usize::from(endpoint.terminating);
            all[kind].push(index);
            if local {
                all[2 + kind].push(index);
            }
        }
        let [ready, terminating, local_ready, local_terminating] = all;
        let any = !ready.is_empty() || !terminating.is_empty();
        let cluster = if ready.is_empty() { terminating } else { ready };
        let local = if local_ready.is_empty() { local_terminating } else { local_ready };
        let mut range = |list: &[u32]| {
            let first = slots.len() as u32;
            slots.extend(list);
            for index in list {
                backends[*index as usize].flags |= BackendFlags::SELECTABLE;
            }
            SlotRange { first, count: list.len() as u32 }
        };
        let uses_local = test.service.internal_policy == TrafficPolicy::Local
            || test.service.external_policy == TrafficPolicy::Local;
        let value = Service {
            cluster: range(&cluster),
            local: if uses_local { range(&local) } else { SlotRange::default() },
            flags: if any { ServiceFlags::HAS_ENDPOINTS } else { 0 },
            affinity_seconds: 0,
        };
        let service = services.len() as u32;
        services.push(value);
        let protocol = port.protocol as u8;
        let mut frontend = |address: A, port: u16, flags: u16| {
            let key = FrontendKey::new(address, port, protocol);
            let owner = hash::frontend_owner(&key);
            frontends.insert(key, Frontend { service, owner, flags });
        };
        let internal = if test.service.internal_policy == TrafficPolicy::Local { FrontendFlags::LOCAL } else { 0 };
        let external = FrontendFlags::EXTERNAL
            | if test.service.external_policy == TrafficPolicy::Local { FrontendFlags::LOCAL } else { 0 };
        for ip in &test.service.cluster_ips {
            if let Some(ip) = A::of(*ip) {
                frontend(ip, port.port, internal);
            }
        }
        for ip in test.service.load_balancer_ips.iter().chain(&test.service.external_ips) {
            if let Some(ip) = A::of(*ip) {
                frontend(ip, port.port, external);
            }
        }
        if let Some(node_port) = port.node_port {
            frontend(A::UNSPECIFIED, node_port, external | FrontendFlags::NODE_PORT);
        }
    }

    let existing = FamilyMaps::<A>::existing(kernel)?;
    for index in 1..64_u32 {
        let old = existing.backends.iter().find(|(at, _)| *at == index).map_or_else(Backend::default, |(_, old)| *old);
        let new = match backends.get(index as usize).copied() {
            Some(new) => {
                let same = old.generation != 0 && (old.address, old.port) == (new.address, new.port);
                Backend { generation: if same { old.generation } else { old.generation + 1 }, ..new }
            }
            None => Backend { flags: 0, ..old },
        };
        kernel.set_backend(index, new)?;
    }
    FamilyMaps::<A>::set_slots(kernel, 0, &slots)?;
    for (index, service) in services.iter().enumerate() {
        FamilyMaps::<A>::set_service(kernel, index as u32, *service)?;
    }
    for (key, _) in existing.frontends {
        if !frontends.contains_key(&key) {
            kernel.remove_frontend(&key)?;
        }
    }
    for (key, value) in &frontends {
        kernel.set_frontend(key, *value)?;
    }
    for (index, address) in [
        (0, net.node),
        (world.index(Interface::Uplink), net.node),
        (world.index(Interface::Narrow), net.narrow_node),
    ] {
        if tables.node_addresses {
            kernel.set_node_address(index, A::of(address).expect("family"))?;
        } else {
            FamilyMaps::<A>::remove_node_address(kernel, index)?;
        }
    }
    let loopback: IpAddr = net.loopback;
    for (address, flags) in [(net.node, 0), (net.narrow_node, 0), (loopback, NODE_PORT_LOOPBACK)] {
        kernel.set_node_port_address(A::of(address).expect("family"), flags)?;
    }
    Ok(())
}
