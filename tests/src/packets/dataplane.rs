//! The real object, loaded and attached to nothing: its tables filled, its programs run on packets, and what they
//! left in the maps.

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
    util::nr_cpus,
};
use bytes::Bytes;
use lb_agent::{
    controller::{Controller, Settings},
    dataplane::{DataplaneMaps as _, FamilyMaps, KernelMaps, Loads, Recount, Recounter, Tuning},
    loader::{LoadOptions, Loaded, LoaderError, TableSizes},
    model::{Policy, SourceEvent},
};
use lb_common::abi::{
    Address, Affinity, AffinityKey, Backend, Config, Flow, FrontendKey, Hook, Prefix, Reason, Tuple, maps,
};

use super::{Interface, Tables, World, events::Events, packet::addressed, tables::THIS_NODE, xdp};

/// What a TC program says (`include/uapi/linux/pkt_cls.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `TC_ACT_UNSPEC`: the next program, in the end the stack.
    Next,
    /// `TC_ACT_SHOT`.
    Drop,
    /// `TC_ACT_REDIRECT`.
    Redirect,
    /// Anything else.
    Other(i32),
}

impl From<u32> for Verdict {
    fn from(number: u32) -> Self {
        match number.cast_signed() {
            -1 => Self::Next,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its verdict.
    pub verdict: Verdict,
    /// The packet after it.
    pub packet: Bytes,
    /// Nanoseconds that one run took, the average over all repetitions.
    pub nanoseconds: u64,
}

/// `struct __sk_buff` (`include/uapi/linux/bpf.h`), as far as a test run may set it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SkBuff {
    up_to_ifindex: [u32; 10],
    ifindex: u32,
    up_to_gso_segs: [u32; 30],
    gso_segs: u32,
    sk: [u32; 2],
    gso_size: u32,
}

const _: () = {
    assert!(std::mem::offset_of!(SkBuff, ifindex) == 40);
    assert!(std::mem::offset_of!(SkBuff, gso_segs) == 164);
    assert!(std::mem::offset_of!(SkBuff, gso_size) == 176);
};

impl SkBuff {
    const LENGTH: usize = size_of::<Self>();

    fn bytes(&self) -> [u8; Self::LENGTH] {
        // SAFETY: `repr(C)`, `u32`s only, so without padding.
        unsafe { std::mem::transmute(*self) }
    }
}

/// A packet that one of the programs meets.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Which program.
    pub hook: Hook,
    /// On which interface.
    pub interface: Interface,
    /// The frame.
    pub packet: Bytes,
    /// Payload bytes of each segment, for a packet that the kernel would still have to segment; else 0.
    pub gso_size: u16,
}

impl Arrival {
    /// A packet for the interface that it arrives on.
    #[must_use]
    pub fn addressed(mut self) -> Self {
        self.packet = addressed(&self.packet, self.interface);
        self
    }
}

/// Name of the program for a hook.
const fn program_name(hook: Hook) -> &'static str {
    match hook {
        Hook::PodIngress => "pod_ingress",
        Hook::PodEgress => "pod_egress",
        Hook::UplinkIngress => "uplink_ingress",
        Hook::UplinkEgress => "uplink_egress",
    }
}

/// The hooks that have TC programs.
pub const HOOKS: [Hook; 4] = [Hook::PodIngress, Hook::PodEgress, Hook::UplinkIngress, Hook::UplinkEgress];

/// A flow entry of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowOf<A> {
    /// What it is found by.
    pub key: Tuple<A>,
    /// What it says.
    pub flow: Flow<A>,
}

/// The flow table of one family.
pub type FlowTable<A> = HashMap<MapData, Tuple<A>, Flow<A>>;

/// The affinity table of one family.
pub type AffinityTable<A> = HashMap<MapData, AffinityKey<A>, Affinity>;

/// Sizes for packet tests: they hold a handful of everything, and empty tables are quicker to make.
pub const SMALL: TableSizes =
    TableSizes { flows: 1 << 12, frontends: 1 << 10, services: 1 << 10, slots: 1 << 12, backends: 1 << 10 };

fn settings(policy: Policy) -> Settings {
    Settings {
        node_name: THIS_NODE.into(),
        kinds: Tables::KINDS.into(),
        // Nothing runs on these maps while they are written.
        tuning: Tuning { grace: Duration::ZERO, first_generation: 1 },
        policy,
    }
}

