//! Puts the programs at their hooks: on devices by tcx, or clsact where the kernel has no tcx (before 6.6), and on the
//! cgroup. A hook that a pinned link holds already gets the new program in one step; no packet passes in between.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io, mem,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, LinkOrder, Program, ProgramError, SchedClassifier, TcAttach, TcAttachType,
    links::{FdLink, Link, LinkError, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcError, TcHandle},
};
use nix::{
    libc,
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};

use super::{
    Loaded, LoaderError,
    hooks::{Attached, Device, Direction, Role, SocketHook, attached, recognize},
    pins::pin_error,
    syscall::{self, Pinned},
    xdp::remove_link,
};

/// Priority of our clsact filters: before all others.
const FILTER_PRIORITY: u16 = 1;
/// Handle of our clsact filters, "lb" in ASCII: a number that nobody else would take by chance, since it says which
/// filter is ours. Others leave handles to the kernel, which counts them up from 1.
pub(super) const FILTER_HANDLE: TcHandle = TcHandle::new(0x6c62, 1);

/// The mount point of the cgroup2 hierarchy.
pub fn cgroup2_root() -> Result<PathBuf, LoaderError> {
    const MOUNTS: &str = "/proc/mounts";
    let mounts =
        fs::read_to_string(MOUNTS).map_err(|source| LoaderError::Kernel { path: MOUNTS.to_owned(), source })?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (dir, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(dir))
        })
        .ok_or(LoaderError::NoCgroup)
}

impl Loaded {
    /// Attaches the socket programs to the cgroup of directory `cgroup`.
    pub fn attach_cgroup(&mut self, cgroup: &Path) -> Result<(), LoaderError> {
        let problem = |problem: String| LoaderError::Cgroup { path: cgroup.to_owned(), problem };
        let dir = File::open(cgroup).map_err(|error| problem(error.to_string()))?;
        let id = dir.metadata().map_err(|error| problem(error.to_string()))?.ino();
        if statfs(cgroup).map_err(|error| problem(error.to_string()))?.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(problem("not a directory of a cgroup2 hierarchy".to_owned()));
        }
        for hook in SocketHook::ALL {
            let path = self.pin(&hook.pin());
            let held = match &path {
                Some(path) => held(path, "a link of a socket program")?,
                None => None,
            };
            let adopt = held == Some(Attached::Cgroup(hook, id));
            if let (Some(path), Some(_), false) = (&path, &held, adopt) {
                fs::remove_file(path).map_err(|source| pin_error("removing", path, source))?;
            }
            self.socket_program(hook.program)
                .and_then(|program| attach_socket(program, &dir, path.as_deref(), adopt))
                .map_err(|source| LoaderError::Attach {
                    program: hook.program,
                    target: cgroup.display().to_string(),
                    source,
                })?;
        }
        Ok(())
    }

    /// Attaches the two programs of `role` to a device, in place of what an earlier agent or role attached there.
    pub fn attach_device(&mut self, device: &Device, role: Role) -> Result<(), LoaderError> {
        let tcx = self.uses_tcx();
        for direction in Direction::ALL {
            let name = role.program(device.link, direction);
            let path = if tcx { self.pin(&direction.pin(device.index)) } else { None };
            let held = match &path {
                Some(path) => held(path, "a tcx link of this device")?,
                None => None,
            };
            let adopt = held == Some(Attached::Device(direction, device.index));
            if let (Some(path), Some(_), false) = (&path, &held, adopt) {
                fs::remove_file(path).map_err(|source| pin_error("removing", path, source))?;
            }
            self.classifier(name)
                .and_then(|program| {
                    if tcx {
                        attach_tcx(program, device.index, direction, path.as_deref(), adopt)
                    } else {
                        attach_clsact(program, device.index, direction)
                    }
                })
                .map_err(|source| LoaderError::Attach {
                    program: name,
                    target: format!("{} of device {}", direction.name(), device.name),
                    source,
                })?;
        }
        Ok(())
    }

    /// Takes our programs off every device that is not in `keep`, and removes the links of devices that are gone.
    pub fn detach_devices_except(&mut self, keep: &BTreeSet<u32>) -> Result<(), LoaderError> {
        if let Some(pins) = &self.pins {
            for (path, attached, _) in attached(pins)? {
                match attached {
                    Attached::Device(_, index) if !keep.contains(&index) => {
                        fs::remove_file(&path).map_err(|source| pin_error("removing", &path, source))?;
                    }
                    Attached::Xdp(_, index) if !keep.contains(&index) => remove_link(&path)?,
                    Attached::Cgroup(..) | Attached::Device(..) | Attached::Xdp(..) => {}
                }
            }
        }
        if !self.uses_tcx() {
            for index in interfaces()?.difference(keep) {
                detach_clsact(*index)?;
            }
        }
        self.forget_xdp_except(keep)
    }

    /// Attaches by clsact even where the kernel has tcx: lets tests of the one run on kernels with the other.
    pub fn use_clsact(&mut self) {
        self.tcx = Some(false);
    }

    fn uses_tcx(&mut self) -> bool {
        *self.tcx.get_or_insert_with(has_tcx)
    }

    pub(super) fn pin(&self, link: &str) -> Option<PathBuf> {
        self.pins.as_ref().map(|pins| pins.link(link))
    }

    fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, ProgramError> {
        match self.ebpf.program_mut(name) {
            Some(Program::SchedClassifier(program)) => Ok(program),
            _ => Err(ProgramError::UnexpectedProgramType),
        }
    }

    fn socket_program(&mut self, name: &str) -> Result<&mut CgroupSockAddr, ProgramError> {
        match self.ebpf.program_mut(name) {
            Some(Program::CgroupSockAddr(program)) => Ok(program),
            _ => Err(ProgramError::UnexpectedProgramType),
        }
    }
}

