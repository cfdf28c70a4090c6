//! Everything a contributor runs, as `cargo xtask VERB`; one module per verb.
//!
//! The dependencies are few on purpose: this is the first thing that a fresh clone compiles.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod bench;
mod build;
mod check;
mod debian;
mod differential;
mod exec;
mod go;
mod image;
mod k8s;
mod provision_check;
mod run;
mod setup;
mod summary;
mod test;
mod vm;
mod workspace;

/// Build, run and test lb.
///
/// Each task first installs what it needs and misses (see `setup`), and prints every command before it runs it. New here?
/// `cargo xtask run` shows what lb does; `cargo xtask check` and `cargo xtask test` are what a change must pass.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need: rust-src, bpf-linker, Debian packages
    Setup(setup::Options),
    /// Build `lb-agent` with the eBPF programs inside, and the lab
    Build(build::Options),
    /// Show Services being balanced in a lab of network namespaces; with `-- ARGS`, run the agent on this host
    #[command(after_long_help = run::AFTER_HELP)]
    Run(run::Options),
    /// Lint: rustfmt and clippy, also of the eBPF programs; warnings are errors
    Check,
    /// Run every test: host, packets, lab, Kubernetes API server, real kube-proxy; ends with `N passed, N failed`
    Test(test::Options),
    /// Compare with the real kube-proxy in Services made at random; `test` does so in the scenario files and a few of these
    Differential(differential::Options),
    /// Run the benchmarks, and write docs/performance.md
    Bench(bench::Options),
    /// Make the container image of the agent, as an OCI archive
    #[command(after_long_help = image::AFTER_HELP)]
    Image(image::Options),
    /// Find or build the Kubernetes programs that the tests start, and print their directory
    K8s(k8s::Options),
    /// Boot Debian's kernels in QEMU and run the packet tests there
    #[command(after_long_help = vm::AFTER_HELP)]
    Vm(vm::Options),
    /// Try the provisioning script in a clean Debian root: install, build, from a clone of HEAD
    #[command(after_long_help = provision_check::AFTER_HELP)]
    ProvisionCheck(provision_check::Options),
}

fn main() -> ExitCode {
    let Some(task) = Cli::parse().task else {
        Cli::command().print_long_help().expect("standard output accepts the help");
        return ExitCode::SUCCESS;
    };
    let outcome = match task {
        Task::Setup(options) => setup::main(&options),
        Task::Build(options) => build::main(&options),
        Task::Run(options) => run::main(&options),
        Task::Check => check::main(),
        Task::Test(options) => return test::main(&options),
        Task::Differential(options) => differential::main(&options),
        Task::Bench(options) => bench::main(&options),
        Task::Image(options) => image::main(&options),
        Task::K8s(options) => k8s::main(&options),
        Task::Vm(options) => return vm::main(&options),
        Task::ProvisionCheck(options) => provision_check::main(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
