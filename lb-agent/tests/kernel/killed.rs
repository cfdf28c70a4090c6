//! What is left of a harness that was killed: nothing that the next one does not remove.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    agent::{Agent, PATIENCE, healthy, until, write_manifest},
    cgroup,
    sandbox::{self, Elsewhere},
    trial,
};

/// The name of [`an_agent_that_waits_to_be_killed`].
pub(crate) const FIXTURE: &str = "killed::an_agent_that_waits_to_be_killed";
/// What it makes in its cgroup when it waits: all that can be seen of it from outside.
const WAITS: &str = "waits";

pub(crate) fn an_agent_that_waits_to_be_killed() {
    sandbox::run(|sandbox| {
        write_manifest(sandbox, &["10.244.0.5"]);
        let _agent = Agent::start(sandbox, &[], &[]);
        let _sleeper = Elsewhere::new();
        until(sandbox, "healthy", healthy);
        fs::create_dir(sandbox.cgroup.join(WAITS)).expect("a cgroup");
        loop {
            thread::park();
        }
    });
}

pub(crate) fn a_killed_harness_leaves_nothing_when_the_next_one_has_run() {
    let temporary = tempfile::tempdir().expect("a directory");
    let run = |test: &str| {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--exact", test]).env(trial::WITH_FIXTURES, "1").env("TMPDIR", temporary.path());
        command.stdout(Stdio::piped()).spawn().expect("this program again")
    };
    let run_another = || {
        let output = run("no test has this name").wait_with_output().expect("it ends");
        assert!(output.status.success(), "{output:?}");
    };

    let mut harness = run(FIXTURE);
    let deadline = Instant::now() + PATIENCE;
    let own = loop {
        if let Some(own) = cgroup::of(harness.id()).filter(|own| own.join(FIXTURE).join(WAITS).exists()) {
            break own;
        }
        if Instant::now() > deadline || harness.try_wait().expect("a child").is_some() {
            drop(harness.kill());
            panic!("the fixture does not wait: {:?}", harness.wait_with_output());
        }
        thread::sleep(Duration::from_millis(10));
    };
    let processes = below(harness.id());
    let names: Vec<_> = processes.iter().map(|(_, name)| name.as_str()).collect();
    assert!(["unshare", "lb-agent", "sleep"].iter().all(|name| names.contains(name)), "{names:?}");
    run_another();
    assert!(own.exists(), "a harness leaves alone what is another's");
    assert_eq!(below(harness.id()), processes);

    harness.kill().expect("a child");
    harness.wait().expect("a child");
    let deadline = Instant::now() + PATIENCE;
    while processes.iter().any(|(pid, _)| Path::new(&format!("/proc/{pid}")).exists()) {
        assert!(Instant::now() < deadline, "of {processes:?} some still live");
        thread::sleep(Duration::from_millis(10));
    }
    run_another();
    assert!(!own.exists(), "{} is left", own.display());
    assert_eq!(fs::read_dir(temporary.path()).expect("a directory").count(), 0);
}

/// Ids and names of the processes that this one started, and those that they started.
fn below(parent: u32) -> Vec<(u32, String)> {
    let field = |pid: u32, name: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = processes.filter(|pid| field(*pid, "PPid:") == Some(parent.to_string()));
    let children = children.flat_map(|pid| {
        let child = (pid, field(pid, "Name:").unwrap_or_default());
        [child].into_iter().chain(below(pid))
    });
    children.collect()
}
