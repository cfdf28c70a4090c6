//! Clients: one exchange with a server, and what came of it.

use std::{
    fmt,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};

pub mod hops;
mod options;

use super::{Family, Host};

/// How long a client waits for each step. Far above what a loaded machine needs; a test that expects silence waits
/// this long.
const PATIENCE: Duration = Duration::from_secs(3);

/// Payload of a datagram where a test does not care.
const DATAGRAM_SIZE: usize = 64;

const HTTP_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n";

/// How a client talks to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP connection.
    Tcp,
    /// An HTTP/1.1 request on a TCP connection of its own.
    Http,
    /// A datagram from a connected UDP socket, and one back.
    UdpConnected,
    /// A datagram from an unconnected UDP socket, and one back.
    Udp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Http, Self::UdpConnected, Self::Udp];
}

/// Every transport in every family.
pub fn ways() -> impl Iterator<Item = (Family, Transport)> {
    Family::BOTH.into_iter().flat_map(|family| Transport::ALL.map(|transport| (family, transport)))
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "TCP",
            Self::Http => "HTTP",
            Self::UdpConnected => "UDP, connected",
            Self::Udp => "UDP",
        })
    }
}

/// What came of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A server answered.
    Reached(Answer),
    /// A RST, an ICMP port unreachable, or `ECONNREFUSED` from the call itself.
    Refused,
    /// Nothing came.
    TimedOut,
    /// Something else: an error of the call, or an answer that no server of ours gives.
    Failed(String),
}

/// Who answered, and what each side saw of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Name of the host that answered.
    pub backend: String,
    /// The client's address, as the server saw it.
    pub client_seen: SocketAddr,
    /// The server's address, as the client sees it: `getpeername`, or the source of the datagram.
    pub peer: SocketAddr,
    /// The client's own address and port (`getsockname`).
    pub local: SocketAddr,
}

impl Outcome {
    /// The answer. Panics with what came instead, and with who asked whom.
    #[track_caller]
    pub fn answer(self, path: impl fmt::Display) -> Answer {
        match self {
            Self::Reached(answer) => answer,
            other => panic!("{path}: {other:?}"),
        }
    }
}

/// A question to a server.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    transport: Transport,
    to: SocketAddr,
    datagram_size: usize,
    ip_options: bool,
}

impl Ask {
    /// Over a transport, of a server or a Service.
    pub fn new(transport: Transport, to: SocketAddr) -> Self {
        Self { transport, to, datagram_size: DATAGRAM_SIZE, ip_options: false }
    }

    /// With this many bytes of payload in its datagram; over TCP without meaning.
    #[must_use]
    pub fn datagram_size(self, size: usize) -> Self {
        Self { datagram_size: size, ..self }
    }

    /// With IPv4 options or an IPv6 extension header in every packet.
    #[must_use]
    pub fn with_ip_options(self) -> Self {
        Self { ip_options: true, ..self }
    }

    /// Asks from a host.
    pub fn from(self, host: &Host) -> Outcome {
        host.run(move || self.here())
    }

    /// Asks from the host that the calling thread is on.
    pub fn here(self) -> Outcome {
        if self.ip_options {
            return outcome(self.ask_with_ip_options());
        }
        outcome(match self.transport {
            Transport::Udp | Transport::UdpConnected => {
                DatagramSocket::open_here(self.transport == Transport::UdpConnected, self.to)
                    .and_then(|socket| socket.exchange(self.to, self.datagram_size))
            }
            Transport::Tcp => ask_stream(self.to, b""),
            Transport::Http => ask_stream(self.to, HTTP_REQUEST),
        })
    }

    fn ask_with_ip_options(self) -> io::Result<Answer> {
        if matches!(self.transport, Transport::Udp | Transport::UdpConnected) {
            let socket = DatagramSocket::open_here(self.transport == Transport::UdpConnected, self.to)?;
            options::set(&socket.socket, self.to)?;
            return socket.exchange(self.to, self.datagram_size);
        }
        let request = if self.transport == Transport::Http { HTTP_REQUEST } else { b"" };
        ask_over(options::connect(self.to, PATIENCE)?, request)
    }
}

/// A TCP connection to the echo port that stays open. It belongs to the host's network namespace and cgroup, and may
/// be used from any thread.
pub struct Conversation {
    stream: BufReader<TcpStream>,
    /// Who is at the other end.
    pub answer: Answer,
}

impl Conversation {
    /// Connects.
    pub fn open(from: &Host, to: SocketAddr) -> Result<Self, Outcome> {
        from.run(move || connect(to)).map_err(|error| outcome(Err(error)))
    }

