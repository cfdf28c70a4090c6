//! Memory of a process, and of what it put into the kernel.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use serde::{Deserialize, Serialize};

const PREFIX: &str = "lb-bench-";

/// What a proxy takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// `VmRSS` of `/proc/PID/status`.
    pub resident_kilobytes: f64,
    /// `VmHWM`: the most that it ever was.
    pub highest_kilobytes: f64,
    /// What the kernel keeps for it and for the programs that it starts: rules or maps. Only where there is a memory
    /// controller of cgroup version 1, which a process may enter without leaving its cgroup2.
    pub kernel_kilobytes: Option<f64>,
}

impl Memory {
    /// Of a process.
    pub(super) fn of(id: u32, group: Option<&Group>) -> Self {
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("the process runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
            line.trim_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number of kB")
        };
        Self {
            resident_kilobytes: field("VmRSS:"),
            highest_kilobytes: field("VmHWM:"),
            kernel_kilobytes: group.and_then(Group::kernel_kilobytes),
        }
    }
}

/// A cgroup of the memory controller, version 1. Its directory goes when this is dropped and its processes have ended.
pub(super) struct Group {
    directory: PathBuf,
}

impl Group {
    /// With a process that has just been started, and all that it will start.
    pub(super) fn of(id: u32) -> Option<Self> {
        let own = own_directory()?;
        sweep(&own);
        let directory = own.join(format!("{PREFIX}{}-{id}", process::id()));
        fs::create_dir(&directory).ok()?;
        let this = Self { directory };
        fs::write(this.directory.join("cgroup.procs"), id.to_string()).ok()?;
        Some(this)
    }

    fn kernel_kilobytes(&self) -> Option<f64> {
        let bytes = fs::read_to_string(self.directory.join("memory.kmem.usage_in_bytes")).ok()?;
        Some(bytes.trim().parse::<f64>().ok()? / 1024.0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Where a process is left in it, the next measurement removes it.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Where this process is in the hierarchy of the memory controller, if version 1 has that.
fn own_directory() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let root = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let is_memory = fields[2] == "cgroup" && fields[3].split(',').any(|option| option == "memory");
        is_memory.then(|| PathBuf::from(fields[1]))
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| Some(line.split_once(":memory:")?.1.trim_start_matches('/')))?;
    Some(root.join(path))
}

/// Removes what earlier measurements could not. Directories that hold processes stay: the kernel refuses.
fn sweep(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    ours.for_each(|entry| {
        let _: io::Result<()> = fs::remove_dir(entry.path());
    });
}
