//! The real object, loaded and attached to nothing: its tables filled, its programs run on packets, and what they
//! left in the maps.

use std::{io, net::IpAddr};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
    util::nr_cpus,
};
use bytes::Bytes;
use lb_agent::object::EBPF_OBJECT;
use lb_common::abi::{Address, Flow, Hook, Reason, Tuple, maps};

use super::{Interface, Tables, World};

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

/// Name of the program for a hook.
pub const fn program_name(hook: Hook) -> &'static str {
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

/// The loaded object.
#[derive(Debug)]
pub struct Dataplane {
    /// The object with its maps, for tests that spoil them.
    pub ebpf: Ebpf,
    world: World,
}

impl Dataplane {
    /// Loads the TC programs and creates the maps.
    pub fn load(world: World) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(EBPF_OBJECT).context("loading the object")?;
        for hook in HOOKS {
            let program: &mut SchedClassifier =
                ebpf.program_mut(program_name(hook)).context("a program of this name")?.try_into()?;
            program.load().with_context(|| format!("loading {}", program_name(hook)))?;
        }
        Ok(Self { ebpf, world })
    }

    /// Compiles tables into the maps. What was there before and is not wanted any more goes.
    pub fn fill(&mut self, tables: &Tables) -> Result<()> {
        super::fill::fill(&mut self.ebpf, tables, self.world)
    }

    /// Runs a program on a packet, `repeat` times on what it left of it, if the kernel takes such a packet.
    pub fn run(&self, arrival: &Arrival, repeat: u32) -> Result<Outcome, aya::programs::ProgramError> {
        let program: &SchedClassifier = self
            .ebpf
            .program(program_name(arrival.hook))
            .expect("loaded by `load`")
            .try_into()
            .expect("loaded as a classifier");
        let ctx = SkBuff {
            ifindex: self.world.index(arrival.interface),
            gso_segs: if arrival.gso_size == 0 { 0 } else { 2 },
            gso_size: arrival.gso_size.into(),
            ..SkBuff::default()
        };
        // A refusal may be longer than what it answers.
        let mut out = vec![0; arrival.packet.len() + 256];
        let result = program.test_run(TestRunOptions {
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

    /// A map by its name.
    pub fn map(&mut self, name: &str) -> &mut Map {
        self.ebpf.map_mut(name).unwrap_or_else(|| panic!("the object has no map {name}"))
    }

    /// The counter of every reason.
    pub fn counters(&mut self) -> Vec<u64> {
        let counters: PerCpuArray<_, u64> = self.map(maps::COUNTERS).try_into().expect("a per-CPU array");
        let sum = |reason: &Reason| counters.get(&(*reason as u32), 0).expect("a counter").iter().sum();
        Reason::ALL.iter().map(sum).collect()
    }

    /// The flow table of a family.
    pub fn flow_table<A: MapAddress>(&mut self) -> HashMap<&mut MapData, Tuple<A>, Flow<A>>
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        self.map(A::FLOWS).try_into().expect("an LRU hash")
    }

    /// All flow entries of a family.
    pub fn flows<A: MapAddress>(&mut self) -> Vec<FlowOf<A>>
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        let table = self.flow_table::<A>();
        table.iter().map(|entry| entry.map(|(key, flow)| FlowOf { key, flow })).collect::<Result<_, _>>().expect("a map")
    }

    /// Empties the flow tables and sets all counters to zero.
    pub fn forget(&mut self) -> Result<()> {
        self.forget_flows::<[u8; 4]>()?;
        self.forget_flows::<[u8; 16]>()?;
        let mut counters: PerCpuArray<_, u64> = self.map(maps::COUNTERS).try_into()?;
        let cpus = nr_cpus().map_err(|(file, error)| io::Error::new(error.kind(), format!("{file}: {error}")))?;
        let cpus = usize::try_from(cpus.get())?;
        for reason in Reason::ALL {
            counters.set(*reason as u32, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        Ok(())
    }

    fn forget_flows<A: MapAddress>(&mut self) -> Result<()>
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        for FlowOf { key, .. } in self.flows::<A>() {
            self.flow_table::<A>().remove(&key)?;
        }
        Ok(())
    }
}

/// An address as maps hold it, with the names of its family's maps.
pub trait MapAddress: Address + Pod {
    /// The flow table.
    const FLOWS: &'static str;

    /// The address, if it is of this family.
    fn of(address: IpAddr) -> Option<Self>;
}

impl MapAddress for [u8; 4] {
    const FLOWS: &'static str = maps::FLOWS4;

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        }
    }
}

impl MapAddress for [u8; 16] {
    const FLOWS: &'static str = maps::FLOWS6;

    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.octets()),
        }
    }
}
