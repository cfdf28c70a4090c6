//! Services by what they do now: the differences between two looks at their counters.

mod rates;
mod screen;

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, value_parser};
use lb_agent::{
    dataplane::{Scraper, ServiceTraffic},
    loader::Pins,
};
use lb_common::abi::Reason;

use super::{filter::ServiceFilter, output::OutputArguments};
use rates::{Order, Rates};

#[derive(Debug, Args)]
pub(super) struct TopArguments {
    #[command(flatten)]
    filter: ServiceFilter,
    /// Milliseconds between two looks.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = value_parser!(u64).range(10..=3_600_000))]
    interval: u64,
    /// End after so many; without a terminal, and with -o json or yaml, each is a table or a document.
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// What the first ones have most of.
    #[arg(long, value_enum, value_name = "ORDER", default_value_t)]
    sort: Order,
}

/// All counters at one moment.
struct Look {
    at: Instant,
    reasons: Vec<(Reason, u64)>,
    services: Vec<ServiceTraffic>,
}

impl Look {
    fn at(pins: &Pins, filter: &ServiceFilter) -> Result<Self> {
        // Opened anew each time: an agent that is started meanwhile may have replaced the counters.
        let scraper = Scraper::open(pins)?;
        let mut services = scraper.read_services()?;
        services.retain(|service| filter.includes(&service.name, service.family));
        Ok(Self { at: Instant::now(), reasons: scraper.read_reasons()?, services })
    }
}

pub(super) fn top(pins: &Pins, arguments: &TopArguments, output: &OutputArguments) -> Result<()> {
    let TopArguments { filter, interval, count, sort } = arguments;
    let interval = Duration::from_millis(*interval);
    if output.is_table() && io::stdout().is_terminal() && count.is_none() {
        return screen::show(*sort, interval, || Look::at(pins, filter));
    }
    let mut before = Look::at(pins, filter)?;
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        thread::sleep(interval);
        let now = Look::at(pins, filter)?;
        let rates = Rates::between(&before, &now, *sort);
        if !output.event("Top", &rates, || rates.text())? {
            break;
        }
        before = now;
        left -= 1;
    }
    Ok(())
}
