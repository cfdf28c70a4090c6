use std::{
    env, fs,
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum, value_parser};
use ipnet::IpNet;
use lb_agent::{
    configuration::{Effective, Given},
    loader::{TableSizes, XdpMode},
    model::Balance,
    source::parse_cidr_sloppy,
};
use lb_common::abi::capacity;
use tracing_subscriber::EnvFilter;

use super::{kube_proxy_flags::KubeProxyFlags, node::NodeArguments, show};
use crate::run::{Configuration, ConfigurationFile, Source, hold_little, run};

/// The API client logs every failed request as an error; that a watch broke, and works again, is said by the watch.
const LOG_FILTER: &str = "info,kube_client=off";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Configuration of kube-proxy: a `KubeProxyConfiguration`, v1alpha1. Flags go before it. When its contents change,
    /// the agent ends with exit code 75, to be started again.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the effective configuration as a `KubeProxyConfiguration`, and exit.
    #[arg(long, value_name = "FILE")]
    write_config_to: Option<PathBuf>,
    /// Print the effective configuration, and exit: first a `KubeProxyConfiguration`, then what only lb-agent has.
    #[arg(long)]
    show: bool,
    /// Follow the Services, endpoint slices and Nodes in the YAML and JSON files of this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,
    /// Ranges of cluster IPs, separated by commas, for API servers without `ServiceCIDR` objects.
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',', value_parser = cidr)]
    service_cluster_ip_range: Vec<IpNet>,
    #[command(flatten)]
    node: NodeArguments,
    /// Whether packets from outside are balanced at XDP, where the uplink can; what XDP leaves, TC does. auto: in the
    /// driver of a NIC; native: in the driver of any uplink, whose packets must have finished checksums; generic: without
    /// a driver, for tests.
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    xdp: Xdp,
    /// How backends are selected for Services without the annotation `lb-agent/balance`.
    #[arg(long, value_name = "WAY", default_value = Balance::default().name())]
    balance: Balance,
    /// Format of the log, on the standard error [default: --logging-format].
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// Which lines are logged: a level, or directives as of the `tracing` crate [default: as -v says].
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", value_parser = log_filter)]
    log_level: Option<String>,
    /// Log packets that start a flow, or are refused or dropped in place of one, a line each. Slow. Socket calls, and drops
    /// on the way out (no route, too big), are counted only.
    #[arg(long)]
    trace_packets: bool,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    kube_proxy: KubeProxyFlags,
    #[command(flatten)]
    actions: Actions,
}

/// Flags of kube-proxy that no field of its file stands for.
#[derive(Debug, Args)]
#[command(next_help_heading = "Flags of kube-proxy that do nothing here")]
struct Actions {
    /// Refused: `lb-agent cleanup` removes what lb-agent left, `lb-agent cleanup-kube-proxy` what kube-proxy left.
    #[arg(long, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    cleanup: Option<bool>,
    /// Exit at once: there is nothing to be done beforehand.
    #[arg(long, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    init_only: Option<bool>,
    /// Refused: the kubeconfig names the API server.
    #[arg(long, hide_short_help = true, value_name = "URL")]
    master: Option<String>,
    /// Deprecated by kube-proxy; 0 is as good as an empty --healthz-bind-address.
    #[arg(long, hide_short_help = true, value_name = "N")]
    healthz_port: Option<u16>,
    /// Deprecated by kube-proxy; 0 is as good as an empty --metrics-bind-address.
    #[arg(long, hide_short_help = true, value_name = "N")]
    metrics_port: Option<u16>,
    /// Ignored: of the library that kube-proxy has it from.
    #[arg(long, hide_short_help = true, value_name = "FILES")]
    boot_id_file: Option<String>,
    /// Ignored: of the library that kube-proxy has it from.
    #[arg(long, hide_short_help = true, value_name = "FILES")]
    machine_id_file: Option<String>,
}

