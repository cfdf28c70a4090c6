//! Scenarios are run by processes of their own, each with a [session](super::session) for many scenarios: the one that
//! reports hands it a scenario on a line, and gets a report on a line.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, Write},
    panic,
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio, exit},
    sync::{LazyLock, mpsc},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{report::Report, scenario::Scenario, session::Session};
use crate::{
    lab::sandbox::{self, CannotRun},
    trial,
};

/// The argument that makes a program run scenarios.
pub const ARGUMENT: &str = "--scenarios";
/// How it then says that it cannot (the convention of GNU Automake for skipped tests).
const CANNOT_RUN: u8 = 77;
/// How long a scenario may take, several times what the longest takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Serialize, Deserialize)]
struct Request {
    name: String,
    text: String,
}

/// The `main` of a worker: reads scenarios from its standard input until that ends.
pub fn main() -> ExitCode {
    let sandbox = match sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(CannotRun(reason)) => return cannot_run(&reason),
    };
    let work = panic::catch_unwind(move || {
        let mut session = Session::start(sandbox);
        for line in io::stdin().lines() {
            let Request { name, text } = serde_json::from_str(&line.expect("read a pipe")).expect("a request");
            let scenario = Scenario::parse(&name, &text).expect("it was read before");
            let (done, is_done) = mpsc::channel::<()>();
            thread::spawn(move || {
                if is_done.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                    eprintln!("{name}: not finished after {LIMIT:?}");
                    trial::print_logs();
                    exit(1);
                }
            });
            let report = session.run(&scenario);
            drop(done);
            println!("{}", serde_json::to_string(&report).expect("a report is JSON"));
        }
    });
    match work {
        Ok(()) => exit(0),
        Err(cause) => {
            if let Some(CannotRun(reason)) = cause.downcast_ref() {
                println!("cannot run here: {reason}");
                exit(CANNOT_RUN.into());
            }
            trial::print_logs();
            exit(1)
        }
    }
}

fn cannot_run(reason: &str) -> ExitCode {
    println!("cannot run here: {reason}");
    ExitCode::from(CANNOT_RUN)
}

/// A worker, as the process that reports sees it.
pub struct Worker {
    child: Child,
    requests: Option<ChildStdin>,
    reports: BufReader<ChildStdout>,
    log: File,
}

/// Why there is no report.
#[derive(Debug)]
pub enum NoReport {
    /// This machine or user cannot run scenarios.
    CannotRun(String),
    /// The worker broke; with what it wrote.
    Broken(String),
}

/// Starts a program from a thread that stays: a sandbox ends with the *thread* that started it (`PR_SET_PDEATHSIG`), and a trial's
/// may be over while another trial has its worker.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, started) in orders {
                // Whoever ordered it waits.
                let _ = started.send(command.spawn());
            }
        });
        sender
    });
    let (sender, started) = mpsc::channel();
    SPAWNER.send((command, sender)).map_err(|_| io::Error::other("the thread that starts workers is gone"))?;
    started.recv().map_err(io::Error::other)?
}

impl Worker {
    /// Starts this program as a worker.
    pub fn start() -> io::Result<Self> {
        let log = tempfile::tempfile()?;
        // As it is running, also when it has been built again meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.try_clone()?);
        let mut child = spawn(command)?;
        let requests = child.stdin.take();
        let reports = BufReader::new(child.stdout.take().expect("piped"));
        Ok(Self { child, requests, reports, log })
    }

    /// Has it run a scenario.
    pub fn run(&mut self, name: &str, text: &str) -> Result<Report, NoReport> {
        let request = Request { name: name.to_owned(), text: text.to_owned() };
        let request = serde_json::to_string(&request).expect("a request is JSON");
        // A worker that has ended says why on its output.
        let _ = self.requests.as_mut().map(|pipe| writeln!(pipe, "{request}"));
        let mut line = String::new();
        let _ = self.reports.read_line(&mut line);
        if let Some(reason) = line.strip_prefix("cannot run here: ") {
            return Err(NoReport::CannotRun(reason.trim_end().to_owned()));
        }
        serde_json::from_str(&line).map_err(|_| {
            let _ = self.reports.read_to_string(&mut line);
            let _ = self.log.rewind();
            let mut log = Vec::new();
            let _ = self.log.read_to_end(&mut log);
            NoReport::Broken(format!("{line}{}", String::from_utf8_lossy(&log)))
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It ends when there is nothing more to read, and removes its cgroup.
        drop(self.requests.take());
        let _ = self.child.wait();
    }
}
