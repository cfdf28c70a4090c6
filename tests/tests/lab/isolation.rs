//! A lab touches nothing outside, and leaves nothing.

use std::{
    fs,
    io::{BufRead, BufReader},
    panic,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use lb_tests::{
    lab::{
        self, Host, Lab, ReversePathFilter,
        sandbox::{CannotRun, Sandbox},
    },
    trial,
};

/// The name of [`a_lab_that_waits_to_be_killed`].
pub(crate) const FIXTURE: &str = "isolation::a_lab_that_waits_to_be_killed";

/// Prints its process 1 and its cgroup, and waits.
pub(crate) fn a_lab_that_waits_to_be_killed(sandbox: Sandbox) {
    let cgroup = sandbox.cgroup.path().to_owned();
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    // A process beside the lab's own, that would outlive it if it could.
    let mut sleeper = lab.nodes[0].host.run(|| Command::new("sleep").arg("1000").spawn()).expect("start sleep");
    println!("{} {}", lab.outer_pid, cgroup.display());
    sleeper.wait().expect("wait for one's own child");
}

struct Fixture {
    waiter: Child,
    process_1: u32,
    cgroup: PathBuf,
}

fn start_fixture() -> Fixture {
    let mut waiter = trial::command(FIXTURE).stdout(Stdio::piped()).spawn().expect("start this program again");
    let mut line = String::new();
    BufReader::new(waiter.stdout.take().expect("piped")).read_line(&mut line).expect("read its first line");
    if line.starts_with("cannot run here") {
        waiter.wait().expect("wait for one's own child");
        panic::resume_unwind(Box::new(CannotRun(line)));
    }
    let (process_1, cgroup) = line.trim().split_once(' ').unwrap_or_else(|| panic!("it said {line:?}"));
    Fixture { process_1: process_1.parse().expect("a process id"), cgroup: cgroup.into(), waiter }
}

pub(crate) fn a_killed_lab_leaves_nothing_but_an_empty_cgroup() {
    let named_namespaces = entries(Path::new("/run/netns"));
    for (signal, is_waiter_killed) in [(Signal::SIGKILL, true), (Signal::SIGKILL, false), (Signal::SIGTERM, true)] {
        let Fixture { mut waiter, process_1, cgroup } = start_fixture();
        let processes = processes_in(&cgroup);
        assert!(processes.len() >= 2, "process 1 and the sleeper are in the cgroup: {processes:?}");
        lab::sweep();
        assert!(cgroup.exists(), "a sweep leaves a living lab alone");

        let victim = if is_waiter_killed { waiter.id() } else { process_1 };
        kill(Pid::from_raw(victim.cast_signed()), signal).expect("signal a process of one's own");
        waiter.wait().expect("wait for one's own child");

        let deadline = Instant::now() + Duration::from_secs(5);
        while processes.iter().any(|process| Path::new("/proc").join(process).exists()) {
            assert!(Instant::now() < deadline, "of {processes:?} some still live");
            thread::sleep(Duration::from_millis(5));
        }
        if (signal, is_waiter_killed) == (Signal::SIGKILL, true) {
            // Nobody was left to remove it.
            lab::sweep();
        }
        assert!(!cgroup.exists(), "{} is left", cgroup.display());
    }
    assert_eq!(entries(Path::new("/run/netns")), named_namespaces);
}

pub(crate) fn a_shell_opens_on_a_host_from_outside() {
    let Fixture { mut waiter, process_1, .. } = start_fixture();
    let output = Command::new("nsenter")
        .args([
            "-t",
            &process_1.to_string(),
            "-m",
            "-p",
            "ip",
            "netns",
            "exec",
            "node1-pod0",
            "ip",
            "-br",
            "-4",
            "address",
        ])
        .output()
        .expect("run nsenter");
    waiter.kill().expect("kill one's own child");
    waiter.wait().expect("wait for one's own child");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("10.1.1.1/32"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn the_machine_is_out_of_sight(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    assert_eq!(entries(Path::new("/run")), ["lb", "netns"]);
    assert_eq!(interfaces(), ["lo"], "in the sandbox's own namespace");
    assert_eq!(std::process::id(), 1);
    let on = |host: &Host| host.run(interfaces);
    assert_eq!(on(&lab.client), ["eth0", "lo"]);
    assert_eq!(on(&lab.nodes[1].vm), ["eth0", "lo"]);
    assert_eq!(on(&lab.nodes[0].host), ["eth0", "lo", "node1-pod0", "node1-pod1", "node1-vm0"]);
    assert_eq!(on(&lab.router), ["client", "lo", "node1", "node2", "nodes"]);
}

pub(crate) fn threads_belong_to_the_node_of_their_host(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let cgroup_of =
        |host: &Host| host.run(|| fs::read_to_string("/proc/thread-self/cgroup").expect("/proc is mounted"));
    let is_in = |host: &Host, name: &str| cgroup_of(host).trim_end().ends_with(name);
    for node in &lab.nodes {
        let name = format!("/{}", node.host.name());
        assert!(node.cgroup().ends_with(node.host.name()));
        for host in [&node.host].into_iter().chain(&node.pods) {
            assert!(is_in(host, &name), "{}: {}", host.name(), cgroup_of(host));
        }
        assert!(!is_in(&node.vm, &name), "{}: {}", node.vm.name(), cgroup_of(&node.vm));
        // A process that is started by such a thread belongs there too.
        let child = node.host.run(|| Command::new("cat").arg("/proc/self/cgroup").output()).expect("run cat");
        assert!(String::from_utf8_lossy(&child.stdout).trim_end().ends_with(&name), "{child:?}");
    }
}

/// Names in a directory, sorted; none if it does not exist.
fn entries(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Names of the interfaces of the calling thread's network namespace, sorted.
fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc is mounted");
    let mut names: Vec<String> =
        table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
    names.sort();
    names
}

/// Ids of the processes that belong to a threaded cgroup.
fn processes_in(cgroup: &Path) -> Vec<String> {
    let list = fs::read_to_string(cgroup.join("cgroup.procs")).expect("the cgroup exists");
    list.lines().map(str::to_owned).collect()
}
