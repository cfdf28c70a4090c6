//! `lb-agent run --show`.

use std::io::{self, Write as _};

use anyhow::Result;
use lb_agent::{
    configuration::Effective,
    loader::TableSizes,
    model::{DetectLocal, NodePortAddresses},
    network,
};
use serde_json::json;

use crate::run::{Configuration, Source};

/// Prints the effective configuration as two YAML documents: one that `--config` takes, and one of what no such file can
/// say, in words of our own.
pub(super) fn print(configuration: &Configuration, log_format: &str, log_level: &str) -> Result<()> {
    let Configuration { file: _, source, node_name, bpffs, cgroup, network, effective, trace_packets, sizes, xdp } =
        configuration;
    let Effective { policy, healthz, metrics, .. } = effective;
    let network::Options { devices, node_ports } = network;
    let TableSizes { flows, frontends, services, slots, backends } = sizes;
    let (kubeconfig, manifests) = match source {
        Source::Kubernetes(Some(path)) => (path.display().to_string(), None),
        Source::Kubernetes(None) => ("that of the pod".to_owned(), None),
        Source::Manifests(path) => ("none".to_owned(), Some(path)),
    };
    let networks = |list: &[ipnet::IpNet]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let own = json!({
        "nodeName": node_name,
        "source": {"kubeconfig": kubeconfig, "manifests": manifests},
        "listen": {"healthz": healthz, "metrics": metrics},
        "pods": match &policy.detect_local {
            DetectLocal::Interface => json!("by interface"),
            DetectLocal::ClusterCidr(list) => json!({"by address": networks(list)}),
            DetectLocal::NodeCidr => json!("by the podCIDRs of the Node"),
            DetectLocal::Nothing => json!("not told from others"),
        },
        "nodePorts": {
            "range": format!("{}-{}", node_ports.first, node_ports.last),
            "addresses": match &policy.node_port_addresses {
                NodePortAddresses::All => json!("all"),
                NodePortAddresses::Primary => json!("primary"),
                NodePortAddresses::Within(list) => json!(networks(list)),
            },
            "localhost": policy.localhost_node_ports,
        },
        "balance": policy.balance.name(),
        "serviceClusterIPRange": networks(&policy.service_cidrs),
        "bpffs": bpffs,
        "cgroup": cgroup,
        "devices": devices,
        "xdp": format!("{xdp:?}").to_lowercase(),
        "log": {"format": log_format, "level": log_level},
        "tracePackets": trace_packets,
        "tables": {"flows": flows, "frontends": frontends, "services": services, "slots": slots, "backends": backends},
    });
    let own = serde_saphyr::to_string(&json!({ "lb-agent": own }))?;
    let text = format!("{}\n---\n{}\n", effective.to_yaml().trim_end(), own.trim_end());
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
