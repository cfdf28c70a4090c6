//! The loop: sources and the node's network in, maps and attachments out.
//!
//! ```text
//! sources, network, health: tokio's threads
//!       │ channels
//! dataplane thread: Controller + KernelMaps + Loaded: every system call that changes the kernel, in order
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use lb_agent::{
    controller::{Controller, Settings},
    dataplane::{ChangeKind, KernelMaps, PortChange, SyncReport, Tuning},
    loader::{self, LoadOptions, Loaded, Pins, Role, TableSizes},
    model::ObjectKind,
    network::{self, Network, Watcher},
    source::{self, SourceMessage, WatchState},
    takeover,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::health::{self, Synchronized};

/// More changes than this in one synchronization are counted on one line.
const CHANGES_LOGGED: usize = 64;
/// Messages that are taken in before a synchronization, at most: a burst costs one, and no burst can put it off.
const MESSAGES_AT_ONCE: usize = 4 * source::CHANNEL_CAPACITY;
/// Pause before a device that could not be attached to is tried again.
const ATTACH_RETRY: Duration = Duration::from_secs(1);
/// A failure that repeats is logged once in this time.
const FAILURE_REPEATED: Duration = Duration::from_secs(60);
/// Longest time that a synchronization under way is waited for at the end.
const LAST_SYNC: Duration = Duration::from_secs(5);

/// What `lb-agent run` was told.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    pub(crate) source: Source,
    pub(crate) node_name: String,
    pub(crate) bpffs: PathBuf,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) network: network::Options,
    pub(crate) health: SocketAddr,
    pub(crate) trace_packets: bool,
    pub(crate) sizes: TableSizes,
}

#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// `None`: the cluster whose pod this is.
    Kubernetes(Option<PathBuf>),
    Manifests(PathBuf),
}

