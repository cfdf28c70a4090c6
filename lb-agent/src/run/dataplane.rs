//! The thread that alone changes the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use k8s_openapi::jiff::Timestamp;
use lb_agent::{
    controller::Controller,
    dataplane::{ApplyError, KernelMaps},
    loader::{Loaded, Pins, XdpMode},
    model::{Change, ObjectKind, Policy, SourceEvent},
    network::Network,
    source::{self, SourceMessage, Watch, WatchState},
};
use lb_common::abi::XdpDevice;
use tokio::sync::{mpsc, oneshot, watch};

use super::{devices::Attached, log::Log, memory};
use crate::{
    events::{Events, Notice},
    health::{
        Families, ProxyHealth,
        service_checks::{self, Wanted},
    },
    metrics::{Metrics, Pending},
};

/// Messages that are taken in before a synchronization, at most: a burst costs one, and no burst can put it off.
const MESSAGES_AT_ONCE: usize = 4 * source::CHANNEL_CAPACITY;

/// What the thread hears and tells.
pub(super) struct Channels {
    pub(super) messages: mpsc::Receiver<SourceMessage>,
    pub(super) network: watch::Receiver<Network>,
    /// Addresses of the Node, once it is known which it has.
    pub(super) internal: watch::Sender<Option<Vec<IpAddr>>>,
    /// The servers of `healthCheckNodePort` that are to be there.
    pub(super) service_checks: watch::Sender<Wanted>,
    pub(super) events: Events,
    pub(super) health: Arc<ProxyHealth>,
    pub(super) metrics: Arc<Metrics>,
}

/// All that changes the kernel.
pub(super) struct Dataplane {
    pub(super) loaded: Loaded,
    maps: KernelMaps,
    pub(super) controller: Controller,
    pub(super) channels: Channels,
    /// Whether all maps have been what they should be.
    synchronized: bool,
    policy: Policy,
    /// What of the Node's addresses the controller's network follows from.
    network_internal: Option<Vec<IpAddr>>,
    /// Devices that hold our programs, by index.
    pub(super) attached: BTreeMap<u32, Attached>,
    /// Where XDP is to be used.
    pub(super) xdp: XdpMode,
    /// What came of it, by index of the uplink.
    pub(super) xdp_devices: BTreeMap<u32, XdpDevice>,
    /// Whether all others are known not to. An earlier agent, or half an attachment, may have left something.
    pub(super) others_detached: bool,
    /// Uplinks that are not there, as the log and the pins say it; `None` until something was said.
    pub(super) missing_noted: Option<BTreeSet<String>>,
    pub(super) pins: Pins,
    /// When to try again what could not be attached.
    pub(super) attach_again: Option<Instant>,
    pub(super) log: Log,
}

impl Dataplane {
    pub(super) fn new(
        loaded: Loaded,
        pins: Pins,
        maps: KernelMaps,
        controller: Controller,
        channels: Channels,
        policy: Policy,
    ) -> Self {
        Self {
            loaded,
            maps,
            controller,
            channels,
            synchronized: false,
            policy,
            network_internal: None,
            attached: BTreeMap::new(),
            xdp: XdpMode::Off,
            xdp_devices: BTreeMap::new(),
            others_detached: false,
            missing_noted: None,
            pins,
            attach_again: None,
            log: Log::default(),
        }
    }

    /// Uses XDP on uplinks.
    pub(super) fn with_xdp(self, xdp: XdpMode) -> Self {
        Self { xdp, ..self }
    }

