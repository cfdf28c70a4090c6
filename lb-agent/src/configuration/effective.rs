//! What file and flags come to.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use super::{
    ConfigurationError, Flag, Problem, Treatment,
    defaults::{self, PRIMARY},
    duration::GoDuration,
    feature_gates::EXTERNAL_IPS,
    fields::FIELDS,
    file::KubeProxyConfiguration,
    read::{self, Read, dashed},
    validate,
};
use crate::{
    model::{Balance, DetectLocal, NodePortAddresses, Policy},
    source::{parse_cidr_sloppy, parse_ip_sloppy},
};

/// The value of `--detect-local-mode` that kube-proxy does not have: what we do where nothing is given.
pub const INTERFACE: &str = "Interface";

/// Flags that say how pods are told from others: where one is given, kube-proxy's defaults hold for the others.
const DETECTION: [&str; 2] = ["detect-local-mode", "cluster-cidr"];

/// What was given.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// Flags of [`FIELDS`].
    pub flags: Vec<Flag>,
    /// `--service-cluster-ip-range`.
    pub service_cidrs: Vec<IpNet>,
    /// `--balance`.
    pub balance: Balance,
    /// `--healthz-port`, which kube-proxy deprecates: 0 is no server.
    pub healthz_port: Option<u16>,
    /// `--metrics-port`, likewise.
    pub metrics_port: Option<u16>,
}

/// The effective configuration, as far as kube-proxy has words for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// As a file, with its defaults.
    pub kube_proxy: KubeProxyConfiguration,
    /// What the maps must hold to follow it.
    pub policy: Policy,
    /// Where `/healthz` and `/livez` are served; `None` is nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` and what belongs to it is served; `None` is nowhere.
    pub metrics: Option<SocketAddr>,
    /// The node's name, in lower case; `None`: the host's.
    pub node_name: Option<String>,
    /// The kubeconfig; `None`: that of a pod.
    pub kubeconfig: Option<PathBuf>,
    /// To be written to `/proc/self/oom_score_adj`; `None`: left alone.
    pub oom_score_adj: Option<i32>,
    /// One line for each thing that the operator should know before it surprises.
    pub warnings: Vec<String>,
    /// One line for each flag that took the place of a value of the file.
    pub overridden: Vec<String>,
}

