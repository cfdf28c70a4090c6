//! That `docs/metrics.md` lists the metrics that there are, and each of kube-proxy's.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hyper::Method;
use k8s_openapi::jiff::Timestamp;
use lb_agent::{
    dataplane::{Scrape, ServiceTraffic, TableFill},
    model::ObjectKind,
    source::{Watch, WatchState, kubernetes::Requested},
};
use lb_common::abi::{Reason, ServiceName, ServiceStats};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text::encode},
    registry::Registry,
};

use super::{Metrics, collected, process, text::classic};
use crate::health::{HealthServer, ProxyHealth};

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

/// What kube-proxy 1.36 registers in any mode on Linux (`pkg/proxy/metrics/metrics.go`), without the prefix.
const KUBE_PROXY: [&str; 23] = [
    "sync_proxy_rules_duration_seconds",
    "sync_full_proxy_rules_duration_seconds",
    "sync_partial_proxy_rules_duration_seconds",
    "sync_proxy_rules_last_timestamp_seconds",
    "sync_proxy_rules_last_queued_timestamp_seconds",
    "network_programming_duration_seconds",
    "sync_proxy_rules_endpoint_changes_pending",
    "sync_proxy_rules_endpoint_changes_total",
    "sync_proxy_rules_service_changes_pending",
    "sync_proxy_rules_service_changes_total",
    "sync_proxy_rules_no_local_endpoints_total",
    "proxy_healthz_total",
    "proxy_livez_total",
    "conntrack_reconciler_sync_duration_seconds",
    "conntrack_reconciler_deleted_entries_total",
    "sync_proxy_rules_iptables_restore_failures_total",
    "sync_proxy_rules_iptables_partial_restore_failures_total",
    "sync_proxy_rules_iptables_total",
    "sync_proxy_rules_iptables_last",
    "iptables_ct_state_invalid_dropped_packets_total",
    "iptables_localhost_nodeports_accepted_packets_total",
    "sync_proxy_rules_nftables_sync_failures_total",
    "sync_proxy_rules_nftables_cleanup_failures_total",
];

/// What its libraries register beside, of `go_*`, `apiserver_*` and `aggregator_*` one each: as a real kube-proxy 1.36.3
/// showed them at `/metrics` and `/metrics/slis` when it was idle; and of the client of the API server all that is
/// registered, shown or not (`metrics/prometheus/restclient/metrics.go` of `k8s.io/component-base` 0.36.3, whose
/// `resolverLatency` and `execPluginPolicyCalls` are not).
const LIBRARIES: [&str; 34] = [
    "aggregator_discovery_aggregation_count_total",
    "apiserver_client_certificate_expiration_seconds",
    "cardinality_enforcement_unexpected_categorizations_total",
    "disabled_metrics_total",
    "go_goroutines",
    "hidden_metrics_total",
    "kubernetes_build_info",
    "kubernetes_feature_enabled",
    "kubernetes_healthcheck",
    "kubernetes_healthchecks_total",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_network_receive_bytes_total",
    "process_network_transmit_bytes_total",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
    "process_virtual_memory_max_bytes",
    "registered_metrics_total",
    "rest_client_exec_plugin_call_total",
    "rest_client_exec_plugin_certificate_rotation_age",
    "rest_client_exec_plugin_ttl_seconds",
    "rest_client_rate_limiter_duration_seconds",
    "rest_client_request_duration_seconds",
    "rest_client_request_retries_total",
    "rest_client_request_size_bytes",
    "rest_client_requests_total",
    "rest_client_response_size_bytes",
    "rest_client_transport_ca_reload_total",
    "rest_client_transport_cache_entries",
    "rest_client_transport_cache_gc_calls_total",
    "rest_client_transport_cert_rotation_gc_calls_total",
    "rest_client_transport_create_calls_total",
];

/// All that a scrape may show, with maps that need no kernel.
#[derive(Debug)]
struct Everything(Scrape, HealthServer);

impl Collector for Everything {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        collected::gauge(&mut encoder, collected::SCRAPE_UP, "", 1)?;
        collected::encode_maps(&mut encoder, &self.0)?;
        collected::encode_probes(&mut encoder, &self.1)?;
        process::encode(&mut encoder)
    }
}

