//! Every field of the file: the flag of the same meaning, and what becomes of it here. One table for the command line, the
//! warnings and `docs/configuration.md`.

use super::Kind::{Bool, Cidrs, Duration, Gates, Integer, Modules, Number, Quantity, Text};
use super::Treatment::{Honoured, Ignored};

/// What a field holds, and how its flag is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// `true` or `false`; the flag alone means `true`.
    Bool,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// A duration in Go's notation.
    Duration,
    /// A list; commas separate its elements in the flag.
    Cidrs,
    /// `name=true,name=false`.
    Gates,
    /// `pattern=N,pattern=N`.
    Modules,
    /// A number of bytes with a unit of Kubernetes, such as `1Ki`.
    Quantity,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It does what it says.
    Honoured,
    /// It is checked and has no effect. A value that is neither zero nor the default is warned about.
    Ignored,
}

/// A field of the file.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its path in the file.
    pub path: &'static str,
    /// The flag of kube-proxy that sets it, without the dashes.
    pub flag: Option<&'static str>,
    /// What it holds.
    pub kind: Kind,
    /// What becomes of it.
    pub treatment: Treatment,
    /// What it does, or why it does nothing.
    pub why: &'static str,
}

const fn field(path: &'static str, flag: &'static str, kind: Kind, treatment: Treatment, why: &'static str) -> Field {
    let flag = if flag.is_empty() { None } else { Some(flag) };
    Field { path, flag, kind, treatment, why }
}

const REQUESTS: &str = "there are a few long watches and hardly another request: nothing to limit";
const AT_ONCE: &str = "a change is written when it arrives, and costs what it changes; nothing is written periodically";
const LATE: &str = "of the section of the mode: a change that waits for twice as long to be written makes `/healthz` and `/livez` \
     answer 503; nothing is written periodically";
const NO_CONNTRACK: &str = "flows are in maps of our own; the kernel's connection tracking is left as it is";
const NO_IPVS: &str = "IPVS is not used";
const WINDOWS: &str = "of Windows";
const MARKS: &str = "packets are not marked";
const MASQUERADE: &str = "what is masqueraded follows from the way back: a backend sees the client's address where its answers \
     come back through this node anyway, and the node's where they would not";
const STREAMS: &str = "the log is one stream, on the standard error";
const POD_INTERFACES: &str = "the interfaces of pods are found by themselves, whatever their names and bridges are";

