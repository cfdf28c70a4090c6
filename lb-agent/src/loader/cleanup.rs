use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    LoaderError, PINNED, PROGRAMS, Pins,
    attach::{detach_clsact, interfaces},
    hooks::{Attached, attached, files},
    pins::pin_error,
    syscall::{self, Pinned},
    xdp::remove_link,
};

/// Takes the data plane away, of whatever version: detaches every program of ours, and removes every pin and directory
/// of ours. What it does not know is left, and returned.
pub fn cleanup(pins: &Pins) -> Result<Vec<PathBuf>, LoaderError> {
    let mut left = Vec::new();
    for version in pins.versions()? {
        left.append(&mut remove_version(&version)?);
    }
    for index in interfaces()? {
        detach_clsact(index)?;
    }
    if let Some(ours) = pins.root().parent() {
        remove_empty(ours)?;
    }
    Ok(left)
}

fn remove_version(pins: &Pins) -> Result<Vec<PathBuf>, LoaderError> {
    let lock = pins.lock()?;
    for (path, attached, _) in attached(pins)? {
        match attached {
            Attached::Cgroup(..) | Attached::Device(..) => remove(&path)?,
            Attached::Xdp(..) => remove_link(&path)?,
        }
    }
    for path in PROGRAMS.iter().map(|name| pins.program(name)) {
        if matches!(syscall::inspect(&path), Ok(Pinned::Program)) {
            remove(&path)?;
        }
    }
    for path in PINNED.iter().map(|name| pins.map(name)) {
        if matches!(syscall::inspect(&path), Ok(Pinned::Map)) {
            remove(&path)?;
        }
    }
    if pins.missing_devices_link().is_symlink() {
        remove(&pins.missing_devices_link())?;
    }
    let mut left = Vec::new();
    for dir in [&pins.links(), &pins.programs(), &pins.maps(), pins.root()] {
        left.extend(files(dir)?.into_iter().filter(|path| !path.is_dir()));
        remove_empty(dir)?;
    }
    drop(lock);
    Ok(left)
}

fn remove(path: &Path) -> Result<(), LoaderError> {
    fs::remove_file(path).map_err(|source| pin_error("removing", path, source))
}

fn remove_empty(dir: &Path) -> Result<(), LoaderError> {
    match fs::remove_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        result => result.map_err(|source| pin_error("removing", dir, source)),
    }
}
