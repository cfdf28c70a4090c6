//! `cargo xtask differential`: Services made at random, against the real kube-proxy and against `lb-agent`.

use anyhow::Result;

use crate::{exec, k8s, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The first seed; a failure names its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How many seeds to try, one after the other
    #[arg(long, value_name = "M", default_value_t = 100)]
    cases: u64,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    setup::for_building()?;
    setup::for_testing()?;
    exec::run(workspace::cargo("build").args(["--package", "lb-agent"]))?;
    let mut cargo = workspace::cargo("test");
    setup::run_tests_as_root(&mut cargo)?;
    cargo.args(["--package", "lb-tests", "--test", "differential", "--", "generated::"]);
    cargo.env("LB_AGENT", workspace::built("lb-agent"));
    k8s::name_to(&mut cargo)?;
    // What `tests/tests/differential` makes of it.
    cargo.env("LB_SEED", options.seed.to_string()).env("LB_CASES", options.cases.to_string());
    exec::run(&mut cargo)
}