/// The loaded object.
#[expect(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Dataplane {
    /// The programs.
    pub loaded: Loaded,
    /// The maps that the agent writes.
    pub maps: KernelMaps,
    /// What writes them.
    pub controller: Controller,
    /// What it was told at its start.
    policy: Policy,
    /// Whether the maps hold something else than the controller knows.
    pub spoiled: bool,
    counters: PerCpuArray<MapData, u64>,
    flows4: FlowTable<[u8; 4]>,
    flows6: FlowTable<[u8; 16]>,
    fragments4: FlowTable<[u8; 4]>,
    fragments6: FlowTable<[u8; 16]>,
    affinity4: AffinityTable<[u8; 4]>,
    affinity6: AffinityTable<[u8; 16]>,
    loads4: Loads,
    loads6: Loads,
    recounter: Recounter,
    pub(super) events: Events,
    pub(super) world: World,
}

impl Dataplane {
    /// Loads the programs and creates the maps, as the agent does when it pins nothing; on a node whose network namespace has
    /// a cookie that tests know.
    pub fn load(world: World, sizes: TableSizes) -> Result<Self> {
        Self::load_for(world, sizes, Some(xdp::MARK))
    }

    /// As [`load`](Self::load), on a node whose network namespace is this one: its sockets are the node's.
    pub fn load_for_sockets(world: World, sizes: TableSizes) -> Result<Self> {
        Self::load_for(world, sizes, None)
    }

    fn load_for(world: World, sizes: TableSizes, netns_cookie: Option<u64>) -> Result<Self> {
        let mut loaded = Loaded::load(&LoadOptions { sizes, netns_cookie, xdp: true, ..LoadOptions::default() })?;
        let counters = loaded.take(maps::COUNTERS)?.try_into()?;
        let (mut ours, mut theirs) = (std::collections::HashMap::new(), std::collections::HashMap::new());
        for map in [maps::FLOWS4, maps::FLOWS6, maps::LOADS4, maps::LOADS6] {
            let [one, other] = twice(loaded.take(map)?)?;
            ours.insert(map, one);
            theirs.insert(map, other);
        }
        let mut take = |map: &'static str| -> Result<Map, LoaderError> { Ok(ours.remove(map).expect("one of these")) };
        let flows4 = take(maps::FLOWS4)?.try_into()?;
        let flows6 = take(maps::FLOWS6)?.try_into()?;
        let loads4 = Loads::open::<[u8; 4]>(&mut take)?;
        let loads6 = Loads::open::<[u8; 16]>(&mut take)?;
        let recounter = Recounter::open(|map| Ok(theirs.remove(map).expect("one of these")))?;
        let fragments4 = loaded.take("FRAGMENTS4")?.try_into()?;
        let fragments6 = loaded.take("FRAGMENTS6")?.try_into()?;
        let affinity4 = loaded.take(maps::AFFINITY4)?.try_into()?;
        let affinity6 = loaded.take(maps::AFFINITY6)?.try_into()?;
        let events = Events::open(&mut loaded)?;
        let maps = loaded.take_maps()?;
        let policy = Policy::default();
        let controller = Controller::adopt(&maps, settings(policy.clone()))?;
        Ok(Self {
            loaded,
            maps,
            controller,
            policy,
            spoiled: false,
            counters,
            flows4,
            flows6,
            fragments4,
            fragments6,
            affinity4,
            affinity6,
            loads4,
            loads6,
            recounter,
            events,
            world,
        })
    }

    /// Has the agent write tables into the maps. What was there before and is not wanted any more goes.
    pub fn fill(&mut self, tables: &Tables) -> Result<()> {
        let policy = tables.policy();
        if policy != self.policy {
            // As an agent that is started again with another configuration.
            self.controller = Controller::adopt(&self.maps, settings(policy.clone()))?;
            self.policy = policy;
        }
        self.controller.set_network(tables.network(self.world));
        tables.events().into_iter().for_each(|event| self.controller.apply(event));
        self.sync()
    }

    /// Has the agent take in what a source says, and write what changes.
    pub fn apply(&mut self, event: SourceEvent) -> Result<()> {
        self.controller.apply(event);
        self.sync()
    }

