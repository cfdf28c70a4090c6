//! Each test runs in a process with network, mount and process id namespaces of its own, `/run` in memory with a bpffs
//! in it, and a cgroup that nobody is in.
//!
//! ```text
//! harness ── unshare(1) ── process 1 of the sandbox: the test ── agents, sleepers, …
//! ```
//!
//! `unshare` and process 1 are killed when their parent dies, and the kernel kills every process of the sandbox when
//! process 1 dies. Mounts and namespaces end with their last process; the next harness removes the [`cgroup`].
//!
//! [`cgroup`]: crate::cgroup

use std::{
    env, fs, io,
    os::unix::process::{CommandExt as _, parent_id},
    path::{Path, PathBuf},
    process::{self, Child, Command, Output},
    thread,
    time::Duration,
};

use lb_agent::loader;
use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Set inside: the test's cgroup.
const CGROUP: &str = "LB_TEST_CGROUP";

/// What a test may use. The network namespace has a loopback device that is up, and nothing else.
pub(crate) struct Sandbox {
    /// A bpffs.
    pub(crate) bpffs: PathBuf,
    /// An empty cgroup.
    pub(crate) cgroup: PathBuf,
    /// An empty directory.
    pub(crate) dir: PathBuf,
}

/// Runs `body` in the sandbox that this process was started in by [`this_program`].
pub(crate) fn run(body: impl FnOnce(&Sandbox)) {
    body(&prepare(env::var_os(CGROUP).expect("started by the harness").into()));
}

/// Says why this machine or user can have no sandboxes, or cannot load programs in them.
pub(crate) fn requirements() -> Result<(), String> {
    loader::check_requirements().map_err(|error| error.to_string())?;
    // In a thread that ends with what it got. Process ids, which a thread cannot have of its own, need the same privilege.
    let isolated = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS));
    let isolated = isolated.join().expect("one system call");
    isolated.map_err(|errno| format!("new network and mount namespaces: {}", errno.desc()))
}

/// The command that runs this program with these arguments in a sandbox.
pub(crate) fn this_program(cgroup: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(env::current_exe().expect("this program")).args(arguments).env(CGROUP, cgroup);
    let harness = process::id();
    // SAFETY: two system calls between fork and exec.
    unsafe {
        command.pre_exec(move || die_with_parent(harness));
    }
    command
}

fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: a system call with integers. Execution of a program keeps what it sets (prctl(2)).
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // It may have died before.
    if parent_id() == parent { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn prepare(cgroup: PathBuf) -> Sandbox {
    let mount_new = |kind: &str, path: &Path| {
        mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
            .unwrap_or_else(|errno| panic!("mount {kind} on {}: {errno}", path.display()));
    };
    mount_new("tmpfs", Path::new("/run"));
    let [bpffs, dir] = ["/run/bpf", "/run/test"].map(PathBuf::from);
    for path in [&bpffs, &dir] {
        fs::create_dir(path).expect("a new directory");
    }
    mount_new("bpf", &bpffs);
    ip("link set lo up");
    Sandbox { bpffs, cgroup, dir }
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
        let child = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().expect("unshare");
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