/// Whether the kernel has tcx. Needs privileges.
pub(crate) fn has_tcx() -> bool {
    // The loopback device has index 1 in every network namespace.
    match SchedClassifier::query_tcx(1, TcAttachType::Ingress) {
        Ok(_) => true,
        // EINVAL is a kernel that does not know the attach type; another error comes from a look at what others attached,
        // and tells that there is tcx.
        Err(error) => !matches!(raw_os_error(&error), Some(libc::EINVAL | libc::ENOTSUP)),
    }
}

/// What the link pinned at `path` is attached to, if there is one. Anything but a link of ours is an error.
pub(super) fn held(path: &Path, expected: &'static str) -> Result<Option<Attached>, LoaderError> {
    if !path.try_exists().map_err(|source| pin_error("reading", path, source))? {
        return Ok(None);
    }
    let found = syscall::inspect(path).map_err(|source| pin_error("opening", path, source))?;
    if let Pinned::Link(info) = found
        && let Some(attached) = path.file_name().and_then(|name| recognize(name.to_str()?, info))
    {
        return Ok(Some(attached));
    }
    Err(LoaderError::ForeignPin { path: path.to_owned(), found: found.to_string(), expected })
}

fn attach_socket(
    program: &mut CgroupSockAddr,
    cgroup: &File,
    path: Option<&Path>,
    adopt: bool,
) -> Result<(), ProgramError> {
    let Some(path) = path else {
        return program.attach(cgroup, CgroupAttachMode::Single).map(drop);
    };
    if adopt {
        let link = FdLink::from(PinnedLink::from_pin(path)?);
        let id = program.attach_to_link(link.try_into()?)?;
        // The pin keeps the link, whoever drops it here.
        return program.take_link(id).map(drop);
    }
    // A link always allows others beside it (`BPF_F_ALLOW_MULTI`) and takes no flag that would say so.
    let id = program.attach(cgroup, CgroupAttachMode::Single)?;
    pin(program.take_link(id)?, path)
}

fn attach_tcx(
    program: &mut SchedClassifier,
    index: u32,
    direction: Direction,
    path: Option<&Path>,
    adopt: bool,
) -> Result<(), ProgramError> {
    if let (Some(path), true) = (path, adopt) {
        let link = FdLink::from(PinnedLink::from_pin(path)?);
        let id = program.attach_to_link(link.try_into()?)?;
        return program.take_link(id).map(drop);
    }
    let attach = TcAttach::Tcx { attach_type: direction.tc(), order: LinkOrder::first() };
    let id = program.attach(index, attach)?;
    match path {
        Some(path) => pin(program.take_link(id)?, path),
        None => Ok(()),
    }
}

pub(super) fn pin<L: TryInto<FdLink, Error = LinkError>>(link: L, path: &Path) -> Result<(), ProgramError> {
    let link: FdLink = link.try_into()?;
    link.pin(path).map(drop).map_err(|error| ProgramError::IOError(io::Error::other(error)))
}

fn attach_clsact(program: &mut SchedClassifier, index: u32, direction: Direction) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(index) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        result => result?,
    }
    let options = NlOptions { priority: FILTER_PRIORITY, handle: FILTER_HANDLE, classid: None };
    let id = match program.attach(index, TcAttach::Netlink { parent: direction.tc().into(), options }) {
        // Our filter is there: its program is replaced in place.
        Err(error) if raw_os_error(&error) == Some(libc::EEXIST) => {
            program.attach_to_link(filter(index, direction).map_err(ProgramError::IOError)?)?
        }
        result => result?,
    };
    // Dropped, it would take the filter away: it stays when the agent goes.
    mem::forget(program.take_link(id)?);
    Ok(())
}

/// Our filter, there or not.
fn filter(index: u32, direction: Direction) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(index, direction.tc().into(), FILTER_PRIORITY, FILTER_HANDLE, None)
}

/// Removes our filters from a device. The qdisc stays: others may have put their filters there since.
pub(super) fn detach_clsact(index: u32) -> Result<(), LoaderError> {
    for direction in Direction::ALL {
        let removed = filter(index, direction).map_err(ProgramError::IOError).and_then(Link::detach);
        match removed {
            // No qdisc, no filter, no device.
            Err(error) if matches!(raw_os_error(&error), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => {}
            result => result.map_err(|source| LoaderError::Attach {
                program: "no program",
                target: format!("{} of device {index}", direction.name()),
                source,
            })?,
        }
    }
    Ok(())
}

/// Indices of all devices.
pub(super) fn interfaces() -> Result<BTreeSet<u32>, LoaderError> {
    let interfaces = nix::net::if_::if_nameindex()
        .map_err(|errno| LoaderError::Kernel { path: "list of devices".to_owned(), source: errno.into() })?;
    Ok(interfaces.iter().map(nix::net::if_::Interface::index).collect())
}

pub(super) fn raw_os_error(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::NetlinkError(error) | ProgramError::TcError(TcError::NetlinkError(error)) => error.raw_os_error(),
        ProgramError::TcError(TcError::IoError(error)) | ProgramError::IOError(error) => error.raw_os_error(),
        _ => None,
    }
}
