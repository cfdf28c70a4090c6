//! Where things are: the repository, its build directory, the cache that outlives a clone.

use std::env::var_os;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The repository's root directory.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the workspace")
}

/// Cargo's build directory.
pub(crate) fn target() -> PathBuf {
    var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Where a program that was built by `cargo build` is.
pub(crate) fn built(program: &str) -> PathBuf {
    target().join("debug").join(program)
}

/// The directory for what takes minutes to make and does not depend on the clone: `LB_CACHE`, else `lb` in the user's
/// cache directory (XDG base directory specification).
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(dir) = var_os("LB_CACHE") {
        return std::path::absolute(dir).context("LB_CACHE");
    }
    let user = var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let user = user.or_else(|| Some(PathBuf::from(var_os("HOME")?).join(".cache")));
    Ok(user.context("neither LB_CACHE nor XDG_CACHE_HOME nor HOME is set")?.join("lb"))
}

/// A cargo command that runs in the repository, by the cargo that runs us.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut command = Command::new(var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).arg(verb);
    command
}
