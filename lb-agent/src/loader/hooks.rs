//! The places where programs are attached, and the names of the links that hold them.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{ProgramInfo, TcAttachType};

use super::{
    LoaderError, PROGRAMS, Pins,
    pins::pin_error,
    syscall::{self, LinkInfo, LinkTarget, Pinned},
};

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Name, for messages.
    pub name: String,
    /// What its packets begin with.
    pub link: LinkLayer,
}

/// What the packets of a device begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header (tun, WireGuard).
    Bare,
}

impl Device {
    /// Whether it is still there, in this thread's network namespace.
    pub fn exists(&self) -> bool {
        nix::net::if_::if_nametoindex(self.name.as_str()) == Ok(self.index)
    }
}

/// What a device is to the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The node's end of a pod's interface.
    Pod,
    /// A way out of the node.
    Uplink,
}

/// Which of a device's two hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Packets that come out of the device.
    Ingress,
    /// Packets that go into the device.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// `ingress` or `egress`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    pub(super) const fn tc(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
    pub(crate) const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }

    /// Name of the pinned link.
    pub(super) fn pin(self, index: u32) -> String {
        format!("tcx-{index}-{}", self.name())
    }
}

impl Role {
    /// (Both ends of a pod's pair have Ethernet headers.)
    pub(super) const fn program(self, link: LinkLayer, direction: Direction) -> &'static str {
        match (self, link, direction) {
            (Self::Pod, _, Direction::Ingress) => "pod_ingress",
            (Self::Pod, _, Direction::Egress) => "pod_egress",
            (Self::Uplink, LinkLayer::Ethernet, Direction::Ingress) => "uplink_ingress",
            (Self::Uplink, LinkLayer::Ethernet, Direction::Egress) => "uplink_egress",
            (Self::Uplink, LinkLayer::Bare, Direction::Ingress) => "bare_ingress",
            (Self::Uplink, LinkLayer::Bare, Direction::Egress) => "bare_egress",
        }
    }
}

/// One of the socket programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketHook {
    /// Name of the program.
    pub program: &'static str,
    /// `enum bpf_attach_type`.
    pub(crate) attach_type: u32,
}

impl SocketHook {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self { program: "connect4", attach_type: 10 },
        Self { program: "connect6", attach_type: 11 },
        Self { program: "sendmsg4", attach_type: 14 },
        Self { program: "sendmsg6", attach_type: 15 },
        Self { program: "recvmsg4", attach_type: 19 },
        Self { program: "recvmsg6", attach_type: 20 },
        Self { program: "getpeername4", attach_type: 29 },
        Self { program: "getpeername6", attach_type: 30 },
    ];

    pub(super) fn pin(self) -> String {
        format!("cgroup-{}", self.program)
    }
}

/// Where on its way from the device a packet meets XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdpPlace {
    /// In the device's driver, before there is an skb.
    Native,
    /// In the kernel's stand-in for drivers that have none, after there is one.
    Generic,
}

impl XdpPlace {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// `native` or `generic`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// Name of the pinned link. The link itself does not tell which of the two it is.
    pub(super) fn pin(self, index: u32) -> String {
        format!("xdp-{index}-{}", self.name())
    }
}

/// A hook that holds one of our programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// On a cgroup, by its inode number; 0 if the cgroup is gone.
    Cgroup(SocketHook, u64),
    /// On the device of this index; 0 if the device is gone.
    Device(Direction, u32),
    /// On the device of this index, at XDP; 0 if the device is gone.
    Xdp(XdpPlace, u32),
}

/// The links that are pinned, with the ids of their programs. Files that are none of ours are left out.
pub fn attached(pins: &Pins) -> Result<Vec<(PathBuf, Attached, u32)>, LoaderError> {
    let mut found = Vec::new();
    for path in files(&pins.links())? {
        let Ok(Pinned::Link(info)) = syscall::inspect(&path) else { continue };
        if let Some(attached) = path.file_name().and_then(|name| recognize(name.to_str()?, info)) {
            found.push((path, attached, info.program));
        }
    }
    Ok(found)
}

/// The programs that are pinned, by id.
pub fn pinned_programs(pins: &Pins) -> HashMap<u32, &'static str> {
    let id = |name: &str| Some(ProgramInfo::from_pin(pins.program(name)).ok()?.id());
    PROGRAMS.iter().filter_map(|name| Some((id(name)?, *name))).collect()
}

/// What a link of this name would be, if `info` says that it is that.
pub(super) fn recognize(name: &str, info: LinkInfo) -> Option<Attached> {
    if let Some(program) = name.strip_prefix("cgroup-") {
        let hook = *SocketHook::ALL.iter().find(|hook| hook.program == program)?;
        return match info.target {
            LinkTarget::Cgroup(id) if info.attach_type == hook.attach_type => Some(Attached::Cgroup(hook, id)),
            _ => None,
        };
    }
    if let Some((index, place)) = name.strip_prefix("xdp-").and_then(|rest| rest.split_once('-')) {
        let place = *XdpPlace::ALL.iter().find(|candidate| candidate.name() == place)?;
        let index: u32 = index.parse().ok()?;
        return match info.target {
            LinkTarget::Xdp(actual) if [0, index].contains(&actual) => Some(Attached::Xdp(place, actual)),
            _ => None,
        };
    }
    let (index, direction) = name.strip_prefix("tcx-")?.split_once('-')?;
    let direction = *Direction::ALL.iter().find(|candidate| candidate.name() == direction)?;
    let index: u32 = index.parse().ok()?;
    match info.target {
        LinkTarget::Tcx(actual) if info.attach_type == direction.attach_type() && [0, index].contains(&actual) => {
            Some(Attached::Device(direction, actual))
        }
        _ => None,
    }
}

/// The files of a directory, in order; none where it does not exist.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, LoaderError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries,
    };
    let paths: io::Result<BTreeSet<_>> = entries.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    Ok(paths.map_err(|source| pin_error("reading", dir, source))?.into_iter().collect())
}
