//! Where the data plane lives while no agent runs: `<bpffs>/lb/v<ABI_VERSION>/{maps,programs,links}`.
//!
//! Names hold no dots, which a bpffs forbids; that is why links are named after interface indices and not names
//! (`eth0.100`).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use aya::maps::{Map, MapData, MapError};
use lb_common::abi::ABI_VERSION;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    libc::{major, minor},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{LoaderError, hooks::files};

/// Directory of all that is ours, of any version, below the bpffs.
const OURS: &str = "lb";

/// The directories of our pins.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins below the bpffs at `bpffs`, of this version's layout. Touches nothing.
    pub fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join(OURS).join(format!("v{ABI_VERSION}")) }
    }

    /// Makes the directories, and the bpffs itself if it is not mounted.
    pub fn create(bpffs: &Path) -> Result<Self, LoaderError> {
        ensure_bpffs(bpffs)?;
        let pins = Self::new(bpffs);
        // Two sets of programs would both translate.
        if let Some(other) = pins.versions()?.into_iter().find(|other| other.root != pins.root) {
            return Err(LoaderError::OtherVersion { path: other.root });
        }
        for dir in [pins.maps(), pins.programs(), pins.links()] {
            fs::create_dir_all(&dir).map_err(|source| pin_error("creating", &dir, source))?;
        }
        Ok(pins)
    }

    /// The pins of every version that are there.
    pub fn versions(&self) -> Result<Vec<Self>, LoaderError> {
        let ours = self.root.parent().unwrap_or(&self.root);
        let is_version = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()?.strip_prefix('v'));
            name.is_some_and(|number| number.parse::<u32>().is_ok())
        };
        Ok(files(ours)?.into_iter().filter(is_version).map(|root| Self { root }).collect())
    }

    /// Directory of this version.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Directory of the links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Directory of the programs. Nothing is started from there: their ids tell which program a link holds, which the
    /// kernel does not tell without `CAP_SYS_ADMIN`.
    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// Where the map of this name is.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where the link of this name is.
    pub fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Where the program of this name is.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Opens a pinned map.
    pub fn open(&self, map: &'static str) -> Result<Map, LoaderError> {
        Map::from_map_data(self.data(map)?).map_err(|source| LoaderError::Map { map, source })
    }

    /// Opens a pinned map of whatever type.
    pub(crate) fn data(&self, map: &'static str) -> Result<MapData, LoaderError> {
        MapData::from_pin(self.map(map)).map_err(|source| match source {
            MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::NotFound => {
                LoaderError::NotPinned { map, dir: self.maps() }
            }
            source => LoaderError::Map { map, source },
        })
    }

    /// Notes which devices an operator named that are not there, for `lb-agent status`.
    ///
    /// A bpffs takes no files, but symbolic links: the names are what this one points to.
    pub fn note_missing_devices(&self, names: &BTreeSet<String>) -> Result<(), LoaderError> {
        let path = self.missing_devices_link();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(pin_error("removing", &path, error)),
            _ => {}
        }
        if names.is_empty() {
            return Ok(());
        }
        let text = names.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        symlink(text, &path).map_err(|source| pin_error("creating", &path, source))
    }

    /// What the last agent [noted](Self::note_missing_devices).
    pub fn missing_devices(&self) -> Vec<String> {
        let text = fs::read_link(self.missing_devices_link()).unwrap_or_default();
        let text = text.to_string_lossy();
        text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }

    pub(super) fn missing_devices_link(&self) -> PathBuf {
        self.root.join("missing_devices")
    }

    /// The agent that holds the lock, where it can be seen from here.
    pub fn agent(&self) -> Option<u32> {
        holder(&File::open(&self.root).ok()?)
    }

    /// Keeps other agents off these pins until the lock is dropped, or the process ends.
    pub fn lock(&self) -> Result<Lock, LoaderError> {
        lock(&self.root, |pid| LoaderError::Locked { dir: self.root.clone(), pid })
    }

    /// Likewise keeps other readers off the events: a ring buffer has one. The directory of the maps stands for it.
    pub(crate) fn lock_events(&self) -> Result<Lock, LoaderError> {
        lock(&self.maps(), |pid| LoaderError::Watched { pid })
    }
}

fn lock(dir: &Path, locked: impl FnOnce(Option<u32>) -> LoaderError) -> Result<Lock, LoaderError> {
    let file = File::open(dir).map_err(|source| pin_error("opening", dir, source))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map(Lock).map_err(|(file, errno)| match errno {
        Errno::EWOULDBLOCK => locked(holder(&file)),
        errno => pin_error("locking", dir, errno.into()),
    })
}

/// Exclusive use of the pins.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

pub(super) fn pin_error(action: &'static str, path: &Path, source: io::Error) -> LoaderError {
    LoaderError::Pins { action, path: path.to_owned(), source }
}

fn ensure_bpffs(dir: &Path) -> Result<(), LoaderError> {
    let no_bpffs = |errno: Errno| LoaderError::NoBpffs { dir: dir.to_owned(), source: errno.into() };
    if statfs(dir).map_err(no_bpffs)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    if !files(dir)?.is_empty() {
        return Err(LoaderError::NotEmpty { dir: dir.to_owned() });
    }
    mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(no_bpffs)?;
    tracing::info!(dir = %dir.display(), "mounted a bpffs");
    Ok(())
}

/// The process that holds the lock, where it can be seen from here.
fn holder(locked: &File) -> Option<u32> {
    let metadata = locked.metadata().ok()?;
    holder_in(&fs::read_to_string("/proc/locks").ok()?, metadata.dev(), metadata.ino())
}

/// The process that `/proc/locks` names for a file: `1: FLOCK  ADVISORY  WRITE 4242 00:2b:17 0 EOF`, where the device's
/// numbers are hexadecimal and the inode's is decimal (`lock_get_status` in `fs/locks.c`). Every bpffs numbers its inodes
/// by itself, so the device counts.
fn holder_in(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let wanted = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, file, ..] if file == wanted => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use nix::libc::makedev;

    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_that_of_this_file_on_this_device() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:2b:17 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 00:2c:17 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 00:2b:17 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 14 00:2b:117 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 15 00:2b:17 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 16 103:00:17 0 EOF\n";
        for (device, inode, expected) in [
            (makedev(0, 0x2b), 17, Some(15)),
            (makedev(0, 0x2c), 17, Some(12)),
            (makedev(0, 0x2b), 117, Some(14)),
            (makedev(0x103, 0), 17, Some(16)),
            (makedev(0, 0x2d), 17, None),
            (makedev(0, 0x2b), 7, None),
        ] {
            assert_eq!(holder_in(locks, device, inode), expected, "{device:#x} {inode}");
        }
    }
}
