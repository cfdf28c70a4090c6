//! From events to maps, one step at a time: what the agent does, without its loop, its clock and its tasks.
//!
//! ```text
//! loop {
//!     select! {
//!         event = sources.recv()               => controller.apply(event),
//!         network = network.changed()          => controller.set_network(network),
//!         () = sleep_until(controller.next_deadline()) => {}
//!     }
//!     // Take what else is there already, so that a burst costs one synchronization, then:
//!     if controller.is_complete() {
//!         let report = controller.sync(&mut maps, Instant::now());
//!         // log report.changes, failures and conflicts, one line each
//!     }
//! }
//! ```
//!
//! Nothing is lost if a synchronization fails: what failed is kept, and [`Controller::next_deadline`] says when to call
//! again. The same instant serves what was freed and may be reused.
//!
//! What others wrote to the maps is found by [`Controller::audit`], a step at a time, at the instants that
//! [`Controller::next_audit`] names.

mod audit;
mod reach;

#[cfg(test)]
mod audit_tests;
#[cfg(test)]
mod clients_tests;
#[cfg(test)]
mod random_tests;
mod remember;
#[cfg(test)]
mod remember_tests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use audit::Auditor;
use lb_common::{
    abi::{ABI_VERSION, Config},
    ports,
};
use reach::Reach;
use remember::Objects;

use crate::{
    dataplane::{Capacities, DataplaneMaps, FamilyMaps, MapError, Reconciler, SyncReport, TableFill, Tuning},
    model::{
        DesiredNode, DesiredState, Family, HealthCheck, HealthChecks, Inputs, NoLocal, NoLocals, NodeNetwork,
        ObjectKey, ObjectKind, Policy, SourceEvent, TableNames, detect_pods,
    },
};

/// Pause after the first failure; doubled after each further one in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before what failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a [`Controller`] is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node, as endpoints spell it.
    pub node_name: Arc<str>,
    /// Kinds of which a first list will come. Nothing is written before.
    pub kinds: BTreeSet<ObjectKind>,
    /// For both families' reconcilers.
    pub tuning: Tuning,
    /// What the operator decided; it stays so until the agent starts again.
    pub policy: Policy,
}

/// Takes in what sources say, and brings the maps up to date with it.
#[derive(Debug)]
pub struct Controller {
    inputs: Inputs,
    desired: DesiredState,
    policy: Policy,
    network: Option<NodeNetwork>,
    v4: Reconciler<[u8; 4]>,
    v6: Reconciler<[u8; 16]>,
    /// What `CONFIG` holds.
    config: Config,
    health_checks: HealthChecks,
    no_locals: NoLocals,
    /// Services that changed since the last synchronization.
    dirty: BTreeSet<ObjectKey>,
    /// Services that failed.
    retry: BTreeSet<ObjectKey>,
    /// When to try again, and the pause that led there.
    next_attempt: Option<(Instant, Duration)>,
    auditor: Auditor,
}

impl Controller {
    /// Takes over what the maps hold; new maps are empty, and taking them over is how they are started with, too.
    /// Writes nothing. What is in the maps and no source lists goes with the first synchronization, unless a source
    /// says that it could not read something that may hold it.
    pub fn adopt<M: DataplaneMaps>(maps: &M, settings: Settings) -> Result<Self, MapError> {
        let Settings { node_name, kinds, tuning, policy } = settings;
        let v4 = Reconciler::adopt(FamilyMaps::<[u8; 4]>::capacities(maps), maps.existing()?, tuning);
        let v6 = Reconciler::adopt(FamilyMaps::<[u8; 16]>::capacities(maps), maps.existing()?, tuning);
        let mut inputs = Inputs::new(kinds);
        let Objects { services, slices } = remember::objects(&v4, &v6, &node_name);
        inputs.remember(services, slices);
        Ok(Self {
            dirty: v4.services().chain(v6.services()).cloned().collect(),
            inputs,
            desired: DesiredState::new(node_name),
            policy,
            network: None,
            v4,
            v6,
            config: maps.config()?,
            health_checks: HealthChecks::default(),
            no_locals: NoLocals::default(),
            retry: BTreeSet::new(),
            next_attempt: None,
            auditor: Auditor::default(),
        })
    }

