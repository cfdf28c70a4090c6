//! The measurements as Markdown.

use std::{fmt::Write as _, fs, process::Command};

use super::{Contender, Options, SLOW_START, Trial, population::ENDPOINTS};
use crate::bench::report::{Samples, table};

/// One trial, for who waits for the next.
pub(super) fn one_line(trial: &Trial) -> String {
    let seconds = |value: Option<f64>| value.map_or("not within the cap".to_owned(), |value| format!("{value:.2} s"));
    let mut text = format!(
        "answers after {}, says so after {}, {:.0} MB resident",
        seconds(trial.start.answers),
        seconds(trial.start.says),
        trial.memory.resident_kilobytes / 1e3
    );
    if let Some(changes) = after_acknowledgement(&[trial]) {
        let (median, p99) = (changes.median(), changes.quantile(0.99));
        let _ = write!(text, "; {} changes, p50 {median:.1} ms, p99 {p99:.1} ms", changes.values.len());
    }
    text
}

/// The section of the document, from its heading.
pub fn section(trials: &[Trial], options: &Options, load: &str) -> String {
    let Options { sample, cap, .. } = options;
    let mut text = format!(
        "## Beside kube-proxy\n\n\
         `lb-agent` and the real kube-proxy 1.36.3 with its defaults, one at a time, each time on a node that no proxy has \
         been on, with one API server for all. A Service has one TCP port and {ENDPOINTS} endpoints, each of which answers, on this node and on another; \
         one Service has a single endpoint, which moves. The client is a pod whose sockets the node does not see, so that `lb-agent` is met on its packet path, too. {}\n\n\
         {load}\n",
        tools()
    );
    let _ = write!(
        text,
        "\n### Start\n\nSeconds from the start of the process until each of {sample} Services, chosen at random, has answered a \
         connection, and until the proxy says that it is ready: `lb-agent` by `/healthz`, kube-proxy by its metric \
         `sync_proxy_rules_last_timestamp_seconds`. Median; all others in parentheses. Given up after {cap} s; what takes longer than {} s is started once.\n\n",
        SLOW_START.as_secs()
    );
    text += &starts(trials, *cap);
    let _ = write!(
        text,
        "\n### A change\n\nMilliseconds from the moment at which the API server has acknowledged a write that moves the endpoint of one Service to \
         another pod, until the first connection that the new endpoint answers; a new connection is tried every 0.2 ms (every hundredth of the time, \
         once that is more). Negative: the watch was faster than the answer to who wrote. The ratio is of the times since the write was *sent*, which are never negative. \
         The next change comes up to {} ms after the last one was seen, at random. kube-proxy waits 1 s by default between two synchronizations \
         (`minSyncPeriod`); with it at 1 ms is what it does when nothing else has changed for a second.\n\n",
        super::change::LONGEST_GAP_MS
    );
    text += &changes(trials, *cap);
    let _ = write!(
        text,
        "\n### Memory\n\nMB, {} s after the start. *Kernel* is what the kernel has charged to the proxy and to what it started (rules, or \
         maps, which are made for the number of entries that they may come to hold).\n\n",
        super::SETTLE.as_secs()
    );
    text += &memory(trials);
    text += "\n### The goals of the agent\n\nThe real process, with the watches of its Kubernetes client.\n\n";
    text += &goals(trials);
    text
}

/// Trials of each number of Services and contender, in the order of measuring.
fn groups(trials: &[Trial]) -> Vec<Vec<&Trial>> {
    let mut groups: Vec<Vec<&Trial>> = Vec::new();
    let mut numbers: Vec<u32> = trials.iter().map(|trial| trial.services).collect();
    numbers.dedup();
    for services in numbers {
        for contender in Contender::ALL {
            let is_meant = |trial: &&Trial| trial.services == services && trial.contender == contender;
            let group: Vec<&Trial> = trials.iter().filter(is_meant).collect();
            if !group.is_empty() {
                groups.push(group);
            }
        }
    }
    groups
}

/// What `lb-agent` has where others have something, at the same number of Services.
fn ours<'a, 'b>(groups: &'b [Vec<&'a Trial>], group: &[&Trial]) -> Option<&'b [&'a Trial]> {
    let is_ours = |other: &&Vec<&Trial>| other[0].contender == Contender::Lb && other[0].services == group[0].services;
    groups.iter().find(is_ours).map(Vec::as_slice)
}

fn ratio(value: f64, to: Option<f64>) -> String {
    to.map_or(String::new(), |to| format!("{:.1}", value / to))
}

fn head(group: &[&Trial]) -> Vec<String> {
    vec![group[0].services.to_string(), group[0].contender.name().to_owned()]
}

fn starts(trials: &[Trial], cap: u64) -> String {
    let groups = groups(trials);
    // A variant starts like that of which it is one.
    let rows = groups.iter().filter(|group| group[0].contender.variant_of().is_none()).map(|group| {
        let median = |group: &[&Trial], value: fn(&Trial) -> Option<f64>| {
            let values: Option<Vec<f64>> = group.iter().map(|trial| value(trial)).collect();
            values.map(|values| samples("s", values))
        };
        let shown = |samples: Option<&Samples>| samples.map_or(format!("> {cap}"), all_of);
        let answers = median(group, |trial| trial.start.answers);
        let says = median(group, |trial| trial.start.says);
        let base = ours(&groups, group).and_then(|ours| median(ours, |trial| trial.start.answers));
        let ratio = match &answers {
            Some(answers) => ratio(answers.median(), base.map(|base| base.median())),
            #[expect(clippy::cast_precision_loss, reason = "seconds")]
            None => format!("> {}", ratio(cap as f64, base.map(|base| base.median()))),
        };
        [head(group), vec![shown(answers.as_ref()), shown(says.as_ref()), ratio]].concat()
    });
    table(&["Services", "", "all answer, s", "says ready, s", "÷ lb-agent"], &rows.collect::<Vec<_>>())
}

