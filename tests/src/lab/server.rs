//! Servers that say who they are and whom they saw: `pod=node1-pod0 client=10.1.2.1:40312`, over TCP, UDP and HTTP.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::mpsc,
    thread::JoinHandle,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime,
    sync::oneshot,
};

use super::Host;

/// TCP: the line, then whatever the client sends. UDP: the line, filled up to the datagram's size with its own bytes.
pub const ECHO_PORT: u16 = 9000;
/// HTTP/1.1: the line, to any request.
pub const HTTP_PORT: u16 = 8080;

/// The servers of one host, in both families. They and their connections end when this is dropped.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the servers; they listen when this returns.
    pub fn start(host: &Host) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = mpsc::channel();
        let name = host.name().to_owned();
        let thread = host.spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
            runtime.block_on(async {
                let any = |port| (Ipv6Addr::UNSPECIFIED, port);
                let echo = TcpListener::bind(any(ECHO_PORT)).await.expect("bind the echo port");
                let http = TcpListener::bind(any(HTTP_PORT)).await.expect("bind the HTTP port");
                let datagrams = UdpSocket::bind(any(ECHO_PORT)).await.expect("bind the echo port");
                ready.send(()).expect("someone waits for this");
                tokio::select! {
                    () = accept(&echo, &name, echo_stream) => {}
                    () = accept(&http, &name, answer_http) => {}
                    () = echo_datagrams(&datagrams, &name) => {}
                    _ = stopped => {}
                }
            });
        });
        listening.recv().unwrap_or_else(|_| panic!("the servers of {} could not start", host.name()));
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the server has been reported where it happened.
            let _ = thread.join();
        }
    }
}

fn identity(pod: &str, client: SocketAddr) -> String {
    // The sockets serve both families; IPv4 clients show as `::ffff:a.b.c.d`.
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    format!("pod={pod} client={client}\n")
}

async fn accept<F>(listener: &TcpListener, pod: &str, serve: fn(TcpStream, String) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            // How a connection ends is the client's to judge.
            Ok((stream, client)) => drop(tokio::spawn(serve(stream, identity(pod, client)))),
            // The client has gone before it was accepted (accept(2), "Error handling").
            Err(error) => eprintln!("{pod}: accept: {error}"),
        }
    }
}

async fn echo_stream(mut stream: TcpStream, identity: String) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(identity.as_bytes()).await?;
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn answer_http(mut stream: TcpStream, identity: String) -> io::Result<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    let header = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        identity.len()
    );
    stream.write_all((header + &identity).as_bytes()).await?;
    stream.shutdown().await
}

async fn echo_datagrams(socket: &UdpSocket, pod: &str) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => {
                let mut answer = identity(pod, client).into_bytes();
                answer.extend_from_slice(buffer[..length].get(answer.len()..).unwrap_or_default());
                // A client that has gone needs no answer.
                let _ = socket.send_to(&answer, client).await;
            }
            // An earlier answer was refused.
            Err(error) => eprintln!("{pod}: receive: {error}"),
        }
    }
}
