use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

/// Why the data plane could not be brought up, taken over or removed. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The kernel is too old.
    #[error("the kernel is {found}; {needed} or newer is needed")]
    KernelTooOld {
        /// Its release.
        found: String,
        /// The oldest that works.
        needed: &'static str,
    },
    /// The kernel was built without BTF.
    #[error("the kernel has no BTF: {path} is not there; a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed")]
    NoBtf {
        /// Where it is looked for.
        path: &'static str,
    },
    /// Capabilities are missing.
    #[error(
        "not enough privileges: {} {} missing; run as root, or give the process (securityContext.capabilities.add) \
         BPF, NET_ADMIN and PERFMON",
        missing.join(", "),
        if missing.len() == 1 { "is" } else { "are" }
    )]
    Capabilities {
        /// Their names.
        missing: Vec<&'static str>,
    },
    /// A file of the kernel's could not be read.
    #[error("{path}: {source}")]
    Kernel {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory of `--bpffs` is not a bpffs, and could not be made one.
    #[error(
        "--bpffs {dir}: not a bpffs, and mounting one there failed: {source}; do `mount -t bpf bpf {dir}` on the \
         node, and mount it into the agent's container"
    )]
    NoBpffs {
        /// The directory.
        dir: PathBuf,
        /// Why it could not be mounted.
        source: io::Error,
    },
    /// The directory of `--bpffs` is not a bpffs, and is in use for something else.
    #[error(
        "--bpffs {dir}: not a bpffs, and not empty: one that is mounted there would hide what it holds; name an empty \
         directory or a bpffs, as a rule /sys/fs/bpf"
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// Something below the directory of our pins failed.
    #[error("{action} {path}: {source}")]
    Pins {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another agent works on the same pins.
    #[error(
        "{dir} is in use by another lb-agent{}; stop it first",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Locked {
        /// Directory of the pins.
        dir: PathBuf,
        /// The other agent, where it can be seen from here.
        pid: Option<u32>,
    },
    /// Somebody else reads the events.
    #[error(
        "another lb-agent monitor{} reads the events of this node, and there can be one; end it first",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Watched {
        /// The other reader, where it can be seen from here.
        pid: Option<u32>,
    },
    /// A pin that is not ours is where ours should be.
    #[error(
        "{path} was not made by lb-agent: found {found}, expected {expected}; it was left alone, remove it yourself"
    )]
    ForeignPin {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What we would have pinned there.
        expected: &'static str,
    },
    /// A pinned map has another layout than the one of this version.
    #[error(
        "pinned map {path}: {property} is {found}, expected {expected}; it was made by an incompatible lb-agent: run \
         `lb-agent cleanup`, which ends the connections that pass through the data plane, and start again"
    )]
    PinnedMap {
        /// The file.
        path: PathBuf,
        /// What differs.
        property: &'static str,
        /// Value of the pinned map.
        found: u64,
        /// Value of this version.
        expected: u64,
    },
    /// Another version left its data plane.
    #[error(
        "{path} is the data plane of an lb-agent with another layout of its maps; run `lb-agent cleanup`, which ends the \
         connections that pass through it, and start again"
    )]
    OtherVersion {
        /// Directory of its pins.
        path: PathBuf,
    },
    /// A map is missing from the object or the pins.
    #[error("map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What aya said.
        source: MapError,
    },
    /// There is no data plane.
    #[error("no map {map} in {dir}: the agent has not run on this node, or runs with another --bpffs")]
    NotPinned {
        /// Name of the map.
        map: &'static str,
        /// Directory of the maps.
        dir: PathBuf,
    },
    /// The object was not accepted, or its maps could not be made.
    #[error("loading the eBPF object: {}", chain(.0))]
    Object(#[source] EbpfError),
    /// A program was not accepted.
    #[error("loading program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What aya, or the verifier, said.
        source: ProgramError,
    },
    /// A program could not be attached.
    #[error("attaching {program} to {target}: {}", chain(.source))]
    Attach {
        /// The program.
        program: &'static str,
        /// The device or cgroup.
        target: String,
        /// What aya said.
        source: ProgramError,
    },
    /// The directory of `--cgroup` cannot be used.
    #[error("--cgroup {path}: {problem}")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No cgroup2 is mounted.
    #[error("no cgroup2 is mounted: `mount -t cgroup2 none DIR` and say --cgroup DIR")]
    NoCgroup,
}

/// An error with its causes: aya's say little without them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
