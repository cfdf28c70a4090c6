//! New flows, refusals and drops as they happen.

mod shown;

use std::{
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, ValueEnum, value_parser};
use k8s_openapi::jiff::Timestamp;
use lb_agent::{
    loader::Pins,
    watch::{Asked, Watch, monotonic},
};
use lb_common::abi::{Event, EventKind, ServiceName};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::SignalFd,
    },
};

use super::{
    filter::{EndPattern, ServiceFilter},
    output::{OutputArguments, line},
};
use shown::{End, Loss, Shown, end_of, family, header};

/// How often the programs are told that somebody still watches, and the reader what was lost.
const RENEWAL: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct MonitorArguments {
    #[command(flatten)]
    filter: EventFilter,
    /// One event of so many, chosen by chance, before all filters but --type.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    sample: u32,
    /// So many events a second at most on each CPU, before all filters but --type. Those beyond are counted as lost.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(1..))]
    rate: u32,
    /// End after so many events.
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// Which events.
#[derive(Debug, Args)]
struct EventFilter {
    #[command(flatten)]
    service: ServiceFilter,
    /// Of this type. May be repeated.
    #[arg(short, long, value_enum, value_name = "TYPE")]
    r#type: Vec<Type>,
    /// Of this client: ADDRESS, ADDRESS:PORT or NETWORK/BITS.
    #[arg(short, long, value_name = "CLIENT")]
    client: Option<EndPattern>,
    /// For this address: ADDRESS, ADDRESS:PORT or NETWORK/BITS.
    #[arg(short, long, value_name = "FRONTEND")]
    frontend: Option<EndPattern>,
    /// To this backend: ADDRESS, ADDRESS:PORT or NETWORK/BITS.
    #[arg(short, long, value_name = "BACKEND")]
    backend: Option<EndPattern>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Type {
    NewFlow,
    Refusal,
    Drop,
}

impl Type {
    fn kind(self) -> EventKind {
        match self {
            Self::NewFlow => EventKind::NewFlow,
            Self::Refusal => EventKind::Refusal,
            Self::Drop => EventKind::Drop,
        }
    }
}

impl EventFilter {
    /// The types, as the programs are asked for them.
    fn kinds(&self) -> u32 {
        let all = [Type::NewFlow, Type::Refusal, Type::Drop];
        let types = if self.r#type.is_empty() { &all[..] } else { &self.r#type };
        types.iter().fold(0, |kinds, asked| kinds | asked.kind() as u32)
    }

    /// Whether an event, of the service port of this name, is asked for.
    fn includes(&self, event: &Event, service: Option<&ServiceName>) -> bool {
        let Self { service: filter, r#type: _, client, frontend, backend } = self;
        let is = |pattern: &Option<EndPattern>, end| {
            pattern.is_none_or(|pattern| end_of(event, end).is_some_and(|end| pattern.matches(end)))
        };
        let by_service = match service {
            // (Of what has no Service, the protocol is its own.)
            None => {
                filter.service.is_empty()
                    && filter.namespace.is_none()
                    && filter.protocol.is_none_or(|protocol| protocol.number() == event.protocol)
                    && filter.family.includes_number(event.family)
            }
            Some(name) => filter.includes(name, family(event.family).unwrap_or_default()),
        };
        by_service && is(client, End::Client) && is(frontend, End::Frontend) && is(backend, End::Backend)
    }
}

pub(super) fn monitor(pins: &Pins, arguments: &MonitorArguments, output: &OutputArguments) -> Result<()> {
    let MonitorArguments { filter, sample, rate, count } = arguments;
    // Blocked, so that they are read below, and the programs are told.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;
    let mut watch = Watch::begin(pins, Asked { kinds: filter.kinds(), sample: *sample, rate: *rate })?;
    if output.is_table() && !line(&header())? {
        return Ok(());
    }
    let mut left = count.unwrap_or(u64::MAX);
    let mut renewed = Instant::now();
    loop {
        // Whoever reads may be slow, and there may always be more.
        while renewed.elapsed() < RENEWAL
            && let Some(event) = watch.next_event()
        {
            let service = watch.service(&event);
            if !filter.includes(&event, service.as_ref()) {
                continue;
            }
            let shown = Shown::new(&event, service.as_ref(), Clock::now()?);
            if !output.event("Event", &shown, || shown.line())? {
                return Ok(());
            }
            left -= 1;
            if left == 0 {
                return tell_loss(&mut watch, output).map(drop);
            }
        }
        if renewed.elapsed() >= RENEWAL {
            watch.renew()?;
            renewed = Instant::now();
            if !tell_loss(&mut watch, output)? {
                return Ok(());
            }
        }
        // A signal ends it also where there is always more to read.
        if !wait(&watch, &signals, RENEWAL.saturating_sub(renewed.elapsed()))? {
            return tell_loss(&mut watch, output).map(drop);
        }
    }
}

/// Says what was lost since the last time, if anything was. False if nobody reads any more.
fn tell_loss(watch: &mut Watch, output: &OutputArguments) -> Result<bool> {
    let loss = Loss::new(watch.lost()?);
    Ok(loss.lost == 0 || output.event("EventLoss", &loss, || loss.line())?)
}

/// Waits for events, for so long at most. False if it is time to end.
fn wait(watch: &Watch, signals: &SignalFd, longest: Duration) -> Result<bool> {
    let out = io::stdout();
    let mut ready = [
        PollFd::new(watch.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        // Says that nobody reads a pipe any more.
        PollFd::new(out.as_fd(), PollFlags::empty()),
    ];
    let longest = PollTimeout::try_from(longest + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
    match poll(&mut ready, longest) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(true),
        Err(error) => return Err(error.into()),
    }
    let [_, signal, reader] = ready.map(|fd| fd.any().unwrap_or_default());
    Ok(!signal && !reader)
}

/// Both clocks at one moment: events have the one, people the other.
#[derive(Clone, Copy, Debug)]
struct Clock {
    monotonic: u64,
    real: Timestamp,
}

impl Clock {
    fn now() -> io::Result<Self> {
        Ok(Self { monotonic: monotonic()?, real: Timestamp::now() })
    }
}

#[cfg(test)]
mod tests;
