//! The programs once more, for packets that nobody sent: what would become of them is told without a trace in the data
//! plane.
//!
//! A rehearsal is a second copy of the programs from the same object. The tables that programs only read are the pinned
//! ones, so it decides as the attached copy does at this moment. Those that programs write (flows, affinities, counters, events)
//! are its own: empty but for what is put there, and gone with it. It is attached nowhere and pins nothing.

use aya::{
    Ebpf, EbpfLoader,
    maps::Map,
    programs::{Program, ProgramError, ProgramInfo, TestRun as _, TestRunOptions, TestRunResult},
};
use lb_common::abi::{
    capacity,
    maps::{
        AFFINITY4, AFFINITY6, BACKENDS4, BACKENDS6, CONFIG, EVENTS, FLOWS4, FLOWS6, FRONTENDS4, FRONTENDS6, LOADS4,
        LOADS6, LOCAL_ADDRS4, LOCAL_ADDRS6, NODE_ADDRESSES4, NODE_ADDRESSES6, SERVICE_CIDRS4, SERVICE_CIDRS6,
        SERVICE_NAMES4, SERVICE_NAMES6, SERVICE_STATS4, SERVICE_STATS6, SERVICES4, SERVICES6, SLOTS4, SLOTS6,
        SOCKET_PEERS4, SOCKET_PEERS6, SOURCE_RANGES4, SOURCE_RANGES6, XDP_DEVICES,
    },
};

use super::{LoadOptions, LoaderError, Pins, constants::Constants, load_program, no_map, pins::pin_error};
use crate::object::EBPF_OBJECT;

/// The tables that no program writes. A rehearsal reads the pinned ones.
const READ_ONLY: [&str; 18] = [
    CONFIG,
    FRONTENDS4,
    FRONTENDS6,
    SERVICES4,
    SERVICES6,
    SLOTS4,
    SLOTS6,
    BACKENDS4,
    BACKENDS6,
    NODE_ADDRESSES4,
    NODE_ADDRESSES6,
    LOCAL_ADDRS4,
    LOCAL_ADDRS6,
    SOURCE_RANGES4,
    SOURCE_RANGES6,
    SERVICE_CIDRS4,
    SERVICE_CIDRS6,
    XDP_DEVICES,
];

/// Elements of the tables of its own. One packet enters a handful; an LRU table hands each CPU a batch of its free elements
/// (`LOCAL_FREE_TARGET` in `kernel/bpf/bpf_lru_list.c`, 128), which must not be all of them.
const OWN: [(&str, u32); 15] = [
    (FLOWS4, 1 << 14),
    (FLOWS6, 1 << 14),
    (AFFINITY4, 1 << 14),
    (AFFINITY6, 1 << 14),
    // As large as those that they are copied from.
    (LOADS4, capacity::LOADS),
    (LOADS6, capacity::LOADS),
    (SOCKET_PEERS4, 1),
    (SOCKET_PEERS6, 1),
    ("FRAGMENTS4", 1),
    ("FRAGMENTS6", 1),
    (SERVICE_NAMES4, 1),
    (SERVICE_NAMES6, 1),
    // Per CPU and service, in a size that nobody would want to wait for. Services beyond the end are not counted.
    (SERVICE_STATS4, 1),
    (SERVICE_STATS6, 1),
    // A page. Nothing is written there: `MONITOR` is its own as well, so nobody watches.
    (EVENTS, 1),
];

/// What a program said of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RehearsalOutcome {
    /// The stack goes on with the packet as it was.
    Passed,
    /// The stack goes on with it; the program has changed it.
    Translated,
    /// The program sent it, or an answer, out of a device.
    Sent,
    /// It ended there.
    Dropped,
}

/// Programs that are loaded beside those that are attached.
#[derive(Debug)]
pub struct Rehearsal {
    ebpf: Ebpf,
    is_attached_build: bool,
}