impl Effective {
    /// Reads, checks and understands a configuration.
    pub fn new(given: &Given) -> Result<Self, ConfigurationError> {
        let mut flags = given.flags.clone();
        let last = |name: &str| flags.iter().find(|flag| flag.name == name).and_then(|flag| flag.values.last());
        let by_interface = last("detect-local-mode").is_some_and(|mode| mode == INTERFACE);
        let no_address = |name: &str, port: Option<u16>| last(name).is_some_and(String::is_empty) || port == Some(0);
        let no_healthz = no_address("healthz-bind-address", given.healthz_port);
        let no_metrics = no_address("metrics-bind-address", given.metrics_port);
        let like_kube_proxy = given.file.is_some() || DETECTION.iter().any(|name| last(name).is_some());
        let oom_given = given.file.is_some() || last("oom-score-adj").is_some();
        flags.retain(|flag| !(by_interface && flag.name == "detect-local-mode"));
        for (name, port) in [("healthz-bind-address", given.healthz_port), ("metrics-bind-address", given.metrics_port)]
        {
            let (Some(port), Some(flag)) = (port, flags.iter_mut().find(|flag| flag.name == name)) else { continue };
            flag.values = flag.values.iter().map(|address| defaults::with_port(address, port)).collect();
        }

        let Read { configuration: mut kube_proxy, overridden, origin } = read::read(given.file.as_deref(), &flags)?;
        defaults::give(&mut kube_proxy);
        let problems = validate::validate(&kube_proxy).into_iter().map(|invalid| {
            let what = format!("found {}, expected {}", invalid.found, invalid.expected);
            Problem { place: origin.of(&invalid.path), what }
        });
        let problems: Vec<_> = problems.collect();
        if !problems.is_empty() {
            return Err(ConfigurationError::Invalid(problems));
        }

        let mut warnings = ignored(&kube_proxy, |path| origin.of(path));
        for name in kube_proxy.feature_gates.keys().filter(|name| *name != EXTERNAL_IPS) {
            let place = origin.of(&format!("featureGates.{name}"));
            warnings.push(format!("{place} has no effect: it switches code of kube-proxy"));
        }
        if kube_proxy.mode == "ipvs" {
            warnings.push(format!("{}: ipvs is taken for iptables: IPVS is not used", origin.of("mode")));
        }
        for (name, port, instead) in [
            ("healthz-port", given.healthz_port, "healthz-bind-address"),
            ("metrics-port", given.metrics_port, "metrics-bind-address"),
        ] {
            if port.is_some() {
                warnings.push(format!("--{name} is deprecated by kube-proxy: use --{instead}"));
            }
        }
        let detect_local =
            if like_kube_proxy && !by_interface { detect_local(&kube_proxy) } else { DetectLocal::Interface };
        if detect_local == DetectLocal::Nothing {
            warnings.push(format!(
                "clusterCIDR is empty, so pods are not told from clients outside, as kube-proxy would not; \
                 --detect-local-mode {INTERFACE} tells them apart without it"
            ));
        }
        let node_name = kube_proxy.hostname_override.trim().to_lowercase();
        if node_name.is_empty() && !kube_proxy.hostname_override.is_empty() {
            let what = "found nothing but spaces, expected the name of a Node".to_owned();
            return Err(ConfigurationError::Invalid(vec![Problem { place: origin.of("hostnameOverride"), what }]));
        }
        kube_proxy.hostname_override.clone_from(&node_name);
        for (none, address) in
            [(no_healthz, &mut kube_proxy.healthz_bind_address), (no_metrics, &mut kube_proxy.metrics_bind_address)]
        {
            if none {
                address.clear();
            }
        }
        let kubeconfig = &kube_proxy.client_connection.kubeconfig;
        Ok(Self {
            policy: Policy {
                bind_address: parse_ip_sloppy(&kube_proxy.bind_address).filter(|ip| !ip.is_unspecified()),
                node_port_addresses: node_port_addresses(&kube_proxy.node_port_addresses),
                localhost_node_ports: kube_proxy.iptables.localhost_node_ports.unwrap_or(true),
                external_ips: kube_proxy.feature_gates.get(EXTERNAL_IPS).copied().unwrap_or(true),
                detect_local,
                balance: given.balance,
                service_cidrs: given.service_cidrs.clone(),
            },
            healthz: validate::parse_address(&kube_proxy.healthz_bind_address),
            metrics: validate::parse_address(&kube_proxy.metrics_bind_address),
            node_name: Some(node_name).filter(|name| !name.is_empty()),
            kubeconfig: (!kubeconfig.is_empty()).then(|| PathBuf::from(kubeconfig)),
            oom_score_adj: kube_proxy.oom_score_adj.filter(|_| oom_given),
            warnings,
            overridden: overridden
                .into_iter()
                .map(|(path, flag)| format!("{} goes before {path} of the file", dashed(flag)))
                .collect(),
            kube_proxy,
        })
    }

    /// The mode as `/proxyMode` of kube-proxy says it. Its defaults are what it decides here.
    pub fn proxy_mode(&self) -> &str {
        &self.kube_proxy.mode
    }

    /// How long kube-proxy would wait at most between two writes of all its rules: that of its mode.
    pub fn sync_period(&self) -> Duration {
        let KubeProxyConfiguration { iptables, ipvs, nftables, .. } = &self.kube_proxy;
        let period = match self.proxy_mode() {
            "ipvs" => ipvs.sync_period,
            "nftables" => nftables.sync_period,
            _ => iptables.sync_period,
        };
        Duration::from_nanos(period.as_nanoseconds().unsigned_abs())
    }

    /// What `/configz` of kube-proxy answers: JSON, with the names in the order of the Go type.
    pub fn configz(&self) -> String {
        // Texts, numbers and lists of them, below names that are texts: nothing that JSON cannot hold.
        let configuration = serde_json::to_string(&self.versioned()).unwrap_or_default();
        format!("{{\"kubeproxy.config.k8s.io\":{configuration}}}")
    }

    /// The configuration as a file that kube-proxy accepts, and we do.
    pub fn to_yaml(&self) -> String {
        // By JSON, as kube-proxy does it, which puts the names in order. Nothing that YAML cannot hold, as above.
        let configuration = serde_json::to_value(self.versioned()).unwrap_or_default();
        serde_saphyr::to_string(&configuration).unwrap_or_default()
    }

