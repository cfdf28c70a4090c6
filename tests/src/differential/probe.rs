//! Tries: enough connections of a client to a frontend to know who answers there.
//!
//! **How many.** Where a frontend chooses among n endpoints with equal probability, k tries miss one of them with a
//! probability of at most n(1 - 1/n)^k, by the union bound. [`tries`] is the smallest k for which that is below
//! [`MISSED`], a millionth: 21 for two endpoints, 38 for three. A scenario has some hundreds of sets, so about one run
//! of the harness in a thousand sees a set that is too small; and a difference only counts when it is there again
//! ([`super::session`]), which makes it one in a million. A client stops earlier when every endpoint that the Service
//! has in any state has answered, but not before [`SURPLUS`] tries, which show one that should not be there. In the second
//! look it makes as many tries as show one endpoint more than there should be: what counts is then all of what is there.
//!
//! **When nothing answers.** The hosts are a few microseconds away from each other, so an answer takes as long as the
//! machine takes to schedule them, far less than [`PATIENCE`]. Where proxies then seem to differ, or a SYN was not answered,
//! it is asked again with [`MORE_PATIENCE`](super::patience::MORE_PATIENCE): an ICMP error that arrives while `connect` still holds the socket is not heard
//! (`sock_owned_by_user` in `tcp_v6_err` of `net/ipv6/tcp_ipv6.c`). Over IPv6 that is so each time when what refuses is on the
//! client's own host or one link away, and the answer to the SYN's retransmission, after 1 s, is the first that is heard.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use futures::future::join_all;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
use nix::{
    libc,
    sys::socket::{
        setsockopt,
        sockopt::{Ipv4RecvErr, Ipv6RecvErr},
    },
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    time::sleep,
};

use super::{
    observation::{Endpoint, Observation, Source, Verdict},
    patience::{PATIENCE, within},
    target::Target,
};
use crate::lab::{Family, Host, Lab, client::Transport, server::ECHO_PORT, server::HTTP_PORT};

/// The probability to miss an endpoint of a set that is accepted.
const MISSED: f64 = 1e-6;
/// How many first tries of a client are under way at once; in the second look, where mostly silence is awaited, more.
const FIRST_AT_ONCE: [usize; 2] = [16, 128];
/// How many later tries of a client are under way at once: few enough for an answer within [`PATIENCE`], since they are
/// made where somebody answers.
const LATER_AT_ONCE: usize = 4;
/// How many tries of a cell are made at first. Where nobody answers, it stays with them; in the second look they are
/// enough to see that one of two endpoints answers, with an error of 1 in 16; with twice as many, routers limit the rate of
/// their ICMPv6 errors, and refusals go unheard.
const FIRST: [usize; 2] = [2, 4];
/// With how many tries the first look stays when every endpoint of the Service has answered: enough to see one that is none, in the
/// place of half of them, with an error of 1 in 1024.
const SURPLUS: usize = 10;
/// With how many tries it stays where some are answered and some are not: that is broken, however many endpoints it is.
const MIXED: usize = 16;
/// How many more are made at once.
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
    let mut tries = 1;
    while missed(n, tries) > MISSED {
        tries += 1;
    }
    tries
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
    let client = Client::new(lab, kind, ports, patience);
    kind.host(lab).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(join_all(targets.iter().map(|target| client.observe(target))))
    })
}

/// Every address of the host that this thread is on.
fn addresses_here() -> Vec<IpAddr> {
    let interfaces = getifaddrs().expect("the kernel tells its addresses");
    let address = |storage: SockaddrStorage| match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        _ => None,
    };
    interfaces.filter_map(|interface| address(interface.address?)).collect()
}

/// Who asks, and how.
pub(super) struct Client {
    own: [IpAddr; 2],
    /// All that the node has: the kernel masquerades with whichever it prefers.
    node: Vec<IpAddr>,
    ports: Ports,
    /// The first or the second look.
    look: usize,
    first: Semaphore,
    later: Semaphore,
    patience: Duration,
}

impl From<crate::lab::Addresses> for [IpAddr; 2] {
    fn from(addresses: crate::lab::Addresses) -> Self {
        Family::BOTH.map(|family| addresses.of(family))
    }
}

impl Client {
    /// One of this kind.
    pub(super) fn new(lab: &Lab, kind: ClientKind, ports: Ports, patience: Duration) -> Self {
        let (own, node) = (kind.host(lab).addresses(), lab.nodes[0].host.run(addresses_here));
        let look = usize::from(patience > PATIENCE);
        let first = Semaphore::new(FIRST_AT_ONCE[look]);
        Self { own: own.into(), node, ports, look, first, later: Semaphore::new(LATER_AT_ONCE), patience }
    }

