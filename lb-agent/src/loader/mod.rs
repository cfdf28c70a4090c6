//! Brings the programs and maps into the kernel, and takes over those that an earlier agent left there.
//!
//! Maps are pinned and adopted by name; programs are loaded anew by each agent and put in place of the old ones
//! through their pinned links, each replacement being atomic. So the data plane works while no agent runs, and open
//! connections do not notice a new one.
//!
//! ```text
//! <bpffs>/lb/v<ABI>/maps/FLOWS4       every map of `PINNED`
//!                /programs/connect4     every program, to tell which one a link holds
//!                /links/cgroup-connect4  one for each socket hook
//!                /links/tcx-7-ingress    one for each device and direction
//!                /links/xdp-7-native     one for each uplink that has XDP
//! ```

mod attach;
mod cleanup;
mod constants;
mod error;
mod filters;
mod former;
mod hooks;
mod live_sockets;
mod netdev;
mod pins;
mod rehearsal;
mod requirements;
pub(crate) mod syscall;
mod tables;
mod xdp;

pub use attach::cgroup2_root;
pub(crate) use attach::has_tcx;
pub use cleanup::cleanup;
pub use error::LoaderError;
pub use filters::clsact_filters;
pub(crate) use filters::{Filter, bpf_filters};
pub use former::former_devices;
pub use hooks::{Attached, Device, Direction, LinkLayer, Role, SocketHook, XdpPlace, attached, pinned_programs};
pub use live_sockets::LiveSockets;
pub(crate) use netdev::features as xdp_features;
pub use pins::{Lock, Pins};
pub use rehearsal::{Rehearsal, RehearsalOutcome};
pub use requirements::check as check_requirements;
pub(crate) use requirements::{check_btf, check_kernel, check_own_capabilities, has_sys_admin};
pub use syscall::netns_cookie;
pub use tables::{PINNED, TableSizes};
pub(crate) use xdp::program_at as xdp_program_at;
pub use xdp::{Obstacle, XdpDevices, XdpMode, describe as describe_xdp};

use std::{collections::HashMap, fs, io, panic::resume_unwind, thread};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapError, MapInfo},
    programs::{Program, ProgramError},
};
use lb_common::abi::maps::{COUNTERS, SOCKETS, XDP_DEVICES};

use crate::{dataplane::KernelMaps, object::EBPF_OBJECT};
use constants::Constants;
use pins::pin_error;

/// How the programs are loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where maps are pinned and adopted from. `None` keeps all of it in this process, as tests want it.
    pub pins: Option<Pins>,
    /// Sizes of the tables, where they are not adopted.
    pub sizes: TableSizes,
    /// Whether the programs log packets.
    pub trace: bool,
    /// Cookie of the namespace whose own sockets the UDP socket hooks translate; `None` = the caller's.
    pub netns_cookie: Option<u64>,
    /// Seed of the hash that picks backends: the same on all nodes and for every agent, or flows that move would change
    /// their backends.
    pub hash_seed: u32,
    /// Whether TCP connections that none of our flows knows are left to the stack, because kube-proxy may have begun them.
    pub takeover: bool,
    /// Whether the XDP program is loaded.
    pub xdp: bool,
}

/// The programs and maps of one load. Dropping it removes what is not pinned.
#[derive(Debug)]
pub struct Loaded {
    ebpf: Ebpf,
    pins: Option<Pins>,
    tcx: Option<bool>,
    xdp_devices: XdpDevices,
}

/// The one program that is loaded only where it is asked for.
const XDP_PROGRAM: &str = "uplink_xdp";

/// Every program that is attached somewhere; [`LiveSockets`] has one more.
pub const PROGRAMS: [&str; 15] = [
    "pod_ingress",
    "pod_egress",
    "uplink_ingress",
    "uplink_egress",
    "bare_ingress",
    "bare_egress",
    XDP_PROGRAM,
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
];