    /// Takes in what a source says. Cheap: the work is [`Self::sync`]'s.
    pub fn apply(&mut self, event: SourceEvent) {
        self.dirty.append(&mut self.inputs.apply(event));
    }

    /// Takes in what the node's own network is. Needed once before anything is written, and again when it changes.
    pub fn set_network(&mut self, network: NodeNetwork) {
        self.network = Some(network);
    }

    /// Whether all kinds were listed and the node's network is known, so that the maps may be written.
    pub fn is_complete(&self) -> bool {
        self.inputs.is_complete() && self.network.is_some()
    }

    /// What the sources have said.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The health check servers that Services want, by Service.
    pub fn health_checks(&self) -> Arc<BTreeMap<ObjectKey, HealthCheck>> {
        self.health_checks.current()
    }

    /// How many IPv4 and IPv6 ports drop what comes new, for want of an endpoint that their policy allows.
    pub fn no_local_endpoints(&self) -> [NoLocal; 2] {
        self.no_locals.sums()
    }

    /// How many Services failed and are to be tried again.
    pub fn services_behind(&self) -> usize {
        self.retry.len()
    }

    /// How full the tables are that only the agent writes.
    pub fn fill<M: DataplaneMaps>(&self, maps: &M) -> Vec<TableFill> {
        let v4 = fill::<[u8; 4]>(FamilyMaps::<[u8; 4]>::capacities(maps), self.v4.room());
        let v6 = fill::<[u8; 16]>(FamilyMaps::<[u8; 16]>::capacities(maps), self.v6.room());
        [v4, v6].concat()
    }

    /// When to call [`Self::sync`] even if nothing happens: something failed and is to be tried again, or something
    /// that was freed may be reused.
    pub fn next_deadline(&self) -> Option<Instant> {
        let expiries = [self.v4.next_expiry(), self.v6.next_expiry()];
        expiries.into_iter().chain([self.next_attempt.map(|(at, _)| at)]).flatten().min()
    }

    /// Brings the maps up to date. Costs work for the Services that changed only, and nothing while the controller is
    /// not [complete](Self::is_complete).
    pub fn sync<M: DataplaneMaps>(&mut self, maps: &mut M, now: Instant) -> SyncReport {
        let mut report = SyncReport::default();
        let Some(network) = self.network.clone().filter(|_| self.inputs.is_complete()) else { return report };
        let writes_before = self.writes();

        let expired4 = self.v4.expire(now);
        let expired6 = self.v6.expire(now);
        let mut changed = std::mem::take(&mut self.dirty);
        if expired4 || expired6 || self.next_attempt.is_some_and(|(at, _)| at <= now) {
            changed.append(&mut self.retry);
        }
        report.conflicts = self.desired.claim(&self.inputs, &self.policy, &mut changed);

        let mut succeeded = self.apply_node(maps, &network, &mut report);
        for service in changed {
            let failures_before = report.failures.len();
            let done = self.apply_service(maps, &network, &service, now, &mut report);
            // Its endpoints are in the maps also where no more is missing than a list of clients.
            if report.failures.iter().skip(failures_before).all(|failure| failure.error.concerns_clients_only()) {
                report.health_checks_changed |= self.note_health_check(&service);
                report.programmed.append(&mut self.inputs.take_triggers(&service));
            }
            if done {
                self.retry.remove(&service);
            } else {
                self.retry.insert(service);
            }
        }
        let made_room4 = self.v4.finish(maps, now, &mut report);
        let made_room6 = self.v6.finish(maps, now, &mut report);
        let reach = Reach::of_maps(&self.v4, &self.v6);
        succeeded &= self.set_config(maps, &network, reach, &mut report);

        succeeded &= self.retry.is_empty() && !self.v4.is_behind() && !self.v6.is_behind();
        self.next_attempt = match self.next_attempt {
            _ if succeeded => None,
            // Frontends that were removed made room at once.
            _ if made_room4 || made_room6 => Some((now, FIRST_PAUSE)),
            None => Some((now + FIRST_PAUSE, FIRST_PAUSE)),
            Some((at, pause)) if at > now => Some((at, pause)),
            Some((_, pause)) => {
                let pause = (pause * 2).min(LONGEST_PAUSE);
                Some((now + pause, pause))
            }
        };
        report.writes += self.writes() - writes_before;
        self.auditor.begin(now);
        report
    }

