use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lb_agent::{model::Family as _, watch::Lost};
use lb_common::abi::{Event, EventKind, EventPlace, FlowDirection, ProtocolNumber, Reason, ServiceName};
use serde::Serialize;

use super::{super::hooks::device, Clock};

/// An event for people and programs.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    /// RFC 3339, microseconds.
    time: String,
    /// `newFlow`, `refusal` or `drop`.
    r#type: &'static str,
    /// `null` for a new flow.
    reason: Option<String>,
    /// `tc`, `xdp` or `socket`.
    place: &'static str,
    /// Where the packet came by or leaves by; `null` for a socket.
    device: Option<String>,
    /// The process that made the socket call; `null` for a packet.
    process: Option<u32>,
    /// `request` or `reply`: whether it is about a packet to the client.
    direction: &'static str,
    /// `IPv4` or `IPv6`; `null` where it is not known.
    family: Option<&'static str>,
    protocol: Option<String>,
    /// Who asks. A socket has no port yet, and often no address.
    client: Option<SocketAddr>,
    /// What is asked.
    frontend: Option<SocketAddr>,
    /// Who answers: of a new flow, and of what is dropped of a known one.
    backend: Option<SocketAddr>,
    /// `namespace/name:port/PROTOCOL`, or `<service N?>`; `null` where it is for none.
    service: Option<String>,
}

/// One of the addresses of an event.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Client,
    Frontend,
    Backend,
}

/// An address of an event, where it has it.
pub(super) fn end_of(event: &Event, end: End) -> Option<SocketAddr> {
    let (octets, port) = match end {
        End::Client => (event.client, event.client_port),
        End::Frontend => (event.frontend, event.frontend_port),
        End::Backend => (event.backend, event.backend_port),
    };
    let wide = Ipv6Addr::from(octets);
    let address = if event.family == 4 { wide.to_ipv4_mapped().map(IpAddr::V4) } else { Some(IpAddr::V6(wide)) };
    address.filter(|address| !address.is_unspecified()).map(|address| SocketAddr::new(address, port))
}

/// The name of an IP family.
pub(super) fn family(number: u8) -> Option<&'static str> {
    match number {
        4 => Some(<[u8; 4]>::NAME),
        6 => Some(<[u8; 16]>::NAME),
        _ => None,
    }
}

/// Widths of the columns, of which the last one has none. A row does not wait for the next.
const WIDTHS: [usize; 7] = [27, 26, 8, 22, 22, 22, 30];

pub(super) fn header() -> String {
    row(&["TIME", "WHAT", "PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "SERVICE", "BY"].map(str::to_owned))
}

fn row(cells: &[String; 8]) -> String {
    let widths = WIDTHS.into_iter().chain([0]);
    cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>().join(" ")
}

impl Shown {
    pub(super) fn new(event: &Event, service: Option<&ServiceName>, clock: Clock) -> Self {
        let ago = SignedDuration::try_from(Duration::from_nanos(clock.monotonic.saturating_sub(event.time)));
        // An event of just now may be younger than the clock.
        let time = ago.ok().and_then(|ago| clock.real.checked_sub(ago).ok()).unwrap_or(clock.real);
        let service = match service {
            Some(name) => Some(name.to_string()),
            None if event.service == Event::NOTHING => None,
            None => Some(format!("<service {}?>", event.service)),
        };
        let is_socket = event.place == EventPlace::Socket as u8;
        Self {
            time: format!("{time:.6}"),
            r#type: match EventKind::from_number(event.kind) {
                Some(EventKind::NewFlow) => "newFlow",
                Some(EventKind::Refusal) => "refusal",
                Some(EventKind::Drop) => "drop",
                None => "unknown",
            },
            reason: (event.reason != Event::NOTHING).then(|| reason(event.reason)),
            place: match EventPlace::from_number(event.place) {
                Some(EventPlace::Tc) => "tc",
                Some(EventPlace::Xdp) => "xdp",
                Some(EventPlace::Socket) => "socket",
                None => "unknown",
            },
            device: (event.interface != 0).then(|| device(event.interface)),
            process: is_socket.then_some(event.process),
            direction: if event.direction == FlowDirection::Reply as u8 { "reply" } else { "request" },
            family: family(event.family),
            protocol: (event.family != 0).then(|| ProtocolNumber(event.protocol.into()).to_string()),
            client: end_of(event, End::Client),
            frontend: end_of(event, End::Frontend),
            backend: end_of(event, End::Backend),
            service,
        }
    }

    pub(super) fn line(&self) -> String {
        let Self { time, r#type, reason, place, device, process, direction: _, family: _, protocol, client, .. } = self;
        let Self { frontend, backend, service, .. } = self;
        let what = match (*r#type, reason) {
            ("newFlow", _) => "new flow".to_owned(),
            ("refusal", Some(reason)) => format!("refuse {reason}"),
            (_, Some(reason)) => format!("drop {reason}"),
            (kind, None) => kind.to_owned(),
        };
        let end = |end: &Option<SocketAddr>| end.map_or_else(|| "-".to_owned(), |end| end.to_string());
        let or_nothing = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let by = match (process, device) {
            (Some(process), _) => format!("process {process}"),
            (None, Some(device)) => format!("{device} {place}"),
            (None, None) => (*place).to_owned(),
        };
        let ends = [client, frontend, backend].map(end);
        let [client, frontend, backend] = ends;
        row(&[time.clone(), what, or_nothing(protocol), client, frontend, backend, or_nothing(service), by])
    }
}

fn reason(number: u32) -> String {
    Reason::from_number(number).map_or_else(|| format!("<reason {number}?>"), |reason| reason.name().to_owned())
}

/// Events that were not written.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Loss {
    /// When it was seen, RFC 3339.
    time: String,
    /// How many.
    pub(super) lost: u64,
    /// Of these, how many because of `--rate`.
    over_rate: u64,
    /// How many because this reader is too slow.
    no_room: u64,
}

impl Loss {
    pub(super) fn new(lost: Lost) -> Self {
        let Lost { over_rate, no_room } = lost;
        Self { time: format!("{:.6}", Timestamp::now()), lost: over_rate + no_room, over_rate, no_room }
    }

    pub(super) fn line(&self) -> String {
        let Self { time, lost, over_rate, no_room } = self;
        let [width, ..] = WIDTHS;
        format!(
            "{time:width$}{lost} events lost: {over_rate} beyond --rate, {no_room} because they were not read in time"
        )
    }
}
