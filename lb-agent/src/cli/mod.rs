//! The command line.

mod backend;
mod cleanup;
mod cleanup_kube_proxy;
mod flow;
mod kube_proxy_flags;
mod output;
mod run;
mod service;
mod show;
mod status;
mod view;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Error, Result};
use clap::{Args, Parser, Subcommand};
use output::OutputArguments;

use lb_agent::{
    configuration::ConfigurationError,
    loader::{LoaderError, Pins},
    source::{kubernetes::ConnectError, manifests::ManifestsError},
};

use crate::run::ConfigurationChanged;

/// Bad configuration: `EX_USAGE` of `sysexits.h`.
const EX_USAGE: u8 = 64;
/// To be started again: `EX_TEMPFAIL` of `sysexits.h`.
const EX_TEMPFAIL: u8 = 75;

/// Balances the Services of a Kubernetes cluster on this node, in eBPF.
#[derive(Debug, Parser)]
#[command(name = "lb-agent", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load the data plane, or take it over, and keep it up to date until a signal ends the agent; the data plane stays.
    Run(Box<run::Arguments>),
    /// Show what is attached where, how full the tables are, and what was refused or dropped.
    Status(ShowArguments),
    /// Services as the maps hold them, also while no agent runs.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Endpoints as the maps hold them, also while no agent runs.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Flows of the packet path.
    #[command(subcommand)]
    Flow(FlowCommand),
    /// Detach and remove all that `run` left in the kernel.
    Cleanup(PinArguments),
    /// Remove what kube-proxy left in the kernel, once this agent serves the node. Connections go on.
    CleanupKubeProxy(cleanup_kube_proxy::Arguments),
}

#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// List the ports of Services, with their frontends, endpoints and counters.
    List(ShowArguments),
}

#[derive(Debug, Subcommand)]
enum BackendCommand {
    /// List endpoints, with the Services that use them.
    List(ShowArguments),
}

#[derive(Debug, Subcommand)]
enum FlowCommand {
    /// List both directions of every flow.
    List(ShowArguments),
}

#[derive(Debug, Args)]
struct ShowArguments {
    #[command(flatten)]
    pins: PinArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Where the maps are.
#[derive(Debug, Args)]
struct PinArguments {
    /// Mount point of the bpffs that holds the maps and links.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", env = "LB_BPFFS")]
    bpffs: PathBuf,
}

impl PinArguments {
    fn pins(&self) -> Pins {
        Pins::new(&self.bpffs)
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come as errors, too. Nothing can be done about a closed terminal.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lb-agent: {}", describe(&error));
            if is_usage(&error) {
                ExitCode::from(EX_USAGE)
            } else if error.is::<ConfigurationChanged>() {
                ExitCode::from(EX_TEMPFAIL)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Run(arguments) => arguments.run(),
        Command::Status(ShowArguments { pins, output }) => status::show(&pins.pins(), &output),
        Command::Service(ServiceCommand::List(ShowArguments { pins, output })) => service::list(&pins.pins(), &output),
        Command::Backend(BackendCommand::List(ShowArguments { pins, output })) => backend::list(&pins.pins(), &output),
        Command::Flow(FlowCommand::List(ShowArguments { pins, output })) => flow::list(&pins.pins(), &output),
        Command::Cleanup(arguments) => cleanup::run(&arguments.pins()),
        Command::CleanupKubeProxy(arguments) => cleanup_kube_proxy::run(&arguments),
    }
}

/// The error with its causes, those that its text does not repeat already.
fn describe(error: &Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

/// Whether a flag is to blame, which the message names.
fn is_usage(error: &Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(LoaderError::Cgroup { .. } | LoaderError::NoBpffs { .. }))
            || cause.is::<ManifestsError>()
            || cause.is::<ConnectError>()
            || cause.is::<ConfigurationError>()
            || cause.is::<run::Unsupported>()
    })
}
