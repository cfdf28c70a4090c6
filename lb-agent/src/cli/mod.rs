//! The command line.

mod affinity;
mod backend;
mod cleanup;
mod cleanup_kube_proxy;
mod completion;
mod drops;
mod explain;
mod filter;
mod flow;
mod hooks;
mod kube_proxy_flags;
mod manual;
mod monitor;
mod node;
mod output;
mod preflight;
mod run;
mod service;
mod show;
mod status;
mod top;
mod view;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Error, Result};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use filter::ServiceFilter;
use output::{ListOutputArguments, OutputArguments};

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
    /// Flows of the packet path: what the TC programs translate. Connections that the socket hooks translate are none.
    #[command(subcommand)]
    Flow(FlowCommand),
    /// Clients of Services with session affinity.
    #[command(subcommand)]
    Affinity(AffinityCommand),
    /// What was refused and dropped, and why.
    Drops {
        #[command(flatten)]
        show: ShowArguments,
        #[command(flatten)]
        drops: drops::DropsArguments,
    },
    /// Show Services by what they do now: new flows, packets, bytes and rejections a second.
    Top {
        #[command(flatten)]
        show: ShowArguments,
        #[command(flatten)]
        top: top::TopArguments,
    },
    /// Print new flows, refusals and drops as they happen. The programs write them only while this runs.
    Monitor {
        #[command(flatten)]
        show: ShowArguments,
        #[command(flatten)]
        monitor: monitor::MonitorArguments,
    },
    /// Tell what becomes of a packet or a connection, and why: Service, policy, endpoints, source address, verdict. Asked of
    /// the live tables and, for packets, of the programs themselves; leaves no trace in either.
    Explain {
        #[command(flatten)]
        question: explain::Question,
        #[command(flatten)]
        show: ShowArguments,
    },
    /// Tell whether this node can run the agent, and what would be in its way, with what to do about it. Changes nothing;
    /// exit code 1 if it cannot.
    Preflight(preflight::Arguments),
    /// Detach and remove all that `run` left in the kernel.
    Cleanup(PinArguments),
    /// Remove what kube-proxy left in the kernel, once this agent serves the node. Connections go on.
    CleanupKubeProxy(cleanup_kube_proxy::Arguments),
    /// Print a script that completes commands and flags in a shell: `source <(lb-agent completion bash)`.
    Completion(completion::Arguments),
    /// Print a manual page, or write those of all commands to a directory.
    Man(manual::Arguments),
}

#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// List the ports of Services, with their frontends, endpoints and counters.
    List {
        #[command(flatten)]
        list: ListArguments,
        #[command(flatten)]
        filter: ServiceFilter,
    },
    /// Show all that is known of a Service or one of its ports.
    Show {
        #[command(flatten)]
        asked: service::ShowService,
        #[command(flatten)]
        show: ShowArguments,
    },
}

#[derive(Debug, Subcommand)]
enum BackendCommand {
    /// List endpoints, with the Services that use them.
    List {
        #[command(flatten)]
        list: ListArguments,
        #[command(flatten)]
        filter: backend::BackendFilter,
    },
}

#[derive(Debug, Subcommand)]
enum FlowCommand {
    /// List flows, in no order.
    List {
        #[command(flatten)]
        list: ListArguments,
        #[command(flatten)]
        filter: flow::FlowFilter,
    },
    /// Forget flows: the next packet of the client starts a new one, with a backend that is eligible then.
    Flush {
        #[command(flatten)]
        show: ShowArguments,
        #[command(flatten)]
        flush: flow::FlushArguments,
    },
}

#[derive(Debug, Subcommand)]
enum AffinityCommand {
    /// List clients with the backend of their last new flow, in no order.
    List {
        #[command(flatten)]
        list: ListArguments,
        #[command(flatten)]
        filter: affinity::AffinityFilter,
    },
}

#[derive(Debug, Args)]
struct ListArguments {
    #[command(flatten)]
    pins: PinArguments,
    #[command(flatten)]
    output: ListOutputArguments,
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
        Command::Service(ServiceCommand::List { list: ListArguments { pins, output }, filter }) => {
            service::list(&pins.pins(), &filter, &output)
        }
        Command::Service(ServiceCommand::Show { show: ShowArguments { pins, output }, asked }) => {
            service::show(&pins.pins(), &asked, &output)
        }
        Command::Backend(BackendCommand::List { list: ListArguments { pins, output }, filter }) => {
            backend::list(&pins.pins(), &filter, &output)
        }
        Command::Flow(FlowCommand::List { list: ListArguments { pins, output }, filter }) => {
            flow::list(&pins.pins(), &filter, &output)
        }
        Command::Flow(FlowCommand::Flush { show: ShowArguments { pins, output }, flush }) => {
            flow::flush(&pins.pins(), &flush, &output)
        }
        Command::Affinity(AffinityCommand::List { list: ListArguments { pins, output }, filter }) => {
            affinity::list(&pins.pins(), &filter, &output)
        }
        Command::Drops { show: ShowArguments { pins, output }, drops } => drops::drops(&pins.pins(), &drops, &output),
        Command::Top { show: ShowArguments { pins, output }, top } => top::top(&pins.pins(), &top, &output),
        Command::Monitor { show: ShowArguments { pins, output }, monitor } => {
            monitor::monitor(&pins.pins(), &monitor, &output)
        }
        Command::Explain { show: ShowArguments { pins, output }, question } => {
            explain::explain(&pins.pins(), &question, &output)
        }
        Command::Preflight(arguments) => preflight::run(&arguments),
        Command::Cleanup(arguments) => cleanup::run(&arguments.pins()),
        Command::CleanupKubeProxy(arguments) => cleanup_kube_proxy::run(&arguments),
        Command::Completion(arguments) => completion::print(&arguments, Cli::command()),
        Command::Man(arguments) => manual::print(&arguments, Cli::command()),
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
        matches!(
            cause.downcast_ref(),
            Some(LoaderError::Cgroup { .. } | LoaderError::NoBpffs { .. } | LoaderError::NotEmpty { .. })
        ) || cause.is::<ManifestsError>()
            || cause.is::<ConnectError>()
            || cause.is::<ConfigurationError>()
            || cause.is::<run::Unsupported>()
            || cause.is::<flow::NothingAsked>()
    })
}
