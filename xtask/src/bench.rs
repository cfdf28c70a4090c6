//! `cargo xtask bench`: runs `lb-bench`, which measures and writes `docs/performance.md`.

use anyhow::Result;

use crate::{exec, k8s, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Passed to lb-bench: `--rounds 3`, `--services 1,1000`, `--only rivals`; `-- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    setup::for_building()?;
    setup::for_testing()?;
    // Both at once, so that what they share is built once.
    exec::run(
        workspace::cargo("build")
            .args(["--release", "-p", "lb-agent", "-p", "lb-tests"])
            .args(["--bin", "lb-agent", "--bin", "lb-bench"]),
    )?;
    let built = |program| workspace::target().join("release").join(program);
    let mut command = exec::as_root(built("lb-bench"));
    command.env("LB_AGENT", built("lb-agent"));
    k8s::name_to(&mut command)?;
    command.arg("--document").arg(workspace::root().join("docs/performance.md"));
    command.arg("--json").arg(workspace::target().join("bench.json"));
    exec::run(command.args(&options.arguments))
}
