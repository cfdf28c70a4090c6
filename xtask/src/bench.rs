//! `cargo xtask bench`: the benchmarks of `lb-tests`.

use anyhow::{Result, ensure};

use crate::{exec, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Passed to the benchmarks: a name to select, or their options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    ensure!(workspace::root().join("tests/benches").is_dir(), "there is no benchmark in tests/benches yet");
    setup::for_building()?;
    let mut cargo = workspace::cargo("bench");
    setup::run_tests_as_root(&mut cargo);
    exec::run(cargo.args(["--package", "lb-tests", "--benches", "--"]).args(&options.arguments))
}
