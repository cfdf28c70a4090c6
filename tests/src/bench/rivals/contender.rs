//! Who is measured: `lb-agent`, and kube-proxy in two modes and with two configurations.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::memory::Group;
use crate::{
    differential::kube_proxy::{KubeProxy, Mode},
    lab::{Node, agent::Agent},
};

/// Port of `/healthz`.
const HEALTH: u16 = 10256;
/// Port of kube-proxy's metrics.
const METRICS: u16 = 10249;
/// kube-proxy's metric that says when it last programmed the kernel, as seconds since 1970.
const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} ";
/// The shortest pause between two synchronizations that is asked of kube-proxy: 0 means its default
/// (`pkg/proxy/apis/config/v1alpha1/defaults.go`).
const NO_PAUSE: &str = "1ms";
/// Its default.
const DEFAULT_PAUSE: &str = "1s";

/// A proxy with its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contender {
    /// `lb-agent`.
    Lb,
    /// kube-proxy in nftables mode.
    Nftables,
    /// The same with `minSyncPeriod` as good as none.
    NftablesWithoutPause,
    /// kube-proxy in iptables mode.
    Iptables,
    /// The same with `minSyncPeriod` as good as none.
    IptablesWithoutPause,
}

impl Contender {
    /// In the order of measuring.
    pub const ALL: [Self; 5] =
        [Self::Lb, Self::Nftables, Self::NftablesWithoutPause, Self::Iptables, Self::IptablesWithoutPause];

    /// How it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lb => "lb-agent",
            Self::Nftables => "kube-proxy, nftables",
            Self::NftablesWithoutPause => "kube-proxy, nftables, minSyncPeriod 1 ms",
            Self::Iptables => "kube-proxy, iptables",
            Self::IptablesWithoutPause => "kube-proxy, iptables, minSyncPeriod 1 ms",
        }
    }

    /// Of which it is a variant that differs in how it takes changes only.
    pub(super) fn variant_of(self) -> Option<Self> {
        match self {
            Self::NftablesWithoutPause => Some(Self::Nftables),
            Self::IptablesWithoutPause => Some(Self::Iptables),
            Self::Lb | Self::Nftables | Self::Iptables => None,
        }
    }

    /// Starts it on a node.
    pub(super) fn start(self, node: &Node, kubeconfig: &Path) -> Running {
        let kube_proxy = |mode, pause| {
            let changed = json!({ "nftables": { "minSyncPeriod": pause }, "iptables": { "minSyncPeriod": pause } });
            let changed: Map<String, Value> = serde_json::from_value(changed).expect("an object");
            Process::KubeProxy(KubeProxy::start(node, mode, kubeconfig, &changed))
        };
        let process = match self {
            Self::Lb => Process::Lb(Agent::start_with_kubeconfig(node, kubeconfig)),
            Self::Nftables => kube_proxy(Mode::Nftables, DEFAULT_PAUSE),
            Self::NftablesWithoutPause => kube_proxy(Mode::Nftables, NO_PAUSE),
            Self::Iptables => kube_proxy(Mode::Iptables, DEFAULT_PAUSE),
            Self::IptablesWithoutPause => kube_proxy(Mode::Iptables, NO_PAUSE),
        };
        let group = Group::of(process.id());
        Running { process: Some(process), group }
    }

    /// Whether it says, asked on its node, that the kernel has what the API server had at the start.
    pub(super) fn says_ready(self) -> bool {
        match self {
            Self::Lb => get(HEALTH, "/healthz").is_ok(),
            _ => get(METRICS, "/metrics").is_ok_and(|text| has_synchronized(&text)),
        }
    }
}

fn has_synchronized(metrics: &str) -> bool {
    let value = metrics.lines().find_map(|line| line.strip_prefix(LAST_SYNC));
    value.and_then(|value| value.parse::<f64>().ok()).is_some_and(|seconds| seconds > 0.0)
}

/// What the host of the calling thread answers, with status 200.
fn get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    // HTTP/1.0, whose body comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let is_ok = answer.split(' ').nth(1) == Some("200");
    if is_ok { Ok(answer) } else { Err(io::Error::other(answer)) }
}

enum Process {
    KubeProxy(KubeProxy),
    Lb(Agent),
}

impl Process {
    fn id(&self) -> u32 {
        match self {
            Self::KubeProxy(proxy) => proxy.id(),
            Self::Lb(agent) => agent.id(),
        }
    }
}

/// A proxy that runs. Killed when dropped.
pub(super) struct Running {
    process: Option<Process>,
    group: Option<Group>,
}

impl Running {
    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it is there until it is dropped")
    }

    pub(super) fn id(&mut self) -> u32 {
        self.process().id()
    }

    /// Where its memory is accounted, where that can be had.
    pub(super) fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Panics if it has ended by itself.
    pub(super) fn assert_alive(&mut self) {
        match self.process() {
            Process::KubeProxy(proxy) => proxy.assert_alive(),
            Process::Lb(agent) => agent.assert_alive(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match self.process.take() {
            Some(Process::Lb(agent)) => agent.kill(),
            // It ends when it is dropped.
            Some(Process::KubeProxy(_)) | None => {}
        }
    }
}
