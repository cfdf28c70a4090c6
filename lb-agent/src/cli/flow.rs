use std::net::SocketAddr;

use anyhow::Result;
use aya::Pod;
use lb_agent::{
    dataplane::{FamilyMaps, Flows, KernelMaps},
    loader::Pins,
    model::Family,
};
use lb_common::abi::{FlowAction, Hook, TcpState, Tuple};
use nix::time::{ClockId, clock_getres, clock_gettime};
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

/// The kernel's tick count, as `bpf_jiffies64` gives it.
#[derive(Clone, Copy, Debug)]
struct Jiffies {
    now: u64,
    /// `CONFIG_HZ`.
    per_second: u64,
}

impl Jiffies {
    /// The count begins at `INITIAL_JIFFIES` (`include/linux/jiffies.h`), five minutes before 2^32, and goes with the
    /// monotonic clock. The resolution of the coarse clocks is one tick.
    fn now() -> Result<Self> {
        const NANOSECONDS: u64 = 1_000_000_000;
        let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?;
        let up = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let tick = u64::try_from(tick.tv_nsec())?.max(1);
        let per_second = (NANOSECONDS + tick / 2) / tick;
        let up = u64::try_from(up.tv_sec())? * per_second + u64::try_from(up.tv_nsec())? / tick;
        Ok(Self { now: (1 << 32) - 300 * per_second + up, per_second })
    }

    fn seconds_since(self, then: u64) -> u64 {
        self.now.saturating_sub(then) / self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tick_count_is_the_kernels() {
        let ours = Jiffies::now().expect("clocks");
        assert!([100, 250, 300, 1000].contains(&ours.per_second), "{ours:?}");
        // Readable by root only.
        let Ok(list) = std::fs::read_to_string("/proc/timer_list") else { return };
        let theirs = list.lines().find_map(|line| line.strip_prefix("jiffies: ")).expect("a count");
        let theirs: u64 = theirs.parse().expect("a number");
        assert!(theirs.abs_diff(ours.now) < 2 * ours.per_second, "{theirs} {ours:?}");
    }
}