    async fn observe(&self, target: &Target) -> Observation {
        // In the second look one endpoint more than there should be.
        let wanted = tries(target.endpoints + self.look);
        let mut observation = Observation::default();
        let mut made = 0;
        while made < wanted {
            let (limit, count) = if made == 0 { (&self.first, FIRST[self.look]) } else { (&self.later, ROUND) };
            // UDP by turns from sockets that are connected and that are not: proxies may treat them differently.
            let round = (made..made + count).map(|index| self.attempt(limit, target, index % 2 == 0));
            join_all(round).await.into_iter().for_each(|verdict| observation.add(verdict));
            made += count;
            let is_mixed = observation.others.contains(&Verdict::Dropped) && made >= MIXED;
            let is_complete = self.look == 0
                && made >= SURPLUS
                && target.endpoints > 0
                && observation.reached.len() >= target.endpoints;
            if observation.reached.is_empty() || is_mixed || (is_complete && observation.others.is_empty()) {
                break;
            }
        }
        observation
    }

    async fn attempt(&self, limit: &Semaphore, target: &Target, connected: bool) -> Verdict {
        let _permit = limit.acquire().await.expect("never closed");
        let to = target.address;
        let result = within(self.patience, async {
            match target.transport {
                Transport::Tcp | Transport::Http => self.stream(to).await,
                Transport::Udp | Transport::UdpConnected => datagram(&self.bind_datagram(to, connected)?, to).await,
            }
        });
        self.verdict(result.await)
    }

    /// What an exchange came to: who answered and saw which address, unless it took too long.
    pub(super) fn verdict(&self, result: Option<io::Result<(Endpoint, IpAddr)>>) -> Verdict {
        match result {
            Some(Ok((endpoint, seen))) => Verdict::Reached(endpoint, self.source(seen)),
            Some(Err(error)) => verdict(&error),
            None => Verdict::Dropped,
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

    /// A connection from the client's next port.
    pub(super) async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = loop {
            let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            match socket.bind(SocketAddr::new(any(to), self.ports.next())) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => break result.map(|()| socket),
            }
        }?;
        socket.connect(to).await
    }

    async fn stream(&self, to: SocketAddr) -> io::Result<(Endpoint, IpAddr)> {
        let mut stream = BufReader::new(self.connect(to).await?);
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

    /// A UDP socket at the client's next port.
    pub(super) fn bind_datagram(&self, to: SocketAddr, connected: bool) -> io::Result<UdpSocket> {
        let socket = loop {
            match UdpSocket::bind((any(to), self.ports.next())) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => break result,
            }
        }?;
        socket.set_nonblocking(true)?;
        // To be told of every ICMP error (ip(7), `IP_RECVERR`).
        if to.is_ipv4() { setsockopt(&socket, Ipv4RecvErr, &true) } else { setsockopt(&socket, Ipv6RecvErr, &true) }?;
        if connected {
            socket.connect(to)?;
        }
        Ok(socket)
    }
}

/// One datagram, and its answer.
pub(super) async fn datagram(socket: &UdpSocket, to: SocketAddr) -> io::Result<(Endpoint, IpAddr)> {
    let request = [b'?'; 64];
    match if socket.peer_addr().is_ok() { socket.send(&request) } else { socket.send_to(&request, to) } {
        Ok(_) => {}
        // What netfilter drops or refuses on its way out; the reason may follow.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        Err(error) => return Err(error),
    }
    let mut buffer = [0; 256];
    // The runtime is not told of errors of a socket, only of datagrams: so it is asked, less and less often.
    for pause in [1, 1, 2, 4, 8, 16].into_iter().chain(std::iter::repeat(32)) {
        match socket.recv_from(&mut buffer) {
            // An answer from another address is none, though a socket that is not connected hears it.
            Ok((_, from)) if from != to => {}
            Ok((length, _)) => {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                return parse(text.lines().next().unwrap_or_default(), ECHO_PORT);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        sleep(Duration::from_millis(pause)).await;
    }
    unreachable!("the pauses do not end")
}

fn any(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// What a server on this port says first: who it is, and which address it sees.
pub(super) fn parse(line: &str, port: u16) -> io::Result<(Endpoint, IpAddr)> {
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
        Some(libc::EHOSTUNREACH) => Verdict::Unreachable,
        Some(libc::ENETUNREACH) => Verdict::Unrouted,
        Some(libc::ETIMEDOUT) => Verdict::Dropped,
        _ => Verdict::Broken(error.to_string()),
    }
}
