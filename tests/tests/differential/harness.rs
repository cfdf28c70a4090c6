//! One trial for each scenario file, a few workers that run them, and what can only be said in the end.
//!
//! With `LB_VERBOSE` in the environment every scenario says how long it took, where each announced difference was seen,
//! and, if it is pending, in what it fails.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use lb_tests::{
    differential::{
        divergence::{NOT_ANNOUNCED, OURS},
        generate::{self, Generated},
        modes::MODES,
        report::Report,
        scenario::Scenario,
        worker::{NoReport, Worker},
    },
    lab,
};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::document;

/// How many seeds are tried where nobody says.
const GENERATED: u64 = 8;
/// How long a failing scenario is made smaller.
const SHRINKING: Duration = Duration::from_secs(90);

/// What the trials share.
#[derive(Default)]
struct Shared {
    idle: Mutex<Vec<Worker>>,
    outcome: Mutex<Outcome>,
    one_more: Condvar,
}

/// What is known so far.
#[derive(Default)]
struct Outcome {
    shown: BTreeSet<String>,
    done: usize,
    cannot_run: Option<String>,
}

/// Where the scenario files are.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let is_whole = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list;
    lab::sweep();
    let shared = Arc::new(Shared::default());
    let mut files: Vec<PathBuf> = fs::read_dir(directory())
        .expect("the scenarios are in the repository")
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    files.sort();
    let count = files.len();
    let of_document = |name: &str, test: fn()| {
        let run = move || catch_unwind(test).map_err(|_| Failed::from("see above"));
        Trial::test(format!("document::{name}"), run)
    };
    let mut trials = vec![
        of_document(
            "every_announced_difference_is_documented_and_no_other",
            document::every_announced_difference_is_documented_and_no_other,
        ),
        of_document(
            "every_test_that_the_document_names_is_there",
            document::every_test_that_the_document_names_is_there,
        ),
    ];
    trials.extend(files.into_iter().map(|path| {
        let name = format!("scenario::{}", path.file_stem().unwrap_or_default().to_string_lossy());
        let shared = Arc::clone(&shared);
        Trial::ignorable_test(name, move || {
            let result = shared.run_file(&path);
            shared.finish_one();
            result
        })
    }));
    for seed in seeds() {
        let shared = Arc::clone(&shared);
        let name = format!("generated::seed_{seed}");
        trials.push(Trial::ignorable_test(name, move || shared.run_generated(seed)));
    }
    if is_whole {
        let shared = Arc::clone(&shared);
        // The last to be started, so that it waits for none that waits for it.
        trials.push(Trial::ignorable_test("table::every_announced_difference_is_shown", move || {
            shared.every_difference_is_shown(count)
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    shared.idle.lock().expect("no trial panics with it").clear();
    lab::sweep();
    conclusion.exit_code()
}

/// A variable that is a number, or what it is without it.
fn number(variable: &str, default: u64) -> u64 {
    let text = env::var(variable);
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// The seeds to try: `cargo xtask differential` says which.
fn seeds() -> std::ops::Range<u64> {
    let first = number("LB_SEED", 1);
    first..first + number("LB_CASES", GENERATED)
}

impl Shared {
    /// Runs the scenario of a seed. One that fails is made as small as can be in a while, and printed as a file.
    fn run_generated(&self, seed: u64) -> Result<Completion, Failed> {
        let mut generated = Generated::new(seed);
        let about = format!("Made by seed {seed}.");
        let fails = |text: &str| -> Result<Option<String>, NoReport> {
            let report = self.run(&format!("seed-{seed}"), text)?;
            if env::var_os("LB_VERBOSE").is_some() {
                print!(
                    "seed {seed}: {} cells, {:.1} s, shows {:?}\n{text}",
                    report.cells, report.seconds, report.shown
                );
            }
            Ok((!report.failures.is_empty()).then(|| report.failures.concat()))
        };
        let mut text = generate::text(&generated.documents(&about));
        let mut failure = match fails(&text) {
            Ok(None) => return Ok(Completion::Completed),
            Ok(Some(failure)) => failure,
            Err(NoReport::Broken(how)) => return Err(how.into()),
            Err(NoReport::CannotRun(reason)) => return self.cannot_run(&reason),
        };
        // What the API server refuses cannot be made simpler by what it does not.
        let is_alike = |other: &str| other.contains(NOT_ANNOUNCED) == failure.contains(NOT_ANNOUNCED);
        let (start, mut smallest) = (Instant::now(), None);
        let mut is_other = generated.simplify();
        while is_other && start.elapsed() < SHRINKING {
            let simpler = generate::text(&generated.documents(&about));
            is_other = match fails(&simpler) {
                Ok(Some(still)) if is_alike(&still) => {
                    smallest = Some((still, simpler));
                    generated.simplify()
                }
                _ => generated.complicate(),
            };
        }
        if let Some(found) = smallest {
            (failure, text) = found;
        }
        Err(format!("{failure}as a file for tests/scenarios:\n{text}").into())
    }

    fn run_file(&self, path: &Path) -> Result<Completion, Failed> {
        let text = Scenario::read(path)?;
        let scenario = Scenario::parse(&path.file_stem().unwrap_or_default().to_string_lossy(), &text)?;
        match self.run(&scenario.name, &text) {
            Ok(report) => self.judge(&scenario, &report),
            Err(NoReport::Broken(how)) => Err(how.into()),
            Err(NoReport::CannotRun(reason)) => self.cannot_run(&reason),
        }
    }

    /// Runs a scenario in an idle worker, or in a new one.
    fn run(&self, name: &str, text: &str) -> Result<Report, NoReport> {
        let idle = self.idle.lock().expect("no trial panics with it").pop();
        let start = || Worker::start().map_err(|error| NoReport::Broken(error.to_string()));
        let mut worker = idle.map_or_else(start, Ok)?;
        let report = worker.run(name, text)?;
        if !report.is_last {
            self.idle.lock().expect("no trial panics with it").push(worker);
        }
        Ok(report)
    }

    fn judge(&self, scenario: &Scenario, report: &Report) -> Result<Completion, Failed> {
        let Report { failures, shown, explained, is_last: _, cells, seconds } = report;
        if env::var_os("LB_VERBOSE").is_some() {
            let lines: String = explained.iter().map(String::as_str).collect();
            print!("{}: {cells} cells, {seconds:.1} s, shows {shown:?}\n{lines}", scenario.name);
        }
        if let Some(reason) = &scenario.header.pending {
            if env::var_os("LB_VERBOSE").is_some() {
                print!("{}", failures.concat());
            }
            let text = format!("pending: {reason}: {} differences", failures.len());
            return Ok(Completion::ignored_with(text));
        }
        self.outcome.lock().expect("no trial panics with it").shown.extend(shown.iter().cloned());
        if failures.is_empty() { Ok(Completion::Completed) } else { Err(failures.concat().into()) }
    }

    fn cannot_run(&self, reason: &str) -> Result<Completion, Failed> {
        self.outcome.lock().expect("no trial panics with it").cannot_run = Some(reason.to_owned());
        let is_required = env::var_os("LB_REQUIRE_ALL") == Some(OsString::from("1"));
        if is_required { Err(reason.into()) } else { Ok(Completion::ignored_with(reason)) }
    }

    fn finish_one(&self) {
        self.outcome.lock().expect("no trial panics with it").done += 1;
        self.one_more.notify_all();
    }

    fn every_difference_is_shown(&self, scenarios: usize) -> Result<Completion, Failed> {
        let outcome = self.outcome.lock().expect("no trial panics with it");
        let outcome = self.one_more.wait_while(outcome, |outcome| outcome.done < scenarios).expect("the same");
        if let Some(reason) = &outcome.cannot_run {
            return Ok(Completion::ignored_with(reason.clone()));
        }
        let to_show = OURS.iter().copied().flatten().chain(MODES).filter(|difference| difference.explains.is_some());
        let missing: Vec<&str> =
            to_show.map(|difference| difference.id).filter(|id| !outcome.shown.contains(*id)).collect();
        if missing.is_empty() {
            Ok(Completion::Completed)
        } else {
            Err(format!("no scenario shows {}", missing.join(", ")).into())
        }
    }
}