/// Runs until a signal ends it. The data plane stays.
pub(crate) async fn run(configuration: Configuration) -> Result<()> {
    let Configuration { source, node_name, bpffs, cgroup, network, health, trace_packets, sizes } = configuration;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;

    loader::check_requirements()?;
    let watcher = Watcher::start(network).await?;
    let (sender, messages) = mpsc::channel(source::CHANNEL_CAPACITY);
    start_source(source, &node_name, sender).await?;

    let pins = Pins::create(&bpffs)?;
    let _lock = pins.lock()?;
    let cgroup = cgroup.map_or_else(loader::cgroup2_root, Ok)?;
    let start = Instant::now();
    let takeover = is_takeover();
    let mut loaded = Loaded::load(&LoadOptions {
        pins: Some(pins.clone()),
        sizes,
        trace: trace_packets,
        takeover,
        ..LoadOptions::default()
    })?;
    let maps = loaded.take_maps()?;
    let settings = Settings {
        node_name: Arc::from(node_name.as_str()),
        kinds: BTreeSet::from([ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node]),
        tuning: Tuning { grace: Tuning::DEFAULT_GRACE, first_generation: random() },
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

    let (internal, internal_ips) = watch::channel(Vec::new());
    let (changes, network) = watch::channel(Network::default());
    tokio::spawn(watcher.run(internal_ips, changes));
    let synchronized = Synchronized::default();
    tokio::spawn(health::serve(health, Arc::clone(&synchronized)));

    let (stop, stopped) = oneshot::channel();
    let dataplane = Dataplane {
        loaded,
        maps,
        controller,
        messages,
        network,
        internal,
        synchronized,
        attached: BTreeMap::new(),
        others_detached: false,
        attach_again: None,
        failures: HashMap::new(),
    };
    let mut ended = spawn(dataplane, stopped)?;
    tokio::select! {
        result = &mut ended => result.map_err(|_| anyhow!("the dataplane thread panicked"))??,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // It has ended where this fails.
    let _ = stop.send(());
    if tokio::time::timeout(LAST_SYNC, ended).await.is_err() {
        tracing::warn!("a synchronization was cut off; the next start completes it");
    }
    tracing::info!("stopped; the data plane stays in force");
    Ok(())
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

async fn start_source(source: Source, node_name: &str, sender: mpsc::Sender<SourceMessage>) -> Result<()> {
    match source {
        Source::Manifests(dir) => {
            source::manifests::spawn(&dir, node_name, sender).context("--manifests")?;
        }
        Source::Kubernetes(kubeconfig) => {
            let client = source::kubernetes::connect(kubeconfig.as_deref()).await.context("--kubeconfig")?;
            let node_name = node_name.to_owned();
            tokio::spawn(async move { Box::pin(source::kubernetes::run(client, &node_name, sender)).await });
        }
    }
    Ok(())
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

/// Starts the thread; the receiver gets its result.
fn spawn(mut dataplane: Dataplane, stopped: oneshot::Receiver<()>) -> Result<oneshot::Receiver<Result<()>>> {
    let (sender, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().context("dataplane runtime")?;
    thread::Builder::new()
        .name("dataplane".to_owned())
        .spawn(move || {
            // Nobody listens where the process ends.
            let _ = sender.send(runtime.block_on(dataplane.run(stopped)));
        })
        .context("dataplane thread")?;
    Ok(ended)
}

/// All that changes the kernel.
struct Dataplane {
    loaded: Loaded,
    maps: KernelMaps,
    controller: Controller,
    messages: mpsc::Receiver<SourceMessage>,
    network: watch::Receiver<Network>,
    internal: watch::Sender<Vec<IpAddr>>,
    synchronized: Synchronized,
    /// Devices that hold our programs, by index.
    attached: BTreeMap<u32, Role>,
    /// Whether all others are known not to. An earlier agent, or half an attachment, may have left something.
    others_detached: bool,
    /// When to try again what could not be attached.
    attach_again: Option<Instant>,
    /// When each failure was logged.
    failures: HashMap<String, Instant>,
}

impl Dataplane {
    async fn run(&mut self, mut stopped: oneshot::Receiver<()>) -> Result<()> {
        loop {
            let deadline = [self.controller.next_deadline(), self.attach_again].into_iter().flatten().min();
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Devices first: a pod that starts wants its programs.
                biased;
                _ = &mut stopped => return Ok(()),
                changed = self.network.changed() => {
                    changed.context("the network watcher ended")?;
                    self.take_network();
                }
                message = self.messages.recv() => self.take_in(message.context("the source ended")?),
                () = due => {}
            }
            // Not in the branch above, whose turn comes last: messages must not put it off.
            if self.attach_again.is_some_and(|at| at <= Instant::now()) {
                self.attach();
            }
            for _ in 0..MESSAGES_AT_ONCE {
                let Ok(message) = self.messages.try_recv() else { break };
                self.take_in(message);
            }
            self.synchronize();
        }
    }

    fn take_in(&mut self, message: SourceMessage) {
        match message {
            SourceMessage::Event(event) => {
                self.controller.apply(event);
                let internal = self.controller.inputs().node().map(|node| node.internal_ips.as_slice());
                self.internal.send_if_modified(|known| {
                    let changed = known.as_slice() != internal.unwrap_or_default();
                    if changed {
                        *known = internal.unwrap_or_default().to_vec();
                    }
                    changed
                });
            }
            SourceMessage::Rejected(rejection) => tracing::warn!("rejected: {rejection}"),
            SourceMessage::State(WatchState { watch, problem: Some(problem) }) => tracing::warn!("{watch}: {problem}"),
            SourceMessage::State(WatchState { watch, problem: None }) => tracing::info!("{watch}: works"),
        }
    }

    fn take_network(&mut self) {
        self.attach();
        let node = self.network.borrow_and_update().node.clone();
        self.controller.set_network(node);
    }

    /// Attaches what is to be attached, and detaches the rest.
    fn attach(&mut self) {
        let network = self.network.borrow().clone();
        self.attach_again = None;
        let mut wanted = BTreeMap::new();
        for (devices, role) in [(&network.uplinks, Role::Uplink), (&network.pods, Role::Pod)] {
            for device in devices {
                wanted.insert(device.index, role);
                if self.attached.get(&device.index) == Some(&role) {
                    continue;
                }
                match self.loaded.attach_device(device, role) {
                    Ok(()) => {
                        tracing::info!(device = device.name, index = device.index, ?role, "attached");
                        self.attached.insert(device.index, role);
                    }
                    // A device that has gone meanwhile: the event is under way.
                    Err(error) if !device.exists() => {
                        tracing::debug!(device = device.name, %error, "gone before it was attached to");
                        self.others_detached = false;
                    }
                    Err(error) => {
                        self.failed(&error.to_string());
                        self.others_detached = false;
                        self.attach_again = Some(Instant::now() + ATTACH_RETRY);
                    }
                }
            }
        }
        let attached_before = self.attached.len();
        self.attached.retain(|index, _| wanted.contains_key(index));
        if self.attached.len() == attached_before && self.others_detached {
            return;
        }
        self.others_detached = true;
        if let Err(error) = self.loaded.detach_devices_except(&wanted.keys().copied().collect()) {
            self.failed(&error.to_string());
            self.others_detached = false;
            self.attach_again = Some(Instant::now() + ATTACH_RETRY);
        }
    }

    fn synchronize(&mut self) {
        if !self.controller.is_complete() {
            return;
        }
        let start = Instant::now();
        let report = self.controller.sync(&mut self.maps, start);
        self.log(&report, start);
        // What does not fit will not fit after a restart either; other failures are tried again.
        let complete = report.failures.iter().all(|failure| failure.error.is_full());
        if complete && !self.synchronized.swap(true, Ordering::Relaxed) {
            let services = self.controller.inputs().services().count();
            tracing::info!(services, writes = report.writes, elapsed = ?start.elapsed(), "first synchronization done");
        }
    }

    fn log(&mut self, report: &SyncReport, start: Instant) {
        let SyncReport { changes, failures, conflicts, writes } = report;
        if changes.len() > CHANGES_LOGGED {
            let elapsed = start.elapsed();
            tracing::info!(changes = changes.len(), writes, ?elapsed, "many service ports changed");
        }
        for PortChange { name, family, kind, frontends, cluster, local } in changes {
            let what = match kind {
                ChangeKind::Added => "added",
                ChangeKind::Updated => "updated",
                ChangeKind::Removed => "removed",
            };
            if changes.len() > CHANGES_LOGGED {
                tracing::debug!(service = %name, family, frontends, endpoints = cluster, local, "{what}");
            } else {
                tracing::info!(service = %name, family, frontends, endpoints = cluster, local, "{what}");
            }
        }
        for conflict in conflicts {
            tracing::warn!("{conflict}");
        }
        self.failures.retain(|_, at| at.elapsed() < FAILURE_REPEATED);
        for failure in failures {
            self.failed(&failure.to_string());
        }
    }

    /// Logs a failure, unless the same one was logged a moment ago.
    fn failed(&mut self, text: &str) {
        let now = Instant::now();
        let logged = self.failures.get(text).is_some_and(|at| now.duration_since(*at) < FAILURE_REPEATED);
        if !logged {
            self.failures.insert(text.to_owned(), now);
            tracing::error!("{text}; trying again");
        }
    }
}
