//! The harness's directory in the cgroup2 hierarchy, the only thing of a sandbox that the kernel does not remove by
//! itself. No process is in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lb_agent::loader;

use crate::owner;

const PREFIX: &str = "lb-test-";

/// A directory in the cgroup2 hierarchy, `lb-test-<pid>-<start time>` after the harness, and one for each running test
/// below it.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes the directory of this harness.
    pub(crate) fn create() -> Result<Self, String> {
        let root = loader::cgroup2_root().map_err(|error| error.to_string())?;
        let path = root.join(format!("{PREFIX}{}", owner::name()));
        fs::create_dir(&path).map_err(|error| format!("mkdir {}: {error}", path.display()))?;
        Ok(Self(path))
    }

    /// Makes the directory of a test.
    pub(crate) fn child(&self, test: &str) -> Self {
        let path = self.0.join(test);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("mkdir {}: {error}", path.display()));
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            eprintln!("rmdir {}: {error}", self.0.display());
        }
    }
}

/// The directory of the harness with this process id, if there is one.
pub(crate) fn of(harness: u32) -> Option<PathBuf> {
    let start = format!("{PREFIX}{harness}-");
    directories(&loader::cgroup2_root().ok()?).into_iter().find(|directory| name(directory).starts_with(&start))
}

/// Removes what harnesses left behind that were killed before they could.
pub(crate) fn sweep() {
    let Ok(root) = loader::cgroup2_root() else { return };
    for directory in directories(&root) {
        if name(&directory).strip_prefix(PREFIX).is_some_and(owner::is_gone) {
            // Another harness may be faster.
            let _ = remove(&directory);
        }
    }
}

/// Removes a directory and those below it; the kernel's files in them are no obstacle.
fn remove(directory: &Path) -> io::Result<()> {
    directories(directory).iter().try_for_each(|child| remove(child))?;
    fs::remove_dir(directory)
}

fn directories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn name(directory: &Path) -> &str {
    directory.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
