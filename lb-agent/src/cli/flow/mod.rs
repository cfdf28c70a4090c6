//! Flows of the packet path. A flow has an entry in `FLOWS*` for each direction; here it is one thing.

mod flush;
mod list;

pub(super) use flush::{FlushArguments, NothingAsked, flush};
pub(super) use list::list;

use std::net::SocketAddr;

use anyhow::Result;
use aya::Pod;
use clap::Args;
use lb_agent::{
    dataplane::{FamilyMaps, Flows, KernelMaps},
    jiffies::Jiffies,
    loader::Pins,
    model::Family,
};
use lb_common::abi::{self, Address, FlowAction, FlowDirection, Hook, ProtocolNumber, TcpState, Tuple};
use serde::Serialize;

use super::{
    filter::{EndPattern, ServiceFilter, Wanted},
    view::View,
};

/// Which flows.
#[derive(Debug, Default, Args)]
pub(super) struct FlowFilter {
    #[command(flatten)]
    service: ServiceFilter,
    /// Of this client: ADDRESS, ADDRESS:PORT or NETWORK/BITS.
    #[arg(short, long, value_name = "CLIENT")]
    client: Option<EndPattern>,
    /// To this backend: ADDRESS, ADDRESS:PORT or NETWORK/BITS.
    #[arg(short, long, value_name = "BACKEND")]
    backend: Option<EndPattern>,
}

/// A client's connection, or exchange of datagrams, with a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Flow {
    /// `IPv4` or `IPv6`.
    family: &'static str,
    protocol: String,
    /// `address:port` of the client.
    client: SocketAddr,
    /// What the client asked.
    frontend: SocketAddr,
    /// Who answers.
    backend: SocketAddr,
    /// The client as the backend sees it: differs from `client` where the flow is masqueraded.
    source: SocketAddr,
    /// `namespace/name:port/PROTOCOL`, or `<service N?>`.
    service: String,
    /// The endpoint has left the service since.
    backend_gone: bool,
    /// `stack`, or `forward` where the packets are sent on by the programs.
    action: &'static str,
    /// Seconds since the last packet in either direction.
    idle_seconds: u64,
    /// From the client; `null` where the entry was evicted.
    request: Option<Direction>,
    /// To the client; likewise.
    reply: Option<Direction>,
}

/// The entry of one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Direction {
    /// Where it applies: `podIngress`, `podEgress`, `uplinkIngress`, `uplinkEgress`.
    hooks: Vec<&'static str>,
    /// What was seen of a TCP connection in this direction: `syn`, `established`, `fin`, `rst`.
    tcp: Vec<&'static str>,
    /// Seconds since the last packet.
    idle_seconds: u64,
}

/// The keys of a flow's entries, each where it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keys<A> {
    request: Option<Tuple<A>>,
    reply: Option<Tuple<A>>,
}

/// The two ends, as one entry tells them.
struct Ends<A> {
    client: (A, u16),
    frontend: (A, u16),
    backend: (A, u16),
    source: (A, u16),
}

impl<A: Address> Ends<A> {
    /// The tuple that becomes `to` on the way to the backend or, of a reply, to the client.
    fn of(key: &Tuple<A>, flow: &abi::Flow<A>) -> Self {
        let (asked, answered) = if is_reply(flow) { (flow.to.reversed(), key.reversed()) } else { (*key, flow.to) };
        Self {
            client: (asked.src, asked.src_port),
            frontend: (asked.dst, asked.dst_port),
            backend: (answered.dst, answered.dst_port),
            source: (answered.src, answered.src_port),
        }
    }
}

fn is_reply<A>(flow: &abi::Flow<A>) -> bool {
    flow.direction == FlowDirection::Reply as u8
}

impl FlowFilter {
    /// Whether everything is asked for.
    fn is_open(&self) -> bool {
        let Self { service, client, backend } = self;
        service.is_open() && client.is_none() && backend.is_none()
    }

    /// The services that are asked for. The protocol is the flow's own, also where its service has no name.
    fn services<A: Family>(&self, view: &View<A>) -> Wanted {
        ServiceFilter { protocol: None, ..self.service.clone() }.services(view)
    }