impl Rehearsal {
    /// Loads these programs on the pinned tables of a data plane. XDP: whether `uplink_ingress` may meet what XDP has
    /// translated.
    pub fn load(pins: &Pins, programs: &[&'static str], xdp: bool) -> Result<Self, LoaderError> {
        // What agents are given as well. (The takeover decides about packets of open connections only.)
        let constants = Constants::of(&LoadOptions { xdp, ..LoadOptions::default() })?;
        let mut loader = EbpfLoader::new();
        constants.set(&mut loader);
        for name in READ_ONLY {
            // Looked for first: the loader would make and pin a map that is not there.
            let found = pins.data(name)?.info().map_err(|source| LoaderError::Map { map: name, source })?;
            loader.map_max_entries(name, found.max_entries()).map_pin_path(name, pins.map(name));
        }
        for (name, elements) in OWN {
            loader.map_max_entries(name, elements);
        }
        let mut ebpf = loader.load(EBPF_OBJECT).map_err(LoaderError::Object)?;
        let mut is_attached_build = true;
        for program in programs.iter().copied() {
            let failed = |source| LoaderError::Program { program, source };
            let found = ebpf.program_mut(program).ok_or(ProgramError::UnexpectedProgramType);
            found.and_then(load_program).map_err(failed)?;
            let path = pins.program(program);
            let pinned = ProgramInfo::from_pin(&path)
                .map_err(|error| pin_error("opening", &path, std::io::Error::other(error)))?;
            let own = match ebpf.program(program) {
                Some(Program::SchedClassifier(program)) => program.info(),
                Some(Program::Xdp(program)) => program.info(),
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            // A sum of the instructions, constants aside.
            is_attached_build &= own.map_err(failed)?.tag() == pinned.tag();
        }
        Ok(Self { ebpf, is_attached_build })
    }

    /// Whether the pinned programs are the same, instruction by instruction.
    pub fn is_attached_build(&self) -> bool {
        self.is_attached_build
    }

    /// Takes a map out, which can be done once.
    pub fn take(&mut self, map: &'static str) -> Result<Map, LoaderError> {
        self.ebpf.take_map(map).ok_or_else(|| no_map(map))
    }

    /// Runs a program on a frame as if it had come by a device. The frame is then what the program made of it.
    pub fn run(
        &self,
        program: &'static str,
        interface: u32,
        frame: &mut Vec<u8>,
    ) -> Result<RehearsalOutcome, LoaderError> {
        // An answer may be longer than what it answers, and XDP writes in front of the packet.
        let mut out = vec![0; frame.len() + 256];
        let failed = |source| LoaderError::Program { program, source };
        let run = match self.ebpf.program(program) {
            Some(Program::SchedClassifier(loaded)) => {
                // `struct __sk_buff` up to `ifindex`.
                let mut context = [0_u32; 11];
                context[10] = interface;
                test(frame, &mut out, &context, |options| loaded.test_run(options))
            }
            Some(Program::Xdp(loaded)) => {
                // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
                let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
                test(frame, &mut out, &[0, length, 0, interface, 0, 0], |options| loaded.test_run(options))
            }
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        let TestRunResult { return_value, data_size_out, .. } = run.map_err(failed)?;
        out.truncate(data_size_out as usize);
        let is_xdp = matches!(self.ebpf.program(program), Some(Program::Xdp(_)));
        let outcome = match (is_xdp, return_value.cast_signed()) {
            // TC_ACT_SHOT (include/uapi/linux/pkt_cls.h), XDP_ABORTED, XDP_DROP (include/uapi/linux/bpf.h).
            (false, 2) | (true, 0 | 1) => RehearsalOutcome::Dropped,
            // TC_ACT_REDIRECT, XDP_TX, XDP_REDIRECT.
            (false, 7) | (true, 3 | 4) => RehearsalOutcome::Sent,
            // TC_ACT_UNSPEC, XDP_PASS.
            _ if out == *frame => RehearsalOutcome::Passed,
            _ => RehearsalOutcome::Translated,
        };
        *frame = out;
        Ok(outcome)
    }
}

fn test(
    frame: &[u8],
    out: &mut [u8],
    context: &[u32],
    run: impl FnOnce(TestRunOptions<'_>) -> Result<TestRunResult, ProgramError>,
) -> Result<TestRunResult, ProgramError> {
    let context: Vec<u8> = context.iter().flat_map(|field| field.to_ne_bytes()).collect();
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(out),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    };
    run(options)
}

#[cfg(test)]
mod tests {
    use lb_common::abi::maps::{COUNTERS, EVENT_COUNTS, MONITOR, SOCKETS};

    use super::{super::PINNED, OWN, READ_ONLY};

    #[test]
    fn every_pinned_map_is_either_read_or_replaced() {
        for map in PINNED {
            let of_fixed_size = [COUNTERS, SOCKETS, MONITOR, EVENT_COUNTS].contains(map);
            let is_own = of_fixed_size || OWN.iter().any(|(name, _)| name == map);
            assert!(is_own != READ_ONLY.contains(map), "{map}");
        }
    }
}
