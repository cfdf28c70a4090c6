use anyhow::{Result, bail};
use clap::Args;
use lb_agent::preflight::{self, Check, Options, Verdict};
use serde::Serialize;

use super::{
    node::NodeArguments,
    output::{OutputArguments, table},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    node: NodeArguments,
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
    let Arguments { node, output } = arguments;
    let options = Options { bpffs: node.pins.bpffs.clone(), cgroup: node.cgroup.clone(), network: node.network() };
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
