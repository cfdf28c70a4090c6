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
    let mut cargo = workspace::cargo("build");
    if options.release {
        cargo.args(["--release", "--package", "lb-agent"]);
    } else {
        cargo.args(["--package", "lb-agent", "--package", "lb-tests", "--bins"]);
    }
    exec::run(&mut cargo)
}