    /// Brings both families of one Service up to date.
    fn apply_service<M: DataplaneMaps>(
        &mut self,
        maps: &mut M,
        network: &NodeNetwork,
        service: &ObjectKey,
        now: Instant,
        report: &mut SyncReport,
    ) -> bool {
        let ports4 = self.desired.ports4(&self.inputs, &self.policy, service);
        let ports6 = self.desired.ports6(&self.inputs, &self.policy, service);
        let reach = Reach::of_config(&self.config).and(Reach::of_ports(&ports4, &ports6));
        if !self.set_config(maps, network, reach, report) {
            return false;
        }
        self.no_locals.note(service, [NoLocal::of(&ports4), NoLocal::of(&ports6)]);
        let done4 = self.v4.apply(maps, service, &ports4, now, report);
        let done6 = self.v6.apply(maps, service, &ports6, now, report);
        done4 && done6
    }

    /// After the maps: a load balancer must not send what they do not serve yet.
    fn note_health_check(&mut self, key: &ObjectKey) -> bool {
        let wanted = self
            .inputs
            .service(key)
            .and_then(|service| HealthCheck::of(service, key, &self.inputs, self.desired.node_name()));
        self.health_checks.note(key, wanted)
    }

    /// Brings what the programs know of the node up to date, and first of all how far they look.
    fn apply_node<M: DataplaneMaps>(&mut self, maps: &mut M, network: &NodeNetwork, report: &mut SyncReport) -> bool {
        let v4 = DesiredNode::v4(network, &self.policy, &self.inputs);
        let v6 = DesiredNode::v6(network, &self.policy, &self.inputs);
        let cidrs = Reach::of_cidrs(v4.service_cidr_cover(), v6.service_cidr_cover());
        if !self.set_config(maps, network, Reach::of_config(&self.config).and(cidrs), report) {
            return false;
        }
        let done4 = self.v4.apply_node(maps, &v4, report);
        let done6 = self.v6.apply_node(maps, &v6, report);
        done4 && done6
    }

    fn set_config<M: DataplaneMaps>(
        &mut self,
        maps: &mut M,
        network: &NodeNetwork,
        reach: Reach,
        report: &mut SyncReport,
    ) -> bool {
        let snat_ports = ports::pool([network.local_ports, network.node_ports]);
        let snat_port_count = snat_ports.iter().map(|range| u32::from(range.count)).sum();
        let mut config = Config { abi_version: ABI_VERSION, snat_ports, snat_port_count, ..Config::default() };
        reach.write(&mut config);
        detect_pods(&mut config, &self.policy, &self.inputs);
        if config == self.config {
            return true;
        }
        match maps.set_config(&config) {
            Ok(()) => {
                self.config = config;
                report.writes += 1;
                true
            }
            Err(error) => {
                report.add_errors([error]);
                false
            }
        }
    }

    fn writes(&self) -> u64 {
        self.v4.writes() + self.v6.writes()
    }
}

fn fill<A: Family>(capacity: Capacities, room: Capacities) -> Vec<TableFill> {
    let TableNames { frontends, services, slots, backends, source_ranges, .. } = A::TABLES;
    let of = |table, capacity: u32, room| TableFill { table, used: capacity.saturating_sub(room), capacity };
    vec![
        of(frontends, capacity.frontends, room.frontends),
        of(services, capacity.services, room.services),
        of(slots, capacity.slots, room.slots),
        of(backends, capacity.backends, room.backends),
        of(source_ranges, capacity.source_ranges, room.source_ranges),
    ]
}
