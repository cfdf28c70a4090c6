//! `cargo xtask bench`: runs `lb-bench`, which measures and writes `docs/performance.md`.

use anyhow::Result;

use crate::{exec, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Passed to lb-bench: `--rounds 3`, `--services 1,1000`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    setup::for_building()?;
    let mut cargo = workspace::cargo("run");
    setup::run_tests_as_root(&mut cargo);
    cargo.args(["--release", "--package", "lb-tests", "--bin", "lb-bench", "--", "--document"]);
    cargo.arg(workspace::root().join("docs/performance.md"));
    cargo.arg("--json").arg(workspace::target().join("bench.json"));
    exec::run(cargo.args(&options.arguments))
}