    /// Sends a line and checks that it comes back.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.stream.get_mut(), "{line}")?;
        let mut echo = String::new();
        self.stream.read_line(&mut echo)?;
        if echo.trim_end() == line { Ok(()) } else { Err(io::Error::other(format!("said {line:?}, heard {echo:?}"))) }
    }

    /// Sends `count` bytes and checks that they come back, while they are being sent.
    pub fn send_and_check(mut self, count: usize) -> io::Result<()> {
        let bytes = pattern(count);
        let mut writer = self.stream.get_ref().try_clone()?;
        let sender = thread::spawn({
            let bytes = bytes.clone();
            move || writer.write_all(&bytes).and_then(|()| writer.shutdown(Shutdown::Write))
        });
        let mut echo = Vec::with_capacity(count);
        self.stream.read_to_end(&mut echo)?;
        sender.join().expect("the sender does not panic")?;
        match bytes.iter().zip(&echo).position(|(sent, heard)| sent != heard) {
            None if echo.len() == count => Ok(()),
            None => Err(io::Error::other(format!("sent {count} bytes, {} came back", echo.len()))),
            Some(offset) => Err(io::Error::other(format!("byte {offset} of {count} came back changed"))),
        }
    }
}

/// Bytes in which any loss, repetition or exchange shows: a linear congruential sequence (Knuth's MMIX constants).
fn pattern(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn connect(to: SocketAddr) -> io::Result<Conversation> {
    let mut stream = BufReader::new(open_stream(to)?);
    let answer = read_answer(&mut stream)?;
    Ok(Conversation { stream, answer })
}

fn open_stream(to: SocketAddr) -> io::Result<TcpStream> {
    prepared(TcpStream::connect_timeout(&to, PATIENCE)?)
}

fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn ask_stream(to: SocketAddr, request: &[u8]) -> io::Result<Answer> {
    ask_over(open_stream(to)?, request)
}

fn ask_over(stream: TcpStream, request: &[u8]) -> io::Result<Answer> {
    let mut stream = BufReader::new(prepared(stream)?);
    stream.get_mut().write_all(request)?;
    if !request.is_empty() {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line != "HTTP/1.1 200 OK\r\n" {
            return Err(io::Error::other(format!("status line {line:?}")));
        }
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line)?;
        }
    }
    read_answer(&mut stream)
}

fn read_answer(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let (backend, client_seen) = parse_identity(&line)?;
    Ok(Answer { backend, client_seen, peer: stream.get_ref().peer_addr()?, local: stream.get_ref().local_addr()? })
}

/// A UDP socket that may ask more than once. Like a [`Conversation`], it belongs to its host and may be used anywhere.
pub struct DatagramSocket {
    socket: UdpSocket,
    to: SocketAddr,
    connected: bool,
}

impl DatagramSocket {
    /// A socket of a host; `transport` is one of the two over UDP.
    pub fn open(from: &Host, transport: Transport, to: SocketAddr) -> Self {
        from.run(move || Self::open_here(transport == Transport::UdpConnected, to)).expect("a UDP socket")
    }

    /// Sends a datagram and waits for the answer.
    pub fn ask(&self) -> Outcome {
        self.ask_at(self.to)
    }

    /// As [`ask`](Self::ask), at another address than it was opened for; only of a socket that is not connected.
    pub fn ask_at(&self, to: SocketAddr) -> Outcome {
        outcome(self.exchange(to, DATAGRAM_SIZE))
    }

    fn open_here(connected: bool, to: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        if connected {
            socket.connect(to)?;
        } else if to.is_ipv4() {
            // Without this option an unconnected socket is not told of ICMP errors (ip(7), `IP_RECVERR`).
            setsockopt(&socket, Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, Ipv6RecvErr, &true)?;
        }
        Ok(Self { socket, to, connected })
    }

    fn exchange(&self, to: SocketAddr, size: usize) -> io::Result<Answer> {
        let Self { socket, connected, .. } = self;
        let request = pattern(size);
        if *connected { socket.send(&request) } else { socket.send_to(&request, to) }?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let (length, sender) = socket.recv_from(&mut buffer)?;
        let answer = &buffer[..length];
        let line = answer.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
        let (backend, client_seen) = parse_identity(&String::from_utf8_lossy(line))?;
        if answer[line.len()..] != *request.get(line.len()..).unwrap_or_default() {
            return Err(io::Error::other(format!("of {size} bytes, {length} came back, or came back changed")));
        }
        let peer = if *connected { socket.peer_addr()? } else { sender };
        Ok(Answer { backend, client_seen, peer, local: socket.local_addr()? })
    }
}

fn parse_identity(line: &str) -> io::Result<(String, SocketAddr)> {
    let parse = || {
        let (backend, client) = line.trim_end().strip_prefix("pod=")?.split_once(" client=")?;
        Some((backend.to_owned(), client.parse().ok()?))
    };
    parse().ok_or_else(|| io::Error::other(format!("not an answer of a lab server: {line:?}")))
}

fn outcome(result: io::Result<Answer>) -> Outcome {
    match result {
        Ok(answer) => Outcome::Reached(answer),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::TimedOut,
            _ => Outcome::Failed(error.to_string()),
        },
    }
}
