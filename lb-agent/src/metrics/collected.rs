//! What is read when somebody asks.

use std::{fmt, sync::Arc};

use lb_agent::dataplane::{Scrape, Scraper, ServiceTraffic, TableFill};
use lb_common::abi::Protocol;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{Metrics, process};
use crate::health::{Answered, HealthServer};

/// Whether the rest of a scrape is whole.
pub(super) const SCRAPE_UP: &str = "lb_scrape_up";

/// Reads the maps, `/proc`, and what probes were answered.
#[derive(Debug)]
pub(crate) struct Collected {
    metrics: Arc<Metrics>,
    health: HealthServer,
    scraper: Scraper,
}

impl Collected {
    pub(crate) fn new(metrics: Arc<Metrics>, health: HealthServer, scraper: Scraper) -> Self {
        Self { metrics, health, scraper }
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let scrape = self.scraper.read();
        gauge(&mut encoder, SCRAPE_UP, "Whether the maps could be read", i64::from(scrape.is_ok()))?;
        let mut scrape = scrape.unwrap_or_else(|error| {
            tracing::warn!("metrics: {error}");
            Scrape::default()
        });
        scrape.tables.extend(self.metrics.tables());
        encode_maps(&mut encoder, &scrape)?;
        encode_probes(&mut encoder, &self.health)?;
        process::encode(&mut encoder)
    }
}

/// One number without labels.
pub(super) fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    let metric = ConstGauge::new(value);
    metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// The numbers of one name.
struct Numbers<'a> {
    encoder: MetricEncoder<'a>,
}

impl<'a> Numbers<'a> {
    fn new(
        encoder: &'a mut DescriptorEncoder<'_>,
        name: &'a str,
        help: &str,
        metric_type: MetricType,
    ) -> Result<Self, fmt::Error> {
        Ok(Self { encoder: encoder.encode_descriptor(name, help, None, metric_type)? })
    }

    fn count(&mut self, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.encoder.encode_family(labels)?)
    }

    fn gauge(&mut self, labels: &impl EncodeLabelSet, value: u32) -> fmt::Result {
        ConstGauge::new(i64::from(value)).encode(self.encoder.encode_family(labels)?)
    }
}

#[derive(Debug, EncodeLabelSet)]
struct OfMap {
    map: &'static str,
}

#[derive(Debug, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
    disposition: &'static str,
}

pub(super) fn encode_maps(encoder: &mut DescriptorEncoder<'_>, scrape: &Scrape) -> fmt::Result {
    let Scrape { tables, reasons, services } = scrape;
    for (name, help, of) in [
        ("lb_map_entries", "Elements of a BPF map that are in use", (|fill| fill.used) as fn(&TableFill) -> u32),
        ("lb_map_capacity", "Elements that a BPF map can hold", |fill| fill.capacity),
    ] {
        let mut numbers = Numbers::new(encoder, name, help, MetricType::Gauge)?;
        for fill in tables {
            numbers.gauge(&OfMap { map: fill.table }, of(fill))?;
        }
    }
    let help = "Packets and socket calls that were passed on untouched, refused or dropped, and errors about others, by reason";
    let mut numbers = Numbers::new(encoder, "lb_not_balanced", help, MetricType::Counter)?;
    for (reason, count) in reasons {
        let disposition = reason.disposition().name();
        numbers.count(&OfReason { reason: reason.name(), disposition }, *count)?;
    }
    encode_services(encoder, services)
}

fn encode_services(encoder: &mut DescriptorEncoder<'_>, services: &[ServiceTraffic]) -> fmt::Result {
    for (name, help, of) in [
        (
            "lb_service_flows",
            "Flows of a Service that were given a backend",
            (|traffic| traffic.stats.flows) as fn(&ServiceTraffic) -> u64,
        ),
        ("lb_service_packets", "Packets of a Service on the packet path, both ways", |traffic| traffic.stats.packets),
        ("lb_service_bytes", "Bytes of those packets, from the IP header on", |traffic| traffic.stats.bytes),
        ("lb_service_flows_rejected", "New flows of a Service refused or dropped", |traffic| traffic.stats.rejected),
    ] {
        let mut numbers = Numbers::new(encoder, name, help, MetricType::Counter)?;
        for traffic in services {
            let (namespace, service, port) = traffic.name.parts();
            let protocol = Protocol::from_number(traffic.name.protocol).map_or("", Protocol::name);
            let labels = [
                ("namespace", namespace),
                ("service", service),
                ("port", port),
                ("protocol", protocol),
                ("ip_family", traffic.family),
            ];
            numbers.count(&labels, of(traffic))?;
        }
    }
    Ok(())
}

#[derive(Debug, EncodeLabelSet)]
struct OfCode {
    code: &'static str,
}

pub(super) fn encode_probes(encoder: &mut DescriptorEncoder<'_>, health: &HealthServer) -> fmt::Result {
    let [healthz, livez] = health.answered();
    for (name, help, answered) in [
        ("kubeproxy_proxy_healthz", "Answers of /healthz by status", healthz),
        ("kubeproxy_proxy_livez", "Answers of /livez by status", livez),
    ] {
        let Answered { ok, unavailable } = answered;
        let mut numbers = Numbers::new(encoder, name, help, MetricType::Counter)?;
        numbers.count(&OfCode { code: "200" }, ok)?;
        numbers.count(&OfCode { code: "503" }, unavailable)?;
    }
    Ok(())
}
