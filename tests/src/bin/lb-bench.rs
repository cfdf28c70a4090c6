//! Measures what `docs/performance.md` says, and writes it. See `lb-bench --help`; `cargo xtask bench` runs it.

use std::{
    env,
    fmt::Write as _,
    fs, io, panic,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use lb_agent::loader::TableSizes;
use lb_tests::{
    bench::{
        agent::{self, ColdStart},
        connect,
        document::{Section, measured, merged},
        program_time::{self, Times},
        report::{Samples, table},
        rivals::{self, Trial},
    },
    lab::sandbox,
    packets::{Dataplane, World},
    trial,
};

/// Measures the data plane and the agent. Needs root. Works in a network namespace and a cgroup of its own.
#[derive(Parser)]
struct Options {
    /// Measure these parts only; the others of the document stay as they are.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Rounds of the measurements that are taken in turns.
    #[arg(long, default_value_t = 15)]
    rounds: u32,
    /// Numbers of Services in the tables.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000, 100_000])]
    services: Vec<u32>,
    #[command(flatten)]
    rivals: rivals::Options,
    /// Where the numbers go, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the report goes, as Markdown.
    #[arg(long)]
    document: Option<PathBuf>,
    /// Measure the agent's work in this process and print it as JSON.
    #[arg(long, hide = true)]
    agent: bool,
    /// Measure beside kube-proxy, in this process, and write it as JSON to this file.
    #[arg(long, hide = true)]
    rivals_here: Option<PathBuf>,
}

/// A section of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Time of the programs.
    Programs,
    /// `connect()` through the socket hooks.
    Sockets,
    /// The agent's model, reconciler and maps.
    Agent,
    /// The agent beside kube-proxy, with an API server: half an hour.
    Rivals,
}

/// What was measured, as it is written to the JSON file.
#[derive(Default)]
struct Measured {
    times: Vec<Times>,
    connects: Vec<Samples>,
    starts: Vec<ColdStart>,
    rivals: Vec<Trial>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if cfg!(debug_assertions) {
        eprintln!("lb-bench was built without optimization: what it says of the agent means nothing");
    }
    if let Some(path) = &options.rivals_here {
        return measure_rivals_here(path, &options.rivals);
    }
    if options.agent {
        let _world = enter_world()?;
        println!("{}", serde_json::to_string(&agent::measure()?)?);
        return Ok(());
    }

