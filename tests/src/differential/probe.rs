//! Tries: enough connections of a client to a frontend to know who answers there.
//!
//! **How many.** Where a frontend chooses among n endpoints with equal probability, k tries miss one of them with a
//! probability of at most n(1 - 1/n)^k, by the union bound. [`tries`] is the smallest k for which that is below
//! [`MISSED`], a millionth: 21 for two endpoints, 38 for three. A scenario has some hundreds of sets, so about one run
//! of the harness in a thousand sees a set that is too small; and a difference only counts when it is there again
//! ([`super::session`]), which makes it one in a million. A client stops earlier when every endpoint that the Service
//! has in any state has answered, since there can be no more.
//!
//! **When nothing answers.** The hosts are a few microseconds away from each other, so an answer takes as long as the
//! machine takes to schedule them: [`PATIENCE`] is a hundred times the median on two loaded cores. Where proxies then
//! seem to differ, everything is asked again with [`MORE_PATIENCE`], beyond the first retransmission of a SYN.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use futures::future::join_all;
use nix::{
    libc,
    sys::socket::{
        setsockopt,
        sockopt::{Ipv4RecvErr, Ipv6RecvErr},
    },
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest},
    net::{TcpSocket, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::{
    observation::{Endpoint, Observation, Source, Verdict},
    target::Target,
};
use crate::lab::{Family, Host, Lab, client::Transport, server::ECHO_PORT, server::HTTP_PORT};

/// The probability to miss an endpoint of a set that is accepted.
const MISSED: f64 = 1e-6;
/// How long an answer may take at first.
pub const PATIENCE: Duration = Duration::from_millis(400);
/// How long it may take when proxies seem to differ: the first retransmission of a SYN comes after 1 s (RFC 6298, 2.1).
pub const MORE_PATIENCE: Duration = Duration::from_millis(1500);
/// How many tries of a client are under way at once.
const AT_ONCE: usize = 12;
/// How many tries of a cell are made at once, and at least.
const ROUND: usize = 4;
/// Local ports of clients: the kernel's default range for them (ip(7), `ip_local_port_range`), which both proxies keep
/// their own ports and node ports out of.
const PORTS: std::ops::RangeInclusive<u16> = 32768..=60999;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    /// A pod of the node whose sockets the node sees.
    Pod,
    /// A pod of the node whose sockets it does not see.
    Vm,
    /// The node itself.
    Node,
    /// A client outside the cluster.
    Outside,
    /// Another node.
    OtherNode,
    /// A pod of another node.
    RemotePod,
}

impl ClientKind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Pod, Self::Vm, Self::Node, Self::Outside, Self::OtherNode, Self::RemotePod];

    /// Its host. Endpoints that are not meant to be the client itself are other pods than these.
    pub fn host(self, lab: &Lab) -> &Host {
        let [node1, node2] = &lab.nodes;
        match self {
            Self::Pod => &node1.pods[1],
            Self::Vm => &node1.vm,
            Self::Node => &node1.host,
            Self::Outside => &lab.client,
            Self::OtherNode => &node2.host,
            Self::RemotePod => &node2.pods[1],
        }
    }
}

/// How many tries it takes to see each of `endpoints` with an error of at most [`MISSED`].
pub fn tries(endpoints: usize) -> usize {
    let n = f64::from(u32::try_from(endpoints.max(1)).expect("few endpoints"));
    (ROUND..).find(|tries| missed(n, *tries) <= MISSED).expect("some number does")
}

fn missed(n: f64, tries: usize) -> f64 {
    n * (1.0 - 1.0 / n).powi(i32::try_from(tries).expect("few tries"))
}

/// The local ports that a client goes through, so that no two tries within a session share a connection's tuple
/// before the others' entries have expired.
#[derive(Clone, Debug)]
pub struct Ports(Arc<AtomicU16>);

impl Default for Ports {
    fn default() -> Self {
        Self(Arc::new(AtomicU16::new(*PORTS.start())))
    }
}

impl Ports {
    fn next(&self) -> u16 {
        let after = |port| Some(if port == *PORTS.end() { *PORTS.start() } else { port + 1 });
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).expect("there is always a next one")
    }
}

/// Starts a thread of a client that asks at all these targets; gives what it saw at each.
pub fn ask_all(
    lab: &Lab,
    kind: ClientKind,
    ports: Ports,
    targets: Vec<Target>,
    patience: Duration,
) -> JoinHandle<Vec<Observation>> {
    let host = kind.host(lab);
    let (own, node) = (host.addresses(), lab.nodes[0].host.addresses());
    host.spawn(move || {
        let client = Client { own: own.into(), node: node.into(), ports, limit: Semaphore::new(AT_ONCE), patience };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(join_all(targets.iter().map(|target| client.observe(target))))
    })
}

