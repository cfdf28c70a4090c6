//! `cargo xtask check`: what a reviewer need not look at.

use anyhow::{Result, bail};

use crate::{exec, setup, workspace};

pub(crate) fn main() -> Result<()> {
    setup::for_building()?;
    let format = exec::run(workspace::cargo("fmt").args(["--all", "--check"]));
    // `lb-ebpf` has no host target that compiles; lb-agent's build script reports its warnings.
    let lint = exec::run(workspace::cargo("clippy").args(["--all-targets", "--", "--deny", "warnings"]));
    let failed: Vec<String> = [format, lint].into_iter().filter_map(Result::err).map(|e| format!("{e:#}")).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}
