//! Exchanges that last: connections and UDP sockets that are opened after a scenario's first step, and speak again after
//! each change.
//!
//! One exchange is one choice among endpoints, and proxies choose by chance. So a scenario that keeps exchanges has at any
//! time one endpoint at each frontend that a proxy may choose; then there is one right answer to each.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::mpsc,
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    runtime,
    sync::Semaphore,
};

use super::{
    observation::{Endpoint, Observation, Verdict},
    patience::{MORE_PATIENCE, within},
    probe::{Client, ClientKind, Ports, datagram, parse},
    target::Target,
};
use crate::lab::{Lab, client::Transport, server::ECHO_PORT};

/// How many exchanges of a client wait for an answer at once: few enough that an answer does not wait for the client.
const AT_ONCE: usize = 16;

/// The exchanges of one client. They end when this is dropped.
pub struct Kept {
    requests: mpsc::Sender<Request>,
}

/// To speak, and wait so long for each answer.
struct Request {
    patience: Duration,
    reply: mpsc::Sender<Vec<Observation>>,
}

impl Kept {
    /// Opens one exchange with each target. What an exchange that cannot be opened came to is what it comes to ever
    /// after.
    pub fn open(lab: &Lab, kind: ClientKind, ports: Ports, targets: Vec<Target>) -> Self {
        let (requests, received) = mpsc::channel::<Request>();
        let client = Client::new(lab, kind, ports, MORE_PATIENCE);
        // Ends when there is nobody left who could ask.
        drop(kind.host(lab).spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let open = targets.iter().map(|target| Exchange::open(&client, target));
            let mut exchanges = runtime.block_on(join_all(open));
            for Request { patience, reply } in received {
                let limit = Semaphore::new(AT_ONCE);
                let speak = exchanges.iter_mut().map(async |exchange| {
                    let _permit = limit.acquire().await.expect("never closed");
                    exchange.speak(&client, patience).await
                });
                // Who asked waits for it.
                let _ = reply.send(runtime.block_on(join_all(speak)));
            }
        }));
        Self { requests }
    }

    /// Has each exchange speak, and gives what came of it, in the order of the targets.
    pub fn speak(&self, patience: Duration) -> mpsc::Receiver<Vec<Observation>> {
        let (reply, received) = mpsc::channel();
        self.requests.send(Request { patience, reply }).expect("the client does not panic");
        received
    }
}

enum Exchange {
    Stream(Conversation),
    Datagrams(UdpSocket, SocketAddr),
    NotOpen(Verdict),
}

impl Exchange {
    async fn open(client: &Client, target: &Target) -> Self {
        let to = target.address;
        let opened = match target.transport {
            Transport::Tcp | Transport::Http => match within(MORE_PATIENCE, Conversation::open(client, to)).await {
                Some(result) => result.map(Self::Stream),
                None => return Self::NotOpen(client.verdict(None)),
            },
            Transport::Udp => client.bind_datagram(to, false).map(|socket| Self::Datagrams(socket, to)),
            Transport::UdpConnected => client.bind_datagram(to, true).map(|socket| Self::Datagrams(socket, to)),
        };
        opened.unwrap_or_else(|error| Self::NotOpen(client.verdict(Some(Err(error)))))
    }

    async fn speak(&mut self, client: &Client, patience: Duration) -> Observation {
        let verdict = match self {
            Self::Stream(conversation) => client.verdict(within(patience, conversation.speak()).await),
            Self::Datagrams(socket, to) => {
                forget_what_came(socket);
                client.verdict(within(patience, datagram(socket, *to)).await)
            }
            Self::NotOpen(verdict) => verdict.clone(),
        };
        let mut observation = Observation::default();
        observation.add(verdict);
        observation
    }
}

/// Answers that came too late, and errors that nobody heard of.
fn forget_what_came(socket: &UdpSocket) {
    let is_empty = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
    while !socket.recv_from(&mut [0; 256]).is_err_and(is_empty) {}
}

/// A connection to a server that says who it is, and then what it is told.
struct Conversation {
    stream: BufReader<TcpStream>,
    /// Who is at the other end, and which address of the client it sees.
    with: (Endpoint, IpAddr),
    /// How often it was spoken.
    lines: u32,
}

impl Conversation {
    async fn open(client: &Client, to: SocketAddr) -> io::Result<Self> {
        let mut stream = BufReader::new(client.connect(to).await?);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        Ok(Self { stream, with: parse(&line, ECHO_PORT)?, lines: 0 })
    }

    async fn speak(&mut self) -> io::Result<(Endpoint, IpAddr)> {
        self.lines += 1;
        let said = format!("{}\n", self.lines);
        self.stream.get_mut().write_all(said.as_bytes()).await?;
        let mut heard = String::new();
        // What was said before may come back late.
        while heard != said {
            heard.clear();
            if self.stream.read_line(&mut heard).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.with.clone())
    }
}
