//! What the agent counts while it works.

use std::sync::{Mutex, PoisonError, atomic::AtomicU64};

use k8s_openapi::jiff::Timestamp;
use lb_agent::{
    dataplane::{AuditReport, Pass, Repair, TableFill, audited_maps},
    model::{ChangeTrigger, NoLocal, ObjectKind},
    source::{Watch, WatchState, kubernetes::Requested},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets, linear_buckets},
    },
    registry::Registry,
};

use crate::health::Families;

/// `ip_family`, as kube-proxy has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfFamily {
    ip_family: &'static str,
}

const V4: OfFamily = OfFamily { ip_family: "IPv4" };
const V6: OfFamily = OfFamily { ip_family: "IPv6" };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    traffic_policy: &'static str,
    ip_family: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMap {
    map: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWatch {
    watch: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRole {
    role: &'static str,
}

/// A request, with the labels of Kubernetes' Go client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAnswer {
    code: String,
    host: String,
    method: String,
}

/// Requests of one kind. The Go client says `verb` here, and means the method.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRequest {
    host: String,
    verb: String,
}

type Seconds = Gauge<f64, AtomicU64>;
type Histograms = Family<OfFamily, Histogram, fn() -> Histogram>;

/// Changes that were taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) services: u64,
    pub(crate) slices: u64,
}

/// Counters and gauges that the agent sets. Names and help are given in [`Metrics::register`].
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Changes of before are not waited for: their slices were listed, not watched.
    started: Timestamp,
    sync_duration: Histograms,
    full_sync_duration: Histograms,
    partial_sync_duration: Histograms,
    last_synchronized: Family<OfFamily, Seconds>,
    last_queued: Family<OfFamily, Seconds>,
    programming_duration: Histograms,
    slice_changes: Counter,
    slice_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    no_local_endpoints: Family<OfPolicy, Gauge>,
    writes: Counter,
    drift_repaired: Family<OfMap, Counter>,
    audited: Seconds,
    services_behind: Gauge,
    conflicts: Counter,
    rejected: Family<OfKind, Counter>,
    objects: Family<OfKind, Gauge>,
    watch_up: Family<OfWatch, Gauge>,
    watch_failures: Family<OfWatch, Counter>,
    devices: Family<OfRole, Gauge>,
    missing_devices: Gauge,
    requests: Family<OfAnswer, Counter>,
    request_duration: Family<OfRequest, Histogram, fn() -> Histogram>,
    tables: Mutex<Vec<TableFill>>,
}

/// Buckets of kube-proxy's `sync_proxy_rules_duration_seconds`: 1 ms to 16 s.
fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Buckets of kube-proxy's `network_programming_duration_seconds`: 0.25 s to 5 min.
fn programming_buckets() -> Histogram {
    let buckets = linear_buckets(0.25, 0.25, 2).chain(linear_buckets(1.0, 1.0, 59));
    Histogram::new(buckets.chain(linear_buckets(60.0, 5.0, 12)).chain(linear_buckets(120.0, 30.0, 7)))
}

/// Buckets of the Go client's `rest_client_request_duration_seconds`
/// (`staging/src/k8s.io/component-base/metrics/prometheus/restclient`): 5 ms to 1 min.
fn request_buckets() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

impl Metrics {
    pub(crate) fn new(started: Timestamp) -> Self {
        let histograms = |buckets| Histograms::new_with_constructor(buckets);
        let metrics = Self {
            started,
            sync_duration: histograms(sync_buckets),
            full_sync_duration: histograms(sync_buckets),
            partial_sync_duration: histograms(sync_buckets),
            last_synchronized: Family::default(),
            last_queued: Family::default(),
            programming_duration: histograms(programming_buckets),
            slice_changes: Counter::default(),
            slice_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            no_local_endpoints: Family::default(),
            writes: Counter::default(),
            drift_repaired: Family::default(),
            audited: Seconds::default(),
            services_behind: Gauge::default(),
            conflicts: Counter::default(),
            rejected: Family::default(),
            objects: Family::default(),
            watch_up: Family::default(),
            watch_failures: Family::default(),
            devices: Family::default(),
            missing_devices: Gauge::default(),
            requests: Family::default(),
            request_duration: Family::new_with_constructor(request_buckets),
            tables: Mutex::default(),
        };
        // What has not happened is 0, not absent: a rate can be taken of it.
        for family in [V4, V6] {
            for histogram in [&metrics.sync_duration, &metrics.full_sync_duration, &metrics.partial_sync_duration] {
                drop(histogram.get_or_create(&family));
            }
            drop(metrics.programming_duration.get_or_create(&family));
            drop(metrics.last_synchronized.get_or_create(&family));
            drop(metrics.last_queued.get_or_create(&family));
        }
        for kind in [ObjectKind::Service, ObjectKind::EndpointSlice, ObjectKind::Node] {
            drop(metrics.rejected.get_or_create(&OfKind { kind: kind.name() }));
        }
        for map in audited_maps() {
            drop(metrics.drift_repaired.get_or_create(&OfMap { map }));
        }
        metrics.no_local_endpoints([NoLocal::default(); 2]);
        metrics.devices(0, 0, 0);
        metrics
    }