    fn includes<A: Family>(&self, wanted: &Wanted, key: &Tuple<A>, flow: &abi::Flow<A>) -> bool {
        let ends = Ends::of(key, flow);
        let is = |pattern: Option<EndPattern>, end| pattern.is_none_or(|pattern| pattern.matches(address(end)));
        let protocol = self.service.protocol.is_none_or(|protocol| u32::from(protocol.number()) == key.protocol);
        // (What applies nowhere belongs to no Service.)
        flow.hooks != 0
            && protocol
            && wanted.contains(flow.service)
            && is(self.client, ends.client)
            && is(self.backend, ends.backend)
    }

    /// Shows the flows of family `A` that are asked for, a batch of the table at a time: what `see` does to its entries is
    /// done between two batches.
    fn visit<A: Family>(&self, pins: &Pins, mut see: impl FnMut(Vec<(Keys<A>, Flow)>) -> Result<()>) -> Result<()>
    where
        KernelMaps: FamilyMaps<A>,
        Tuple<A>: Pod,
        abi::Flow<A>: Pod,
    {
        if !self.service.family.includes::<A>() {
            return Ok(());
        }
        let view = View::<A>::read(pins)?;
        let wanted = self.services(&view);
        let clock = Jiffies::now()?;
        let table = Flows::<A>::open(|map| pins.open(map))?;
        table.visit(|keys, flows| {
            let mut found = Vec::new();
            for (key, flow) in keys.iter().zip(flows).filter(|(key, flow)| self.includes(&wanted, key, flow)) {
                // The other direction, if it still belongs to this flow.
                let other = flow.to.reversed();
                let other =
                    table.get(&other)?.filter(|entry| entry.to == key.reversed() && is_reply(entry) != is_reply(flow));
                match other {
                    // Shown with its request.
                    Some(_) if is_reply(flow) => {}
                    other => found.push(join(&view, clock, key, flow, other.as_ref())),
                }
            }
            see(found)
        })
    }
}

/// A flow from one entry, and from the other where it is there.
fn join<A: Family>(
    view: &View<A>,
    clock: Jiffies,
    key: &Tuple<A>,
    flow: &abi::Flow<A>,
    other: Option<&abi::Flow<A>>,
) -> (Keys<A>, Flow) {
    let ends = Ends::of(key, flow);
    let one = Some(Direction::new(flow, clock));
    let two = other.map(|other| Direction::new(other, clock));
    let other_key = other.map(|_| flow.to.reversed());
    let (request, reply, keys) = if is_reply(flow) {
        (two, one, Keys { request: other_key, reply: Some(*key) })
    } else {
        (one, two, Keys { request: Some(*key), reply: other_key })
    };
    let idle = [&request, &reply].into_iter().flatten().map(|direction| direction.idle_seconds).min();
    let flow = Flow {
        family: A::NAME,
        protocol: ProtocolNumber(key.protocol).to_string(),
        client: address(ends.client),
        frontend: address(ends.frontend),
        backend: address(ends.backend),
        source: address(ends.source),
        service: view.service(flow.service),
        backend_gone: view.backends.get(&flow.backend).is_none_or(|backend| backend.generation != flow.generation),
        action: if flow.action == FlowAction::Forward as u8 { "forward" } else { "stack" },
        idle_seconds: idle.unwrap_or_default(),
        request,
        reply,
    };
    (keys, flow)
}

fn address<A: Family>((address, port): (A, u16)) -> SocketAddr {
    SocketAddr::new(address.to_ip(), port)
}

impl Direction {
    fn new<A>(flow: &abi::Flow<A>, clock: Jiffies) -> Self {
        let states = [
            (TcpState::SYN, "syn"),
            (TcpState::ESTABLISHED, "established"),
            (TcpState::FIN, "fin"),
            (TcpState::RST, "rst"),
        ];
        Self {
            hooks: hook_names(flow.hooks),
            tcp: named(flow.tcp_state, states),
            idle_seconds: clock.seconds_since(flow.last_seen),
        }
    }
}

/// The hooks of an entry.
pub(super) fn hook_names(bits: u8) -> Vec<&'static str> {
    named(
        bits,
        [
            (Hook::PodIngress as u8, "podIngress"),
            (Hook::PodEgress as u8, "podEgress"),
            (Hook::UplinkIngress as u8, "uplinkIngress"),
            (Hook::UplinkEgress as u8, "uplinkEgress"),
        ],
    )
}

fn named(bits: u8, names: [(u8, &'static str); 4]) -> Vec<&'static str> {
    names.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests;
