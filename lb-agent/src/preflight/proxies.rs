//! Others that balance Services.

use aya::maps::loaded_maps;

use super::Check;
use crate::takeover::{Leftovers, kube_proxy_runs, process};

/// Programs that balance Services or may be told to, by the name of their process (15 bytes, `TASK_COMM_LEN`), and what to
/// do.
const PROXIES: [(&str, &str, &str); 4] = [
    (
        "cilium-agent",
        "Cilium",
        "tell it to leave Services alone: kubeProxyReplacement=false, and socketLB.enabled=false",
    ),
    ("kube-router", "kube-router", "start it with --run-service-proxy=false"),
    ("antrea-agent", "Antrea", "set antreaProxy.enable to false in its configuration"),
    (
        "ovnkube",
        "OVN-Kubernetes",
        "it balances Services in Open vSwitch and cannot be told not to: lb is of no use beside it",
    ),
];

/// Maps of others in which Services stand, by the beginning of their names.
const MAPS: [(&str, &str, &str); 2] = [
    ("cilium_lb4_", "Cilium", PROXIES[0].2),
    ("cali_v4_nat_", "Calico's eBPF data plane", "turn it off: bpfEnabled: false in the FelixConfiguration"),
];

pub(super) fn checks() -> Vec<Check> {
    vec![kube_proxy(), others()]
}

fn kube_proxy() -> Check {
    const CHECK: &str = "kube-proxy";
    if let Some(sign) = kube_proxy_runs() {
        return Check::warning(
            CHECK,
            format!("runs ({sign})"),
            "install lb-agent beside it, then stop it, then run `lb-agent cleanup-kube-proxy`: connections go on \
             (docs/migration.md)",
        );
    }
    match Leftovers::find() {
        Ok(Leftovers { found, legacy, ipvs, .. }) if found.is_empty() && legacy.is_empty() && ipvs.is_none() => {
            Check::ok(CHECK, "neither runs nor left anything")
        }
        Ok(Leftovers { found, legacy, ipvs, .. }) => {
            let tables = found.iter().map(|found| format!("{} {} ({})", found.family.name(), found.table, found.mode));
            let legacy =
                legacy.iter().map(|table| format!("{} {} (iptables-legacy)", table.family.name(), table.table));
            let ipvs = ipvs.iter().map(|ipvs| format!("{} virtual servers (ipvs)", ipvs.servers));
            let left: Vec<_> = tables.chain(legacy).chain(ipvs).collect();
            Check::warning(
                CHECK,
                format!("does not run, but left {}", left.join(", ")),
                "once lb-agent serves the node, run `lb-agent cleanup-kube-proxy` (docs/migration.md)",
            )
        }
        Err(error) => Check::unknown(CHECK, error.to_string(), "look at it with CAP_NET_ADMIN"),
    }
}

fn others() -> Check {
    const CHECK: &str = "other-proxies";
    let processes = PROXIES
        .iter()
        .filter_map(|(comm, name, remedy)| process(comm).map(|id| (format!("{name} runs (process {id})"), *remedy)));
    let mut unseen = false;
    let maps: Vec<_> = loaded_maps().map_while(|map| map.inspect_err(|_| unseen = true).ok()).collect();
    let maps = MAPS.iter().filter_map(|(beginning, name, remedy)| {
        let map = maps.iter().filter_map(|map| map.name_as_str()).find(|map| map.starts_with(beginning))?;
        Some((format!("{name} has a map of Services ({map})"), *remedy))
    });
    let (found, mut remedies): (Vec<_>, Vec<_>) = processes.chain(maps).unzip();
    remedies.dedup();
    if !found.is_empty() {
        return Check::warning(CHECK, found.join(", "), remedies.join("; "));
    }
    if unseen {
        let found = "no process of one is seen; maps of others are shown to CAP_SYS_ADMIN only";
        return Check::unknown(CHECK, found, "run this once as root, in the node's process namespace");
    }
    Check::ok(CHECK, "neither Cilium, Calico's eBPF data plane, kube-router, Antrea nor OVN-Kubernetes is seen")
}