struct Client {
    own: [IpAddr; 2],
    node: [IpAddr; 2],
    ports: Ports,
    limit: Semaphore,
    patience: Duration,
}

impl From<crate::lab::Addresses> for [IpAddr; 2] {
    fn from(addresses: crate::lab::Addresses) -> Self {
        Family::BOTH.map(|family| addresses.of(family))
    }
}

impl Client {
    async fn observe(&self, target: &Target) -> Observation {
        let wanted = tries(target.endpoints);
        let mut observation = Observation::default();
        let mut made = 0;
        while made < wanted {
            // UDP by turns from sockets that are connected and that are not: proxies may treat them differently.
            let round = (0..ROUND).map(|index| self.attempt(target, (made + index) % 2 == 0));
            join_all(round).await.into_iter().for_each(|verdict| observation.add(verdict));
            made += ROUND;
            let is_complete = target.endpoints > 0 && observation.reached.len() >= target.endpoints;
            if observation.reached.is_empty() || (is_complete && observation.others.is_empty()) {
                break;
            }
        }
        observation
    }

    async fn attempt(&self, target: &Target, connected: bool) -> Verdict {
        let _permit = self.limit.acquire().await.expect("never closed");
        let to = target.address;
        let result = timeout(self.patience, async {
            match target.transport {
                Transport::Tcp | Transport::Http => self.stream(to).await,
                Transport::Udp | Transport::UdpConnected => self.datagram(to, connected).await,
            }
        });
        match result.await {
            Ok(Ok((endpoint, seen))) => Verdict::Reached(endpoint, self.source(seen)),
            Ok(Err(error)) => verdict(&error),
            Err(_) => Verdict::Dropped,
        }
    }

    fn source(&self, seen: IpAddr) -> Source {
        if self.own.contains(&seen) {
            Source::Own
        } else if self.node.contains(&seen) {
            Source::Node
        } else {
            Source::Other(seen)
        }
    }

    async fn stream(&self, to: SocketAddr) -> io::Result<(Endpoint, IpAddr)> {
        let socket = loop {
            let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            match socket.bind(SocketAddr::new(any(to), self.ports.next())) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => break result.map(|()| socket),
            }
        }?;
        let mut stream = BufReader::new(socket.connect(to).await?);
        // The echo server says who it is before it is asked, the HTTP server after.
        stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n").await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let mut port = ECHO_PORT;
        if line.starts_with("HTTP/1.1 200") {
            port = HTTP_PORT;
            while line != "\r\n" && !line.is_empty() {
                line.clear();
                stream.read_line(&mut line).await?;
            }
            line.clear();
            stream.read_line(&mut line).await?;
        }
        parse(&line, port)
    }

    async fn datagram(&self, to: SocketAddr, connected: bool) -> io::Result<(Endpoint, IpAddr)> {
        let socket = loop {
            match std::net::UdpSocket::bind((any(to), self.ports.next())) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => break result,
            }
        }?;
        socket.set_nonblocking(true)?;
        // To be told of every ICMP error (ip(7), `IP_RECVERR`).
        if to.is_ipv4() { setsockopt(&socket, Ipv4RecvErr, &true) } else { setsockopt(&socket, Ipv6RecvErr, &true) }?;
        let socket = UdpSocket::from_std(socket)?;
        let sent = if connected {
            socket.connect(to).await?;
            socket.send(&[b'?'; 64]).await
        } else {
            socket.send_to(&[b'?'; 64], to).await
        };
        match sent {
            Ok(_) => {}
            // What netfilter drops or refuses on its way out; the reason may follow.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(error),
        }
        let interest = Interest::READABLE | Interest::ERROR;
        let mut buffer = [0; 256];
        loop {
            socket.ready(interest).await?;
            match socket.try_io(interest, || recv(&socket, &mut buffer)) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    return parse(text.lines().next().unwrap_or_default(), ECHO_PORT);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn recv(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    nix::sys::socket::recv(socket.as_raw_fd(), buffer, nix::sys::socket::MsgFlags::MSG_DONTWAIT).map_err(Into::into)
}

fn any(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn parse(line: &str, port: u16) -> io::Result<(Endpoint, IpAddr)> {
    let parse = || {
        let (host, client) = line.trim_end().strip_prefix("pod=")?.split_once(" client=")?;
        let client: SocketAddr = client.parse().ok()?;
        Some((Endpoint { host: host.to_owned(), port }, client.ip()))
    };
    parse().ok_or_else(|| io::Error::other(format!("not an answer of a lab server: {line:?}")))
}

fn verdict(error: &io::Error) -> Verdict {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Verdict::Refused,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => Verdict::Unreachable,
        Some(libc::ETIMEDOUT) => Verdict::Dropped,
        _ => Verdict::Broken(error.to_string()),
    }
}
