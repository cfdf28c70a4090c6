use std::{
    fs,
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser, value_parser};
use lb_agent::{loader::TableSizes, model::Policy, network};
use lb_common::{abi::capacity, ports::Reserved};
use tracing_subscriber::EnvFilter;

use super::PinArguments;
use crate::run::{Configuration, Source, run};

/// The API client logs every failed request as an error; that a watch broke, and works again, is said by the watch.
const LOG_FILTER: &str = "info,kube_client=off";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Watch the API server of this kubeconfig. Without this and --manifests: the cluster whose pod this is.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Follow the Services, endpoint slices and Nodes in the YAML and JSON files of this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,
    /// Name of this node, as endpoints spell it [default: the host's name].
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = NonEmptyStringValueParser::new())]
    hostname_override: Option<String>,
    #[command(flatten)]
    pins: PinArguments,
    /// Cgroup whose processes reach Services by their sockets [default: the root of the cgroup2 hierarchy].
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Uplinks, separated by commas [default: devices with a route out, the node's address, or an address of a NIC].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    devices: Option<Vec<String>>,
    /// Where /healthz and /livez are served.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256")]
    healthz_bind_address: SocketAddr,
    /// Where /metrics, /proxyMode and /configz are served.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    metrics_bind_address: SocketAddr,
    /// The API server's --service-node-port-range.
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = port_range)]
    node_port_range: Reserved,
    /// Format of the log, on the standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Which lines are logged: a level, or directives as of the `tracing` crate.
    #[arg(long, value_name = "FILTER", default_value = LOG_FILTER, env = "RUST_LOG", value_parser = log_filter)]
    log_level: String,
    /// Log packets that start a flow, or are refused or dropped, one line each. Slow.
    #[arg(long)]
    trace_packets: bool,
    #[command(flatten)]
    sizes: Sizes,
}

/// Sizes of each family's tables.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "each is the name of a flag")]
#[command(next_help_heading = "Tables (new ones only; those that are there keep their size)")]
struct Sizes {
    /// Entries of the flow table: two a flow.
    #[arg(long, value_name = "N", default_value_t = capacity::FLOWS, value_parser = value_parser!(u32).range(1..=1 << 26))]
    flow_table_size: u32,
    /// Addresses and ports that Services are reached at.
    #[arg(long, value_name = "N", default_value_t = capacity::FRONTENDS, value_parser = value_parser!(u32).range(1..=1 << 24))]
    frontend_table_size: u32,
    /// Ports of Services.
    #[arg(long, value_name = "N", default_value_t = capacity::SERVICES, value_parser = value_parser!(u32).range(1..=1 << 24))]
    service_table_size: u32,
    /// Endpoints, summed over all ports of Services, twice while they change.
    #[arg(long, value_name = "N", default_value_t = capacity::SLOTS, value_parser = value_parser!(u32).range(1..=1 << 26))]
    slot_table_size: u32,
    /// Different endpoints.
    #[arg(long, value_name = "N", default_value_t = capacity::BACKENDS, value_parser = value_parser!(u32).range(1..=1 << 24))]
    backend_table_size: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Arguments {
    pub(super) fn run(self) -> Result<()> {
        start_log(self.log_format, &self.log_level)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("starting the runtime")?;
        let result = runtime.block_on(run(self.configuration()?));
        // A client's look-up of a name may hang in a thread of its own.
        runtime.shutdown_background();
        result
    }

    fn configuration(self) -> Result<Configuration> {
        let node_name = match self.hostname_override {
            Some(name) => name,
            None => fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host's name")?,
        };
        let Sizes { flow_table_size, frontend_table_size, service_table_size, slot_table_size, backend_table_size } =
            self.sizes;
        Ok(Configuration {
            source: match self.manifests {
                Some(dir) => Source::Manifests(dir),
                None => Source::Kubernetes(self.kubeconfig),
            },
            // As kube-proxy does (`NodeName` in its options), since names of Nodes are in lower case.
            node_name: node_name.trim().to_lowercase(),
            bpffs: self.pins.bpffs,
            cgroup: self.cgroup,
            network: network::Options { devices: self.devices, node_ports: self.node_port_range },
            health: self.healthz_bind_address,
            metrics: self.metrics_bind_address,
            configz: None,
            policy: Policy::default(),
            trace_packets: self.trace_packets,
            sizes: TableSizes {
                flows: flow_table_size,
                frontends: frontend_table_size,
                services: service_table_size,
                slots: slot_table_size,
                backends: backend_table_size,
            },
        })
    }
}

fn start_log(format: LogFormat, filter: &str) -> Result<()> {
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(filter)?).with_writer(io::stderr);
    let log = log.with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(anyhow::Error::from_boxed)
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn port_range(text: &str) -> Result<Reserved, String> {
    let expected = || format!("{text:?} is not FIRST-LAST with ports from 1 to 65535");
    let (first, last) = text.split_once('-').ok_or_else(expected)?;
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(expected);
    let (first, last) = (port(first)?, port(last)?);
    if first > last { Err(format!("{first} is above {last}")) } else { Ok(Reserved { first, last }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_range_is_two_ports_in_order() {
        assert_eq!(port_range("30000-32767"), Ok(Reserved { first: 30000, last: 32767 }));
        assert_eq!(port_range("7-7"), Ok(Reserved { first: 7, last: 7 }));
        for wrong in ["", "30000", "0-7", "7-70000", "9-8", "a-b", "30000:32767", "-5"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
    }
}
