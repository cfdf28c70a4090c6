//! What kube-proxy refuses: `pkg/proxy/apis/config/validation`. Metrics' versions are not checked: they depend on the
//! release of kube-proxy, and mean nothing here.

use std::net::SocketAddr;

use super::{Kind, duration::GoDuration, feature_gates, fields::FIELDS, file::KubeProxyConfiguration};
use crate::source::{parse_cidr_sloppy, parse_ip_sloppy};

/// What is wrong: the path of the field, what was found, what was expected.
pub(super) struct Invalid {
    pub(super) path: String,
    pub(super) found: String,
    pub(super) expected: &'static str,
}

pub(super) const MODES: [&str; 4] = ["", "iptables", "ipvs", "nftables"];
pub(super) const LOCAL_MODES: [&str; 5] = ["", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
const CIDR: &str = "a network such as 10.0.0.0/8 or fd00::/64";
const NOT_NEGATIVE: &str = "0 or more";

#[derive(Default)]
struct Checker(Vec<Invalid>);

impl Checker {
    fn check(&mut self, fine: bool, path: &str, found: &impl ToString, expected: &'static str) {
        if !fine {
            self.0.push(Invalid { path: path.to_owned(), found: found.to_string(), expected });
        }
    }

    fn text(&mut self, fine: bool, path: &str, found: &str, expected: &'static str) {
        self.check(fine, path, &format_args!("{found:?}"), expected);
    }
}

/// All that is wrong with a configuration that has its defaults.
pub(super) fn validate(configuration: &KubeProxyConfiguration) -> Vec<Invalid> {
    let mut checker = Checker::default();
    let KubeProxyConfiguration { mode, detect_local_mode, detect_local, cluster_cidr, .. } = configuration;
    checker.text(MODES.contains(&mode.as_str()), "mode", mode, "iptables, ipvs, nftables, or nothing");
    let modes = "ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix, or nothing";
    checker.text(LOCAL_MODES.contains(&detect_local_mode.as_str()), "detectLocalMode", detect_local_mode, modes);
    let name_of_interface = "the name of an interface, as detectLocalMode is BridgeInterface";
    let fine = detect_local_mode != "BridgeInterface" || !detect_local.bridge_interface.is_empty();
    checker.text(fine, "detectLocal.bridgeInterface", "", name_of_interface);
    let beginning = "the beginning of interfaces' names, as detectLocalMode is InterfaceNamePrefix";
    let fine = detect_local_mode != "InterfaceNamePrefix" || !detect_local.interface_name_prefix.is_empty();
    checker.text(fine, "detectLocal.interfaceNamePrefix", "", beginning);
    if detect_local_mode == "ClusterCIDR" && !cluster_cidr.is_empty() {
        checker.text(
            is_cluster_cidr(cluster_cidr),
            "clusterCIDR",
            cluster_cidr,
            "a network, or one of each IP family with a comma between",
        );
    }
    for (name, value) in &configuration.feature_gates {
        let expected = feature_gates::expected(name, *value);
        checker.check(expected.is_none(), &format!("featureGates.{name}"), value, expected.unwrap_or_default());
    }
    addresses(configuration, &mut checker);
    logging(configuration, &mut checker);
    numbers(configuration, &mut checker);
    periods(configuration, &mut checker);
    checker.0
}

fn is_cluster_cidr(text: &str) -> bool {
    let networks: Option<Vec<_>> = text.split(',').map(parse_cidr_sloppy).collect();
    match networks.as_deref() {
        Some([_]) => true,
        Some([first, second]) => first.addr().is_ipv4() != second.addr().is_ipv4(),
        _ => false,
    }
}

fn addresses(configuration: &KubeProxyConfiguration, checker: &mut Checker) {
    let KubeProxyConfiguration { bind_address, healthz_bind_address, metrics_bind_address, ipvs, .. } = configuration;
    checker.text(parse_ip_sloppy(bind_address).is_some(), "bindAddress", bind_address, "an IP address");
    for (path, address) in [("healthzBindAddress", healthz_bind_address), ("metricsBindAddress", metrics_bind_address)]
    {
        checker.text(
            parse_address(address).is_some(),
            path,
            address,
            "an IP address, or one with a port from 1 to 65535",
        );
    }
    let node_ports = &configuration.node_port_addresses;
    for (index, network) in node_ports.iter().enumerate() {
        let path = format!("nodePortAddresses[{index}]");
        if network == super::defaults::PRIMARY {
            checker.text(node_ports.len() == 1, &path, network, "no networks beside \"primary\"");
        } else {
            checker.text(parse_cidr_sloppy(network).is_some(), &path, network, CIDR);
        }
    }
    if configuration.mode == "ipvs" {
        for (index, network) in ipvs.exclude_cidrs.iter().enumerate() {
            checker.text(parse_cidr_sloppy(network).is_some(), &format!("ipvs.excludeCIDRs[{index}]"), network, CIDR);
        }
    }
}

/// An address with its port, as `net.SplitHostPort` splits them.
pub(super) fn parse_address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    Some(SocketAddr::new(parse_ip_sloppy(host)?, port))
}

