//! The real agent on a node of the lab, with no more privileges than it claims to need.

use std::{
    env,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    panic,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{LOG, Node, manifest::Manifests, sandbox::CannotRun};

/// Capabilities by number (include/uapi/linux/capability.h): `CAP_NET_ADMIN`, `CAP_PERFMON`, `CAP_BPF`.
const CAPABILITIES: [libc::c_ulong; 3] = [12, 38, 39];
/// One more than the highest there may ever be in the 64 bits that the kernel keeps.
const CAPABILITY_NUMBERS: libc::c_ulong = 64;

/// The address that kube-proxy's health checks are known by.
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// How long an agent may take to be ready on a loaded machine.
const START: Duration = Duration::from_secs(20);

/// A running agent.
pub struct Agent {
    process: Child,
}

impl Agent {
    /// Starts the agent of a node.
    pub fn start(node: &Node, manifests: &Manifests) -> Self {
        Self::start_with(node, &["--manifests".into(), manifests.directory().into()], &[])
    }

    /// As [`start`](Self::start), to follow the API server of a kubeconfig.
    pub fn start_with_kubeconfig(node: &Node, kubeconfig: &Path) -> Self {
        Self::start_configured(node, kubeconfig, &[])
    }

    /// As [`start_with_kubeconfig`](Self::start_with_kubeconfig), with more arguments.
    pub fn start_configured(node: &Node, kubeconfig: &Path, arguments: &[OsString]) -> Self {
        let kubeconfig = ["--kubeconfig".into(), kubeconfig.into()];
        Self::start_with(node, &[&kubeconfig, arguments].concat(), &[])
    }

    /// As in a pod of the node's network, to follow the API server of its cluster: by its environment, and by the
    /// credentials below `/var/run`, which the caller provides.
    pub fn start_in_cluster(node: &Node, server: SocketAddr) -> Self {
        let environment = [
            ("KUBERNETES_SERVICE_HOST", server.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", server.port().to_string()),
        ];
        Self::start_with(node, &[], &environment)
    }

    fn start_with(node: &Node, arguments: &[OsString], environment: &[(&str, String)]) -> Self {
        let (bpffs, cgroup) = (node.bpffs(), node.cgroup());
        let own = ["run", "--hostname-override", node.host.name(), "--bpffs"].map(OsString::from);
        let own = [&own[..], &[bpffs.into(), "--cgroup".into(), cgroup.into()], &node.arguments, arguments].concat();
        Self::start_as_told(node, &own, environment)
    }

    /// Starts the agent's program on a node with these arguments, and these variables beside the test's own: what is not
    /// told here, the agent is not told.
    pub fn start_as_told(
        node: &Node,
        arguments: &[OsString],
        environment: &[(impl AsRef<str>, impl AsRef<str>)],
    ) -> Self {
        let log_path = node.directory().join(LOG);
        let log = OpenOptions::new().create(true).append(true).open(&log_path).expect("open in /run");
        let mut command = Command::new(program());
        command
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name.as_ref(), value.as_ref())))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log);
        // SAFETY: the closure makes system calls only, which is all that is allowed between fork and exec.
        unsafe { command.pre_exec(keep_only_needed_capabilities) };
        let process = node
            .host
            .run(move || command.spawn())
            .unwrap_or_else(|error| panic!("start {}: {error}", program().display()));
        Self { process }
    }

    /// Waits until it is healthy: it has then written all it was given.
    pub fn wait_ready(&mut self, node: &Node) {
        self.try_wait_ready(node).unwrap_or_else(|problem| panic!("{problem}"));
    }

    /// As [`wait_ready`](Self::wait_ready), where what the agent was given may be no good.
    ///
    /// # Errors
    /// What was seen of it last.
    pub fn try_wait_ready(&mut self, node: &Node) -> Result<(), String> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = self.process.try_wait().expect("wait for one's own child") {
                return Err(format!("the agent of {} ended before it was ready: {status}", node.host.name()));
            }
            let health = health(node);
            if matches!(health, Ok(200)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("the agent of {} is not ready after {START:?}: {health:?}", node.host.name()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Panics if it has ended by itself.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.process.try_wait().expect("wait for one's own child") {
            panic!("the agent ended: {status}");
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills it with `SIGKILL`.
    pub fn kill(mut self) {
        self.process.kill().expect("kill one's own child");
        self.process.wait().expect("wait for one's own child");
    }

    /// Ends it with `SIGTERM` and gives its exit status.
    pub fn terminate(mut self) -> ExitStatus {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM).expect("signal one's own child");
        self.process.wait().expect("wait for one's own child")
    }
}

/// Runs another command of the agent's program on a node, `--bpffs` added, and gives its output. Panics if it fails.
pub fn ask(node: &Node, arguments: &[&str]) -> String {
    let mut command = Command::new(program());
    command.args(arguments).arg("--bpffs").arg(node.bpffs());
    let output = node.host.run(move || command.output()).expect("start the agent's program");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "lb-agent {}: {}\n{error}", arguments.join(" "), output.status);
    String::from_utf8(output.stdout).expect("the agent writes UTF-8")
}

/// Runs a command of the agent's program on a node with no more than the agent's capabilities, and gives what came of
/// it.
pub fn command(node: &Node, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(arguments);
    // SAFETY: as in `start_with`.
    unsafe { command.pre_exec(keep_only_needed_capabilities) };
    node.host.run(move || command.output()).expect("start the agent's program")
}

/// The ports of Services in the maps of a node, as `lb-agent service list -o json` shows them.
pub fn list_services(node: &Node) -> Vec<Value> {
    let list: Value = serde_json::from_str(&ask(node, &["service", "list", "-o", "json"])).expect("JSON");
    list["items"].as_array().expect("a list").clone()
}

/// What the agents of a node have logged, one after the other.
pub fn log(node: &Node) -> String {
    fs::read_to_string(node.directory().join(LOG)).expect("read in /run")
}

/// The status code of `/healthz`.
pub fn health(node: &Node) -> io::Result<u16> {
    node.host.run(|| {
        let mut stream = TcpStream::connect_timeout(&HEALTH, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        let status = response.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        status.ok_or_else(|| io::Error::other(format!("not HTTP: {response:?}")))
    })
}

/// `LB_AGENT`, or the program beside the one that runs now. Where there is none, the test cannot run.
pub fn program() -> PathBuf {
    let beside = || {
        let this = env::current_exe().expect("/proc/self/exe names the program");
        // target/debug/deps/lab-… for a test, target/debug/lb-lab for a program.
        this.ancestors().skip(1).take(2).map(|directory| directory.join("lb-agent")).find(|path| path.exists())
    };
    env::var_os("LB_AGENT")
        .map(PathBuf::from)
        .or_else(beside)
        .filter(|path: &PathBuf| Path::exists(path))
        .unwrap_or_else(|| {
            panic::resume_unwind(Box::new(CannotRun(
                "no lb-agent: build it (cargo build -p lb-agent), or name it in LB_AGENT".to_owned(),
            )))
        })
}

/// Takes all other capabilities out of the bounding set, so that the program has only these after `execve`
/// (capabilities(7), "Capabilities and execution of programs by root").
fn keep_only_needed_capabilities() -> io::Result<()> {
    for number in (0..CAPABILITY_NUMBERS).filter(|number| !CAPABILITIES.contains(number)) {
        // SAFETY: takes integers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            // The first number that this kernel does not know ends the list.
            return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}
