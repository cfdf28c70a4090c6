//! A row of a packet table, and what it takes to hold.

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use bytes::Bytes;
use lb_common::{
    abi::{Flow, FlowAction, Hook, Protocol, Reason, TcpState, Tuple},
    hash,
};

use super::{
    Dataplane, Interface, Tables, Verdict,
    dataplane::{Arrival, MapAddress, Outcome},
    diff,
    packet::addressed,
};

/// A flow entry that must exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowEntry {
    /// Source and destination of the packets it is for.
    pub key: (SocketAddr, SocketAddr),
    /// IANA protocol number.
    pub protocol: u32,
    /// What they become.
    pub to: (SocketAddr, SocketAddr),
    /// Bits of the hooks at which it applies.
    pub hooks: u8,
    /// Number of its `FlowAction`.
    pub action: u8,
    /// Bits of `TcpState`.
    pub tcp_state: u8,
}

impl FlowEntry {
    /// The entry of one direction of a flow, no packet of which was seen yet.
    pub fn new(
        hook: Hook,
        action: FlowAction,
        protocol: Protocol,
        key: (SocketAddr, SocketAddr),
        to: (SocketAddr, SocketAddr),
    ) -> Self {
        Self { key, protocol: protocol as u32, to, hooks: hook as u8, action: action as u8, tcp_state: 0 }
    }

    /// The same where packets come in, from pods and from elsewhere: a reply that is forwarded.
    #[must_use]
    pub fn at_entrances(self) -> Self {
        Self { hooks: Hook::PodIngress as u8 | Hook::UplinkIngress as u8, ..self }
    }

    /// The same after a SYN.
    #[must_use]
    pub fn syn(self) -> Self {
        Self { tcp_state: self.tcp_state | TcpState::SYN, ..self }
    }

    /// The same after a segment without SYN, in TCP.
    #[must_use]
    pub fn established(self) -> Self {
        let seen = if self.protocol == Protocol::Tcp as u32 { TcpState::ESTABLISHED } else { 0 };
        Self { tcp_state: self.tcp_state | seen, ..self }
    }

    /// The same with these bits of [`TcpState`], too.
    #[must_use]
    pub fn with(self, bits: u8) -> Self {
        Self { tcp_state: self.tcp_state | bits, ..self }
    }
}

impl fmt::Display for FlowEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, protocol, to, hooks, action, tcp_state } = self;
        write!(
            f,
            "{protocol}: {} > {} becomes {} > {} at hooks {hooks:#x}, action {action}, TCP state {tcp_state:#x}",
            key.0, key.1, to.0, to.1
        )
    }
}

/// A change of the maps that no agent makes.
type Spoil = Box<dyn Fn(&mut Dataplane) -> Result<()> + Send + Sync>;

/// One packet, and what must come of it.
#[derive(Clone)]
pub(super) struct Exchange {
    pub(super) arrival: Arrival,
    pub(super) verdict: Verdict,
    pub(super) output: Bytes,
    /// Bytes at the start that do not matter.
    pub(super) ignored: usize,
    pub(super) counted: Vec<Reason>,
    flows: Option<BTreeSet<FlowEntry>>,
}

enum Step {
    Packet(Box<Exchange>),
    Tables(Tables),
    Spoil(&'static str, Spoil),
}

/// A row: a sentence, tables, and packets in their order.
#[must_use]
pub struct Row {
    /// What must hold.
    pub sentence: String,
    tables: Tables,
    steps: Vec<Step>,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Row").field(&self.sentence).finish()
    }
}

/// Where packets of a hook arrive in most rows.
const fn usual_interface(hook: Hook) -> Interface {
    match hook {
        Hook::PodIngress | Hook::PodEgress => Interface::Pod,
        Hook::UplinkIngress | Hook::UplinkEgress => Interface::Uplink,
    }
}

impl Row {
    /// A row without packets yet.
    pub fn new(sentence: impl Into<String>, tables: Tables) -> Self {
        Self { sentence: sentence.into(), tables, steps: Vec::new() }
    }

