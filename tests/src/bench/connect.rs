//! What the socket hooks cost: `connect()` in a cgroup with the programs and in one without.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use lb_agent::{loader::cgroup2_root, model::Protocol};
use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, getpeername, setsockopt, socket, sockopt},
};

use super::report::Samples;
use crate::packets::{Dataplane, Net, Place, Tables, TestService};

/// Calls of one measurement.
const CALLS: u32 = 500;

/// Two cgroups of ours: one with the programs, one without. Removed when dropped.
struct Cgroups {
    parent: PathBuf,
    before: PathBuf,
}

impl Cgroups {
    fn create() -> Result<Self> {
        let root = cgroup2_root()?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("a line of cgroup2")?;
        let parent = root.join(format!("lb-bench-{}", process::id()));
        for directory in [&parent, &parent.join("hooked"), &parent.join("bare")] {
            fs::create_dir(directory).with_context(|| directory.display().to_string())?;
        }
        Ok(Self { parent, before: root.join(own) })
    }

    fn enter(directory: &Path) -> io::Result<()> {
        fs::write(directory.join("cgroup.procs"), process::id().to_string())
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let _ = Self::enter(&self.before);
        for directory in [self.parent.join("hooked"), self.parent.join("bare"), self.parent.clone()] {
            if let Err(error) = fs::remove_dir(&directory) {
                eprintln!("{} stays: {error}", directory.display());
            }
        }
    }
}

/// Microseconds that one `connect()` takes, and who the socket says it talks to.
fn timed(kind: SockType, to: SocketAddrV4, listener: &TcpListener) -> Result<(f64, SocketAddrV4)> {
    let to = SockaddrIn::from(to);
    let mut spent = 0.0;
    let mut peer = None;
    for _ in 0..CALLS {
        let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
        // Closed by a RST: ports that wait for old segments to die would run out.
        setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        let start = Instant::now();
        connect(socket.as_raw_fd(), &to)?;
        spent += start.elapsed().as_secs_f64();
        if kind == SockType::Stream {
            // The listener's queue is short.
            listener.accept()?;
        }
        if peer.is_none() {
            peer = Some(getpeername::<SockaddrIn>(socket.as_raw_fd())?);
        }
    }
    Ok((spent * 1e6 / f64::from(CALLS), peer.context("one call at least")?.into()))
}

/// `connect()` of one protocol without programs, with them to an address that is nobody's Service, and with them to a
/// Service.
pub fn measure(dataplane: &mut Dataplane, rounds: u32) -> Result<Vec<Samples>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let SocketAddr::V4(server) = listener.local_addr()? else { unreachable!("bound to IPv4") };
    let Net { cluster_ip, .. } = Net::V4;
    let IpAddr::V4(cluster_ip) = cluster_ip else { unreachable!("IPv4") };
    let frontend = SocketAddrV4::new(cluster_ip, 80);
    let service =
        |name, protocol| TestService::new(name, protocol, frontend.into()).endpoint(server.into(), Place::Local);
    dataplane.fill(&Tables::new([service("tcp", Protocol::Tcp), service("udp", Protocol::Udp)]))?;

    let cgroups = Cgroups::create()?;
    let (hooked, bare) = (cgroups.parent.join("hooked"), cgroups.parent.join("bare"));
    dataplane.loaded.attach_cgroup(&hooked)?;
    let mut samples = Vec::new();
    for name in ["TCP", "UDP"] {
        for what in ["without programs", "not to a Service", "to a Service"] {
            samples.push(Samples::new(format!("{name} connect(), {what}"), "µs"));
        }
    }
    for _ in 0..rounds {
        for (kind, samples) in [SockType::Stream, SockType::Datagram].into_iter().zip(samples.chunks_mut(3)) {
            for (index, (cgroup, to)) in
                [(&bare, server), (&hooked, server), (&hooked, frontend)].into_iter().enumerate()
            {
                Cgroups::enter(cgroup)?;
                let (microseconds, peer) = timed(kind, to, &listener)?;
                // `getpeername` shows the frontend that was asked for.
                ensure!(peer == to, "connected to {peer}, not to {to}");
                samples[index].values.push(microseconds);
            }
        }
    }
    Ok(samples)
}
