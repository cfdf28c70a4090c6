//! A test harness that gives every test a process of its own in a [`sandbox`], and prints what libtest prints.
//!
//! The harness starts its own program again for each test, several at a time, and shows the output of those that fail,
//! the agents' logs included. A test that this machine or user cannot run says so on one line and counts as ignored;
//! with `LB_REQUIRE_ALL=1` in the environment it fails.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    io::{Read, Seek},
    panic,
    path::Path,
    process::{Command, ExitCode, exit},
    thread,
    time::Duration,
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::lab::{
    self,
    sandbox::{self, CannotRun, Sandbox},
};

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// What must hold, as a sentence.
    pub name: &'static str,
    /// Shows that it does, or panics.
    pub body: Body,
}

/// Where a test runs.
#[derive(Clone, Copy)]
pub enum Body {
    /// In a sandbox of its own.
    Sandboxed(fn(Sandbox)),
    /// In the harness: for tests of the sandbox itself.
    Outside(fn()),
    /// In a sandbox, and only when another test starts it by [`command`].
    Fixture(fn(Sandbox)),
}

/// The tests of a file, each named like its function: `sandboxed!(routing: hosts_reach_each_other, …)`.
#[macro_export]
macro_rules! sandboxed {
    ($module:ident: $($name:ident),+ $(,)?) => {
        [$($crate::trial::Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            body: $crate::trial::Body::Sandboxed($module::$name),
        }),+]
    };
}

/// The argument that makes the program run one test, named by the next argument, and nothing else.
const EXACT: &str = "--exact-trial";
/// How the program then says that it cannot (the convention of GNU Automake for skipped tests).
const CANNOT_RUN: u8 = 77;
/// What the lines begin with that are shown of a test that passes, too.
const MEASURED: &str = "measured: ";
/// How long a test may take before it is ended. Several times what the slowest takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The `main` of a test file.
pub fn main(tests: Vec<Test>) -> ExitCode {
    let mut words = env::args().skip(1);
    if words.next().as_deref() == Some(EXACT) {
        let name = words.next().unwrap_or_default();
        return match tests.iter().find(|test| test.name == name).map(|test| test.body) {
            Some(Body::Sandboxed(body) | Body::Fixture(body)) => run_sandboxed(body),
            Some(Body::Outside(_)) | None => panic!("no sandboxed test is named {name:?}"),
        };
    }
    lab::sweep();
    let trials = tests.into_iter().filter_map(|Test { name, body }| match body {
        Body::Sandboxed(_) => Some(Trial::ignorable_test(name, move || judge(name))),
        Body::Outside(body) => Some(Trial::ignorable_test(name, move || run_outside(body))),
        Body::Fixture(_) => None,
    });
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials.collect());
    lab::sweep();
    conclusion.exit_code()
}

/// The command that runs one sandboxed test of this program.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("/proc/self/exe names the program"));
    command.args([EXACT, name]);
    command
}

fn judge(name: &str) -> Result<Completion, Failed> {
    let mut output = tempfile::tempfile()?;
    let status = command(name).stdout(output.try_clone()?).stderr(output.try_clone()?).status()?;
    let mut text = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    if status.success() {
        // In one piece, since other tests end meanwhile.
        let measured = text.lines().filter_map(|line| Some(format!("{name}: {}\n", line.strip_prefix(MEASURED)?)));
        print!("{}", measured.collect::<String>());
        return Ok(Completion::Completed);
    }
    if status.code() == Some(CANNOT_RUN.into()) { cannot_run(&text) } else { Err(format!("{status}\n{text}").into()) }
}

fn run_outside(body: fn()) -> Result<Completion, Failed> {
    match panic::catch_unwind(body) {
        Ok(()) => Ok(Completion::Completed),
        Err(cause) => match cause.downcast_ref::<CannotRun>() {
            Some(CannotRun(reason)) => cannot_run(reason),
            None => panic::resume_unwind(cause),
        },
    }
}

fn cannot_run(reason: &str) -> Result<Completion, Failed> {
    let is_required = env::var_os("LB_REQUIRE_ALL") == Some(OsString::from("1"));
    if is_required { Err(reason.into()) } else { Ok(Completion::ignored_with(reason.trim_end())) }
}

fn run_sandboxed(body: fn(Sandbox)) -> ExitCode {
    let sandbox = match sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(CannotRun(reason)) => {
            println!("cannot run here: {reason}");
            return ExitCode::from(CANNOT_RUN);
        }
    };
    thread::spawn(|| {
        thread::sleep(LIMIT);
        println!("not finished after {LIMIT:?}");
        print_logs();
        exit(1);
    });
    match panic::catch_unwind(|| body(sandbox)) {
        // Without waiting for threads that still serve.
        Ok(()) => exit(0),
        Err(cause) => {
            if let Some(CannotRun(reason)) = cause.downcast_ref() {
                println!("cannot run here: {reason}");
                exit(CANNOT_RUN.into());
            }
            print_logs();
            exit(1);
        }
    }
}

/// Prints something that was measured: it is shown even when the test passes.
pub fn measured(text: impl fmt::Display) {
    println!("{MEASURED}{text}");
}

/// Prints the logs that the agents of a lab wrote.
pub fn print_logs() {
    for directory in fs::read_dir(lab::AGENTS).into_iter().flatten().flatten() {
        print_log(&directory.path().join(lab::LOG));
    }
}

fn print_log(path: &Path) {
    if let Ok(log) = fs::read_to_string(path) {
        println!("---- {}\n{log}", path.display());
    }
}
