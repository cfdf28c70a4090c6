//! The agent's own work: from the moment that all lists are in to full maps, the memory that it takes, and the time
//! from one changed `EndpointSlice` to maps that show it.
//!
//! Measured in a process that does nothing else: the model, the reconciler and the maps in the kernel, without the
//! watches of a Kubernetes client and without the command line.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use lb_agent::{
    controller::{Controller, Settings},
    dataplane::Tuning,
    loader::{LoadOptions, Loaded},
    model::{
        Change, Endpoint, EndpointSlice, Node, NodeNetwork, ObjectKey, ObjectKind, Policy, Protocol, Service,
        ServicePort, SlicePort, SourceEvent,
    },
};
use lb_common::abi::BackendFlags;
use serde::{Deserialize, Serialize};

use crate::packets::tables::replaced;

/// Services of the cold start.
pub const SERVICES: u32 = 10_000;
/// Endpoints of each.
pub const ENDPOINTS: u32 = 10;
/// Slices that are changed one after the other.
const CHANGES: u32 = 1000;

/// What one process measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ColdStart {
    /// From the complete lists to complete maps.
    pub milliseconds: f64,
    /// Resident memory afterwards (`VmRSS`).
    pub resident_kilobytes: f64,
    /// Resident memory of the process before it had any object.
    pub resident_before_kilobytes: f64,
    /// From a changed slice to maps that show it, each.
    pub change_microseconds: Vec<f64>,
}

fn key(number: u32) -> ObjectKey {
    ObjectKey::new("bench", format!("service-{number}"))
}

fn cluster_ip(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + number).into()
}

/// The address of an endpoint in a version of its slice: one of them moves with each version.
fn endpoint(service: u32, number: u32, version: u32) -> Ipv4Addr {
    let moved = if number == 0 { version << 20 } else { 0 };
    Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + moved + service * ENDPOINTS + number)
}

fn service(number: u32) -> Change {
    let port = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None };
    Change::Service(
        key(number),
        Some(Service { cluster_ips: vec![cluster_ip(number)], ports: vec![port], ..Service::default() }),
    )
}

fn slice(service: u32, version: u32) -> Change {
    let endpoints = (0..ENDPOINTS).map(|number| Endpoint {
        address: endpoint(service, number, version).into(),
        ready: true,
        serving: true,
        terminating: false,
        node_name: Some(format!("node-{number}").into()),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    });
    let slice = EndpointSlice {
        trigger: None,
        service: key(service),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.collect(),
    };
    Change::EndpointSlice(ObjectKey::new("bench", format!("service-{service}-abcde")), Some(slice))
}

fn resident_kilobytes() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Measures, in this process.
pub fn measure() -> Result<ColdStart> {
    let mut loaded = Loaded::load(&LoadOptions::default())?;
    let mut maps = loaded.take_maps()?;
    let settings = Settings {
        node_name: "node-0".into(),
        kinds: [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node].into(),
        tuning: Tuning { grace: Tuning::DEFAULT_GRACE, first_generation: 1 },
        policy: Policy::default(),
    };
    let mut controller = Controller::adopt(&maps, settings)?;
    controller.set_network(NodeNetwork::default());
    let resident_before_kilobytes = resident_kilobytes()?;

    for event in [
        replaced(ObjectKind::Service, (0..SERVICES).map(service).collect()),
        replaced(ObjectKind::EndpointSlice, (0..SERVICES).map(|number| slice(number, 0)).collect()),
        replaced(ObjectKind::Node, vec![Change::Node(Some(Node::default()))]),
    ] {
        controller.apply(event);
    }
    let start = Instant::now();
    let report = controller.sync(&mut maps, Instant::now());
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    ensure!(report.failures.is_empty(), "{:?}", report.failures.first());
    let resident_kilobytes = resident_kilobytes()?;
    check(&maps, 0)?;

    let mut change_microseconds = Vec::new();
    for version in 1..=CHANGES {
        // Another Service each time, all over the tables.
        let number = version * 7919 % SERVICES;
        let event = SourceEvent::Changed(slice(number, 1));
        let start = Instant::now();
        controller.apply(event);
        let report = controller.sync(&mut maps, Instant::now());
        change_microseconds.push(start.elapsed().as_secs_f64() * 1e6);
        ensure!(report.failures.is_empty(), "{:?}", report.failures.first());
    }
    check(&maps, CHANGES)?;
    Ok(ColdStart { milliseconds, resident_kilobytes, resident_before_kilobytes, change_microseconds })
}

/// The maps hold all that they should, and what was changed is in them.
fn check(maps: &lb_agent::dataplane::KernelMaps, changes: u32) -> Result<()> {
    let existing = lb_agent::dataplane::FamilyMaps::<[u8; 4]>::existing(maps)?;
    // Each Service's port, and its cluster IP for the ports that it does not have.
    ensure!(existing.frontends.len() == 2 * SERVICES as usize, "{} frontends", existing.frontends.len());
    let selectable = existing.backends.iter().filter(|(_, backend)| backend.flags & BackendFlags::SELECTABLE != 0);
    ensure!(selectable.count() == (SERVICES * ENDPOINTS) as usize, "not {ENDPOINTS} backends for each Service");
    for version in 1..=changes {
        let number = version * 7919 % SERVICES;
        let expected = SocketAddr::new(endpoint(number, 0, 1).into(), 8080);
        // A sample: the walk over all backends is long.
        if version % 100 == 0 {
            let found = existing
                .backends
                .iter()
                .any(|(_, backend)| SocketAddr::new(Ipv4Addr::from(backend.address).into(), backend.port) == expected);
            ensure!(found, "no backend {expected}");
        }
    }
    Ok(())
}
