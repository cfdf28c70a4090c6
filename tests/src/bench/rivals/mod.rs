//! `lb-agent` beside the real kube-proxy, in one run on one machine: how long each takes to start and to take in a
//! change, and the memory that each takes, with few Services and with many.
//!
//! One API server holds the objects. One contender runs at a time, each time in a [lab of its own](ground), and reaches
//! the API server through the same relay. What is measured is measured from outside: by connections to Services.

mod change;
mod contender;
mod ground;
mod memory;
mod population;
pub mod report;
mod sample;
mod start;

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use self::{ground::Ground, population::Population};
use crate::{
    differential::{api::ApiHost, relay},
    lab::{agent, lone_host, sandbox::Sandbox},
};

pub use self::{change::Change, contender::Contender, memory::Memory, start::Start};

/// Where the API server listens, on its own host; and the relays, on the nodes.
const API_SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
/// What takes longer to start than this is started once only.
const SLOW_START: Duration = Duration::from_secs(60);
/// From the end of a start to the look at the memory: time to give back what was needed for a moment.
const SETTLE: Duration = Duration::from_secs(5);

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// Beside kube-proxy: numbers of Services in the API server, from few to many.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000, 10_000])]
    pub rival_services: Vec<u32>,
    /// Starts of each proxy, at each number of Services; one where a start takes longer than a minute.
    #[arg(long, default_value_t = 3)]
    pub starts: u32,
    /// Services of which all must answer.
    #[arg(long, default_value_t = 30)]
    pub sample: u32,
    /// Changes of a slice, one after the other.
    #[arg(long, default_value_t = 50)]
    pub changes: u32,
    /// Seconds after which a start, or a change, is given up.
    #[arg(long, default_value_t = 900)]
    pub cap: u64,
    /// Leave out kube-proxy's variants.
    #[arg(long)]
    pub without_variants: bool,
}

/// What came of one start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trial {
    /// Who.
    pub contender: Contender,
    /// Services in the API server.
    pub services: u32,
    /// Its start.
    pub start: Start,
    /// Its memory after it.
    pub memory: Memory,
    /// Changes that it took in; measured after the first start only.
    pub changes: Vec<Change>,
    /// What the agent logged of its first synchronization: milliseconds from complete lists to complete maps.
    pub lists_to_maps: Option<f64>,
}

/// Measures, in the sandbox that this process is in. Panics with what went wrong, as labs do.
pub fn measure(sandbox: &Sandbox, options: &Options) -> Vec<Trial> {
    let first = Ground::build(sandbox, "first-");
    let api = ApiHost::start(lone_host("api"), API_SERVER, first.nodes());
    let mut population = Population::start(&api);
    let mut trials: Vec<Trial> = Vec::new();
    for &services in &options.rival_services {
        let start = Instant::now();
        population.grow_to(services);
        eprintln!("{services} Services are in the API server after {:.1?}", start.elapsed());
        for round in 0..options.starts {
            for contender in Contender::ALL {
                if is_wanted(contender, services, round, &trials, options) {
                    let label = format!("{}-", trials.len());
                    let changes = if round == 0 { options.changes } else { 0 };
                    let trial = measure_one(sandbox, &label, contender, &api, &mut population, changes, options);
                    eprintln!("{services} Services, {}: {}", contender.name(), report::one_line(&trial));
                    trials.push(trial);
                }
            }
        }
    }
    trials
}

fn is_wanted(contender: Contender, services: u32, round: u32, trials: &[Trial], options: &Options) -> bool {
    let is_slow = |who| {
        let mut earlier = trials.iter().filter(|trial| trial.contender == who && trial.services == services);
        earlier.any(|trial| trial.start.answers.is_none_or(|seconds| seconds > SLOW_START.as_secs_f64()))
    };
    match contender.variant_of() {
        Some(base) => round == 0 && !options.without_variants && !is_slow(base),
        None => !is_slow(contender),
    }
}

fn measure_one(
    sandbox: &Sandbox,
    label: &str,
    contender: Contender,
    api: &ApiHost,
    population: &mut Population<'_>,
    changes: u32,
    options: &Options,
) -> Trial {
    let cap = Duration::from_secs(options.cap);
    let ground = Ground::build(sandbox, label);
    relay::start(api.host(), API_SERVER, [&ground.node().host]);
    let sample = sample::sample(options.sample, population.frontends());
    let sample = sample.into_iter().map(|number| population.frontend(number)).collect();
    let (mut running, start) = start::measure(&ground, contender, &api.kubeconfig(), sample, cap);
    thread::sleep(SETTLE);
    let memory = Memory::of(running.id(), running.group());
    let changes = match start.answers {
        Some(_) => change::measure(&ground, &mut running, population, changes, cap),
        None => Vec::new(),
    };
    let lists_to_maps =
        (contender == Contender::Lb).then(|| first_synchronization(&agent::log(ground.node()))).flatten();
    Trial { contender, services: population.services(), start, memory, changes, lists_to_maps }
}

/// Milliseconds, from the agent's log.
fn first_synchronization(log: &str) -> Option<f64> {
    let line = log.lines().find(|line| line.contains("first synchronization done"))?;
    let text = line.split("elapsed=").nth(1)?.split_whitespace().next()?;
    // As `Duration` writes itself.
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let scale = match &text[digits.len()..] {
        "s" => 1e3,
        "ms" => 1.0,
        "µs" => 1e-3,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * scale)
}
