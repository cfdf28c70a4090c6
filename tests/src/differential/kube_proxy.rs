//! The real kube-proxy on a node of the lab.

use std::{
    env,
    fs::{self, File},
    io::Write,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Map, Value, json};

use crate::lab::{LOG, Node, sandbox::CannotRun};

/// The networks of the lab's pods.
pub(super) const PODS: &str = "10.1.0.0/16,fd00:10:1::/48";

/// How it programs the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `nftables`.
    Nftables,
    /// `iptables`.
    Iptables,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// What must be on the machine for it.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Nftables => &["nft"],
            Self::Iptables => &["iptables", "ip6tables", "iptables-save", "iptables-restore"],
        }
    }
}

/// A running kube-proxy. Killed when dropped; its rules stay.
#[derive(Debug)]
pub struct KubeProxy {
    process: Child,
}

impl KubeProxy {
    /// Starts it with the lab's configuration and the fields that a scenario changes.
    pub fn start(node: &Node, mode: Mode, kubeconfig: &Path, changed: &Map<String, Value>) -> Self {
        if let Some(missing) = mode.programs().iter().find(|name| find(name).is_none()) {
            cannot_run(missing);
        }
        let configuration = node.directory().join("kube-proxy.json");
        let text = configuration_of(mode, kubeconfig, changed).to_string();
        fs::write(&configuration, text).expect("write in /run");
        let log = File::options().create(true).append(true).open(node.directory().join(LOG)).expect("open in /run");
        let mut command = Command::new(program());
        command
            .arg(format!("--config={}", configuration.display()))
            .arg(format!("--hostname-override={}", node.host.name()))
            .env("PATH", search_path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log);
        let process =
            node.host.run(move || command.spawn()).unwrap_or_else(|error| panic!("start kube-proxy: {error}"));
        Self { process }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Panics if it has ended by itself.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.process.try_wait().expect("wait for one's own child") {
            panic!("kube-proxy ended: {status}");
        }
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The configuration that both proxies get: what a scenario sets, over the pods' networks as `clusterCIDR`.
pub fn configuration(changed: &Map<String, Value>) -> Map<String, Value> {
    let base = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clusterCIDR": PODS,
    });
    let Value::Object(mut fields) = base else { unreachable!("an object") };
    fields.extend(changed.clone());
    fields
}

/// What kube-proxy gets in a mode.
pub(super) fn configuration_of(mode: Mode, kubeconfig: &Path, changed: &Map<String, Value>) -> Value {
    let mut fields = configuration(changed);
    let mut set = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    set("mode", mode.name().into());
    set("clientConnection", json!({ "kubeconfig": kubeconfig }));
    // The machine's own variables, which are no business of a test (`pkg/proxy/conntrack/sysctls.go`: 0 leaves them).
    set("conntrack", json!({ "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" }));
    set("oomScoreAdj", 0.into());
    let mut value = Value::Object(fields);
    // Changes are to be seen at once; the default is 1 s. What failed is to be tried again long before the harness gives the
    // proxy up (`BoundedFrequencyRunner`'s `retryInterval`); the default is 30 s.
    for (field, period) in [("minSyncPeriod", "10ms"), ("syncPeriod", "10s")] {
        for mode in ["iptables", "nftables"] {
            let field = &mut value[mode][field];
            if field.is_null() {
                *field = period.into();
            }
        }
    }
    value
}

/// Has `nft` apply these rules in the network namespace of the calling thread.
pub(super) fn nft(rules: &str) {
    let program = find("nft").unwrap_or_else(|| cannot_run("nft"));
    let mut nft = Command::new(program).args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("start nft");
    nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("nft reads its rules");
    assert!(nft.wait().expect("wait for nft").success(), "{rules}");
}

fn cannot_run(missing: &str) -> ! {
    resume_unwind(Box::new(CannotRun(format!("no {missing}: Debian has it in `nftables` or `iptables`"))))
}

/// The file that `KUBE_PROXY` names, which `cargo xtask test` sets; else the one of `KUBEBUILDER_ASSETS`, or of PATH.
fn program() -> PathBuf {
    let given = env::var_os("KUBE_PROXY").map(PathBuf::from);
    let given = given.or_else(|| Some(PathBuf::from(env::var_os("KUBEBUILDER_ASSETS")?).join("kube-proxy")));
    given.filter(|path| path.is_file()).or_else(|| find("kube-proxy")).unwrap_or_else(|| {
        resume_unwind(Box::new(CannotRun(
            "no kube-proxy: `cargo xtask k8s kube-proxy` builds it; KUBE_PROXY names it".to_owned(),
        )))
    })
}

/// PATH, and the directories where Debian has what an administrator needs.
fn search_path() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let all = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    env::join_paths(all).expect("these come from a PATH")
}

fn find(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|path| path.is_file())
}