impl Loaded {
    /// Creates or adopts the maps, and loads every program. Attaches nothing.
    pub fn load(options: &LoadOptions) -> Result<Self, LoaderError> {
        let LoadOptions { pins, sizes, xdp, .. } = options;
        let constants = Constants::of(options)?;
        let mut loader = EbpfLoader::new();
        constants.set(&mut loader);
        for name in PINNED {
            let adopted = pins.as_ref().map(|pins| adopted_size(pins, name)).transpose()?.flatten();
            let wanted = sizes.of(name);
            if let (Some(found), Some((wanted, flag))) = (adopted, wanted)
                && found != wanted
            {
                tracing::warn!(map = name, found, "{flag} {wanted} is not applied: the pinned map is kept");
            }
            if let Some(elements) = adopted.or(wanted.map(|(elements, _)| elements)) {
                loader.map_max_entries(name, elements);
            }
            if let Some(pins) = pins {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let mut ebpf = loader.load(EBPF_OBJECT).map_err(|error| match (error, pins) {
            (EbpfError::MapError(MapError::IncompatiblePinnedMap { name, property, expected, actual }), Some(pins)) => {
                LoaderError::PinnedMap { path: pins.map(&name), property, found: actual, expected }
            }
            (error, _) => LoaderError::Object(error),
        })?;
        load_programs(&mut ebpf, |program| *xdp || program != XDP_PROGRAM)?;
        if let Some(pins) = pins {
            pin_programs(&mut ebpf, pins)?;
        }
        let xdp_devices = ebpf.take_map(XDP_DEVICES).ok_or_else(|| no_map(XDP_DEVICES))?;
        Ok(Self { xdp_devices: XdpDevices::new(xdp_devices)?, ebpf, pins: pins.clone(), tcx: None })
    }

    /// A loaded program, for test runs.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.ebpf.program(name)
    }

    /// Takes a map out, which can be done once.
    pub fn take(&mut self, map: &'static str) -> Result<Map, LoaderError> {
        self.ebpf.take_map(map).ok_or_else(|| no_map(map))
    }

    /// Takes out the maps that the reconciler writes, which can be done once.
    pub fn take_maps(&mut self) -> Result<KernelMaps, LoaderError> {
        KernelMaps::open(|map| self.take(map))
    }

    /// What walks over the sockets of this load, which can be had once.
    pub fn live_sockets(&mut self) -> Result<LiveSockets, LoaderError> {
        let (Map::SkStorage(sockets) | Map::Unsupported(sockets)) = self.take(SOCKETS)? else {
            return Err(no_map(SOCKETS));
        };
        LiveSockets::of(&mut self.ebpf, &sockets)
    }

    /// Starts what turns the programs' records into log lines.
    pub fn packet_log(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        aya_log::EbpfLogger::init(&mut self.ebpf)
    }
}

fn no_map(map: &'static str) -> LoaderError {
    let name = format!("{map}: not in the object, or taken already");
    LoaderError::Map { map, source: MapError::InvalidName { name } }
}

/// Loads the programs that are wanted, side by side: the verifier takes most of the time of a start, and works on as many
/// programs at once as there are CPUs.
fn load_programs(ebpf: &mut Ebpf, is_wanted: impl Fn(&str) -> bool) -> Result<(), LoaderError> {
    let is_wanted = |program: &str| PROGRAMS.contains(&program) && is_wanted(program);
    thread::scope(|scope| {
        let mut loads: HashMap<_, _> = ebpf
            .programs_mut()
            .filter(|(name, _)| is_wanted(name))
            .map(|(name, program)| (name, scope.spawn(move || load_program(program))))
            .collect();
        for program in PROGRAMS.into_iter().filter(|program| is_wanted(program)) {
            let load = loads.remove(program).ok_or(ProgramError::UnexpectedProgramType);
            let loaded = load.and_then(|load| load.join().unwrap_or_else(|panic| resume_unwind(panic)));
            loaded.map_err(|source| LoaderError::Program { program, source })?;
        }
        Ok(())
    })
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn pin_programs(ebpf: &mut Ebpf, pins: &Pins) -> Result<(), LoaderError> {
    for name in PROGRAMS {
        let path = pins.program(name);
        match syscall::inspect(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(syscall::Pinned::Program) => {
                fs::remove_file(&path).map_err(|source| pin_error("removing", &path, source))?;
            }
            Ok(other) => {
                return Err(LoaderError::ForeignPin { path, found: other.to_string(), expected: "a program" });
            }
            Err(source) => return Err(pin_error("opening", &path, source)),
        }
        if let Some(program) = ebpf.program_mut(name).filter(|program| program.fd().is_ok()) {
            program.pin(&path).map_err(|error| pin_error("pinning", &path, io::Error::other(error)))?;
        }
    }
    Ok(())
}

/// The number of elements of a pinned map.
fn adopted_size(pins: &Pins, map: &str) -> Result<Option<u32>, LoaderError> {
    let path = pins.map(map);
    if !path.try_exists().map_err(|source| pin_error("reading", &path, source))? {
        return Ok(None);
    }
    let found = match syscall::inspect(&path).map_err(|source| pin_error("opening", &path, source))? {
        syscall::Pinned::Map => {
            MapInfo::from_pin(&path).map_err(|error| pin_error("opening", &path, io::Error::other(error)))?
        }
        other => {
            return Err(LoaderError::ForeignPin { path, found: other.to_string(), expected: "a map" });
        }
    };
    // Reasons are only ever appended, without a new layout version: an older COUNTERS is too short for them.
    if map == COUNTERS && found.max_entries() < lb_common::abi::Reason::COUNT {
        tracing::warn!(map, "replaced by a longer one: counters start from zero");
        fs::remove_file(&path).map_err(|source| pin_error("removing", &path, source))?;
        return Ok(None);
    }
    Ok(Some(found.max_entries()))
}
