use anyhow::{Result, bail};
use clap::Args;
use lb_agent::takeover::{Connections, Family, Found, KEEPALIVE, Leftovers, kube_proxy_runs};
use serde::Serialize;

use super::output::{OutputArguments, table};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only say what there is.
    #[arg(long)]
    dry_run: bool,
    /// End connections that kube-proxy translated: remove the table that keeps them alive, too.
    #[arg(long)]
    end_connections: bool,
    #[command(flatten)]
    output: OutputArguments,
}

/// What was found, and what became of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Nothing was changed.
    dry_run: bool,
    /// In nftables, and in iptables by iptables-nft.
    tables: Vec<Table>,
    /// In the tables of iptables-legacy, which are left.
    legacy: Vec<Legacy>,
    /// Virtual servers of mode ipvs, which are left; `null` without a device `kube-ipvs0`.
    virtual_servers: Option<usize>,
    /// Tables that keep connections alive.
    keepalive: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "`table` is the table's name, as nftables calls it")]
struct Table {
    /// `ip` or `ip6`.
    family: &'static str,
    table: String,
    /// The mode of kube-proxy that it was in.
    mode: &'static str,
    /// Chains of kube-proxy.
    chains: usize,
    /// Rules in them.
    rules: usize,
    /// Rules in the table's base chains that lead to them.
    jumps: usize,
    /// `removed`, `to remove`, `partly left` or `left`.
    result: &'static str,
    /// What is left, and why.
    left: Vec<Left>,
}

#[derive(Debug, Serialize)]
struct Left {
    /// Absent for all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
    why: String,
}

#[derive(Debug, Serialize)]
struct Legacy {
    family: &'static str,
    table: String,
    chains: usize,
    /// Removes them.
    command: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { dry_run, end_connections, output } = arguments;
    if let Some(sign) = kube_proxy_runs() {
        eprintln!("warning: kube-proxy is running ({sign}) and puts back what is removed: stop it first");
    }
    let connections = if *end_connections { Connections::End } else { Connections::Keep };
    let leftovers = if *dry_run { Leftovers::find() } else { Leftovers::remove(connections) }?;
    let report = Report::new(&leftovers, *dry_run, connections);
    output.print("KubeProxyCleanup", &report, || report.text())?;
    if !*dry_run && report.leaves_something() {
        bail!("something of kube-proxy is left");
    }
    Ok(())
}

impl Report {
    fn new(leftovers: &Leftovers, dry_run: bool, connections: Connections) -> Self {
        let keepalive: Vec<Family> = match connections {
            Connections::End => Vec::new(),
            Connections::Keep => {
                let alive = |family: &Family| {
                    leftovers.keepalive.contains(family) || leftovers.translating().any(|other| other == *family)
                };
                Family::BOTH.into_iter().filter(alive).collect()
            }
        };
        let legacy = leftovers.legacy.iter().map(|table| Legacy {
            family: table.family.name(),
            table: table.table.clone(),
            chains: table.chains.len(),
            command: table.command(),
        });
        Self {
            dry_run,
            tables: leftovers.found.iter().map(|found| Table::new(found, dry_run)).collect(),
            legacy: legacy.collect(),
            virtual_servers: leftovers.ipvs.as_ref().map(|ipvs| ipvs.servers),
            keepalive: keepalive.into_iter().map(|family| format!("{} {KEEPALIVE}", family.name())).collect(),
        }
    }

    fn leaves_something(&self) -> bool {
        !self.legacy.is_empty()
            || self.virtual_servers.is_some()
            || self.tables.iter().any(|table| !table.left.is_empty())
    }

    fn text(&self) -> String {
        let Self { dry_run, tables, legacy, virtual_servers, keepalive } = self;
        let mut parts = Vec::new();
        if tables.is_empty() && legacy.is_empty() && virtual_servers.is_none() {
            parts.push("nothing of kube-proxy was found".to_owned());
        }
        if !tables.is_empty() {
            let header = ["FAMILY", "TABLE", "MODE", "CHAINS", "RULES", "JUMPS", "RESULT"];
            parts.push(self::table(&header, tables.iter().map(Table::row)));
        }
        for Table { family, table, left, .. } in tables {
            for Left { chain, why } in left {
                parts.push(match chain {
                    Some(chain) => format!("left: chain {chain} of {family} {table}: {why}"),
                    None => format!("left: {family} {table}: {why}"),
                });
            }
        }
        for Legacy { family, table, chains, command } in legacy {
            parts.push(format!(
                "left: {chains} chains in table {table} of {family} of iptables-legacy; this removes them:\n  {command}"
            ));
        }
        if let Some(servers) = virtual_servers {
            parts.push(format!(
                "left: device kube-ipvs0 and {servers} virtual servers of mode ipvs; `kube-proxy --cleanup` removes them"
            ));
        }
        if !keepalive.is_empty() {
            let verb = if *dry_run { "would keep" } else { "keep" };
            parts.push(format!(
                "tables {} {verb} established connections translated; once they have ended, \
                 `lb-agent cleanup-kube-proxy --end-connections` removes them",
                keepalive.join(" and ")
            ));
        }
        parts.join("\n")
    }
}

impl Table {
    fn new(found: &Found, dry_run: bool) -> Self {
        let kept = found.kept.iter().map(|(chain, why)| Left { chain: Some(chain.clone()), why: why.clone() });
        let left = match found.left {
            Some(why) => vec![Left { chain: None, why: why.to_owned() }],
            None => kept.collect(),
        };
        let result = match (found.goes_whole(), found.left.is_some(), dry_run) {
            (true, _, false) => "removed",
            (true, _, true) => "to remove",
            (false, false, _) => "partly left",
            (false, true, _) => "left",
        };
        Self {
            family: found.family.name(),
            table: found.table.clone(),
            mode: found.mode,
            chains: found.chains,
            rules: found.rules,
            jumps: found.jumps,
            result,
            left,
        }
    }

    fn row(&self) -> Vec<String> {
        let Self { family, table, mode, chains, rules, jumps, result, left: _ } = self;
        let [chains, rules, jumps] = [chains, rules, jumps].map(ToString::to_string);
        vec![(*family).to_owned(), table.clone(), (*mode).to_owned(), chains, rules, jumps, (*result).to_owned()]
    }
}
