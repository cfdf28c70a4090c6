//! The loop: sources and the node's network in, maps and attachments out.
//!
//! ```text
//! sources, network, health: tokio's threads
//!       │ channels
//! dataplane thread: Controller + KernelMaps + Loaded: every system call that changes the kernel, in order
//! ```

mod configuration_file;
mod dataplane;
mod devices;
mod log;
mod memory;
mod recount;

use std::{
    collections::BTreeSet,
    fs,
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use lb_agent::{
    configuration::Effective,
    controller::{Controller, Settings},
    dataplane::{Recounter, Scraper, Tuning},
    loader::{self, LoadOptions, Loaded, Pins, TableSizes, XdpMode},
    model::ObjectKind,
    network::{self, Network, Watcher},
    source::{self, SourceMessage, kubernetes::Observer},
    takeover,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    events::Events,
    health::{
        HealthServer, ProxyHealth,
        service_checks::{self, Failed, Wanted},
    },
    metrics::{Collected, Metrics, MetricsServer},
    serve::{BindError, serve_at},
};
pub(crate) use configuration_file::{ConfigurationChanged, ConfigurationFile};
use dataplane::{Channels, Dataplane};
pub(crate) use memory::hold_little;

/// Longest time that a synchronization under way is waited for at the end.
const LAST_SYNC: Duration = Duration::from_secs(5);

/// What `lb-agent run` was told.
#[derive(Debug)]
pub(crate) struct Configuration {
    /// That of `--config`, to be followed.
    pub(crate) file: Option<ConfigurationFile>,
    pub(crate) source: Source,
    pub(crate) node_name: String,
    pub(crate) bpffs: PathBuf,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) network: network::Options,
    pub(crate) effective: Effective,
    pub(crate) trace_packets: bool,
    pub(crate) sizes: TableSizes,
    pub(crate) xdp: XdpMode,
}

#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// `None`: the cluster whose pod this is.
    Kubernetes(Option<PathBuf>),
    Manifests(PathBuf),
}

