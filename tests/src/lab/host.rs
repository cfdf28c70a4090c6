//! A host: a named network namespace, and the cgroup that its processes are in.

use std::{
    fs::File,
    io::Write,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{Addresses, Family, cgroup::Cgroup, sandbox::NETNS_DIRECTORY};

/// A network namespace with a name, and one cgroup for all that runs in it.
///
/// Threads inherit both from the thread that starts them, so each host has one thread that has moved there, and starts
/// others when asked. Sockets keep the network namespace and the cgroup of the thread that made them, wherever they
/// are used.
pub struct Host {
    name: String,
    namespace: String,
    addresses: Addresses,
    starter: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Host {
    /// Makes a host that runs in a threaded cgroup, or in that of the whole lab. `twin` tells its namespace from those
    /// of hosts of the same name in other labs of the sandbox.
    pub(super) fn new(name: impl Into<String>, twin: &str, addresses: Addresses, cgroup: Option<&Cgroup>) -> Self {
        let name = name.into();
        let namespace = format!("{twin}{name}");
        let (starter, requests) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (path, cgroup) = (PathBuf::from(NETNS_DIRECTORY).join(&namespace), cgroup.cloned());
        thread::Builder::new()
            .name(format!("{name} (starter)"))
            .spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
                File::create(&path).expect("create in /run");
                mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .expect("bind a network namespace to its name");
                if let Some(cgroup) = cgroup {
                    cgroup.enter_thread();
                }
                for start in requests {
                    start();
                }
            })
            .expect("start a thread");
        let host = Self { name, namespace, addresses, starter };
        // Returns once the starter has finished with its move.
        host.run(|| ());
        host
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its network namespace, as `ip netns exec` takes it: its own name, in a lab that has no twin.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its address of a family.
    pub fn address(&self, family: Family) -> IpAddr {
        self.addresses.of(family)
    }

    /// Starts a thread on this host.
    pub fn spawn<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
        let (reply, started) = mpsc::channel();
        let thread = thread::Builder::new().name(self.name.clone());
        let start = move || drop(reply.send(thread.spawn(work).expect("start a thread")));
        self.starter.send(Box::new(start)).unwrap_or_else(|_| panic!("host {} could not be set up", self.name));
        started.recv().unwrap_or_else(|_| panic!("host {} could not be set up", self.name))
    }

    /// Runs something on this host and waits for it. Panics as it does.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        self.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs lines of `ip -batch` on this host.
    ///
    /// A batch per host reads like the manual of what is being built, and at a millisecond or two costs no more than
    /// netlink messages of one's own would.
    pub(crate) fn ip(&self, batch: String) {
        let name = self.namespace.clone();
        self.run(move || ip_batch(&name, &batch));
    }
}

/// Runs lines of `ip -batch` in the network namespace of the calling thread.
pub(super) fn ip_batch(host: &str, batch: &str) {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("the lab needs `ip` (Debian: iproute2): {error}"));
    // The pipe holds 64 KiB and `ip` writes little until it has read all of it; dropping our end lets it finish.
    ip.stdin.take().expect("piped").write_all(batch.as_bytes()).expect("`ip` reads its batch");
    let output = ip.wait_with_output().expect("wait for ip");
    assert!(output.status.success(), "ip on {host}: {}\n{batch}", String::from_utf8_lossy(&output.stderr));
}
