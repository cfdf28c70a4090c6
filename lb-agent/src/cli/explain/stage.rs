//! Where a packet is shown to the programs without anybody seeing it.

use anyhow::{Result, bail};
use aya::Pod;
use lb_agent::{
    dataplane::{Affinities, Counters, Flows, Loads, MapError},
    loader::{Pins, Rehearsal, RehearsalOutcome},
    model::Family,
    network,
};
use lb_common::abi::{AffinityKey, Disposition, Flow, Reason, Tuple};

use super::{
    frame::frame,
    question::{Entrance, POD_INGRESS},
};

/// Runs before what is read is taken to change all the time: `ATTEMPTS` of `lb-ebpf/src/snat.rs`, each of which may find a
/// port that the data plane has lent, and one more.
const ATTEMPTS: usize = 9;
/// Source ports that are made up are these or above, below those that Linux gives sockets.
const FIRST_PORT: u16 = 20000;
/// How many are tried.
const PORTS: u16 = 1000;

/// The programs that packets meet by one device, the flows and affinities of the data plane as far as they matter, and how
/// many flows each backend has there.
pub(super) struct Stage<A> {
    rehearsal: Rehearsal,
    entrance: Entrance,
    link_layer_address: [u8; 6],
    counters: Counters,
    flows: Flows<A>,
    affinities: Affinities<A>,
    loads: Loads,
    live_loads: Loads,
    live_flows: Flows<A>,
    pub(super) live_affinities: Affinities<A>,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run<A> {
    /// Where that was decided.
    pub(super) hook: &'static str,
    pub(super) verdict: Disposition,
    pub(super) reason: Option<Reason>,
    /// The flow that it is of: the entries of both directions.
    pub(super) flow: Option<(Flow<A>, Option<Flow<A>>)>,
    /// It is one that the data plane has.
    pub(super) is_known: bool,
}

impl<A: Family> Stage<A>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
    AffinityKey<A>: Pod,
{
    pub(super) fn new(pins: &Pins, entrance: Entrance) -> Result<Self> {
        let mut programs = vec![entrance.program];
        programs.extend(entrance.xdp.then_some("uplink_xdp"));
        let mut rehearsal = Rehearsal::load(pins, &programs, entrance.xdp)?;
        Ok(Self {
            link_layer_address: network::link_layer_address(entrance.index)?,
            counters: Counters::open(|map| rehearsal.take(map))?,
            flows: Flows::open(|map| rehearsal.take(map))?,
            affinities: Affinities::open(|map| rehearsal.take(map))?,
            loads: Loads::open::<A>(|map| rehearsal.take(map))?,
            live_loads: Loads::open::<A>(|map| pins.open(map))?,
            live_flows: Flows::open(|map| pins.open(map))?,
            live_affinities: Affinities::open(|map| pins.open(map))?,
            rehearsal,
            entrance,
        })
    }

    pub(super) fn entrance(&self) -> &Entrance {
        &self.entrance
    }

    /// Whether the attached programs are those of this build.
    pub(super) fn is_attached_build(&self) -> bool {
        self.rehearsal.is_attached_build()
    }

    /// A source port of which the data plane has no flow.
    pub(super) fn free_port(&self, tuple: &Tuple<A>) -> Result<u16> {
        for port in FIRST_PORT..FIRST_PORT + PORTS {
            if self.live_flows.get(&Tuple { src_port: port, ..*tuple })?.is_none() {
                return Ok(port);
            }
        }
        bail!("{PORTS} flows of this client to this destination: name the source's port")
    }

    /// Shows the programs a packet of a client that affinity knows by these keys.
    ///
    /// What the data plane has of the flow and of the client is there. Where the programs then enter a flow under a tuple
    /// that the data plane has lent to another, they are asked again with that one in their way.
    pub(super) fn run(&mut self, tuple: &Tuple<A>, clients: &[AffinityKey<A>]) -> Result<Run<A>> {
        let known = self.live_flows.get(tuple)?;
        let mut copied = vec![*tuple];
        copied.extend(known.map(|flow| flow.to.reversed()));
        for _ in 0..ATTEMPTS {
            self.prepare(&copied, clients)?;
            let run = self.perform(tuple, known.as_ref())?;
            let mut overlooked = Vec::new();
            for entered in self.entered()? {
                if !copied.contains(&entered)
                    && let Some(lent) = self.live_flows.get(&entered)?
                {
                    // With the other direction, which tells whether it is still in use.
                    overlooked.extend([entered, lent.to.reversed()]);
                }
            }
            if overlooked.is_empty() {
                return Ok(run);
            }
            copied.extend(overlooked);
        }
        bail!(
            "every source port that the programs try is lent to another flow, or flows come and go too quickly to tell"
        )
    }

    /// Puts there what the data plane has under these keys, and nothing else.
    fn prepare(&mut self, tuples: &[Tuple<A>], clients: &[AffinityKey<A>]) -> Result<()> {
        for tuple in self.entered()? {
            self.flows.remove(&tuple)?;
        }
        for tuple in tuples {
            if let Some(flow) = self.live_flows.get(tuple)? {
                self.flows.set(tuple, &flow)?;
            }
        }
        let mut entered = Vec::new();
        self.affinities.visit(|keys, _| {
            entered.extend_from_slice(keys);
            Ok::<_, MapError>(())
        })?;
        for client in entered {
            self.affinities.remove(&client)?;
        }
        for client in clients {
            if let Some(affinity) = self.live_affinities.get(client)? {
                self.affinities.set(client, &affinity)?;
            }
        }
        self.loads.copy(&self.live_loads)?;
        Ok(())
    }

    /// The tuples of which there are flows.
    fn entered(&self) -> Result<Vec<Tuple<A>>> {
        let mut entered = Vec::new();
        self.flows.visit(|keys, _| {
            entered.extend_from_slice(keys);
            Ok::<_, MapError>(())
        })?;
        Ok(entered)
    }

    fn perform(&self, tuple: &Tuple<A>, known: Option<&Flow<A>>) -> Result<Run<A>> {
        let Entrance { index, program, xdp, .. } = self.entrance;
        let mut packet = frame(self.link_layer_address, tuple, known.is_none())?;
        let before = self.counters.read()?;
        let early = if xdp { self.rehearsal.run("uplink_xdp", index, &mut packet)? } else { RehearsalOutcome::Passed };
        let (hook, outcome) = match early {
            RehearsalOutcome::Passed => {
                let hook = if program == POD_INGRESS { "podIngress" } else { "uplinkIngress" };
                (hook, self.rehearsal.run(program, index, &mut packet)?)
            }
            outcome => ("uplinkXdp", outcome),
        };
        let counted = before.into_iter().zip(self.counters.read()?).filter(|((_, before), (_, now))| before != now);
        let reason = counted.map(|((reason, _), _)| reason).max_by_key(|reason| reason.disposition());
        let is_refusal = reason.is_some_and(|reason| reason.disposition() == Disposition::Refuse);
        let verdict = match outcome {
            RehearsalOutcome::Passed => Disposition::Pass,
            RehearsalOutcome::Dropped => Disposition::Drop,
            RehearsalOutcome::Sent if is_refusal => Disposition::Refuse,
            RehearsalOutcome::Translated | RehearsalOutcome::Sent => Disposition::Translate,
        };
        let request = if verdict == Disposition::Translate { self.flows.get(tuple)? } else { None };
        let is_same = |flow: &Flow<A>| {
            known.is_some_and(|known| {
                (known.to, known.backend, known.generation) == (flow.to, flow.backend, flow.generation)
            })
        };
        Ok(Run {
            hook,
            verdict,
            reason,
            is_known: request.as_ref().is_some_and(is_same),
            flow: match request {
                Some(request) => Some((request, self.flows.get(&request.to.reversed())?)),
                None => None,
            },
        })
    }
}
