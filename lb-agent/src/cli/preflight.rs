use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, builder::NonEmptyStringValueParser};
use lb_agent::{
    network,
    preflight::{self, Check, Options, Verdict},
};
use lb_common::ports::Reserved;
use serde::Serialize;

use super::{
    PinArguments,
    output::{OutputArguments, table},
    run::port_range,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pins: PinArguments,
    /// The --cgroup of `lb-agent run`.
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// The --devices of `lb-agent run`.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    devices: Option<Vec<String>>,
    /// The API server's --service-node-port-range.
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = port_range)]
    node_port_range: Reserved,
    #[command(flatten)]
    output: OutputArguments,
}

/// What `preflight` prints for programs.
#[derive(Debug, Serialize)]
struct Report {
    /// The worst of all.
    verdict: Verdict,
    checks: Vec<Check>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { pins, cgroup, devices, node_port_range, output } = arguments;
    let options = Options {
        bpffs: pins.bpffs.clone(),
        cgroup: cgroup.clone(),
        network: network::Options { devices: devices.clone(), node_ports: *node_port_range },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let checks = runtime.block_on(preflight::run(&options));
    let verdict = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
    let report = Report { verdict, checks };
    output.print("Preflight", &report, || report.text())?;
    let failures: Vec<_> = report.checks.iter().filter(|check| check.verdict == Verdict::Failure).collect();
    if !failures.is_empty() {
        let names = failures.iter().map(|check| check.check).collect::<Vec<_>>().join(", ");
        bail!("this node cannot run lb-agent as it is: {names}");
    }
    Ok(())
}

impl Report {
    fn text(&self) -> String {
        let rows = self.checks.iter().map(|Check { check, device, verdict, found, remedy: _ }| {
            vec![
                (*check).to_owned(),
                device.clone().unwrap_or_else(|| "-".to_owned()),
                verdict.to_string(),
                found.clone(),
            ]
        });
        let mut parts = vec![table(&["CHECK", "DEVICE", "VERDICT", "FOUND"], rows)];
        let remedies: Vec<_> = self.checks.iter().filter_map(Self::remedy).collect();
        if !remedies.is_empty() {
            parts.push(format!("What to do:\n{}", remedies.join("\n")));
        }
        parts.join("\n\n")
    }

    fn remedy(check: &Check) -> Option<String> {
        let device = check.device.as_ref().map(|device| format!(" ({device})")).unwrap_or_default();
        check.remedy.as_ref().map(|remedy| format!("  {}{device}: {remedy}", check.check))
    }
}