    /// Then this packet meets the program of a hook, with this verdict, and becomes that packet.
    pub fn packet(mut self, hook: Hook, input: impl Into<Bytes>, verdict: Verdict, output: impl Into<Bytes>) -> Self {
        let arrival = Arrival { hook, interface: usual_interface(hook), packet: input.into(), gso_size: 0 };
        self.steps.push(Step::Packet(Box::new(Exchange {
            arrival,
            verdict,
            output: output.into(),
            ignored: 0,
            counted: Vec::new(),
            flows: None,
        })));
        self
    }

    /// Then this packet meets the program of a hook, which leaves it as it is to the stack.
    pub fn untouched(self, hook: Hook, input: impl Into<Bytes>) -> Self {
        let input = input.into();
        self.packet(hook, input.clone(), Verdict::Next, input)
    }

    /// Then this packet is dropped and counted.
    pub fn dropped(self, hook: Hook, input: impl Into<Bytes>, reason: Reason) -> Self {
        let input = input.into();
        self.packet(hook, input.clone(), Verdict::Drop, input).counted(reason)
    }

    fn last(&mut self) -> &mut Exchange {
        match self.steps.last_mut() {
            Some(Step::Packet(exchange)) => exchange,
            _ => panic!("{}: what is said of a packet follows the packet", self.sentence),
        }
    }

    /// The last packet counts once for a reason, and for none that is not named.
    pub fn counted(mut self, reason: Reason) -> Self {
        self.last().counted.push(reason);
        self
    }

    /// After the last packet the flow table of its family holds these entries and no other.
    pub fn flows(mut self, flows: impl IntoIterator<Item = FlowEntry>) -> Self {
        self.last().flows = Some(flows.into_iter().collect());
        self
    }

    /// The last packet arrives on this interface instead of the hook's usual one.
    pub fn on(mut self, interface: Interface) -> Self {
        self.last().arrival.interface = interface;
        self
    }

    /// The last packet still has to be cut into segments with this much payload.
    pub fn gso_size(mut self, bytes: u16) -> Self {
        self.last().arrival.gso_size = bytes;
        self
    }

    /// The MAC addresses of the last packet's output are not compared: the kernel has yet to find them.
    pub fn whatever_its_macs(mut self) -> Self {
        self.last().ignored = 12;
        self
    }

    /// Then the tables change.
    pub fn then(mut self, tables: Tables) -> Self {
        self.steps.push(Step::Tables(tables));
        self
    }

    /// Then something happens to the maps that the agent does not do; `what` says it.
    pub fn spoil(
        mut self,
        what: &'static str,
        change: impl Fn(&mut Dataplane) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.steps.push(Step::Spoil(what, Box::new(change)));
        self
    }

    /// The packets of the row, for benchmarks.
    pub fn arrivals(&self) -> impl Iterator<Item = &Arrival> {
        self.steps.iter().filter_map(|step| match step {
            Step::Packet(exchange) => Some(&exchange.arrival),
            Step::Tables(_) | Step::Spoil(..) => None,
        })
    }

    /// Whether a packet of it reaches the node by an uplink, where XDP may be first.
    pub fn concerns_xdp(&self) -> bool {
        self.arrivals().any(|arrival| arrival.hook == Hook::UplinkIngress)
    }

    /// Plays the row. The error tells what was seen instead of what must be.
    pub fn play(&self, dataplane: &mut Dataplane) -> Result<()> {
        self.play_by(dataplane, |exchange, dataplane| dataplane.run(&exchange.arrival, 1).map_err(Into::into))
    }

    /// Plays the row where XDP is in front of TC: the same must come of each packet, at the one or the other.
    pub fn play_at_xdp(&self, dataplane: &mut Dataplane) -> Result<()> {
        dataplane.set_xdp(true)?;
        self.play_by(dataplane, |exchange, dataplane| match exchange.arrival.hook {
            Hook::UplinkIngress => exchange.run_at_xdp(dataplane),
            Hook::UplinkEgress | Hook::PodIngress | Hook::PodEgress => Ok(dataplane.run(&exchange.arrival, 1)?),
        })
    }

