//! `cargo xtask run`: the lab, or the agent on this host.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, exec, setup, workspace};

pub(crate) const AFTER_HELP: &str = "\
The lab is one outside client, a router and two nodes with pods, all in network namespaces of this machine; nothing of
the machine's own network is touched. It prints where its manifests are: edit them, and watch the change arrive.

Options of the lab:
    --once             Check every path once, print a line for each, and leave; exit code 0 if all hold
    --manifests DIR    Write the lab's manifests to this directory, which must be new or empty. Without it they are in
                       target/lab/manifests, emptied at the start; a second lab beside the first needs one of its own

To open a shell in one of its hosts (client, router, node1, node2, node1-pod0, …), paste the command that the lab prints,
of this form:
    nsenter -t PID -m -p ip netns exec node1 bash

Examples:
    cargo xtask run                         the lab with a live picture
    cargo xtask run --once                  the lab as a check
    cargo xtask run -- --manifests DIR      no lab: `lb-agent run --manifests DIR` on this host
    cargo xtask run -- --kubeconfig FILE    no lab: `lb-agent run --kubeconfig FILE` on this host
    cargo xtask run --                      no lab: `lb-agent run` on this host, which must be a pod of a cluster
";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Passed to the lab: --once, --manifests DIR
    #[arg(allow_hyphen_values = true, value_name = "LAB OPTIONS")]
    lab: Vec<String>,
    /// Run the agent on this host with these options, instead of the lab; none is the form for a pod of a cluster
    #[arg(last = true, value_name = "AGENT OPTIONS")]
    agent: Vec<String>,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    setup::for_building()?;
    build::programs()?;
    let mut command;
    if is_agent_asked_for(std::env::args()) {
        command = exec::as_root(workspace::built("lb-agent"));
        command.arg("run").args(&options.agent);
    } else {
        setup::for_testing()?;
        command = exec::as_root(workspace::built("lb-lab"));
        command.env("LB_AGENT", workspace::built("lb-agent"));
        command.args(&options.lab);
    }
    replace_ourselves(&mut command)
}

/// Whether there are two dashes. Nothing need follow them: without options, the agent is one of a pod.
fn is_agent_asked_for(arguments: impl IntoIterator<Item = String>) -> bool {
    arguments.into_iter().any(|argument| argument == "--")
}

/// The program gets the terminal and its signals as if it had been started from the shell.
fn replace_ourselves(command: &mut Command) -> Result<()> {
    exec::announce(command);
    Err(command.exec()).with_context(|| exec::cannot_start(command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parsed(arguments: &[&str]) -> Options {
        Cli::try_parse_from(["run"].iter().chain(arguments)).expect("valid arguments").options
    }

    #[test]
    fn options_are_the_labs_before_two_dashes_and_the_agents_after_them() {
        let lab = parsed(&["--once", "--manifests", "dir"]);
        assert_eq!((lab.lab, lab.agent.len()), (["--once", "--manifests", "dir"].map(str::to_owned).into(), 0));
        let agent = parsed(&["--", "--kubeconfig", "file", "--once"]);
        assert_eq!((agent.lab.len(), agent.agent), (0, ["--kubeconfig", "file", "--once"].map(str::to_owned).into()));
        assert!(parsed(&[]).lab.is_empty());
        let in_cluster = parsed(&["--"]);
        assert!(in_cluster.lab.is_empty() && in_cluster.agent.is_empty());
    }

    #[test]
    fn two_dashes_ask_for_the_agent_whatever_follows() {
        let asked = |arguments: &[&str]| is_agent_asked_for(arguments.iter().map(ToString::to_string));
        assert!(asked(&["xtask", "run", "--"]));
        assert!(asked(&["xtask", "run", "--", "--kubeconfig", "file"]));
        assert!(!asked(&["xtask", "run", "--once"]));
    }
}
