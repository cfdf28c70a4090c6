//! The lab's directory in the cgroup2 hierarchy, the only thing of a lab that the kernel does not remove by itself.
//!
//! The sandboxed process moves itself into `lb-lab-<pid>-<start time>`, named after the process that waits for it
//! outside. Nodes are threaded children of that directory, so that the threads of one process can belong to
//! different nodes; a socket belongs to the cgroup of the thread that made it, for ever.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::owner;

const PREFIX: &str = "lb-lab-";

/// A directory in the cgroup2 hierarchy.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the directory of a lab that the calling process will wait for.
    pub(super) fn create() -> Result<Self, String> {
        let root = root().ok_or("no cgroup2 hierarchy is mounted")?;
        let path = root.join(format!("{PREFIX}{}", owner::name()));
        fs::create_dir(&path).map_err(|error| format!("mkdir {}: {error}", path.display()))?;
        Ok(Self { path })
    }

    /// Makes a child for one node. From here on this cgroup's processes may spread their threads over its children.
    pub(super) fn threaded_child(&self, name: &str) -> Self {
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("mkdir {}: {error}", path.display()));
        write(&path, "cgroup.type", "threaded");
        Self { path }
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling process into this cgroup.
    pub(super) fn enter_process(&self) {
        write(&self.path, "cgroup.procs", "0");
    }

    /// Moves the calling thread into this cgroup, which must be a threaded child of its process's.
    pub(super) fn enter_thread(&self) {
        write(&self.path, "cgroup.threads", "0");
    }

    /// Removes the directory and its children. One that is still in use stays.
    pub(super) fn remove(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            // Files of the hierarchy are not removable, and need not be.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = fs::remove_dir(entry.path());
            }
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// Removes what labs left behind whose owner was killed before it could.
pub fn sweep() {
    let Some(root) = root() else { return };
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)).is_some_and(owner::is_gone) {
            Cgroup { path: entry.path() }.remove();
        }
    }
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or below it on a machine that also has version 1.
fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

fn write(directory: &Path, file: &str, value: &str) {
    let path = directory.join(file);
    if let Err(error) = fs::write(&path, value) {
        let hint = if error.kind() == ErrorKind::NotFound { " (was the directory swept?)" } else { "" };
        panic!("write {value:?} to {}: {error}{hint}", path.display());
    }
}