    /// What kube-proxy's internal configuration comes to in v1alpha1 (`conversion.go` beside its defaults): periods and
    /// `masqueradeAll` only in the section of the mode, since it keeps one of each.
    fn versioned(&self) -> KubeProxyConfiguration {
        let mut file = self.kube_proxy.clone();
        let mode = file.mode.as_str();
        if mode != "ipvs" {
            (file.ipvs.sync_period, file.ipvs.min_sync_period) = (GoDuration::ZERO, GoDuration::ZERO);
        }
        if mode == "nftables" {
            file.iptables.masquerade_all = false;
        } else {
            (file.nftables.sync_period, file.nftables.min_sync_period) = (GoDuration::ZERO, GoDuration::ZERO);
            file.nftables.masquerade_all = false;
        }
        if matches!(mode, "ipvs" | "nftables") {
            (file.iptables.sync_period, file.iptables.min_sync_period) = (GoDuration::ZERO, GoDuration::ZERO);
        }
        file
    }

    /// Writes [`Self::to_yaml`] to a file. What the file cannot say is returned, one line each.
    pub fn write(&self, path: &Path) -> Result<Vec<String>, ConfigurationError> {
        fs::write(path, self.to_yaml())
            .map_err(|source| ConfigurationError::Write { path: path.to_owned(), source })?;
        let mut lost = Vec::new();
        let by_interface =
            matches!(self.kube_proxy.detect_local_mode.as_str(), "BridgeInterface" | "InterfaceNamePrefix");
        if self.policy.detect_local == DetectLocal::Interface && !by_interface {
            lost.push(format!("the file cannot say that pods are told by their interface: give --detect-local-mode {INTERFACE} with it"));
        }
        for (address, flag) in [(self.healthz, "healthz"), (self.metrics, "metrics")] {
            if address.is_none() {
                lost.push(format!("the file cannot say that there is no address: give --{flag}-bind-address= with it"));
            }
        }
        if !self.policy.service_cidrs.is_empty() {
            lost.push("the file cannot hold --service-cluster-ip-range".to_owned());
        }
        if self.policy.balance != Balance::default() {
            lost.push("the file cannot hold --balance".to_owned());
        }
        Ok(lost)
    }
}

/// A warning for every field that has no effect and is neither zero nor the default.
fn ignored(given: &KubeProxyConfiguration, place: impl Fn(&str) -> String) -> Vec<String> {
    let mut default = KubeProxyConfiguration::default();
    defaults::give(&mut default);
    let [given, default] = [given, &default].map(|file| serde_json::to_value(file).unwrap_or_default());
    let value = |file: &Value, path: &str| path.split('.').fold(file.clone(), |value, name| value[name].clone());
    let is_zero = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) => false,
    };
    let mut warnings = Vec::new();
    for field in FIELDS.iter().filter(|field| field.treatment == Treatment::Ignored) {
        let found = value(&given, field.path);
        if !is_zero(&found) && found != value(&default, field.path) {
            let warning = format!("{} has no effect: {}", place(field.path), field.why);
            // One flag may be two fields.
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
    }
    warnings
}

/// `getLocalDetectors` of `cmd/kube-proxy/app/server_linux.go`.
fn detect_local(kube_proxy: &KubeProxyConfiguration) -> DetectLocal {
    match kube_proxy.detect_local_mode.as_str() {
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" | "InterfaceNamePrefix" => DetectLocal::Interface,
        _ => {
            let networks: Vec<_> = kube_proxy.cluster_cidr.split(',').filter_map(parse_cidr_sloppy).collect();
            if networks.is_empty() { DetectLocal::Nothing } else { DetectLocal::ClusterCidr(networks) }
        }
    }
}

/// `NewNodePortAddresses` of `pkg/proxy/util`: a family without a network has node ports on all its addresses.
fn node_port_addresses(given: &[String]) -> NodePortAddresses {
    if given == [PRIMARY] {
        return NodePortAddresses::Primary;
    }
    let mut networks: Vec<_> = given.iter().filter_map(|text| parse_cidr_sloppy(text)).collect();
    if networks.is_empty() {
        return NodePortAddresses::All;
    }
    let every = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    for every in every {
        if !networks.iter().any(|network| network.addr().is_ipv4() == every.addr().is_ipv4()) {
            networks.push(every);
        }
    }
    // As good as no network (`MatchAll`): servers of health checks then need no address of their own.
    if every.iter().all(|every| networks.contains(every)) {
        return NodePortAddresses::All;
    }
    NodePortAddresses::Within(networks)
}