fn logging(configuration: &KubeProxyConfiguration, checker: &mut Checker) {
    let logging = &configuration.logging;
    checker.text(matches!(logging.format.as_str(), "text" | "json"), "logging.format", &logging.format, "text or json");
    let frequency = logging.flush_frequency.duration();
    checker.check(frequency > GoDuration::ZERO, "logging.flushFrequency", &frequency, "more than 0");
    let verbosity = |checker: &mut Checker, path: &str, verbosity: u32| {
        checker.check(i32::try_from(verbosity).is_ok(), path, &verbosity, "at most 2147483647");
    };
    verbosity(checker, "logging.verbosity", logging.verbosity);
    let fine = logging.vmodule.is_empty() || logging.format == "text";
    checker.check(fine, "logging.vmodule", &"patterns", "none, as logging.format is not text");
    for (index, module) in logging.vmodule.iter().enumerate() {
        let pattern = &module.file_pattern;
        let fine = !pattern.is_empty() && !pattern.contains(['=', ',']);
        let expected = "a pattern of file names without commas and equal signs";
        checker.text(fine, &format!("logging.vmodule[{index}].filePattern"), pattern, expected);
        verbosity(checker, &format!("logging.vmodule[{index}].verbosity"), module.verbosity);
    }
    let sizes = [&logging.options.text, &logging.options.json].map(|stream| &stream.info_buffer_size);
    for (field, size) in FIELDS.iter().filter(|field| field.kind == Kind::Quantity).zip(sizes) {
        checker.text(is_quantity(size), field.path, size, "a number of bytes such as 512, 1Ki or 3M");
    }
}

/// Whether a text is a quantity of Kubernetes (`apimachinery/pkg/api/resource`).
fn is_quantity(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let has_digit = number.bytes().any(|byte| byte.is_ascii_digit()) && number.matches('.').count() <= 1;
    let exponent = unit.strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest));
    let exponent =
        exponent.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    let units = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    has_digit && (exponent || units.contains(&unit))
}

fn numbers(configuration: &KubeProxyConfiguration, checker: &mut Checker) {
    let KubeProxyConfiguration { client_connection, iptables, nftables, conntrack, .. } = configuration;
    checker.check(client_connection.burst >= 0, "clientConnection.burst", &client_connection.burst, NOT_NEGATIVE);
    let nftables_bit = nftables.masquerade_bit.filter(|_| configuration.mode == "nftables");
    for (path, bit) in [("iptables.masqueradeBit", iptables.masquerade_bit), ("nftables.masqueradeBit", nftables_bit)] {
        let bit = bit.unwrap_or_default();
        checker.check((0..=31).contains(&bit), path, &bit, "0 to 31");
    }
    let score = configuration.oom_score_adj.unwrap_or_default();
    checker.check((-1000..=1000).contains(&score), "oomScoreAdj", &score, "-1000 to 1000");
    for (path, number) in [("conntrack.maxPerCore", conntrack.max_per_core), ("conntrack.min", conntrack.min)] {
        let number = number.unwrap_or_default();
        checker.check(number >= 0, path, &number, NOT_NEGATIVE);
    }
}

fn periods(configuration: &KubeProxyConfiguration, checker: &mut Checker) {
    let KubeProxyConfiguration { iptables, ipvs, nftables, conntrack, .. } = configuration;
    for (path, timeout) in [
        ("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout.unwrap_or_default()),
        ("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout.unwrap_or_default()),
        ("conntrack.udpTimeout", conntrack.udp_timeout),
        ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout),
    ] {
        checker.check(timeout >= GoDuration::ZERO, path, &timeout, NOT_NEGATIVE);
    }
    if configuration.mode == "ipvs" {
        for (path, timeout) in [
            ("ipvs.tcpTimeout", ipvs.tcp_timeout),
            ("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout),
            ("ipvs.udpTimeout", ipvs.udp_timeout),
        ] {
            checker.check(timeout >= GoDuration::ZERO, path, &timeout, NOT_NEGATIVE);
        }
    }
    let period = configuration.config_sync_period;
    checker.check(period > GoDuration::ZERO, "configSyncPeriod", &period, "more than 0");
    // Only those of the mode in use have a meaning.
    let (section, period, shortest) = match configuration.mode.as_str() {
        "ipvs" => ("ipvs", ipvs.sync_period, ipvs.min_sync_period),
        "nftables" => ("nftables", nftables.sync_period, nftables.min_sync_period),
        _ => ("iptables", iptables.sync_period, iptables.min_sync_period),
    };
    checker.check(period > GoDuration::ZERO, &format!("{section}.syncPeriod"), &period, "more than 0");
    let path = format!("{section}.minSyncPeriod");
    checker.check(shortest >= GoDuration::ZERO, &path, &shortest, NOT_NEGATIVE);
    checker.check(shortest <= period, &path, &shortest, "no more than syncPeriod");
}
