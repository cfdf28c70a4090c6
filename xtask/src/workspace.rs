//! Where things are: the repository, its build directory, the cache that outlives a clone.

use std::env::{var_os, vars_os};
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

/// A cargo command that runs in the repository, by the cargo that runs us; without what that one tells us of ourselves.
///
/// Build scripts such as `ring`'s name those variables among what they depend on, although cargo gives each script its
/// own: with `xtask`'s in the environment, `cargo build` by hand and `cargo xtask` would undo each other's builds.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut command = Command::new(var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).arg(verb);
    for (name, _) in vars_os() {
        if name.to_str().is_some_and(is_of_running_package) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether `cargo run` sets this variable to something of the package that it runs (the Cargo book, "Environment
/// variables Cargo sets for crates").
fn is_of_running_package(variable: &str) -> bool {
    ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|prefix| variable.starts_with(prefix))
        || ["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"].contains(&variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cargo_that_we_start_does_not_learn_of_the_package_that_runs() {
        // Cargo sets them for this test as it does for `cargo xtask`.
        assert!(var_os("CARGO_MANIFEST_DIR").is_some() && var_os("CARGO_PKG_NAME").is_some());
        let command = cargo("build");
        let removed: Vec<_> = command.get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        for (name, _) in vars_os() {
            let of_us = name.to_str().is_some_and(|name| name.contains("_MANIFEST_") || name.contains("_PKG_"));
            assert_eq!(removed.contains(&name.as_os_str()), of_us, "{}", name.display());
        }
    }
}
