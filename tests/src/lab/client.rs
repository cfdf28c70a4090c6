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

use super::Host;

/// How long a client waits for each step. Far above what a loaded machine needs; a test that expects silence waits
/// this long.
const PATIENCE: Duration = Duration::from_secs(3);

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
    /// The ways to talk to [`ECHO_PORT`](super::server::ECHO_PORT).
    pub const ECHO: [Self; 3] = [Self::Tcp, Self::UdpConnected, Self::Udp];
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
    /// The answer. Panics with what came instead.
    #[track_caller]
    pub fn answer(self) -> Answer {
        match self {
            Self::Reached(answer) => answer,
            other => panic!("no server was reached: {other:?}"),
        }
    }
}

/// One exchange from a host.
pub fn exchange(from: &Host, transport: Transport, to: SocketAddr) -> Outcome {
    match transport {
        Transport::Udp | Transport::UdpConnected => exchange_datagram(from, transport, to, 64),
        Transport::Tcp => outcome(from.run(move || ask_stream(to, b""))),
        Transport::Http => outcome(from.run(move || ask_stream(to, b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n"))),
    }
}

/// One exchange of datagrams with `size` bytes of payload, by one of the two UDP transports.
pub fn exchange_datagram(from: &Host, transport: Transport, to: SocketAddr, size: usize) -> Outcome {
    outcome(from.run(move || ask_datagram(to, transport == Transport::UdpConnected, size)))
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
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn ask_stream(to: SocketAddr, request: &[u8]) -> io::Result<Answer> {
    let mut stream = BufReader::new(open_stream(to)?);
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

fn ask_datagram(to: SocketAddr, connected: bool, size: usize) -> io::Result<Answer> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let request = pattern(size);
    if connected {
        socket.connect(to)?;
        socket.send(&request)?;
    } else {
        // Without this option an unconnected socket is not told of ICMP errors (ip(7), `IP_RECVERR`).
        if to.is_ipv4() { setsockopt(&socket, Ipv4RecvErr, &true) } else { setsockopt(&socket, Ipv6RecvErr, &true) }?;
        socket.send_to(&request, to)?;
    }
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let (length, peer) = socket.recv_from(&mut buffer)?;
    let answer = &buffer[..length];
    let line = answer.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    let (backend, client_seen) = parse_identity(&String::from_utf8_lossy(line))?;
    if answer.get(line.len()..) != request.get(line.len()..) && size > line.len() {
        return Err(io::Error::other(format!("of {size} bytes, {length} came back, or came back changed")));
    }
    Ok(Answer { backend, client_seen, peer: if connected { socket.peer_addr()? } else { peer }, local: socket.local_addr()? })
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
