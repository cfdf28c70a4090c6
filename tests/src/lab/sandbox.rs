//! A process that has nothing to lose and leaves nothing behind: its own mounts, network, and process ids, `/run` in
//! memory. Whatever is made in it, named network namespaces and bpffs included, ends with its last process, however
//! that ends.
//!
//! ```text
//! caller ── waits outside, removes the cgroup, exits with the status of ──> process 1 of the sandbox: [`enter`] returns here
//! ```
//!
//! Each is killed when its parent dies, and the kernel kills every process of the sandbox when process 1 dies.

use std::{fs, path::Path, process};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

use super::cgroup::Cgroup;

/// Why there can be no sandbox on this machine, or for this user.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotRun(pub String);

/// What the inside needs to know of the outside.
#[derive(Debug)]
pub struct Sandbox {
    /// The lab's cgroup; the calling process is in it.
    pub cgroup: Cgroup,
    /// Process 1 of the sandbox, as the machine numbers it: what `nsenter -t` takes.
    pub outer_pid: u32,
}

/// Moves the program into a sandbox: the process that returns is another one than the one that called. Must be called
/// before there are threads.
///
/// # Errors
/// In the calling process, with what is missing.
pub fn enter() -> Result<Sandbox, CannotRun> {
    die_with_parent();
    let missing = |what: &str, errno: Errno| CannotRun(format!("{what}: {}", errno.desc()));
    let cgroup = Cgroup::create().map_err(CannotRun)?;
    let isolation = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    if let Err(errno) = unshare(isolation) {
        cgroup.remove();
        return Err(missing("new mount, network and process id namespaces", errno));
    }
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM]);
    let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK).expect("block signals");
    // SAFETY: the process has one thread, so the child may go on as any program.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => {
            let code = wait(child, &signals);
            cgroup.remove();
            process::exit(code)
        }
        ForkResult::Child => {
            before.thread_set_mask().expect("unblock signals");
            die_with_parent();
            // `/proc` is still the one outside.
            let outer_pid = fs::read_link("/proc/self").ok().and_then(|link| link.to_str()?.parse().ok());
            make_mounts_private();
            cgroup.enter_process();
            Ok(Sandbox { cgroup, outer_pid: outer_pid.expect("/proc/self names the process") })
        }
    }
}

/// Waits for process 1 of the sandbox and gives its exit code. What asks this process to end, ends process 1, which
/// itself would ignore it as every process 1 does (`pid_namespaces(7)`).
fn wait(process_1: Pid, signals: &SigSet) -> i32 {
    loop {
        if signals.wait().expect("wait for a signal") != Signal::SIGCHLD {
            kill(process_1, Signal::SIGKILL).expect("kill one's own child");
        }
        match waitpid(process_1, Some(WaitPidFlag::WNOHANG)).expect("wait for one's own child") {
            WaitStatus::Exited(_, code) => return code,
            // What a shell says of a process that a signal ended.
            WaitStatus::Signaled(_, signal, _) => return 128 + signal as i32,
            _ => {}
        }
    }
}

/// Makes `/var/run` the sandbox's own, as `/run` is, where it is not a link to that already: pods find their credentials
/// below it.
pub fn own_var_run() {
    let path = Path::new("/var/run");
    if fs::canonicalize(path).expect("every system has it") != Path::new("/run") {
        mount_new("tmpfs", path);
    }
}

/// Mounts a BPF file system of one's own.
pub(super) fn mount_bpffs(path: &Path) {
    mount_new("bpf", path);
}

fn make_mounts_private() {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("make mounts private");
    mount_new("proc", Path::new("/proc"));
    mount_new("tmpfs", Path::new("/run"));
    fs::create_dir(NETNS_DIRECTORY).expect("mkdir in a new tmpfs");
}

/// Where `ip netns` looks for namespaces.
pub(super) const NETNS_DIRECTORY: &str = "/run/netns";

fn mount_new(kind: &str, path: &Path) {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
        .unwrap_or_else(|errno| panic!("mount {kind} on {}: {errno}", path.display()));
}

fn die_with_parent() {
    prctl::set_pdeathsig(Signal::SIGKILL).expect("PR_SET_PDEATHSIG takes any signal");
}
