//! HTTP servers that anyone may ask: few paths, short answers, and no client that can keep the others out.
//!
//! Answers look as Go's `net/http` writes them (capitals, order of headers), since probes were written against it.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::jiff::Timestamp;
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

/// Pause before an address that cannot be had is tried again, as kube-proxy pauses.
const RETRY: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted: there are no descriptors left, for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection may be without a whole request, which is also how long it may be idle. Longer than probes and
/// scrapes are apart by default (10 s to 60 s), so that they can keep their connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
/// How many connections one server holds. One more ends the oldest, so that those who hold them keep nobody out.
const CONNECTIONS: usize = 128;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;
/// Longest head of a request, in bytes; the least that hyper takes.
const HEAD: usize = 8192;

/// What a server sends back.
pub(crate) type Answer = Response<Full<Bytes>>;

/// What a server knows.
pub(crate) trait Handler: Send + Sync + 'static {
    /// The answer to a request that came to the address `local`.
    fn answer(&self, request: Parts, local: IpAddr) -> impl Future<Output = Answer> + Send;
}

/// The address of a server that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{name} {address}: {source}")]
pub(crate) struct BindError {
    name: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Serves until the process ends. An address that cannot be had is said once, also to `unbound`, and tried again: the
/// data plane is worth more than its probe. `name` is what the operator calls the address.
pub(crate) async fn serve_at(
    name: &'static str,
    address: SocketAddr,
    handler: impl Handler,
    unbound: mpsc::Sender<BindError>,
) {
    let mut said = false;
    let listener = loop {
        match listen(address) {
            Ok(listener) => break listener,
            Err(error) if said => tracing::debug!("{name} {address}: {error}"),
            Err(source) => {
                let error = BindError { name, address, source };
                tracing::error!("{error}; trying again");
                // Nobody listens where it is not fatal.
                let _ = unbound.try_send(error);
            }
        }
        said = true;
        sleep(RETRY).await;
    };
    if said {
        tracing::info!("{name} {address}: serving");
    }
    serve(listener, Arc::new(handler)).await;
}

/// Listens. The unspecified address of either family stands for all addresses of both, as it does for Go.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let everywhere = address.ip().is_unspecified();
    let (socket, address) = match TcpSocket::new_v6() {
        Ok(socket) if everywhere => {
            setsockopt(&socket, Ipv6V6Only, &false)?;
            (socket, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()))
        }
        // A kernel without IPv6.
        Err(_) if everywhere => (TcpSocket::new_v4()?, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())),
        _ if address.is_ipv4() => (TcpSocket::new_v4()?, address),
        socket => (socket?, address),
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until the future is dropped, which ends the connections as well.
pub(crate) async fn serve(listener: TcpListener, handler: Arc<impl Handler>) {
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accepting a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        by_age.retain(|connection| !connection.is_finished());
        if by_age.len() >= CONNECTIONS
            && let Some(oldest) = by_age.pop_front()
        {
            oldest.abort();
        }
        by_age.push_back(connections.spawn(converse(stream, Arc::clone(&handler))));
    }
}

async fn converse(stream: TcpStream, handler: Arc<impl Handler>) {
    let Ok(local) = stream.local_addr() else { return };
    let local = local.ip().to_canonical();
    let service = service_fn(|request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, Infallible>(handler.answer(request.into_parts().0, local).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT).max_buf_size(HEAD).title_case_headers(true);
    // Whatever became of the connection, its client knows better.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

/// An answer, its headers in Go's order: `more` are to be in the order of the alphabet, after `Content-Type`.
pub(crate) fn answer(
    status: StatusCode,
    content_type: &'static str,
    more: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    body: impl Into<Bytes>,
) -> Answer {
    let body = body.into();
    let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let length = HeaderValue::from(body.len());
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.extend(more);
    if let Ok(date) = HeaderValue::try_from(date) {
        headers.insert(DATE, date);
    }
    headers.insert(CONTENT_LENGTH, length);
    answer
}

/// JSON.
pub(crate) fn json(
    status: StatusCode,
    more: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    body: impl Into<Bytes>,
) -> Answer {
    answer(status, "application/json", more, body)
}

/// Plain text.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", [], body)
}

/// What Go answers where there is nothing.
pub(crate) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

#[cfg(test)]
pub(crate) mod testing {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Serves on a port of its own, and tells where.
    pub(crate) fn start(handler: Arc<impl Handler>) -> SocketAddr {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(serve(listener, handler));
        address
    }

    /// All bytes of the answer to one request, with the date taken out.
    pub(crate) async fn get(to: SocketAddr, path: &str) -> String {
        let text = get_whole(to, path, "").await;
        let line = text.lines().find(|line| line.starts_with("Date: ")).expect("a date");
        text.replace(&format!("{line}\r\n"), "")
    }

    /// All bytes of the answer to one request with these more lines.
    pub(crate) async fn get_whole(to: SocketAddr, path: &str, lines: &str) -> String {
        let mut stream = TcpStream::connect(to).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        text
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::timeout,
    };

    use super::{testing::*, *};

    struct Path;

    impl Handler for Path {
        fn answer(&self, request: Parts, local: IpAddr) -> impl Future<Output = Answer> + Send {
            std::future::ready(match request.uri.path() {
                "/where" => text(StatusCode::OK, local.to_string()),
                _ => not_found(),
            })
        }
    }

    #[tokio::test]
    async fn answers_are_written_as_go_writes_them() {
        let address = start(Arc::new(Path));
        let text = get_whole(address, "/nothing", "").await;
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert_eq!(body, "404 page not found\n");
        let lines: Vec<_> = head.split("\r\n").collect();
        let [status, content, options, date, length, connection] = lines[..] else { panic!("{head}") };
        assert_eq!(status, "HTTP/1.1 404 Not Found");
        assert_eq!(content, "Content-Type: text/plain; charset=utf-8");
        assert_eq!(options, "X-Content-Type-Options: nosniff");
        assert_eq!((length, connection), ("Content-Length: 19", "Connection: close"));
        let written = date.strip_prefix("Date: ").expect("a date");
        let read = k8s_openapi::jiff::fmt::rfc2822::parse(written).expect("as RFC 9110 has it").timestamp();
        assert!((Timestamp::now() - read).get_seconds().abs() < 60, "{date}");
    }

    #[tokio::test]
    async fn the_unspecified_address_is_that_of_both_families() {
        let listener = listen("0.0.0.0:0".parse().expect("an address")).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(serve(listener, Arc::new(Path)));
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().expect("an address");
            let text = get(SocketAddr::new(address, port), "/where").await;
            assert!(text.ends_with(&format!("\r\n\r\n{address}")), "{text}");
        }
    }

    #[tokio::test]
    async fn those_who_hold_connections_keep_nobody_out() {
        let address = start(Arc::new(Path));
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(b"GET / HT").await.expect("sent");
            held.push(stream);
        }
        let text = timeout(Duration::from_secs(5), get(address, "/where")).await.expect("an answer");
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
        // The first has made room, the last has not.
        let mut byte = [0];
        let ended = timeout(Duration::from_secs(5), held[0].read(&mut byte)).await.expect("it was ended");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        let last = held.last_mut().expect("some");
        last.write_all(b"TP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        assert_eq!(timeout(Duration::from_secs(5), last.read(&mut byte)).await.expect("an answer").ok(), Some(1));
    }
}
