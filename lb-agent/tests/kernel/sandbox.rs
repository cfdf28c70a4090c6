//! Each test runs in a child process with network and mount namespaces of its own, a bpffs of its own, and a cgroup
//! that nobody else is in.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    thread,
    time::Duration,
};

use lb_agent::loader;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Set in the child: the directory that it may use.
const INSIDE: &str = "LB_TEST_SANDBOX";
/// What a test does not share with the machine.
const ISOLATION: CloneFlags = CloneFlags::CLONE_NEWNS.union(CloneFlags::CLONE_NEWNET);

/// What a test may use. The network namespace has a loopback device that is up, and nothing else.
pub(crate) struct Sandbox {
    /// A bpffs.
    pub(crate) bpffs: PathBuf,
    /// An empty cgroup.
    pub(crate) cgroup: PathBuf,
    /// An empty directory.
    pub(crate) dir: PathBuf,
}

/// Runs `body` in the sandbox that the harness made for this process.
pub(crate) fn run(body: impl FnOnce(&Sandbox)) {
    body(&enter(Path::new(&env::var_os(INSIDE).expect("started by the harness"))));
}

/// Why this machine or user can have no sandboxes, or cannot load programs in them.
pub(crate) fn what_is_missing() -> Option<String> {
    if let Err(error) = loader::check_requirements().and(loader::cgroup2_root()) {
        return Some(error.to_string());
    }
    // In a thread that ends with what it got.
    let isolated = thread::spawn(|| unshare(ISOLATION)).join().expect("one system call");
    isolated.err().map(|errno| format!("new mount and network namespaces: {}", errno.desc()))
}

/// Runs a test of this program in a sandbox.
pub(crate) fn start(command: &mut Command) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let cgroup = cgroup_of(dir.path());
    fs::create_dir(&cgroup).expect("a cgroup");
    // SAFETY: `unshare` is one system call; nothing else happens between fork and exec.
    unsafe {
        command.env(INSIDE, dir.path()).pre_exec(|| Ok(unshare(ISOLATION)?));
    }
    let output = command.output().expect("the test's child process");
    fs::remove_dir(&cgroup).expect("the cgroup is empty again");
    output
}

fn cgroup_of(dir: &Path) -> PathBuf {
    let name = dir.file_name().expect("a name").to_string_lossy().replace('.', "");
    loader::cgroup2_root().expect("a cgroup2").join(format!("lb-test-{name}"))
}

fn enter(dir: &Path) -> Sandbox {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    let bpffs = dir.join("bpf");
    fs::create_dir(&bpffs).expect("a directory");
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), none).expect("a bpffs");
    ip("link set lo up");
    Sandbox { bpffs, cgroup: cgroup_of(dir), dir: dir.to_owned() }
}

/// Runs `ip` with these arguments, separated by spaces.
pub(crate) fn ip(arguments: &str) {
    command("ip", arguments);
}

/// Runs a program with arguments that are separated by spaces, and returns what it printed.
pub(crate) fn command(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().expect(program);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {arguments}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A namespace that holds the other ends of pairs, as long as it exists.
pub(crate) struct Elsewhere(Child);

impl Elsewhere {
    pub(crate) fn new() -> Self {
        let child = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().expect("unshare");
        // It is there once its namespace differs from ours.
        let own = fs::read_link("/proc/self/ns/net").expect("own namespace");
        while fs::read_link(format!("/proc/{}/ns/net", child.id())).expect("its namespace") == own {
            thread::sleep(Duration::from_millis(5));
        }
        Self(child)
    }

    /// Makes a pair: `name` here, `p` and `name` there.
    pub(crate) fn pair(&self, name: &str) {
        ip(&format!("link add {name} type veth peer name p{name} netns {}", self.0.id()));
    }

    /// Runs a program there, with arguments that are separated by spaces.
    pub(crate) fn run(&self, program: &str, arguments: &str) -> Output {
        let pid = self.0.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-n", program]).args(arguments.split(' ')).output().expect("nsenter")
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