    /// Enters all of them. A counter's name gets `_total` when it is written.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let name = "kubeproxy_sync_proxy_rules_duration_seconds";
        registry.register(name, "How long synchronizations of the maps took", self.sync_duration.clone());
        let name = "kubeproxy_sync_full_proxy_rules_duration_seconds";
        registry.register(name, "How long the first synchronization took", self.full_sync_duration.clone());
        let name = "kubeproxy_sync_partial_proxy_rules_duration_seconds";
        registry.register(name, "How long synchronizations took after the first", self.partial_sync_duration.clone());
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        registry.register(name, "When the maps were last what they should be", self.last_synchronized.clone());
        let name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
        registry.register(name, "When a change was last taken in", self.last_queued.clone());
        let name = "kubeproxy_network_programming_duration_seconds";
        registry.register(name, "From a change of endpoints to the maps", self.programming_duration.clone());
        let name = "kubeproxy_sync_proxy_rules_endpoint_changes";
        registry.register(name, "Endpoint slices that changed", self.slice_changes.clone());
        let name = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
        registry.register(name, "Those of them that are not in the maps yet", self.slice_changes_pending.clone());
        let name = "kubeproxy_sync_proxy_rules_service_changes";
        registry.register(name, "Services that changed", self.service_changes.clone());
        let name = "kubeproxy_sync_proxy_rules_service_changes_pending";
        registry.register(name, "Those of them that are not in the maps yet", self.service_changes_pending.clone());
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let help = "Service ports that have endpoints, but none on this node as their policy demands";
        registry.register(name, help, self.no_local_endpoints.clone());
        registry.register("lb_map_writes", "Map elements written and removed", self.writes.clone());
        let help = "Map elements that others had written to, and that were put right";
        registry.register("lb_map_drift_repaired", help, self.drift_repaired.clone());
        let help = "When a pass through all maps last ended with each element as it was written";
        registry.register("lb_map_audit_last_timestamp_seconds", help, self.audited.clone());
        let help = "Services of which a part is not in the maps: no room, or a write that failed";
        registry.register("lb_services_behind", help, self.services_behind.clone());
        let help = "Addresses and ports that a Service wanted and another one has";
        registry.register("lb_frontend_conflicts", help, self.conflicts.clone());
        let help = "Objects, or parts of them, that were not taken";
        registry.register("lb_objects_rejected", help, self.rejected.clone());
        registry.register("lb_objects", "Objects that are known", self.objects.clone());
        registry.register("lb_watch_up", "Whether a source is followed", self.watch_up.clone());
        registry.register("lb_watch_failures", "How often a source could not be followed", self.watch_failures.clone());
        registry.register("lb_devices_attached", "Devices that hold our programs", self.devices.clone());
        registry.register(
            "lb_devices_missing",
            "Devices of --devices that are not there",
            self.missing_devices.clone(),
        );
        let help = "Requests to the API server that were answered or failed";
        registry.register("rest_client_requests", help, self.requests.clone());
        let help = "How long the answers of the API server took to begin, without watches";
        registry.register("rest_client_request_duration_seconds", help, self.request_duration.clone());
    }

    /// Takes note of changes that came in.
    pub(crate) fn queued(&self, changes: Pending, now: Timestamp) {
        let Pending { services, slices } = changes;
        if changes == Pending::default() {
            return;
        }
        self.service_changes.inc_by(services);
        self.service_changes_pending.inc_by(services.try_into().unwrap_or(i64::MAX));
        self.slice_changes.inc_by(slices);
        self.slice_changes_pending.inc_by(slices.try_into().unwrap_or(i64::MAX));
        for family in [V4, V6] {
            self.last_queued.get_or_create(&family).set(now.as_duration().as_secs_f64());
        }
    }

    /// Takes note of a synchronization of both families, with the `seconds` that it took if it had anything to do.
    pub(crate) fn synchronized(&self, seconds: Option<f64>, is_first: bool, succeeded: Families<bool>, now: Timestamp) {
        let kind = if is_first { &self.full_sync_duration } else { &self.partial_sync_duration };
        for (family, succeeded) in [(V4, succeeded.v4), (V6, succeeded.v6)] {
            if let Some(seconds) = seconds {
                self.sync_duration.get_or_create(&family).observe(seconds);
                kind.get_or_create(&family).observe(seconds);
            }
            if succeeded {
                self.last_synchronized.get_or_create(&family).set(now.as_duration().as_secs_f64());
            }
        }
        if succeeded.v4 && succeeded.v6 {
            self.service_changes_pending.set(0);
            self.slice_changes_pending.set(0);
        }
    }

    /// Takes note of endpoints that are in the maps now, by what made them change.
    pub(crate) fn programmed(&self, triggers: &[ChangeTrigger], now: Timestamp) {
        for ChangeTrigger { at, is_ipv4 } in triggers.iter().filter(|trigger| trigger.at > self.started) {
            let family = if *is_ipv4 { V4 } else { V6 };
            self.programming_duration.get_or_create(&family).observe(now.duration_since(*at).as_secs_f64());
        }
    }

    /// Takes note of what the maps hold after a synchronization.
    pub(crate) fn wrote(&self, writes: u64, conflicts: usize, services_behind: usize, tables: Vec<TableFill>) {
        self.writes.inc_by(writes);
        self.conflicts.inc_by(conflicts as u64);
        self.services_behind.set(services_behind.try_into().unwrap_or(i64::MAX));
        *self.tables.lock().unwrap_or_else(PoisonError::into_inner) = tables;
    }

    /// Takes note of what a look at the maps came to.
    pub(crate) fn audited(&self, report: &AuditReport, now: Timestamp) {
        for Repair { map, elements, .. } in &report.repairs {
            let elements = *elements as u64;
            self.drift_repaired.get_or_create(&OfMap { map }).inc_by(elements);
            self.writes.inc_by(elements);
        }
        if report.pass == Pass::Completed {
            self.audited.set(now.as_duration().as_secs_f64());
        }
    }

    /// How full the tables are that the agent writes.
    pub(crate) fn tables(&self) -> Vec<TableFill> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn no_local_endpoints(&self, [v4, v6]: [NoLocal; 2]) {
        for (OfFamily { ip_family }, NoLocal { internal, external }) in [(V4, v4), (V6, v6)] {
            for (traffic_policy, count) in [("internal", internal), ("external", external)] {
                let gauge = self.no_local_endpoints.get_or_create(&OfPolicy { traffic_policy, ip_family });
                gauge.set(count.try_into().unwrap_or(i64::MAX));
            }
        }
    }

    pub(crate) fn objects(&self, kind: ObjectKind, count: usize) {
        self.objects.get_or_create(&OfKind { kind: kind.name() }).set(count.try_into().unwrap_or(i64::MAX));
    }

    pub(crate) fn rejected(&self, kind: ObjectKind) {
        self.rejected.get_or_create(&OfKind { kind: kind.name() }).inc();
    }

    /// Files of manifests come and go: only what watches a kind or a directory has a metric.
    pub(crate) fn watch(&self, state: &WatchState) {
        let watch = match &state.watch {
            Watch::Api(kind) => kind.name().to_owned(),
            Watch::Directory(_) => "directory".to_owned(),
            Watch::File(_) => return,
        };
        let label = OfWatch { watch };
        self.watch_up.get_or_create(&label).set(state.problem.is_none().into());
        let failures = self.watch_failures.get_or_create(&label);
        if state.problem.is_some() {
            failures.inc();
        }
    }

    /// Takes note of a request to the API server.
    pub(crate) fn requested(&self, request: Requested) {
        let Requested { method, host, code, duration } = request;
        // As the Go client has it.
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        let (host, verb) = (host.to_string(), method.to_string());
        if let Some(duration) = duration {
            let label = OfRequest { host: host.clone(), verb: verb.clone() };
            self.request_duration.get_or_create(&label).observe(duration.as_secs_f64());
        }
        self.requests.get_or_create(&OfAnswer { code, host, method: verb }).inc();
    }

    pub(crate) fn devices(&self, uplinks: usize, pods: usize, missing: usize) {
        let number = |count: usize| count.try_into().unwrap_or(i64::MAX);
        for (role, count) in [("uplink", uplinks), ("pod", pods)] {
            self.devices.get_or_create(&OfRole { role }).set(number(count));
        }
        self.missing_devices.set(number(missing));
    }
}