    fn sync(&mut self) -> Result<()> {
        ensure!(self.controller.is_complete(), "the agent waits for more");
        let report = self.controller.sync(&mut self.maps, Instant::now());
        if let Some(first) = report.failures.first() {
            bail!("{} failures, the first of them: {first:?}", report.failures.len());
        }
        ensure!(report.conflicts.is_empty(), "{:?}", report.conflicts);
        Ok(())
    }

    /// The program for a hook.
    pub fn program(&self, hook: Hook) -> &SchedClassifier {
        let program = self.loaded.program(program_name(hook)).expect("the loader loads all programs");
        program.try_into().expect("a classifier")
    }

    /// Runs a program on a packet, `repeat` times on what it left of it.
    pub fn run(&self, arrival: &Arrival, repeat: u32) -> Result<Outcome, aya::programs::ProgramError> {
        let ctx = SkBuff {
            ifindex: self.world.index(arrival.interface),
            gso_segs: if arrival.gso_size == 0 { 0 } else { 2 },
            gso_size: arrival.gso_size.into(),
            ..SkBuff::default()
        };
        // A refusal may be longer than what it answers.
        let mut out = vec![0; arrival.packet.len() + 256];
        let result = self.program(arrival.hook).test_run(TestRunOptions {
            data_in: Some(&arrival.packet),
            data_out: Some(&mut out),
            ctx_in: Some(&ctx.bytes()),
            repeat,
            ..TestRunOptions::default()
        })?;
        out.truncate(usize::try_from(result.data_size_out).expect("a length"));
        Ok(Outcome {
            verdict: result.return_value.into(),
            packet: out.into(),
            nanoseconds: u64::try_from(result.duration.as_nanos()).expect("not centuries"),
        })
    }

    /// The counter of a reason.
    pub fn counter(&self, reason: Reason) -> u64 {
        self.counters.get(&(reason as u32), 0).expect("every reason has a counter").iter().sum()
    }

    /// The counter of every reason.
    pub fn counters(&self) -> Vec<u64> {
        Reason::ALL.iter().map(|reason| self.counter(*reason)).collect()
    }

    /// All flow entries of a family.
    pub fn flows<A: MapAddress>(&mut self) -> Result<Vec<FlowOf<A>>>
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        let table = A::flow_table(self);
        Ok(table.iter().map(|entry| entry.map(|(key, flow)| FlowOf { key, flow })).collect::<Result<_, _>>()?)
    }

    /// All affinities of a family.
    pub fn affinities<A: ClientAddress>(&mut self) -> Result<Vec<(AffinityKey<A>, Affinity)>>
    where
        AffinityKey<A>: Pod,
    {
        Ok(A::affinity_table(self).iter().collect::<Result<_, _>>()?)
    }

    /// Counts the flows of all backends anew, as the agent does every few seconds.
    pub fn recount(&mut self) -> Result<Recount> {
        Ok(self.recounter.recount()?)
    }

    /// Empties the tables of flows, fragments, affinities and loads and sets all counters to zero.
    pub fn forget(&mut self) -> Result<()> {
        self.forget_flows::<[u8; 4]>()?;
        self.forget_flows::<[u8; 16]>()?;
        self.forget_affinities::<[u8; 4]>()?;
        self.forget_affinities::<[u8; 16]>()?;
        for loads in [&mut self.loads4, &mut self.loads6] {
            for (backend, _) in loads.read()? {
                loads.remove(&backend)?;
            }
        }
        let cpus = nr_cpus().map_err(|(file, error)| io::Error::new(error.kind(), format!("{file}: {error}")))?;
        for reason in Reason::ALL {
            let zeros = PerCpuValues::try_from(vec![0; usize::try_from(cpus.get())?])?;
            self.counters.set(*reason as u32, zeros, 0)?;
        }
        Ok(())
    }

    fn forget_flows<A: MapAddress>(&mut self) -> Result<()>
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        for FlowOf { key, .. } in self.flows::<A>()? {
            A::flow_table(self).remove(&key)?;
        }
        let keys: Vec<_> = A::fragment_table(self).keys().collect::<Result<_, _>>()?;
        for key in keys {
            A::fragment_table(self).remove(&key)?;
        }
        Ok(())
    }

    fn forget_affinities<A: ClientAddress>(&mut self) -> Result<()>
    where
        AffinityKey<A>: Pod,
    {
        for (key, _) in self.affinities::<A>()? {
            A::affinity_table(self).remove(&key)?;
        }
        Ok(())
    }

    /// Takes every backend out of use behind the agent's back.
    pub fn invalidate_backends(&mut self) -> Result<()> {
        self.spoiled = true;
        self.invalidate_backends_of::<[u8; 4]>()?;
        self.invalidate_backends_of::<[u8; 16]>()
    }

    fn invalidate_backends_of<A: Address>(&mut self) -> Result<()>
    where
        KernelMaps: FamilyMaps<A>,
    {
        for (index, backend) in FamilyMaps::<A>::existing(&self.maps)?.backends {
            self.maps.set_backend(index, Backend { generation: 0, ..backend })?;
        }
        Ok(())
    }

    /// Says behind the agent's back that there are no networks of cluster IPs.
    pub fn forget_cluster_ip_networks(&mut self) -> Result<()> {
        self.spoiled = true;
        let config = Config { cluster_ips4: Prefix::NOTHING, cluster_ips6: Prefix::NOTHING, ..self.maps.config()? };
        Ok(self.maps.set_config(&config)?)
    }

    /// Makes the value of every frontend one that was written for another.
    pub fn disown_frontends(&mut self) -> Result<()> {
        self.spoiled = true;
        self.disown_frontends_of::<[u8; 4]>()?;
        self.disown_frontends_of::<[u8; 16]>()
    }

    fn disown_frontends_of<A: Address>(&mut self) -> Result<()>
    where
        KernelMaps: FamilyMaps<A>,
        FrontendKey<A>: Copy,
    {
        for (key, mut value) in FamilyMaps::<A>::existing(&self.maps)?.frontends {
            value.owner = !value.owner;
            self.maps.set_frontend(&key, value)?;
        }
        Ok(())
    }
}

