//! What kube-proxy puts where nothing was given: `pkg/proxy/apis/config/v1alpha1/defaults.go` and
//! `platformApplyDefaults` of `cmd/kube-proxy/app/server_linux.go`.

use std::net::IpAddr;

use super::{
    duration::{GoDuration, TimeOrDuration},
    file::KubeProxyConfiguration,
};
use crate::source::parse_ip_sloppy;

/// Default port of `/healthz` (`ProxyHealthzPort` of `pkg/cluster/ports`).
pub(super) const HEALTHZ_PORT: u16 = 10256;
/// Default port of `/metrics` (`ProxyStatusPort` of `pkg/cluster/ports`).
pub(super) const METRICS_PORT: u16 = 10249;
/// The word for the node's primary addresses.
pub(super) const PRIMARY: &str = "primary";

/// Fills in the defaults.
pub(super) fn give(configuration: &mut KubeProxyConfiguration) {
    let KubeProxyConfiguration { client_connection, logging, iptables, ipvs, nftables, conntrack, .. } = configuration;
    if_empty(&mut client_connection.content_type, "application/vnd.kubernetes.protobuf");
    if client_connection.qps == 0.0 {
        client_connection.qps = 5.0;
    }
    if client_connection.burst == 0 {
        client_connection.burst = 10;
    }
    if_empty(&mut logging.format, "text");
    if logging.flush_frequency.duration() == GoDuration::ZERO {
        logging.flush_frequency = TimeOrDuration::Duration(GoDuration::seconds(5));
    }
    for stream in [&mut logging.options.text, &mut logging.options.json] {
        if_empty(&mut stream.info_buffer_size, "0");
    }
    iptables.masquerade_bit.get_or_insert(14);
    iptables.localhost_node_ports.get_or_insert(true);
    nftables.masquerade_bit.get_or_insert(14);
    for period in [&mut iptables.sync_period, &mut ipvs.sync_period, &mut nftables.sync_period] {
        if_zero(period, GoDuration::seconds(30));
    }
    for period in [&mut iptables.min_sync_period, &mut nftables.min_sync_period] {
        if_zero(period, GoDuration::seconds(1));
    }
    conntrack.max_per_core.get_or_insert(32 * 1024);
    conntrack.min.get_or_insert(128 * 1024);
    conntrack.tcp_established_timeout.get_or_insert(GoDuration::seconds(24 * 3600));
    conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::seconds(3600));
    if_zero(&mut configuration.config_sync_period, GoDuration::seconds(15 * 60));
    configuration.oom_score_adj.get_or_insert(-999);

    if_empty(&mut configuration.bind_address, "0.0.0.0");
    // An address that is none is left to the validation; it counts as IPv6 in Go.
    let (any, loopback) = match parse_ip_sloppy(&configuration.bind_address) {
        Some(IpAddr::V4(_)) => ("0.0.0.0", "127.0.0.1"),
        _ => ("::", "::1"),
    };
    for (address, default, port) in [
        (&mut configuration.healthz_bind_address, any, HEALTHZ_PORT),
        (&mut configuration.metrics_bind_address, loopback, METRICS_PORT),
    ] {
        if_empty(address, default);
        *address = with_port(address, port);
    }
    if_empty(&mut configuration.mode, "iptables");
    if_empty(&mut configuration.detect_local_mode, "ClusterCIDR");
    if configuration.mode == "nftables" && configuration.node_port_addresses.is_empty() {
        configuration.node_port_addresses = vec![PRIMARY.to_owned()];
    }
}

/// An address with a port, if it is an address alone (`AppendPortIfNeeded` of `pkg/proxy/util`).
pub(super) fn with_port(address: &str, port: u16) -> String {
    match parse_ip_sloppy(address) {
        Some(_) if address.contains(':') => format!("[{address}]:{port}"),
        Some(_) => format!("{address}:{port}"),
        None => address.to_owned(),
    }
}

fn if_empty(text: &mut String, default: &str) {
    if text.is_empty() {
        default.clone_into(text);
    }
}

fn if_zero(duration: &mut GoDuration, default: GoDuration) {
    if *duration == GoDuration::ZERO {
        *duration = default;
    }
}
