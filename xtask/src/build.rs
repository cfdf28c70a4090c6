//! `cargo xtask build`: the agent and the lab.

use anyhow::Result;

use crate::{exec, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build only the agent, optimised: the program to install on a node
    #[arg(long)]
    release: bool,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    setup::for_building()?;
    if options.release {
        exec::run(workspace::cargo("build").args(["--release", "--package", "lb-agent"]))
    } else {
        programs()
    }
}

/// Builds the agent and the lab, as every task that starts one of them does: cargo compiles dependencies with the
/// features that all packages of one command want together, so another choice of packages would compile them again.
pub(crate) fn programs() -> Result<()> {
    exec::run(workspace::cargo("build").args(["--package", "lb-agent", "--package", "lb-tests", "--bins"]))
}
