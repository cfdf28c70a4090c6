//! Fills the maps until the agent's own reconciler does.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::Result;
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap},
};
use lb_agent::model::objects::TrafficPolicy;
use lb_common::{
    abi::{
        ABI_VERSION, Backend, BackendFlags, Config, Frontend, FrontendFlags, FrontendKey, NODE_PORT_LOOPBACK,
        PortRange, Service, ServiceFlags, SlotRange, maps,
    },
    hash,
};

use super::{Interface, Net, Tables, World, dataplane::MapAddress, tables::THIS_NODE};

pub(super) fn fill(ebpf: &mut Ebpf, tables: &Tables, world: World) -> Result<()> {
    let mut config: Array<_, Config> = ebpf.map_mut(maps::CONFIG).expect("map").try_into()?;
    let mut snat_ports = [PortRange::default(); 4];
    snat_ports[0] = PortRange { first: Tables::FIRST_SNAT_PORT, count: tables.snat_ports };
    config.set(
        0,
        &Config {
            abi_version: ABI_VERSION,
            node_port_min: 30_000,
            node_port_max: 32_767,
            snat_ports,
            snat_port_count: tables.snat_ports.into(),
            ..Config::default()
        },
        0,
    )?;
    family::<[u8; 4]>(ebpf, tables, world, &Net::V4, "4")?;
    family::<[u8; 16]>(ebpf, tables, world, &Net::V6, "6")
}

fn family<A: MapAddress>(ebpf: &mut Ebpf, tables: &Tables, world: World, net: &Net, n: &str) -> Result<()>
where
    FrontendKey<A>: Pod + Ord,
    Backend<A>: Pod,
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

    let name = |stem: &str| format!("{stem}{n}");
    let mut map: Array<_, Backend<A>> = ebpf.map_mut(&name("BACKENDS")).expect("map").try_into()?;
    for index in 0..64 {
        let old = map.get(&index, 0)?;
        let new = match backends.get(index as usize).copied() {
            Some(new) if index > 0 => {
                let same = old.generation != 0 && (old.address, old.port) == (new.address, new.port);
                Backend { generation: if same { old.generation } else { old.generation + 1 }, ..new }
            }
            _ => Backend { flags: 0, ..old },
        };
        map.set(index, &new, 0)?;
    }
    let mut map: Array<_, u32> = ebpf.map_mut(&name("SLOTS")).expect("map").try_into()?;
    for (slot, backend) in slots.iter().enumerate() {
        map.set(slot as u32, backend, 0)?;
    }
    let mut map: Array<_, Service> = ebpf.map_mut(&name("SERVICES")).expect("map").try_into()?;
    for (index, service) in services.iter().enumerate() {
        map.set(index as u32, service, 0)?;
    }
    let mut map: HashMap<_, FrontendKey<A>, Frontend> = ebpf.map_mut(&name("FRONTENDS")).expect("map").try_into()?;
    let old: Vec<_> = map.keys().collect::<Result<_, _>>()?;
    for key in old.iter().filter(|key| !frontends.contains_key(key)) {
        map.remove(key)?;
    }
    for (key, value) in &frontends {
        map.insert(key, value, 0)?;
    }
    let mut map: HashMap<_, u32, A> = ebpf.map_mut(&name("NODE_ADDRESSES")).expect("map").try_into()?;
    for (index, address) in [
        (0, net.node),
        (world.index(Interface::Uplink), net.node),
        (world.index(Interface::Narrow), net.narrow_node),
    ] {
        if tables.node_addresses {
            map.insert(&index, &A::of(address).expect("family"), 0)?;
        } else {
            let _ = map.remove(&index);
        }
    }
    let mut map: HashMap<_, A, u32> = ebpf.map_mut(&name("NODEPORT_ADDRS")).expect("map").try_into()?;
    let loopback: IpAddr = net.loopback;
    for (address, flags) in [(net.node, 0), (net.narrow_node, 0), (loopback, NODE_PORT_LOOPBACK)] {
        map.insert(&A::of(address).expect("family"), &flags, 0)?;
    }
    Ok(())
}
