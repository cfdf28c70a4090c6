//! `cargo xtask run`: the lab, or the agent on this host.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{exec, setup, workspace};

pub(crate) const AFTER_HELP: &str = "\
The lab is one outside client, a router and two nodes with pods, all in network namespaces of this machine; nothing of \
the machine's own network is touched. Edit the manifests that it prints the path of, and watch the change arrive.

To open a shell in one of its hosts, paste the command that the lab prints for it, of this form:
    nsenter --net=/proc/PID/ns/net bash

Examples:
    cargo xtask run                         the lab with a live picture
    cargo xtask run --once                  check every path once, print a line for each, leave nothing behind
    cargo xtask run -- --manifests DIR      the agent itself on this host: `lb-agent run --manifests DIR`
    cargo xtask run -- --kubeconfig FILE    the same, watching a cluster
";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Options of the lab, such as --once; `--lab-help` shows all
    #[arg(allow_hyphen_values = true, value_name = "LAB OPTIONS")]
    lab: Vec<String>,
    /// Run the agent on this host with these options, instead of the lab
    #[arg(last = true, value_name = "AGENT OPTIONS")]
    agent: Vec<String>,
}

pub(crate) fn main(options: &Options) -> Result<()> {
    setup::for_building()?;
    let mut command;
    if options.agent.is_empty() {
        exec::run(
            workspace::cargo("build")
                .args(["-p", "lb-agent", "-p", "lb-tests", "--bin", "lb-agent", "--bin", "lb-lab"]),
        )?;
        command = exec::as_root(workspace::built("lb-lab"));
        command.env("LB_AGENT", workspace::built("lb-agent"));
        command.args(options.lab.iter().map(|option| if option == "--lab-help" { "--help" } else { option }));
    } else {
        exec::run(workspace::cargo("build").args(["-p", "lb-agent"]))?;
        command = exec::as_root(workspace::built("lb-agent"));
        command.arg("run").args(&options.agent);
    }
    replace_ourselves(&mut command)
}

/// The program gets the terminal and its signals as if it had been started from the shell.
fn replace_ourselves(command: &mut Command) -> Result<()> {
    exec::announce(command);
    Err(command.exec()).with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}