/// A flag of kube-proxy that asks for something that another command does, or nothing.
#[derive(Debug, thiserror::Error)]
#[error("{flag} is not supported: {instead}")]
pub(super) struct Unsupported {
    flag: &'static str,
    instead: &'static str,
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

/// An [`XdpMode`].
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Xdp {
    #[default]
    Off,
    Auto,
    Native,
    Generic,
}

impl From<Xdp> for XdpMode {
    fn from(xdp: Xdp) -> Self {
        match xdp {
            Xdp::Off => Self::Off,
            Xdp::Auto => Self::Auto,
            Xdp::Native => Self::Native,
            Xdp::Generic => Self::Generic,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Arguments {
    pub(super) fn run(self) -> Result<()> {
        if self.actions.cleanup == Some(true) {
            let instead =
                "`lb-agent cleanup` removes what lb-agent left, `lb-agent cleanup-kube-proxy` what kube-proxy left";
            return Err(Unsupported { flag: "--cleanup", instead }.into());
        }
        if self.actions.master.is_some() {
            return Err(Unsupported { flag: "--master", instead: "name the API server in the kubeconfig" }.into());
        }
        let file = self.config.as_deref().and_then(ConfigurationFile::open);
        let effective = Effective::new(&Given {
            file: self.config.clone(),
            flags: self.kube_proxy.given.clone(),
            service_cidrs: self.service_cluster_ip_range.clone(),
            balance: self.balance,
            healthz_port: self.actions.healthz_port,
            metrics_port: self.actions.metrics_port,
        })?;
        let json = effective.kube_proxy.logging.format == "json";
        let format = self.log_format.unwrap_or(if json { LogFormat::Json } else { LogFormat::Text });
        let filter = self.log_level.clone();
        let filter = filter.unwrap_or_else(|| filter_of(effective.kube_proxy.logging.verbosity).to_owned());
        start_log(format, &filter)?;
        effective.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        effective.overridden.iter().for_each(|flag| tracing::info!("{flag}"));

        if let Some(path) = &self.write_config_to {
            effective.write(path)?.iter().for_each(|lost| tracing::warn!("{lost}"));
            tracing::info!(file = %path.display(), "configuration written");
            return Ok(());
        }
        if self.actions.init_only == Some(true) {
            tracing::info!(
                "--init-only: there is nothing to be done beforehand; the agent needs its capabilities all the time"
            );
            return Ok(());
        }
        let show = self.show;
        let configuration = self.configuration(effective, file)?;
        if show {
            return show::print(&configuration, &format!("{format:?}").to_lowercase(), &filter);
        }
        hold_little();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("starting the runtime")?;
        let result = runtime.block_on(run(configuration));
        // A client's look-up of a name may hang in a thread of its own.
        runtime.shutdown_background();
        result
    }

    fn configuration(self, effective: Effective, file: Option<ConfigurationFile>) -> Result<Configuration> {
        let variable = || env::var("NODE_NAME").ok().filter(|name| !name.trim().is_empty());
        let node_name = match effective.node_name.clone().or_else(variable) {
            Some(name) => name,
            None => fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host's name")?,
        };
        let Sizes { flow_table_size, frontend_table_size, service_table_size, slot_table_size, backend_table_size } =
            self.sizes;
        Ok(Configuration {
            file,
            source: match self.manifests {
                Some(dir) => Source::Manifests(dir),
                None => Source::Kubernetes(effective.kubeconfig.clone()),
            },
            // As kube-proxy does (`NodeName` in its options), since names of Nodes are in lower case.
            node_name: node_name.trim().to_lowercase(),
            network: self.node.network(),
            bpffs: self.node.pins.bpffs,
            cgroup: self.node.cgroup,
            effective,
            trace_packets: self.trace_packets,
            xdp: self.xdp.into(),
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

/// The filter that stands for a verbosity of klog: kube-proxy says at 2 what is worth saying, at 4 what it does, and at 8
/// what it sends.
fn filter_of(verbosity: u32) -> &'static str {
    match verbosity {
        0..4 => LOG_FILTER,
        4..8 => "info,lb_agent=debug,kube_client=off",
        _ => "debug,lb_agent=trace,kube_client=off",
    }
}

fn cidr(text: &str) -> Result<IpNet, String> {
    parse_cidr_sloppy(text).ok_or_else(|| format!("{text:?} is not a network such as 10.96.0.0/12"))
}

fn start_log(format: LogFormat, filter: &str) -> Result<()> {
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(filter)?).with_writer(io::stderr);
    // A line that cannot be written (a full disk, a pipe that nobody reads) is lost; to tell of it on the same standard error
    // would end the agent.
    let log = log.with_ansi(io::stderr().is_terminal()).log_internal_errors(false);
    match format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(anyhow::Error::from_boxed)
}

fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}