    let (measured, sections) = measure(&options)?;
    for section in &sections {
        println!("{}", section.0);
    }
    if let Some(path) = &options.document {
        let existing = fs::read_to_string(path).unwrap_or_default();
        fs::write(path, merged(&existing, sections)).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &options.json {
        let Measured { times, connects, starts, rivals } = &measured;
        let programs: Vec<_> = times
            .iter()
            .map(|times| serde_json::json!({ "services": times.services, "empty": times.empty, "lookup": times.lookup, "programs": times.ours }))
            .collect();
        let all = serde_json::json!({
            "programs": programs, "connect": connects, "cold_start": starts, "beside_kube_proxy": rivals,
        });
        fs::write(path, serde_json::to_string_pretty(&all)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn enter_world() -> Result<World> {
    World::enter().context("setting up a network namespace (are you root?)")
}

fn measure(options: &Options) -> Result<(Measured, Vec<Section>)> {
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let mut results = Measured::default();
    let mut sections = Vec::new();
    // First of all, while this process is still outside of namespaces.
    let mut beside = None;
    if wanted(Part::Rivals) {
        let before = rivals::report::load();
        results.rivals = measure_rivals(&options.rivals)?;
        let machine = rivals::report::machine(&before, &rivals::report::load());
        let facts = format!("{} {machine}", measured()?);
        beside = Some(Section(rivals::report::section(&results.rivals, &options.rivals, &facts)));
    }
    let world = enter_world()?;
    if wanted(Part::Programs) {
        for services in &options.services {
            eprintln!("programs, {services} Services …");
            let mut dataplane = Dataplane::load(world, TableSizes::default())?;
            results.times.push(program_time::measure(&mut dataplane, *services, options.rounds)?);
        }
        sections.push(Section(program_section(&results.times)?));
    }
    if wanted(Part::Sockets) {
        eprintln!("connect() …");
        results.connects =
            connect::measure(&mut Dataplane::load_for_sockets(world, TableSizes::default())?, options.rounds)?;
        sections.push(Section(socket_section(&results.connects)?));
    }
    if wanted(Part::Agent) {
        eprintln!("cold starts …");
        results.starts = (0..options.rounds.clamp(1, 5)).map(|_| cold_start()).collect::<Result<Vec<_>>>()?;
        sections.push(Section(agent_section(&results.starts)?));
    }
    sections.extend(beside);
    Ok((results, sections))
}

/// In a process of its own, for its memory.
fn cold_start() -> Result<ColdStart> {
    let output = Command::new(env::current_exe()?).arg("--agent").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// In a process of its own, which moves into a sandbox. It gets the options of this one.
fn measure_rivals(options: &rivals::Options) -> Result<Vec<Trial>> {
    eprintln!("beside kube-proxy, at {:?} Services …", options.rival_services);
    let file = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(env::current_exe()?);
    command.args(env::args_os().skip(1)).arg("--rivals-here").arg(file.path()).stdout(io::stderr());
    let status = command.status()?;
    ensure!(
        status.success(),
        "the measurement beside kube-proxy: {status} (KUBEBUILDER_ASSETS must name a directory with etcd, kube-apiserver \
         and kube-proxy, as `cargo xtask k8s etcd kube-apiserver kube-proxy` prints it)"
    );
    Ok(serde_json::from_slice(&fs::read(file.path())?)?)
}

fn measure_rivals_here(path: &Path, options: &rivals::Options) -> Result<()> {
    // The release profile ends the process at a panic, so that it cannot be caught.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        hook(info);
        trial::print_logs();
    }));
    lb_tests::lab::sweep();
    let sandbox = sandbox::enter()?;
    let trials = rivals::measure(&sandbox, options);
    fs::write(path, serde_json::to_vec(&trials)?)?;
    // Without waiting for threads that still serve.
    process::exit(0)
}

fn program_section(times: &[Times]) -> Result<String> {
    let mut text = format!(
        "## Programs\n\n\
         {} `BPF_PROG_TEST_RUN` of `pod_ingress`, with the tables holding the given number of Services of each family. *Net* is \
         without the program that does nothing, measured in the same round; *lookups* is net time in units of one hash \
         lookup (of another key in each run, in an LRU hash with as many elements as the flow table here; net as well). \
         Established flows: 16,384, a different one in each run. They form a ring in which the packet that one flow's translation leaves is the next \
         one's, because a test run repeats on what the last one left. *Aged table*: the same after \
         the flow table was filled to three quarters and emptied, so that entries lie scattered over its memory, as on a node \
         that has run for days; what is added is the memory's latency. New flows, both entries of each inserted: 1,000 to one Service, \
         and a chain of 1,000 Services, each the next one's client, which adds what it costs to find so many of them in memory. The packet that comes out is compared with one that was built \
         independently, after every measurement. Goals: net time of an established IPv4 flow at most 110 ns, of an \
         unrelated packet at most 45 ns, all flat within 10 % from 1 to 100,000 Services.\n\n",
        measured()?
    );
    for times in times {
        let _ = writeln!(text, "### {} Services\n\n{}", times.services, program_table(times));
    }
    Ok(text + &flatness(times))
}

fn socket_section(connects: &[Samples]) -> Result<String> {
    let rows = connects.chunks(3).flat_map(|samples| {
        let base = samples[0].median();
        samples
            .iter()
            .map(move |sample| vec![sample.name.clone(), sample.summary(), format!("{:.2}", sample.median() / base)])
    });
    let table = table(&["", "µs", "ratio"], &rows.collect::<Vec<_>>());
    Ok(format!(
        "## Socket hooks\n\n{} `connect()` to a server in the same namespace, from a cgroup with and without our programs.\n\n{table}",
        measured()?
    ))
}

fn agent_section(starts: &[ColdStart]) -> Result<String> {
    Ok(format!(
        "## Agent\n\n{} {} Services × {} endpoints, one ClusterIP each, into maps in the kernel: model, reconciler and maps alone, in a \
         process of their own, without a Kubernetes client. What the real process takes is in the section *Beside kube-proxy*.\n\n{}",
        measured()?,
        agent::SERVICES,
        agent::ENDPOINTS,
        agent_table(starts)
    ))
}

fn program_table(times: &Times) -> String {
    let (empty, lookup) = (times.empty.median(), times.lookup.median() - times.empty.median());
    let row = |samples: &Samples| {
        let net = samples.median() - empty;
        vec![
            samples.name.clone(),
            samples.summary(),
            format!("{net:.0}"),
            format!("{:.1}", samples.median() / empty),
            format!("{:.1}", net / lookup),
        ]
    };
    let rows = [&times.empty, &times.lookup].into_iter().chain(&times.ours).map(row);
    table(&["", "ns", "net", "÷ empty", "lookups"], &rows.collect::<Vec<_>>())
}

/// How the time of a packet grows with the number of Services, from the fewest for which it was measured to the most.
fn flatness(times: &[Times]) -> String {
    let Some(last) = times.last() else { return String::new() };
    let mut text = format!("Net time with {} Services ÷ with fewer (goal: within 10 %):\n\n", last.services);
    for large in &last.ours {
        let smallest = times.iter().find_map(|times| Some((times, named(times, &large.name)?)));
        let Some((first, small)) = smallest.filter(|(first, _)| first.services < last.services) else { continue };
        let ratio = net(last, large) / net(first, small);
        let _ = writeln!(text, "- {}, ÷ with {}: {ratio:.2}{}", small.name, first.services, missed(ratio > 1.1));
    }
    text += "\nGoals for the net time, at any number of Services:\n\n";
    for (name, limit) in [("IPv4 TCP, established flow", 110.0), ("IPv4 TCP, unrelated packet", 45.0)] {
        let worst = times.iter().filter_map(|times| Some(net(times, named(times, name)?))).fold(0.0, f64::max);
        let _ = writeln!(text, "- {name}: {worst:.0} ns of {limit:.0}{}", missed(worst > limit));
    }
    text
}

fn named<'a>(times: &'a Times, name: &str) -> Option<&'a Samples> {
    times.ours.iter().find(|samples| samples.name == name)
}

/// Time without that of the program that does nothing.
fn net(times: &Times, samples: &Samples) -> f64 {
    samples.median() - times.empty.median()
}

fn missed(missed: bool) -> &'static str {
    if missed { " (missed)" } else { "" }
}

fn agent_table(starts: &[ColdStart]) -> String {
    let column = |name: &str, unit, value: &dyn Fn(&ColdStart) -> f64| {
        let values = starts.iter().map(value).collect();
        Samples { name: name.to_owned(), unit, values }
    };
    let changes = Samples {
        name: "changes".to_owned(),
        unit: "µs",
        values: starts.iter().flat_map(|start| start.change_microseconds.iter().copied()).collect(),
    };
    let rows = [
        ("complete lists to complete maps, ms", column("", "ms", &|start| start.milliseconds).summary()),
        ("resident memory afterwards, MB", column("", "MB", &|start| start.resident_kilobytes / 1e3).summary()),
        ("resident memory before, MB", column("", "MB", &|start| start.resident_before_kilobytes / 1e3).summary()),
        ("one changed slice to maps, median, µs", format!("{:.0}", changes.median())),
        ("one changed slice to maps, p99, µs", format!("{:.0}", changes.quantile(0.99))),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    table(&["", "measured"], &rows)
}