fn changes(trials: &[Trial], cap: u64) -> String {
    let groups = groups(trials);
    let since_sending = |group: &[&Trial]| {
        let changes = group.iter().flat_map(|trial| &trial.changes);
        some_samples(changes.map(|change| change.after_sending).collect())
    };
    let rows = groups.iter().map(|group| {
        let cells = match (after_acknowledgement(group), since_sending(group)) {
            (Some(acknowledged), Some(sent)) => {
                let base = ours(&groups, group).and_then(since_sending);
                let base = |share| base.as_ref().map(|base| base.quantile(share));
                vec![
                    acknowledged.values.len().to_string(),
                    format!("{:.1}", acknowledged.median()),
                    format!("{:.1}", acknowledged.quantile(0.99)),
                    format!("{:.1}", sent.median()),
                    ratio(sent.median(), base(0.5)),
                    ratio(sent.quantile(0.99), base(0.99)),
                ]
            }
            _ => vec![
                "0".to_owned(),
                format!("not ready within {cap} s"),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ],
        };
        [head(group), cells].concat()
    });
    let columns =
        ["Services", "", "changes", "p50, ms", "p99, ms", "since sent, p50, ms", "÷ lb-agent, p50", "÷ lb-agent, p99"];
    table(&columns, &rows.collect::<Vec<_>>())
}

fn memory(trials: &[Trial]) -> String {
    let groups = groups(trials);
    let megabytes = |group: &[&Trial], value: fn(&Trial) -> Option<f64>| {
        let values: Option<Vec<f64>> = group.iter().map(|trial| Some(value(trial)? / 1e3)).collect();
        values.map(|values| samples("MB", values).median())
    };
    let rows = groups.iter().filter(|group| group[0].contender.variant_of().is_none()).map(|group| {
        let resident = |group: &[&Trial]| megabytes(group, |trial| Some(trial.memory.resident_kilobytes));
        let shown = |value: Option<f64>| value.map_or("not measured".to_owned(), |value| format!("{value:.0}"));
        let base = ours(&groups, group).and_then(resident);
        let cells = vec![
            shown(resident(group)),
            shown(megabytes(group, |trial| Some(trial.memory.highest_kilobytes))),
            shown(megabytes(group, |trial| trial.memory.kernel_kilobytes)),
            resident(group).map_or(String::new(), |resident| ratio(resident, base)),
        ];
        [head(group), cells].concat()
    });
    table(&["Services", "", "VmRSS", "VmHWM", "kernel", "VmRSS ÷ lb-agent"], &rows.collect::<Vec<_>>())
}

fn goals(trials: &[Trial]) -> String {
    let groups = groups(trials);
    let mut rows = Vec::new();
    for group in groups.iter().filter(|group| group[0].contender == Contender::Lb) {
        let lists_to_maps = group.iter().filter_map(|trial| trial.lists_to_maps).collect();
        let resident = group.iter().map(|trial| trial.memory.resident_kilobytes / 1e3).collect();
        let mut row = |what: &str, value: Option<f64>, goal: f64, unit: &str| {
            let Some(value) = value else { return };
            let verdict = if value < goal { "" } else { " (missed)" };
            let cells = [group[0].services.to_string(), what.to_owned(), format!("{value:.1} {unit}")];
            rows.push([cells.to_vec(), vec![format!("< {goal:.0} {unit}{verdict}")]].concat());
        };
        row(
            "complete lists to complete maps",
            some_samples(lists_to_maps).map(|samples| samples.median()),
            1000.0,
            "ms",
        );
        row("VmRSS afterwards", some_samples(resident).map(|samples| samples.median()), 60.0, "MB");
        let changes = after_acknowledgement(group).map(|samples| samples.quantile(0.99));
        row("one change, acknowledged by the API server, to the first connection, p99", changes, 5.0, "ms");
    }
    table(&["Services", "", "measured", "goal"], &rows)
}

fn after_acknowledgement(group: &[&Trial]) -> Option<Samples> {
    let changes = group.iter().flat_map(|trial| &trial.changes);
    some_samples(changes.map(|change| change.after_acknowledgement).collect())
}

fn some_samples(values: Vec<f64>) -> Option<Samples> {
    (!values.is_empty()).then(|| samples("ms", values))
}

fn samples(unit: &'static str, values: Vec<f64>) -> Samples {
    Samples { name: String::new(), unit, values }
}

/// The median, and every value where there are more.
fn all_of(samples: &Samples) -> String {
    let median = format!("{:.2}", samples.median());
    if samples.values.len() == 1 {
        return median;
    }
    let all: Vec<String> = samples.values.iter().map(|value| format!("{value:.2}")).collect();
    format!("{median} ({})", all.join(", "))
}

/// What kube-proxy programs the kernel with.
fn tools() -> String {
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let versions: Vec<String> = ["nft", "iptables"].into_iter().filter_map(version).collect();
    format!("kube-proxy used {}.", versions.join(" and "))
}

/// The machine's facts and its load: how many others wanted its processors.
pub fn machine(before: &str, after: &str) -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    format!(
        "{processors} processors, {:.0} GB; load average (1, 5 and 15 minutes) {before} before and {after} after.",
        kilobytes.unwrap_or(0.0) / 1e6
    )
}

/// The load averages of 1, 5 and 15 minutes.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(", ")
}