/// The fields, in the order of the Go type.
pub const FIELDS: &[Field] = &[
    field(
        "featureGates",
        "feature-gates",
        Gates,
        Honoured,
        "`AllowServiceExternalIPs: false` lets no external IP be served; the others switch code of kube-proxy, and one that kube-proxy 1.36 does not know is refused",
    ),
    field(
        "clientConnection.kubeconfig",
        "kubeconfig",
        Text,
        Honoured,
        "how to reach the API server; if empty, as a pod of the cluster",
    ),
    field("clientConnection.acceptContentTypes", "", Text, Ignored, "objects are asked for as JSON"),
    field("clientConnection.contentType", "kube-api-content-type", Text, Ignored, "objects are asked for as JSON"),
    field("clientConnection.qps", "kube-api-qps", Number, Ignored, REQUESTS),
    field("clientConnection.burst", "kube-api-burst", Integer, Ignored, REQUESTS),
    field("logging.format", "logging-format", Text, Honoured, "`text` or `json`; `--log-format` goes before it"),
    field("logging.flushFrequency", "log-flush-frequency", Duration, Ignored, "lines are written when they are logged"),
    field(
        "logging.verbosity",
        "v",
        Integer,
        Honoured,
        "below 4 the level is `info`, from 4 `debug`, from 8 `trace`; `--log-level` goes before it",
    ),
    field(
        "logging.vmodule",
        "vmodule",
        Modules,
        Ignored,
        "its patterns are of Go files; `--log-level` takes modules of ours",
    ),
    field("logging.options.text.splitStream", "log-text-split-stream", Bool, Ignored, STREAMS),
    field("logging.options.text.infoBufferSize", "log-text-info-buffer-size", Quantity, Ignored, STREAMS),
    field("logging.options.json.splitStream", "log-json-split-stream", Bool, Ignored, STREAMS),
    field("logging.options.json.infoBufferSize", "log-json-info-buffer-size", Quantity, Ignored, STREAMS),
    field(
        "hostnameOverride",
        "hostname-override",
        Text,
        Honoured,
        "name of this node, as endpoints spell it; else the variable `NODE_NAME`, else the host's name",
    ),
    field(
        "bindAddress",
        "bind-address",
        Text,
        Honoured,
        "if it is no unspecified one: the node's own address of its family, for `nodePortAddresses: primary` and source ranges that hold the node, in place of the first `InternalIP` of the Node, or `ExternalIP` where it has none of the family; its family is that of the two addresses below where they are not given",
    ),
    field(
        "healthzBindAddress",
        "healthz-bind-address",
        Text,
        Honoured,
        "where `/healthz` and `/livez` are served, port 10256 if it has none; an empty flag is nowhere, an empty field the default",
    ),
    field(
        "metricsBindAddress",
        "metrics-bind-address",
        Text,
        Honoured,
        "where `/metrics` is served, port 10249 if it has none; an empty flag is nowhere, an empty field the default",
    ),
    field(
        "bindAddressHardFail",
        "bind-address-hard-fail",
        Bool,
        Honoured,
        "whether an address of these two that cannot be had ends the agent; else it is tried again",
    ),
    field("enableProfiling", "profiling", Bool, Ignored, "Go's profiles; `perf` profiles this process as it is"),
    field("showHiddenMetricsForVersion", "show-hidden-metrics-for-version", Text, Ignored, "no metric is hidden"),
    field(
        "mode",
        "proxy-mode",
        Text,
        Honoured,
        "only what it means for `nodePortAddresses`: with `nftables` their default is `primary`, else every address",
    ),
    field("iptables.masqueradeBit", "iptables-masquerade-bit", Integer, Ignored, MARKS),
    field("iptables.masqueradeAll", "masquerade-all", Bool, Ignored, MASQUERADE),
    field(
        "iptables.localhostNodePorts",
        "iptables-localhost-nodeports",
        Bool,
        Honoured,
        "whether the node's processes reach node ports on 127.0.0.1 and ::1, in every mode, also with `primary`; networks of `nodePortAddresses` that do not hold these leave them out",
    ),
    field("iptables.syncPeriod", "iptables-sync-period", Duration, Honoured, LATE),
    field("iptables.minSyncPeriod", "iptables-min-sync-period", Duration, Ignored, AT_ONCE),
    field("ipvs.syncPeriod", "ipvs-sync-period", Duration, Honoured, LATE),
    field("ipvs.minSyncPeriod", "ipvs-min-sync-period", Duration, Ignored, AT_ONCE),
    field("ipvs.scheduler", "ipvs-scheduler", Text, Ignored, NO_IPVS),
    field("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", Cidrs, Ignored, NO_IPVS),
    field("ipvs.strictARP", "ipvs-strict-arp", Bool, Ignored, "no address of a Service is put on an interface"),
    field("ipvs.tcpTimeout", "ipvs-tcp-timeout", Duration, Ignored, NO_IPVS),
    field("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", Duration, Ignored, NO_IPVS),
    field("ipvs.udpTimeout", "ipvs-udp-timeout", Duration, Ignored, NO_IPVS),
    field("nftables.masqueradeBit", "", Integer, Ignored, MARKS),
    field("nftables.masqueradeAll", "masquerade-all", Bool, Ignored, MASQUERADE),
    field("nftables.syncPeriod", "iptables-sync-period", Duration, Honoured, LATE),
    field("nftables.minSyncPeriod", "iptables-min-sync-period", Duration, Ignored, AT_ONCE),
    field("winkernel.networkName", "", Text, Ignored, WINDOWS),
    field("winkernel.sourceVip", "", Text, Ignored, WINDOWS),
    field("winkernel.enableDSR", "", Bool, Ignored, WINDOWS),
    field("winkernel.rootHnsEndpointName", "", Text, Ignored, WINDOWS),
    field("winkernel.forwardHealthCheckVip", "", Bool, Ignored, WINDOWS),
    field(
        "detectLocalMode",
        "detect-local-mode",
        Text,
        Honoured,
        "how the traffic of pods is told from traffic from outside, see below",
    ),
    field("detectLocal.bridgeInterface", "pod-bridge-interface", Text, Ignored, POD_INTERFACES),
    field("detectLocal.interfaceNamePrefix", "pod-interface-name-prefix", Text, Ignored, POD_INTERFACES),
    field("clusterCIDR", "cluster-cidr", Text, Honoured, "the addresses of pods, for `detectLocalMode: ClusterCIDR`"),
    field(
        "nodePortAddresses",
        "nodeport-addresses",
        Cidrs,
        Honoured,
        "networks whose addresses of this node have node ports, or `primary`: `bindAddress`, or the first `InternalIP` of each family of its Node",
    ),
    field("oomScoreAdj", "oom-score-adj", Integer, Honoured, "of this process, where a file or the flag is given"),
    field("conntrack.maxPerCore", "conntrack-max-per-core", Integer, Ignored, NO_CONNTRACK),
    field("conntrack.min", "conntrack-min", Integer, Ignored, NO_CONNTRACK),
    field("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established", Duration, Ignored, NO_CONNTRACK),
    field("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", Duration, Ignored, NO_CONNTRACK),
    field("conntrack.tcpBeLiberal", "conntrack-tcp-be-liberal", Bool, Ignored, NO_CONNTRACK),
    field("conntrack.udpTimeout", "conntrack-udp-timeout", Duration, Ignored, NO_CONNTRACK),
    field("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream", Duration, Ignored, NO_CONNTRACK),
    field(
        "configSyncPeriod",
        "config-sync-period",
        Duration,
        Ignored,
        "a watch that breaks is resumed; objects are not read again without need",
    ),
    field("portRange", "", Text, Ignored, "kube-proxy does not use it either"),
    field("windowsRunAsService", "", Bool, Ignored, WINDOWS),
];

/// The row of a path.
pub(super) fn at(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

/// The table as it stands in `docs/configuration.md`.
#[cfg(test)]
pub(super) fn markdown() -> String {
    let rows = FIELDS.iter().map(|Field { path, flag, treatment, why, .. }| {
        let flag = flag.map(|flag| format!("`-{}{flag}`", if flag.len() == 1 { "" } else { "-" })).unwrap_or_default();
        let treatment = match treatment {
            Honoured => "honoured",
            Ignored => "ignored",
        };
        format!("| `{path}` | {flag} | {treatment} | {why} |\n")
    });
    format!("| field | flag | | |\n|---|---|---|---|\n{}", rows.collect::<String>())
}