    fn play_by(&self, dataplane: &mut Dataplane, run: impl Fn(&Exchange, &Dataplane) -> Result<Outcome>) -> Result<()> {
        dataplane.forget()?;
        dataplane.fill(&self.tables)?;
        for (number, step) in self.steps.iter().enumerate() {
            let number = number + 1;
            match step {
                Step::Tables(tables) => dataplane.fill(tables)?,
                Step::Spoil(what, change) => change(dataplane).context(*what)?,
                Step::Packet(exchange) => {
                    let exchange = &exchange.addressed();
                    let before = dataplane.counters();
                    let outcome = run(exchange, dataplane).with_context(|| format!("running step {number}"))?;
                    let after = dataplane.counters();
                    let mut wrong = exchange.wrong(&outcome.packet, outcome.verdict, &before, &after);
                    wrong.extend(exchange.wrong_flows(dataplane));
                    ensure!(wrong.is_empty(), "step {number}, {:?}:\n{}", exchange.arrival.hook, wrong.join("\n"));
                }
            }
        }
        Ok(())
    }
}

impl Exchange {
    /// With the interface's own address in the packets.
    fn addressed(&self) -> Self {
        let (arrival, interface) = (self.arrival.clone().addressed(), self.arrival.interface);
        Self { output: addressed(&self.output, interface), arrival, ..self.clone() }
    }

    fn wrong(&self, packet: &[u8], verdict: Verdict, before: &[u64], after: &[u64]) -> Vec<String> {
        let mut wrong = Vec::new();
        if verdict != self.verdict {
            wrong.push(format!("verdict: expected {:?}, was {verdict:?}", self.verdict));
        }
        // What is left of a packet that is dropped does not matter.
        if self.verdict != Verdict::Drop {
            let mut expected = self.output.to_vec();
            let ignored = self.ignored.min(packet.len()).min(expected.len());
            expected[..ignored].copy_from_slice(&packet[..ignored]);
            wrong.extend(diff::difference(&expected, packet).map(|text| format!("packet:\n{text}")));
        }
        for (reason, (before, after)) in Reason::ALL.iter().zip(before.iter().zip(after)) {
            let expected = self.counted.iter().filter(|counted| *counted == reason).count() as u64;
            if after - before != expected {
                wrong.push(format!("counter {}: expected +{expected}, was +{}", reason.name(), after - before));
            }
        }
        wrong
    }

    fn wrong_flows(&self, dataplane: &mut Dataplane) -> Vec<String> {
        let Some(expected) = &self.flows else { return Vec::new() };
        let (mut wrong, mut actual) = (Vec::new(), BTreeSet::new());
        collect::<[u8; 4]>(dataplane, &mut actual, &mut wrong);
        collect::<[u8; 16]>(dataplane, &mut actual, &mut wrong);
        wrong.extend(expected.difference(&actual).map(|entry| format!("flows: missing {entry}")));
        wrong.extend(actual.difference(expected).map(|entry| format!("flows: unexpected {entry}")));
        wrong
    }
}

/// The entries of one family, and what is wrong with any of them by itself.
fn collect<A: MapAddress>(dataplane: &mut Dataplane, entries: &mut BTreeSet<FlowEntry>, wrong: &mut Vec<String>)
where
    std::net::IpAddr: From<A>,
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    for entry in dataplane.flows::<A>().expect("the flow table can be read") {
        let (key, flow) = (entry.key, entry.flow);
        let ends = |tuple: &Tuple<A>| {
            let [src, dst] = [(tuple.src, tuple.src_port), (tuple.dst, tuple.dst_port)]
                .map(|(address, port)| SocketAddr::new(address.into(), port));
            (src, dst)
        };
        let named = FlowEntry {
            key: ends(&key),
            protocol: key.protocol,
            to: ends(&flow.to),
            hooks: flow.hooks,
            action: flow.action,
            tcp_state: flow.tcp_state,
        };
        if flow.owner != hash::owner(&key) {
            wrong.push(format!("flows: wrong owner {:#x} in {named}", flow.owner));
        }
        if flow.to.protocol != key.protocol {
            wrong.push(format!("flows: another protocol in {named}"));
        }
        // (What applies at no hook has no backend.)
        if key.src == A::UNSPECIFIED || (flow.generation == 0) != (flow.hooks == 0) || flow.last_seen == 0 {
            wrong.push(format!("flows: generation {}, last seen {} in {named}", flow.generation, flow.last_seen));
        }
        entries.insert(named);
    }
}