    /// Starts the thread; the receiver gets its result.
    pub(super) fn spawn(mut self, stopped: oneshot::Receiver<()>) -> Result<oneshot::Receiver<Result<()>>> {
        let (sender, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.context("dataplane runtime")?;
        thread::Builder::new()
            .name("dataplane".to_owned())
            .spawn(move || {
                // Nobody listens where the process ends.
                let _ = sender.send(runtime.block_on(self.run(stopped)));
            })
            .context("dataplane thread")?;
        Ok(ended)
    }

    async fn run(&mut self, mut stopped: oneshot::Receiver<()>) -> Result<()> {
        loop {
            let deadlines = [self.controller.next_deadline(), self.attach_again, self.controller.next_audit()];
            let deadline = deadlines.into_iter().flatten().min();
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            let mut network_changed = false;
            let mut first = None;
            tokio::select! {
                // Devices first: a pod that starts wants its programs.
                biased;
                _ = &mut stopped => return Ok(()),
                changed = self.channels.network.changed() => {
                    changed.context("the network watcher ended")?;
                    network_changed = true;
                }
                message = self.channels.messages.recv() => first = Some(message.context("the source ended")?),
                () = due => {}
            }
            // An audit alone is not work that health waits for, and finds nothing to synchronize.
            if network_changed || first.is_some() || self.is_due(Instant::now()) {
                self.work(network_changed, first);
            }
            if self.controller.next_audit().is_some_and(|at| at <= Instant::now()) {
                self.audit();
            }
        }
    }

    /// Whether something other than an audit is to be done, though nothing was heard.
    fn is_due(&self, now: Instant) -> bool {
        [self.controller.next_deadline(), self.attach_again].into_iter().flatten().any(|at| at <= now)
    }

    /// Takes in what was heard and what else is there already, and brings the maps up to date.
    fn work(&mut self, network_changed: bool, first: Option<SourceMessage>) {
        self.channels.health.begun(Instant::now());
        if network_changed {
            self.take_network();
        }
        // Not in the branch of the loop, whose turn comes last: messages must not put it off.
        if self.attach_again.is_some_and(|at| at <= Instant::now()) {
            self.attach();
        }
        if let Some(message) = first {
            self.take_in(message);
        }
        for _ in 0..MESSAGES_AT_ONCE {
            let Ok(message) = self.channels.messages.try_recv() else { break };
            self.take_in(message);
        }
        self.synchronize();
    }

    /// Looks at the next elements of the maps.
    fn audit(&mut self) {
        let report = self.controller.audit(&mut self.maps, Instant::now());
        self.log.audited(&report);
        self.channels.metrics.audited(&report, Timestamp::now());
    }

    fn take_in(&mut self, message: SourceMessage) {
        match message {
            SourceMessage::Event(event) => self.take_event(event),
            SourceMessage::Rejected(rejection) => {
                tracing::warn!("rejected: {rejection}");
                self.channels.metrics.rejected(rejection.kind);
                self.channels.events.tell(Notice::rejected(&rejection));
            }
            SourceMessage::State(state) => {
                self.channels.metrics.watch(&state);
                let WatchState { watch, problem } = state;
                match (problem, &watch) {
                    (Some(problem), Watch::Api(_)) => tracing::warn!("{watch}: {problem}"),
                    (Some(problem), Watch::Directory(_) | Watch::File(_)) => {
                        tracing::warn!("{watch}: {problem}; the last state of what cannot be read stays in force");
                    }
                    (None, _) => tracing::info!("{watch}: works"),
                }
            }
        }
    }

    fn take_event(&mut self, event: SourceEvent) {
        let (kind, changed) = match &event {
            SourceEvent::Unread(_) => {
                self.controller.apply(event);
                return self.tell_internal();
            }
            SourceEvent::Changed(Change::Service(..)) => (ObjectKind::Service, 1),
            SourceEvent::Changed(Change::EndpointSlice(..)) => (ObjectKind::EndpointSlice, 1),
            SourceEvent::Changed(Change::Node(_)) => (ObjectKind::Node, 1),
            SourceEvent::Changed(Change::ServiceCidr(..)) => (ObjectKind::ServiceCidr, 1),
            SourceEvent::Replaced { kind, objects, .. } => (*kind, objects.len() as u64),
        };
        let rejected = matches!(&event, SourceEvent::Replaced { rejected, .. } if !rejected.is_empty());
        self.controller.apply(event);
        let inputs = self.controller.inputs();
        self.channels.metrics.objects(kind, inputs.count(kind));
        let now = Timestamp::now();
        match kind {
            ObjectKind::Service => self.channels.metrics.queued(Pending { services: changed, slices: 0 }, now),
            ObjectKind::EndpointSlice => self.channels.metrics.queued(Pending { services: 0, slices: changed }, now),
            ObjectKind::ServiceCidr => {}
            ObjectKind::Node => {
                self.channels.health.set_node(inputs.node());
                if !rejected {
                    self.tell_internal();
                }
                self.want_service_checks();
            }
        }
    }

    /// Tells the network which addresses the Node has, unless something that may be the Node could not be read.
    fn tell_internal(&self) {
        let inputs = self.controller.inputs();
        let internal = match inputs.node() {
            Some(node) => node.internal_ips.clone(),
            None if inputs.has_unread() => return,
            None => Vec::new(),
        };
        self.channels.internal.send_if_modified(|known| {
            let internal = Some(internal);
            let changed = *known != internal;
            *known = internal;
            changed
        });
    }

    fn take_network(&mut self) {
        self.attach();
        let Network { node, internal, .. } = self.channels.network.borrow_and_update().clone();
        self.network_internal = internal;
        self.controller.set_network(node);
        self.want_service_checks();
    }

    fn synchronize(&mut self) {
        // Source addresses that a former agent wrote must not change for the moment until the network has heard of the Node.
        let knows_node = self.synchronized || self.network_internal == *self.channels.internal.borrow();
        if !self.controller.is_complete() || !knows_node {
            self.channels.health.waiting();
            return;
        }
        let start = Instant::now();
        let report = self.controller.sync(&mut self.maps, start);
        self.log.report(&report);
        self.channels.events.tell_report(&report, self.controller.inputs());
        if report.health_checks_changed {
            self.want_service_checks();
        }
        // What does not fit is not unhealthy: it would not fit after a restart either, and the node serves the others.
        let failed = |of: fn(&ApplyError) -> bool| {
            report.failures.iter().any(|failure| !failure.error.is_full() && of(&failure.error))
        };
        let succeeded = Families { v4: !failed(ApplyError::concerns_v4), v6: !failed(ApplyError::concerns_v6) };
        let now = Timestamp::now();
        // What found nothing to do says nothing of how long it takes.
        let worked = report.writes > 0 || !report.failures.is_empty() || !self.synchronized;
        let seconds = worked.then(|| start.elapsed().as_secs_f64());
        self.channels.metrics.synchronized(seconds, !self.synchronized, succeeded, now);
        self.channels.metrics.programmed(&report.programmed, now);
        let (behind, fill) = (self.controller.services_behind(), self.controller.fill(&self.maps));
        self.channels.metrics.wrote(report.writes, report.conflicts.len(), behind, fill);
        self.channels.metrics.no_local_endpoints(self.controller.no_local_endpoints());
        if self.channels.health.synchronized(succeeded, now) {
            self.synchronized = true;
            let services = self.controller.inputs().services().count();
            tracing::info!(services, writes = report.writes, elapsed = ?start.elapsed(), "first synchronization done");
            drop(report);
            memory::give_back();
        }
    }

    /// Tells which servers of `healthCheckNodePort` are to be there.
    fn want_service_checks(&self) {
        let own = self.channels.network.borrow().node.local_addresses.keys().copied().collect::<Vec<_>>();
        let node = self.controller.inputs().node();
        let wanted = Wanted {
            addresses: service_checks::addresses(&self.policy, own, node),
            checks: self.controller.health_checks(),
        };
        self.channels.service_checks.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }
}