/// Runs until a signal ends it, or its configuration file changes. The data plane stays.
pub(crate) async fn run(configuration: Configuration) -> Result<()> {
    let Configuration { file, source, node_name, bpffs, cgroup, network, effective, trace_packets, sizes, xdp } =
        configuration;
    let counted = Arc::new(Metrics::new(Timestamp::now()));
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;

    if let Some(score) = effective.oom_score_adj {
        set_oom_score_adj(score);
    }
    loader::check_requirements()?;
    let mut watcher = Watcher::start(network).await?;
    let (sender, messages) = mpsc::channel(source::CHANNEL_CAPACITY);
    let client = start_source(source, &node_name, sender, Arc::clone(&counted)).await?;
    // Manifests need not have a Node.
    let in_cluster = client.is_some();
    let events = Events::start(client, &node_name);

    let pins = Pins::create(&bpffs)?;
    let _lock = pins.lock()?;
    let cgroup = cgroup.map_or_else(loader::cgroup2_root, Ok)?;
    let start = Instant::now();
    // Before the programs are loaded: these take the pins of the former ones, which tell what devices were.
    watcher.inherit(&loader::former_devices(&pins).await?);
    let takeover = is_takeover();
    let mut loaded = Loaded::load(&LoadOptions {
        pins: Some(pins.clone()),
        sizes,
        trace: trace_packets,
        takeover,
        xdp: xdp != XdpMode::Off,
        ..LoadOptions::default()
    })?;
    let maps = loaded.take_maps()?;
    let settings = Settings {
        node_name: Arc::from(node_name.as_str()),
        kinds: BTreeSet::from(ObjectKind::ALL),
        tuning: Tuning { grace: Tuning::DEFAULT_GRACE, first_generation: random() },
        policy: effective.policy.clone(),
    };
    let controller = Controller::adopt(&maps, settings)?;
    loaded.attach_cgroup(&cgroup)?;
    tracing::info!(
        node = node_name, pins = %pins.root().display(), cgroup = %cgroup.display(), elapsed = ?start.elapsed(),
        "programs loaded"
    );
    if trace_packets {
        log_packets(&mut loaded)?;
    }

    recount::spawn(Recounter::of_pins(&pins)?)?;

    let (internal, internal_ips) = watch::channel(None);
    let (changes, network) = watch::channel(Network::default());
    tokio::spawn(watcher.run(internal_ips, changes));
    let proxy_health = Arc::new(ProxyHealth::new(in_cluster, effective.sync_period()));
    let health_server = HealthServer::new(Arc::clone(&proxy_health));
    let (unbound, bind_failed) = mpsc::channel(2);
    if let Some(address) = effective.healthz {
        tokio::spawn(serve_at("--healthz-bind-address", address, health_server.clone(), unbound.clone()));
    }
    let collected = Collected::new(Arc::clone(&counted), health_server, Scraper::open(&pins)?);
    let metrics_server = MetricsServer::new(&counted, Some(collected), Some(effective.configz()));
    if let Some(address) = effective.metrics {
        tokio::spawn(serve_at("--metrics-bind-address", address, metrics_server, unbound));
    }

    let (service_checks, wanted) = watch::channel(Wanted::default());
    let teller = events.clone();
    tokio::spawn(service_checks::run(wanted, Arc::clone(&proxy_health), move |failed| {
        let Failed { service, address, error, .. } = failed;
        tracing::error!(%service, %address, "health check cannot be served: {error}; trying again");
        teller.tell_health_check(failed);
    }));

    let (stop, stopped) = oneshot::channel();
    let channels =
        Channels { messages, network, internal, service_checks, events, health: proxy_health, metrics: counted };
    let dataplane = Dataplane::new(loaded, pins, maps, controller, channels, effective.policy.clone());
    let mut ended = dataplane.with_xdp(xdp).spawn(stopped)?;
    let mut outcome = Ok(());
    tokio::select! {
        result = &mut ended => result.map_err(|_| anyhow!("the dataplane thread panicked"))??,
        result = bind_failure(bind_failed), if effective.kube_proxy.bind_address_hard_fail => result?,
        reason = changed(file.as_ref()) => {
            tracing::error!("{reason}");
            outcome = Err(reason.into());
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // It has ended where this fails.
    let _ = stop.send(());
    if tokio::time::timeout(LAST_SYNC, ended).await.is_err() {
        tracing::warn!("a synchronization was cut off; the next start completes it");
    }
    tracing::info!("stopped; the data plane stays in force");
    outcome
}

/// Ends where the address of a server cannot be had.
async fn bind_failure(mut failures: mpsc::Receiver<BindError>) -> Result<()> {
    match failures.recv().await {
        Some(error) => Err(error).context("with --bind-address-hard-fail"),
        None => std::future::pending().await,
    }
}

/// Ends where the configuration file has changed.
async fn changed(file: Option<&ConfigurationFile>) -> ConfigurationChanged {
    match file {
        Some(file) => file.changed().await,
        None => std::future::pending().await,
    }
}

/// As kube-proxy: an agent that may not lower its score works all the same.
fn set_oom_score_adj(score: i32) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!("--oom-score-adj {score}: {error}");
    }
}

/// Whether kube-proxy is, or was, here, so that the node's connection tracking may know connections that we do not.
fn is_takeover() -> bool {
    match takeover::is_under_way() {
        Ok(false) => false,
        Ok(true) => {
            tracing::info!("kube-proxy was here: TCP connections that it began are left to the kernel's translation");
            true
        }
        Err(error) => {
            tracing::warn!("whether kube-proxy was here is not known, and connections that it began may end: {error}");
            false
        }
    }
}

/// Returns the client of the cluster, if there is one.
async fn start_source(
    source: Source,
    node_name: &str,
    sender: mpsc::Sender<SourceMessage>,
    counted: Arc<Metrics>,
) -> Result<Option<Client>> {
    match source {
        Source::Manifests(dir) => {
            source::manifests::spawn(&dir, node_name, sender).context("--manifests")?;
            Ok(None)
        }
        Source::Kubernetes(kubeconfig) => {
            let observer = Observer::new(move |request| counted.requested(request));
            let client = source::kubernetes::connect(kubeconfig.as_deref(), observer).await.context("--kubeconfig")?;
            let node_name = node_name.to_owned();
            let watching = client.clone();
            tokio::spawn(async move { Box::pin(source::kubernetes::run(watching, &node_name, sender)).await });
            Ok(Some(client))
        }
    }
}

/// Turns what the programs log into lines of our log.
fn log_packets(loaded: &mut Loaded) -> Result<JoinHandle<()>> {
    let logger = loaded.packet_log().context("--trace-packets")?;
    // SAFETY: the logger owns its descriptor, which stays the same and open for as long as it lives.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = logger.context("--trace-packets")?;
    Ok(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}

fn random() -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "any 32 of the bits will do")]
    let number = RandomState::new().hash_one(()) as u32;
    number
}
