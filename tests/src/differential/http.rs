//! What the proxies' own servers answer: the health of the node and of Services, and what they tell of themselves.
//!
//! Answers are compared byte for byte, as they come from the socket, apart from what changes from one moment to the next:
//! the date, and points of time within the body, whose fractions of a second are as long as they need to be.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::Deserialize;

use super::target::{FrontendKind, Target};
use crate::lab::client::Transport;

/// How long an answer may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// A request that the node makes to itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Where.
    pub to: SocketAddr,
    /// What.
    pub path: String,
    /// How.
    #[serde(default = "get")]
    pub method: String,
    /// Whether the body is compared: that of `/metrics` is another one each time, and has a test of its own.
    #[serde(default = "yes")]
    pub body: bool,
}

fn get() -> String {
    "GET".to_owned()
}

fn yes() -> bool {
    true
}

impl Request {
    /// How reports call it.
    pub fn target(&self) -> Target {
        Target {
            service: format!("{} {}", self.method, self.path),
            kind: FrontendKind::Server,
            address: self.to,
            transport: Transport::Http,
            endpoints: 1,
            has_affinity: false,
            external_local: false,
            internal_local: false,
            kept: false,
        }
    }

    /// The answer to the calling thread's host, without what changes from one moment to the next; or why there is none.
    pub fn ask(&self) -> String {
        let (is_head, with_body) = (self.method == "HEAD", self.body);
        self.exchange().map_or_else(|error| error.to_string(), |text| lasting(&text, is_head, with_body))
    }

    fn exchange(&self) -> io::Result<String> {
        let Self { to, path, method, body: _ } = self;
        let mut stream = TcpStream::connect_timeout(to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: lab\r\n{length}Connection: close\r\n\r\n")?;
        let mut text = Vec::new();
        stream.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// An answer without what changes from one moment to the next.
fn lasting(answer: &str, is_head: bool, with_body: bool) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let times = |part: &str| if is_time(part) { "<time>".to_owned() } else { part.to_owned() };
    let written = body.split('"').map(times).collect::<Vec<_>>().join("\"");
    let changes = written != body || !with_body;
    let line = |line: &str| match line.split_once(": ") {
        Some(("Date", _)) => "Date: <date>".to_owned(),
        // In seconds: the twins' proxies are started one after the other.
        Some(("Process-Start-Time-Unix", _)) => "Process-Start-Time-Unix: <time>".to_owned(),
        Some(("Content-Length", length)) if changes && length == body.len().to_string() => {
            "Content-Length: <of the body>".to_owned()
        }
        // That of a body that is not sent (RFC 9110, 9.3.2), which GET shows.
        Some(("Content-Length", length)) if is_head && length != "0" => "Content-Length: <of a body>".to_owned(),
        _ => line.to_owned(),
    };
    let head: Vec<String> = head.split("\r\n").map(line).collect();
    format!("{}\r\n\r\n{}", head.join("\r\n"), if with_body { &written } else { "" })
}

/// Whether a string is a point of time (RFC 3339).
fn is_time(text: &str) -> bool {
    text.parse::<k8s_openapi::jiff::Timestamp>().is_ok()
}