#[cfg(test)]
mod tests {
    use lb_agent::dataplane::Drift;
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn metrics() -> (Metrics, Registry) {
        let metrics = Metrics::new(Timestamp::from_second(1000).expect("in range"));
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        (metrics, registry)
    }

    #[track_caller]
    fn assert_shows(registry: &Registry, lines: &[&str]) {
        let mut text = String::new();
        encode(&mut text, registry).expect("text");
        for line in lines {
            assert!(text.lines().any(|shown| shown == *line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn programming_latency_is_from_the_trigger_and_not_of_what_was_before() {
        let (metrics, registry) = metrics();
        let at = |second| Timestamp::from_second(second).expect("in range");
        let trigger = |second, is_ipv4| ChangeTrigger { at: at(second), is_ipv4 };
        metrics.programmed(
            &[trigger(999, true), trigger(1000, true), trigger(1001, true), trigger(1003, false)],
            at(1004),
        );
        assert_shows(
            &registry,
            &[
                r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1"#,
                r#"kubeproxy_network_programming_duration_seconds_sum{ip_family="IPv4"} 3.0"#,
                r#"kubeproxy_network_programming_duration_seconds_bucket{le="2.0",ip_family="IPv4"} 0"#,
                r#"kubeproxy_network_programming_duration_seconds_bucket{le="3.0",ip_family="IPv4"} 1"#,
                r#"kubeproxy_network_programming_duration_seconds_bucket{le="300.0",ip_family="IPv4"} 1"#,
                r#"kubeproxy_network_programming_duration_seconds_sum{ip_family="IPv6"} 1.0"#,
            ],
        );
    }

    #[test]
    fn changes_are_pending_until_both_families_are_written() {
        let (metrics, registry) = metrics();
        let now = Timestamp::from_second(1010).expect("in range");
        metrics.queued(Pending { services: 2, slices: 3 }, now);
        metrics.synchronized(Some(0.5), true, Families { v4: true, v6: false }, now);
        assert_shows(
            &registry,
            &[
                "kubeproxy_sync_proxy_rules_service_changes_total 2",
                "kubeproxy_sync_proxy_rules_service_changes_pending 2",
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending 3",
                r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} 1010.0"#,
                r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1010.0"#,
                r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"} 0.0"#,
                r#"kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1"#,
                r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv6"} 0"#,
            ],
        );
        metrics.synchronized(Some(0.25), false, Families { v4: true, v6: true }, now);
        metrics.synchronized(None, false, Families { v4: true, v6: true }, now);
        assert_shows(
            &registry,
            &[
                "kubeproxy_sync_proxy_rules_service_changes_pending 0",
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
                "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
                r#"kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family="IPv4"} 0.75"#,
                r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1"#,
            ],
        );
    }

    #[test]
    fn drift_is_counted_by_map_and_a_pass_that_left_something_wrong_is_none() {
        let (metrics, registry) = metrics();
        assert_shows(
            &registry,
            &[
                r#"lb_map_drift_repaired_total{map="CONFIG"} 0"#,
                r#"lb_map_drift_repaired_total{map="SERVICE_CIDRS6"} 0"#,
            ],
        );
        let repair = |map, elements| Repair { map, object: "a".into(), drift: Drift::Changed, elements };
        let mut report =
            AuditReport { repairs: vec![repair("SLOTS4", 3), repair("CONFIG", 1)], ..AuditReport::default() };
        metrics.audited(&report, Timestamp::from_second(1010).expect("in range"));
        assert_shows(
            &registry,
            &[
                r#"lb_map_drift_repaired_total{map="SLOTS4"} 3"#,
                r#"lb_map_drift_repaired_total{map="CONFIG"} 1"#,
                r#"lb_map_drift_repaired_total{map="SLOTS6"} 0"#,
                "lb_map_writes_total 4",
                "lb_map_audit_last_timestamp_seconds 0.0",
            ],
        );
        report.pass = Pass::Completed;
        metrics.audited(&report, Timestamp::from_second(1020).expect("in range"));
        assert_shows(&registry, &["lb_map_audit_last_timestamp_seconds 1020.0"]);
    }

    #[test]
    fn a_watch_is_up_or_not() {
        let (metrics, registry) = metrics();
        let state = |problem: Option<&str>| WatchState {
            watch: Watch::Api(ObjectKind::Service),
            problem: problem.map(str::to_owned),
        };
        metrics.watch(&state(Some("refused")));
        assert_shows(
            &registry,
            &[r#"lb_watch_up{watch="Service"} 0"#, r#"lb_watch_failures_total{watch="Service"} 1"#],
        );
        metrics.watch(&state(None));
        metrics.watch(&WatchState { watch: Watch::File("a.yaml".into()), problem: None });
        assert_shows(
            &registry,
            &[r#"lb_watch_up{watch="Service"} 1"#, r#"lb_watch_failures_total{watch="Service"} 1"#],
        );
    }
}