/// Two handles of one map.
fn twice(map: Map) -> Result<[Map; 2]> {
    let (Map::HashMap(data) | Map::LruHashMap(data)) = map else { bail!("no hash map: {map:?}") };
    let again = MapData::from_id(data.info()?.id())?;
    Ok([Map::from_map_data(data)?, Map::from_map_data(again)?])
}

/// An address as maps hold it.
pub trait MapAddress: Address + Pod
where
    Tuple<Self>: Pod,
    Flow<Self>: Pod,
{
    /// The flow table of the family.
    fn flow_table(dataplane: &mut Dataplane) -> &mut FlowTable<Self>;
    /// What became of first fragments.
    fn fragment_table(dataplane: &mut Dataplane) -> &mut FlowTable<Self>;
    /// How many flows each backend has.
    fn loads(dataplane: &mut Dataplane) -> &mut Loads;
}

impl MapAddress for [u8; 4] {
    fn flow_table(dataplane: &mut Dataplane) -> &mut FlowTable<Self> {
        &mut dataplane.flows4
    }

    fn fragment_table(dataplane: &mut Dataplane) -> &mut FlowTable<Self> {
        &mut dataplane.fragments4
    }

    fn loads(dataplane: &mut Dataplane) -> &mut Loads {
        &mut dataplane.loads4
    }
}

impl MapAddress for [u8; 16] {
    fn flow_table(dataplane: &mut Dataplane) -> &mut FlowTable<Self> {
        &mut dataplane.flows6
    }

    fn fragment_table(dataplane: &mut Dataplane) -> &mut FlowTable<Self> {
        &mut dataplane.fragments6
    }

    fn loads(dataplane: &mut Dataplane) -> &mut Loads {
        &mut dataplane.loads6
    }
}

/// An address as the affinity tables hold it.
pub trait ClientAddress: Address + Pod
where
    AffinityKey<Self>: Pod,
{
    /// The affinity table of the family.
    fn affinity_table(dataplane: &mut Dataplane) -> &mut AffinityTable<Self>;
}

impl ClientAddress for [u8; 4] {
    fn affinity_table(dataplane: &mut Dataplane) -> &mut AffinityTable<Self> {
        &mut dataplane.affinity4
    }
}

impl ClientAddress for [u8; 16] {
    fn affinity_table(dataplane: &mut Dataplane) -> &mut AffinityTable<Self> {
        &mut dataplane.affinity6
    }
}