fn shown() -> String {
    let metrics = Metrics::new(Timestamp::now());
    metrics.objects(ObjectKind::Service, 1);
    let duration = Some(std::time::Duration::from_millis(3));
    let request = Requested { method: Method::GET, host: "api:6443".into(), code: Some(200), duration };
    metrics.requested(request.clone());
    metrics.requested(Requested { duration: None, ..request.clone() });
    metrics.requested(Requested { code: None, ..request });
    metrics.watch(&WatchState { watch: Watch::Api(ObjectKind::Service), problem: None });
    let name = ServiceName::new("shop", "web", "http", 6).expect("short");
    let stats = ServiceStats { flows: 1, packets: 2, bytes: 3, rejected: 4 };
    let scrape = Scrape {
        tables: vec![TableFill { table: "FLOWS4", used: 2, capacity: 8 }],
        reasons: Reason::ALL.iter().map(|reason| (*reason, 5)).collect(),
        services: vec![ServiceTraffic { name, family: "IPv4", stats }],
    };
    let health = HealthServer::new(Arc::new(ProxyHealth::new(false, Duration::from_secs(30))));
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    registry.register_collector(Box::new(Everything(scrape, health)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("text");
    classic(&text)
}

/// Name and type of the metrics of a text.
fn types(text: &str) -> BTreeSet<(String, String)> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// The rows of the document's tables that begin with a name in backquotes, in the sections where `of` finds a word.
fn rows(of: impl Fn(&str) -> bool) -> impl Iterator<Item = Vec<&'static str>> {
    let mut included = false;
    DOCUMENT.lines().filter_map(move |line| {
        if let Some(heading) = line.strip_prefix("## ") {
            included = of(heading);
        }
        let row = line.strip_prefix("| `").filter(|_| included)?;
        Some(row.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
    })
}

const WITHOUT_MEANING: &str = "Names of kube-proxy without a meaning here";

#[test]
fn the_document_lists_the_metrics_that_there_are() {
    let documented: BTreeSet<_> =
        rows(|heading| heading != WITHOUT_MEANING).map(|row| (row[0].to_owned(), row[1].to_owned())).collect();
    assert_eq!(documented, types(&shown()));
}

#[test]
fn every_name_of_kube_proxy_is_shown_or_explained() {
    let shown = types(&shown());
    let explained: BTreeSet<_> = rows(|heading| heading == WITHOUT_MEANING).map(|row| row[0]).collect();
    let own = KUBE_PROXY.iter().map(|name| format!("kubeproxy_{name}"));
    let names: Vec<_> = own.chain(LIBRARIES.map(str::to_owned)).collect();
    let is_meant = |row: &str, name: &str| match row.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => row == name,
    };
    for name in &names {
        let is_shown = shown.iter().any(|(shown, _)| shown == name);
        let is_explained = explained.iter().any(|row| is_meant(row, name));
        assert!(is_shown != is_explained, "{name}: shown {is_shown}");
    }
    for row in explained {
        assert!(names.iter().any(|name| is_meant(row, name)), "{row} is no name of kube-proxy");
    }
}

#[test]
fn labels_are_typed_and_counters_end_in_total() {
    let text = shown();
    for line in [
        r#"lb_map_entries{map="FLOWS4"} 2"#,
        r#"lb_map_capacity{map="FLOWS4"} 8"#,
        r#"lb_not_balanced_total{reason="no_endpoints",disposition="refuse"} 5"#,
        r#"lb_service_flows_total{namespace="shop",service="web",port="http",protocol="TCP",ip_family="IPv4"} 1"#,
        r#"lb_service_bytes_total{namespace="shop",service="web",port="http",protocol="TCP",ip_family="IPv4"} 3"#,
        r#"rest_client_requests_total{code="200",host="api:6443",method="GET"} 2"#,
        r#"rest_client_requests_total{code="<error>",host="api:6443",method="GET"} 1"#,
        r#"rest_client_request_duration_seconds_count{host="api:6443",verb="GET"} 2"#,
        r#"rest_client_request_duration_seconds_bucket{le="0.005",host="api:6443",verb="GET"} 2"#,
        r#"kubeproxy_proxy_healthz_total{code="503"} 0"#,
        r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="internal",ip_family="IPv6"} 0"#,
    ] {
        assert!(text.lines().any(|shown| shown == line), "no {line} in\n{text}");
    }
}
