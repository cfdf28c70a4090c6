//! `cargo xtask test`: every test of the workspace, what failed once more, and one summary.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::summary::{Failures, Summary};
use crate::{build, exec, k8s, setup, workspace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Fail when something that a test needs is missing, instead of skipping the test; implied by CI=true
    #[arg(long)]
    require_all: bool,
    /// Passed to `cargo test`: `-p lb-common`, `--test packets`, a test's name, `-- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn main(options: &Options) -> ExitCode {
    let require_all = options.require_all || std::env::var("CI").is_ok_and(|value| value == "true");
    let mut summary = Summary::default();
    let mut failures = Failures::default();
    let mut cargo = workspace::cargo("test");
    cargo.arg("--no-fail-fast").args(&options.arguments);
    if require_all {
        // lb-tests and lb-agent's `kernel` tests turn each "cannot run here" into a failure when this is set.
        cargo.env("LB_REQUIRE_ALL", "1");
    }
    // The tests still run when a step before them fails: one run reports all that is wrong.
    let steps = [prepare(&mut cargo, &options.arguments), run(&mut cargo, &mut summary, &mut failures)];
    for error in steps.into_iter().filter_map(Result::err) {
        eprintln!("xtask: {error:#}");
        summary.failed += 1;
    }
    print!("{failures}");
    println!("{summary}");
    if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prepare(cargo: &mut Command, arguments: &[String]) -> Result<()> {
    setup::for_building()?;
    setup::for_testing()?;
    // The lab starts the agent, which `cargo test` builds for lb-agent's own tests. Where only other tests are asked for,
    // it is built here; that compiles some dependencies twice, with other features.
    if !arguments.is_empty() {
        build::programs()?;
    }
    cargo.env("LB_AGENT", workspace::built("lb-agent"));
    setup::run_tests_as_root(cargo)?;
    k8s::name_to(cargo)?;
    k8s::name_renderers_to(cargo)
}

/// Runs the tests, shows what they print, and adds up their closing lines.
fn run(cargo: &mut Command, summary: &mut Summary, failures: &mut Failures) -> Result<()> {
    exec::announce(cargo);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut output = BufReader::new(child.stdout.take().expect("standard output is piped"));
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        std::io::stdout().write_all(&line)?;
        let text = String::from_utf8_lossy(&line);
        summary.add_line(&text);
        failures.add_line(&text);
        line.clear();
    }
    let status = child.wait()?;
    // A failed test is in the sum already; a build that fails or a test program that crashes is not.
    if !status.success() && summary.failed == 0 {
        anyhow::bail!("cargo test failed ({status}) with no failed test: see the first error above");
    }
    Ok(())
}
