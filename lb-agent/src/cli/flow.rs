use std::net::SocketAddr;

use anyhow::Result;
use aya::Pod;
use lb_agent::{
    dataplane::{FamilyMaps, Flows, KernelMaps},
    jiffies::Jiffies,
    loader::Pins,
    model::Family,
};
use lb_common::abi::{FlowAction, Hook, TcpState, Tuple};
use serde::Serialize;

use super::{
    output::OutputArguments,
    view::{View, protocol},
};

/// One direction of one flow.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Flow {
    /// `IPv4` or `IPv6`.
    family: &'static str,
    protocol: String,
    /// Source of the packets that match, `address:port`.
    source: SocketAddr,
    destination: SocketAddr,
    /// Source of the packets when they have been translated.
    new_source: SocketAddr,
    new_destination: SocketAddr,
    /// `stack` or `forward`.
    action: &'static str,
    /// Where the entry applies: `podIngress`, `podEgress`, `uplinkIngress`, `uplinkEgress`.
    hooks: Vec<&'static str>,
    /// What was seen of a TCP connection in this direction: `syn`, `established`, `fin`, `rst`.
    tcp: Vec<&'static str>,
    /// `namespace/name:port/PROTOCOL`, or `<service N?>`.
    service: String,
    /// `address:port`, or `<backend N?>` where the endpoint is no longer that of the flow.
    backend: String,
    /// Seconds since the last packet.
    idle_seconds: u64,
}

pub(super) fn list(pins: &Pins, output: &OutputArguments) -> Result<()> {
    let clock = Jiffies::now()?;
    let mut flows = of_family::<[u8; 4]>(pins, clock)?;
    flows.extend(of_family::<[u8; 16]>(pins, clock)?);
    flows.sort_by(|a, b| (&a.service, a.source, a.destination).cmp(&(&b.service, b.source, b.destination)));
    let header = [
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "NEW SOURCE",
        "NEW DESTINATION",
        "ACTION",
        "HOOKS",
        "STATE",
        "SERVICE",
        "BACKEND",
        "IDLE",
    ];
    output.list(&flows, &header, |flow| {
        vec![
            flow.protocol.clone(),
            flow.source.to_string(),
            flow.destination.to_string(),
            flow.new_source.to_string(),
            flow.new_destination.to_string(),
            flow.action.to_owned(),
            flow.hooks.join(","),
            if flow.tcp.is_empty() { "-".to_owned() } else { flow.tcp.join(",") },
            flow.service.clone(),
            flow.backend.clone(),
            format!("{}s", flow.idle_seconds),
        ]
    })
}

fn of_family<A: Family>(pins: &Pins, clock: Jiffies) -> Result<Vec<Flow>>
where
    KernelMaps: FamilyMaps<A>,
    Tuple<A>: Pod,
    lb_common::abi::Flow<A>: Pod,
{
    let view = View::<A>::read(pins)?;
    let entries = Flows::<A>::open(|map| pins.open(map))?.read()?;
    let end = |address: A, port| SocketAddr::new(address.to_ip(), port);
    let flows = entries.into_iter().map(|(from, flow)| Flow {
        family: A::NAME,
        protocol: protocol(from.protocol),
        source: end(from.src, from.src_port),
        destination: end(from.dst, from.dst_port),
        new_source: end(flow.to.src, flow.to.src_port),
        new_destination: end(flow.to.dst, flow.to.dst_port),
        action: if flow.action == FlowAction::Forward as u8 { "forward" } else { "stack" },
        hooks: named(
            flow.hooks,
            [
                (Hook::PodIngress as u8, "podIngress"),
                (Hook::PodEgress as u8, "podEgress"),
                (Hook::UplinkIngress as u8, "uplinkIngress"),
                (Hook::UplinkEgress as u8, "uplinkEgress"),
            ],
        ),
        tcp: named(
            flow.tcp_state,
            [
                (TcpState::SYN, "syn"),
                (TcpState::ESTABLISHED, "established"),
                (TcpState::FIN, "fin"),
                (TcpState::RST, "rst"),
            ],
        ),
        service: view.service(flow.service),
        backend: view.backend(flow.backend, Some(flow.generation)),
        idle_seconds: clock.seconds_since(flow.last_seen),
    });
    Ok(flows.collect())
}

fn named(bits: u8, names: [(u8, &'static str); 4]) -> Vec<&'static str> {
    names.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| name).collect()
}
