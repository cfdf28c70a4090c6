//! What was refused and dropped, and why.

mod follow;

use std::{thread, time::Duration};

use anyhow::Result;
use clap::{Args, value_parser};
use k8s_openapi::jiff::Timestamp;
use lb_agent::{dataplane::Scraper, loader::Pins};
use lb_common::abi::Reason;
use serde::Serialize;

use super::output::{OutputArguments, line, table};
use follow::Difference;

#[derive(Debug, Args)]
pub(super) struct DropsArguments {
    /// Go on, and print what is added.
    #[arg(short, long)]
    follow: bool,
    /// Milliseconds between two looks with --follow.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = value_parser!(u64).range(10..=3_600_000))]
    interval: u64,
    /// Also what was left to the kernel or translated after all, and reasons that did not occur.
    #[arg(short, long)]
    all: bool,
}

/// All counts since the maps were made.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Drops {
    reasons: Vec<ReasonCount>,
    /// Service ports that rejected something. A count says not for which of the reasons.
    services: Vec<ServiceCount>,
}

/// How often something occurred.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReasonCount {
    pub(super) reason: &'static str,
    /// `pass`, `translate`, `refuse` or `drop`.
    pub(super) disposition: &'static str,
    /// Packets and socket calls.
    pub(super) count: u64,
}

/// How many new flows a service port refused or dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceCount {
    /// `namespace/name:port/PROTOCOL`.
    service: String,
    /// `IPv4` or `IPv6`.
    family: &'static str,
    rejected: u64,
}

pub(super) fn drops(pins: &Pins, arguments: &DropsArguments, output: &OutputArguments) -> Result<()> {
    let DropsArguments { follow, interval, all } = arguments;
    if !follow {
        let drops = Drops::read(pins)?;
        let drops = if *all { drops } else { drops.without_the_unimportant() };
        return output.print("Drops", &drops, || drops.text());
    }
    let mut before = Drops::read(pins)?;
    if output.is_table() && !line(&follow::header())? {
        return Ok(());
    }
    loop {
        thread::sleep(Duration::from_millis(*interval));
        // Opened anew each time: an agent that is started meanwhile may have replaced the counters.
        let now = Drops::read(pins)?;
        for difference in Difference::between(&before, &now, *all, Timestamp::now()) {
            if !output.event("Drop", &difference, || difference.line())? {
                return Ok(());
            }
        }
        before = now;
    }
}

impl ReasonCount {
    pub(super) fn new((reason, count): (Reason, u64)) -> Self {
        Self { reason: reason.name(), disposition: reason.disposition().name(), count }
    }

    fn is_rejection(&self) -> bool {
        matches!(self.disposition, "refuse" | "drop")
    }

    /// For a table.
    pub(super) fn row(&self) -> Vec<String> {
        vec![self.reason.to_owned(), self.disposition.to_owned(), self.count.to_string()]
    }
}

impl Drops {
    fn read(pins: &Pins) -> Result<Self> {
        let scraper = Scraper::open(pins)?;
        let services = scraper.read_services()?.into_iter().filter(|service| service.stats.rejected > 0);
        Ok(Self {
            reasons: scraper.read_reasons()?.into_iter().map(ReasonCount::new).collect(),
            services: services
                .map(|traffic| ServiceCount {
                    service: traffic.name.to_string(),
                    family: traffic.family,
                    rejected: traffic.stats.rejected,
                })
                .collect(),
        })
    }

    fn without_the_unimportant(mut self) -> Self {
        self.reasons.retain(|reason| reason.is_rejection() && reason.count > 0);
        self
    }

    fn text(&self) -> String {
        let Self { reasons, services } = self;
        if reasons.is_empty() && services.is_empty() {
            return "Nothing was refused or dropped.".to_owned();
        }
        let reasons = table(&["REASON", "DISPOSITION", "COUNT"], reasons.iter().map(ReasonCount::row));
        if services.is_empty() {
            return reasons;
        }
        let rows = services.iter().map(|ServiceCount { service, family, rejected }| {
            vec![service.clone(), (*family).to_owned(), rejected.to_string()]
        });
        format!("{reasons}\n\n{}", table(&["SERVICE", "FAMILY", "REJECTED"], rows))
    }
}
