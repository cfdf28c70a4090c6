//! The command line on pinned maps, while no agent runs.

pub(crate) mod documented;
pub(crate) mod flows;
pub(crate) mod lists;
pub(crate) mod monitor;
pub(crate) mod preflight;
pub(crate) mod top;

use std::process::{Command, Output};

use aya::maps::{HashMap, Map, MapData};
use lb_agent::{
    dataplane::{FamilyMaps, KernelMaps},
    loader::{LoadOptions, Loaded, Pins, TableSizes},
    model::Family,
};
use lb_common::{
    abi::{
        Backend, BackendFlags, Flow, FlowAction, FlowDirection, Frontend, FrontendFlags, FrontendKey, Hook, Service,
        ServiceFlags, ServiceName, SlotRange, TcpState, Tuple, maps,
    },
    hash,
};
use serde_json::Value;

use crate::sandbox::Sandbox;

const AGENT: &str = env!("CARGO_BIN_EXE_lb-agent");

/// Pinned maps with two Services of both families: `shop/web:http/TCP`, with two endpoints and affinity, and `dns/dns/UDP`,
/// without endpoints.
fn pinned(sandbox: &Sandbox, flows: u32) -> Pins {
    let pins = Pins::create(&sandbox.bpffs).unwrap_or_else(|error| panic!("{error}"));
    let sizes = TableSizes { flows, frontends: 16, services: 8, slots: 64, backends: 16 };
    let options = LoadOptions { pins: Some(pins.clone()), sizes, ..LoadOptions::default() };
    let mut maps =
        Loaded::load(&options).and_then(|mut loaded| loaded.take_maps()).unwrap_or_else(|error| panic!("{error}"));
    fill(&mut maps, [10, 96, 0, 10], [[10, 244, 1, 5], [10, 244, 2, 6]]);
    let v6 = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    fill(&mut maps, v6(0x10), [v6(5), v6(6)]);
    pins
}

fn fill<A: Family>(maps: &mut KernelMaps, cluster_ip: A, endpoints: [A; 2])
where
    KernelMaps: FamilyMaps<A>,
{
    let flags = BackendFlags::SELECTABLE | BackendFlags::IN_CLUSTER;
    for ((index, address), flags) in (5..).zip(endpoints).zip([flags | BackendFlags::LOCAL, flags]) {
        maps.set_backend(index, Backend { generation: 2, address, port: 8080, flags, service: 3 }).expect("written");
    }
    maps.set_slots(0, &[5, 6]).expect("written");
    let cluster = SlotRange { first: 0, count: 2 };
    let flags = ServiceFlags::HAS_ENDPOINTS;
    maps.set_service(3, Service { cluster, flags, affinity_seconds: 60, ..Service::default() }).expect("written");
    FamilyMaps::<A>::set_service(maps, 4, Service::default()).expect("written");
    for (index, name) in [(3, ("shop", "web", "http", 6)), (4, ("dns", "dns", "", 17))] {
        let name = ServiceName::new(name.0, name.1, name.2, name.3).expect("short");
        FamilyMaps::<A>::set_service_name(maps, index, &name).expect("written");
    }
    for (key, service, flags) in [
        (FrontendKey::new(cluster_ip, 80, 6), 3, 0),
        (FrontendKey::new(cluster_ip, 0, 0), 3, FrontendFlags::CLUSTER_IP),
        (FrontendKey::new(A::UNSPECIFIED, 30080, 6), 3, FrontendFlags::EXTERNAL | FrontendFlags::NODE_PORT),
        (FrontendKey::new(cluster_ip, 53, 17), 4, 0),
    ] {
        let owner = hash::frontend_owner(&key);
        maps.set_frontend(&key, Frontend { service, owner, flags, edition: 0 }).expect("written");
    }
}

/// What is pinned under this name.
fn map(pins: &Pins, name: &'static str) -> Map {
    pins.open(name).unwrap_or_else(|error| panic!("{error}"))
}

type FlowTable = HashMap<MapData, Tuple<[u8; 4]>, Flow<[u8; 4]>>;

fn flows(pins: &Pins) -> FlowTable {
    map(pins, maps::FLOWS4).try_into().expect("a hash map")
}

/// Enters both directions of a flow from a client outside to a backend on this node, as `connect` of the programs does.
fn enter(table: &mut FlowTable, client: [u8; 4], port: u16, backend: u32) {
    let asked = Tuple::new(client, port, [10, 96, 0, 10], 80, 6);
    let endpoint = [[10, 244, 1, 5], [10, 244, 2, 6]][backend as usize - 5];
    let answered = Tuple::new(client, port, endpoint, 8080, 6);
    let flow = Flow {
        action: FlowAction::Stack as u8,
        hooks: Hook::UplinkIngress as u8,
        tcp_state: TcpState::SYN | TcpState::ESTABLISHED,
        direction: FlowDirection::Request as u8,
        to: answered,
        backend,
        generation: 2,
        service: 3,
        last_seen: now(),
        ..Flow::default()
    };
    let reply =
        Flow { hooks: Hook::UplinkEgress as u8, direction: FlowDirection::Reply as u8, to: asked.reversed(), ..flow };
    table.insert(&asked, &flow, 0).expect("written");
    table.insert(&answered.reversed(), &reply, 0).expect("written");
}

fn now() -> u64 {
    lb_agent::jiffies::Jiffies::now().expect("clocks").ago(0)
}

fn lb_agent(sandbox: &Sandbox, line: &str) -> Output {
    let arguments = line.split_whitespace();
    Command::new(AGENT).args(arguments).arg("--bpffs").arg(&sandbox.bpffs).output().expect("the agent")
}

fn text(sandbox: &Sandbox, line: &str) -> String {
    let output = lb_agent(sandbox, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn document(sandbox: &Sandbox, line: &str) -> Value {
    serde_json::from_str(&text(sandbox, &format!("{line} -o json"))).expect("JSON")
}
