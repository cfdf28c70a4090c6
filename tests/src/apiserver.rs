//! A real Kubernetes API server, with etcd, for tests: started in seconds, stopped and started again with its data.
//!
//! Nothing else of Kubernetes runs, so nobody but the test makes endpoint slices or allocates load balancers.
//! The programs are found by `KUBEBUILDER_ASSETS`, which `cargo xtask test` sets, or on PATH.

use std::{
    env,
    fs::{self, File},
    net::SocketAddr,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use http::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::lab::sandbox::CannotRun;

/// From which the API server gives out cluster addresses: the Services of the [`lab`](crate::lab).
pub const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";

/// How long the API server may take until it is ready. It takes 3 s on two idle cores.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a server may take to stop by itself.
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
/// Who the kubeconfig logs in as, with every right. Not a secret: nobody outside the sandbox can reach the server.
const TOKEN: &str = "lb-test";

/// Both servers. They belong to the network namespace of the thread that starts them, and end with the sandbox, or
/// when this is dropped.
///
/// The futures open connections from the thread that polls them, so poll them on that host, in a runtime of one thread.
pub struct ApiServer {
    directory: PathBuf,
    address: SocketAddr,
    /// Of the API server, beside those that it always has.
    arguments: Vec<String>,
    etcd: Option<Child>,
    server: Option<Child>,
}

impl ApiServer {
    /// Starts both servers and waits until the API server is ready. All their files are in `directory`; it listens on
    /// `address` only. If `directory` holds the data of an earlier one, it goes on from there.
    ///
    /// Has the test skipped when the programs are not there.
    pub async fn start(directory: &Path, address: SocketAddr) -> Self {
        Self::start_with(directory, address, Vec::new()).await
    }

    /// As [`start`](Self::start), with more arguments for the API server. Its working directory is `directory`.
    pub async fn start_with(directory: &Path, address: SocketAddr, arguments: Vec<String>) -> Self {
        let directory = fs::canonicalize(directory).expect("the directory exists");
        let mut this = Self { directory, address, arguments, etcd: None, server: None };
        fs::write(this.directory.join("tokens.csv"), format!("{TOKEN},lb-test,lb-test,\"system:masters\"\n"))
            .expect("write the tokens");
        fs::write(this.kubeconfig(), this.kubeconfig_text(TOKEN)).expect("write the kubeconfig");
        this.resume().await;
        this
    }

    /// Starts the servers after [`Self::stop`], at the same address and with the same data.
    pub async fn resume(&mut self) {
        assert!(self.etcd.is_none() && self.server.is_none(), "the servers run already");
        self.etcd = Some(self.spawn("etcd", &self.etcd_arguments()));
        self.server = Some(self.spawn("kube-apiserver", &[&self.server_arguments()[..], &self.arguments].concat()));
        let start = Instant::now();
        while !self.is_ready().await {
            if let Some(name) = self.ended() {
                panic!("{name} ended:\n{}", self.log_tail(name));
            }
            assert!(start.elapsed() < READY_WITHIN, "not ready in time:\n{}", self.log_tail("kube-apiserver"));
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops both servers; the data stays. Clients see their connections close, and then refused.
    pub async fn stop(&mut self) {
        for child in [self.server.take(), self.etcd.take()].into_iter().flatten() {
            stop(child).await;
        }
    }

    /// Ends both servers as a crash would; the data stays. They can be [resumed](Self::resume).
    pub fn kill(&mut self) {
        for mut child in [self.server.take(), self.etcd.take()].into_iter().flatten() {
            child.kill().expect("the process is our child");
            child.wait().expect("the process is our child");
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate that its own is to be trusted by.
    pub fn certificate_authority(&self) -> PathBuf {
        self.certificates().join("apiserver.crt")
    }

    /// The kubeconfig of a user who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// Writes a kubeconfig for the bearer of another token, under a name of its own.
    pub fn write_kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        let path = self.directory.join(format!("{name}.kubeconfig"));
        fs::write(&path, self.kubeconfig_text(token)).expect("write the kubeconfig");
        path
    }

    /// A client of that user.
    pub async fn client(&self) -> Client {
        client(&self.kubeconfig()).await
    }

    /// Which of the servers ended by itself.
    fn ended(&mut self) -> Option<&'static str> {
        let children = [(&mut self.etcd, "etcd"), (&mut self.server, "kube-apiserver")];
        let is_over = |child: &mut Child| child.try_wait().expect("the process is our child").is_some();
        children.into_iter().find_map(|(child, name)| is_over(child.as_mut()?).then_some(name))
    }

    async fn is_ready(&self) -> bool {
        // There is no certificate to trust before the server has made it.
        let Ok(client) = try_client(&self.kubeconfig()).await else { return false };
        let request = Request::get("/readyz").body(Vec::new()).expect("a valid request");
        client.request_text(request).await.is_ok_and(|answer| answer == "ok")
    }

    fn spawn(&self, name: &str, arguments: &[String]) -> Child {
        let log = File::options().create(true).append(true).open(self.log(name)).expect("open a log");
        Command::new(program(name))
            .args(arguments)
            // etcd's sockets are named relative to this.
            .current_dir(&self.directory)
            .stdout(log.try_clone().expect("duplicate a descriptor"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn etcd_arguments(&self) -> [String; 7] {
        // etcd wants host and port even in the name of a Unix socket, which is a file of that name in its directory.
        let (clients, peers) = ("unix://localhost:1", "unix://localhost:2");
        [
            format!("--data-dir={}", self.directory.join("etcd").display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
            // The machine does not crash in a test.
            "--unsafe-no-fsync".to_owned(),
        ]
    }

    fn server_arguments(&self) -> [String; 14] {
        let (address, certificates) = (self.address.ip(), self.certificates());
        // It makes this key itself, for TLS, before it reads it as the key of service accounts.
        let key = certificates.join("apiserver.key").display().to_string();
        [
            "--etcd-servers=unix://localhost:1".to_owned(),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            format!("--secure-port={}", self.address.port()),
            // The Service `kubernetes` may not have a loopback address as its endpoint.
            format!("--endpoint-reconciler-type={}", if address.is_loopback() { "none" } else { "lease" }),
            format!("--cert-dir={}", certificates.display()),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            // What older servers let in is still in clusters' storage: addresses with leading zeros (KEP-4858).
            "--feature-gates=StrictIPCIDRValidation=false".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--token-auth-file=tokens.csv".to_owned(),
            // Without a controller there are no service accounts, and it would refuse every pod.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ]
    }

    fn certificates(&self) -> PathBuf {
        self.directory.join("certificates")
    }

    fn kubeconfig_text(&self, token: &str) -> String {
        let (address, certificate) = (self.address, self.certificate_authority());
        format!(
            "apiVersion: v1
kind: Config
current-context: test
contexts:
- name: test
  context: {{cluster: test, user: test}}
clusters:
- name: test
  cluster: {{server: 'https://{address}', certificate-authority: '{}'}}
users:
- name: test
  user: {{token: {token}}}
",
            certificate.display()
        )
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    fn log_tail(&self, name: &str) -> String {
        let log = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in [&mut self.server, &mut self.etcd].into_iter().flatten() {
            // One that ended by itself is gone already, and there is nobody to tell of other errors.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A client of the user of a kubeconfig that a running [`ApiServer`] wrote.
pub async fn client(kubeconfig: &Path) -> Client {
    try_client(kubeconfig).await.expect("the kubeconfig is ours")
}

/// The same user's, to be changed.
pub async fn config(kubeconfig: &Path) -> Config {
    try_config(kubeconfig).await.expect("the kubeconfig is ours")
}

async fn try_client(kubeconfig: &Path) -> Result<Client, String> {
    Client::try_from(try_config(kubeconfig).await?).map_err(|error| error.to_string())
}

async fn try_config(kubeconfig: &Path) -> Result<Config, String> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).map_err(|error| error.to_string())?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| error.to_string())
}

fn program(name: &str) -> PathBuf {
    if let Some(assets) = env::var_os("KUBEBUILDER_ASSETS") {
        return PathBuf::from(assets).join(name);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_file());
    // Without the message of a panic: the harness prints one line.
    found.unwrap_or_else(|| {
        resume_unwind(Box::new(CannotRun(format!(
            "no {name}: set KUBEBUILDER_ASSETS to what `cargo xtask k8s` prints"
        ))))
    })
}

/// Asks the process to end, and makes it when it does not.
async fn stop(mut child: Child) {
    let pid = Pid::from_raw(child.id().try_into().expect("a process id"));
    kill(pid, Signal::SIGTERM).expect("the process is our child");
    let start = Instant::now();
    while child.try_wait().expect("the process is our child").is_none() {
        if start.elapsed() > STOPPED_WITHIN {
            child.kill().expect("the process is our child");
        }
        tokio::time::sleep(POLL).await;
    }
}
