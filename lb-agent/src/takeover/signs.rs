//! Signs of a kube-proxy that runs, and of its mode ipvs.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// Where kube-proxy says its mode, unless `--metrics-bind-address` moved it.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// How long its answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// What it answers to `/proxyMode`.
const MODES: [&str; 3] = ["iptables", "ipvs", "nftables"];

/// The device that holds the addresses of Services in mode ipvs.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// What mode ipvs left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipvs {
    /// Virtual servers, whoever made them.
    pub servers: usize,
}

/// Whether there is a device `kube-ipvs0`, without which virtual servers are not kube-proxy's.
pub(super) fn ipvs() -> Option<Ipvs> {
    let devices = fs::read_to_string("/proc/net/dev").ok()?;
    is_device(&devices, IPVS_DEVICE).then(|| Ipvs { servers: count_servers(&read("/proc/net/ip_vs")) })
}

fn is_device(devices: &str, name: &str) -> bool {
    devices.lines().any(|line| line.trim_start().split(':').next() == Some(name))
}

/// Of `/proc/net/ip_vs`: a line per virtual server begins with its protocol, one of a real server with an arrow.
fn count_servers(text: &str) -> usize {
    let protocols = ["TCP ", "UDP ", "SCTP ", "FWM "];
    text.lines().filter(|line| protocols.iter().any(|protocol| line.starts_with(protocol))).count()
}

/// Files of /proc that a kernel may lack.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// How a kube-proxy that serves this network namespace was noticed. Its process is not seen from a container without
/// `hostPID`; then its answer is.
pub fn kube_proxy_runs() -> Option<String> {
    process("kube-proxy").map(|id| format!("process {id}")).or_else(|| {
        let mode = mode(METRICS).ok()?;
        MODES.contains(&mode.as_str()).then(|| format!("{METRICS} answers as kube-proxy in mode {mode}"))
    })
}

/// A process of this name that serves this network namespace.
pub(crate) fn process(name: &str) -> Option<u32> {
    let own = fs::read_link("/proc/self/ns/net").ok()?;
    let ids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.into_iter().find(|id: &u32| {
        read(&format!("/proc/{id}/comm")).trim_end() == name
            // One in another namespace serves another node. Where it may not be looked at, it may be this one.
            && fs::read_link(format!("/proc/{id}/ns/net")).map_or(true, |namespace| namespace == own)
    })
}

fn mode(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_are_counted() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
                    Prot LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
                    TCP  0A600001:01BB rr \n  \
                    -> C0A86401:192B      Masq    1      0          0         \n\
                    UDP  0A60000A:0035 rr \n";
        assert_eq!(count_servers(text), 2);
        assert_eq!(count_servers(""), 0);
    }

    #[test]
    fn the_device_is_told_by_its_whole_name() {
        let text = "Inter-|   Receive\n face |bytes\n    lo:  1\nkube-ipvs0: 0\n";
        assert!(is_device(text, IPVS_DEVICE));
        assert!(!is_device("kube-ipvs01: 0\n", IPVS_DEVICE));
    }
}
