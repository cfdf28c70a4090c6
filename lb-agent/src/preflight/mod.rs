//! Whether this node can run the agent, and what would be in its way. Asked before installing: nothing is changed, no
//! program is started, and what was loaded to see whether it can be is gone again.

mod devices;
mod driver;
mod filesystems;
mod hooks;
mod kernel;
mod ports;
mod proxies;

use std::{fmt, path::PathBuf};

use serde::Serialize;

use crate::{
    loader::Pins,
    network::{self, Network, Watcher},
};

/// What is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the agent will have its bpffs.
    pub bpffs: PathBuf,
    /// The cgroup that it will attach its socket programs to; `None` = the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
    /// As the agent will read it.
    pub network: network::Options,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It could not be found out.
    Unknown,
    /// The agent works, but something should be looked at.
    Warning,
    /// The agent does not work.
    Failure,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Failure => "failure",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What it is about; the name is for programs as well.
    pub check: &'static str,
    /// The device that it is about, where it is about one.
    pub device: Option<String>,
    /// What came of it.
    pub verdict: Verdict,
    /// What is there.
    pub found: String,
    /// What to do, unless it is as it should be.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, device: None, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn not_ok(verdict: Verdict, check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, device: None, verdict, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn failure(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::not_ok(Verdict::Failure, check, found, remedy)
    }

    fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::not_ok(Verdict::Warning, check, found, remedy)
    }

    fn unknown(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::not_ok(Verdict::Unknown, check, found, remedy)
    }

    fn of_device(self, device: &str) -> Self {
        Self { device: Some(device.to_owned()), ..self }
    }
}

/// Looks at everything, in the order in which it is told.
pub async fn run(options: &Options) -> Vec<Check> {
    let Options { bpffs, cgroup, network: network_options } = options;
    let pins = Pins::new(bpffs);
    let mut checks = kernel::checks();
    let may_load = checks.iter().all(|check| check.verdict < Verdict::Failure);
    if may_load {
        checks.extend(kernel::load());
        checks.push(kernel::device_hook());
    }
    checks.push(filesystems::bpffs(bpffs));
    let (found, directory) = filesystems::cgroup(cgroup.as_deref());
    checks.push(found);
    checks.push(filesystems::pins(&pins));
    let network = match Watcher::start(network_options.clone()).await {
        Ok(mut watcher) => watcher.network(None),
        Err(error) => {
            checks.push(Check::unknown(
                "devices",
                error.to_string(),
                "is this process allowed to open netlink sockets?",
            ));
            Network::default()
        }
    };
    checks.extend(devices::checks(&network, network_options.devices.as_deref()));
    if may_load {
        checks.extend(hooks::checks(&pins, &network, directory.as_deref()).await);
    }
    checks.extend(proxies::checks());
    checks.extend(ports::checks(network_options.node_ports));
    checks
}
