//! The table of Services in the picture, in columns that fit a terminal.

use std::net::{IpAddr, SocketAddr};

use ratatui::{
    Frame,
    layout::{Constraint, Rect},
    widgets::{Block, Row, Table},
};

use crate::{
    observe::{Observation, ServicePort},
    picture::bold,
};

/// From this width on there is room for IPv6.
const WIDE: u16 = 110;

/// Draws the Services in the maps of a node.
pub(crate) fn draw(frame: &mut Frame, area: Rect, node: &str, observation: &Observation) {
    let is_wide = area.width >= WIDE;
    let longest = |texts: &mut dyn Iterator<Item = usize>, least: usize| {
        Constraint::Length(u16::try_from(texts.max().unwrap_or(0).clamp(least, 24)).unwrap_or(24))
    };
    let keys = || observation.services.keys();
    let widths = [
        longest(&mut keys().map(|(name, _, _)| name.len()), 7),
        longest(&mut keys().map(|(_, port, protocol)| port.len() + 1 + protocol.len()), 4),
        Constraint::Length(13),
        Constraint::Length(if is_wide { 19 } else { 0 }),
        Constraint::Length(5),
        Constraint::Length(2),
        Constraint::Fill(1),
    ];
    let rows = observation.services.iter().map(|((name, port, protocol), service)| {
        let ServicePort { addresses, node_port, backends } = service;
        let of = |is_v6| addresses.iter().find(|text| text.starts_with('[') == is_v6).cloned().unwrap_or_default();
        Row::new([
            name.clone(),
            format!("{port}/{protocol}"),
            of(false),
            of(true),
            node_port.map(|port| port.to_string()).unwrap_or_default(),
            backends.len().to_string(),
            compact(backends),
        ])
    });
    let header = bold(Row::new(["service", "port", "cluster IP", "", "node", "#", "backends, those of IPv4"]));
    let title = format!(" Services, as {node}'s maps hold them ");
    let table = Table::new(rows, widths).header(header).block(Block::bordered().title(title));
    frame.render_widget(table, area);
}

/// The IPv4 addresses of backends, of each network the first whole: `10.1.1.1 .2 .3 10.1.2.1`.
fn compact(backends: &[SocketAddr]) -> String {
    let mut addresses: Vec<[u8; 4]> = backends
        .iter()
        .filter_map(|backend| match backend.ip() {
            IpAddr::V4(address) => Some(address.octets()),
            IpAddr::V6(_) => None,
        })
        .collect();
    addresses.sort_unstable();
    let mut words = Vec::new();
    let mut network = None;
    for [a, b, c, d] in addresses {
        words.push(if network == Some([a, b, c]) { format!(".{d}") } else { format!("{a}.{b}.{c}.{d}") });
        network = Some([a, b, c]);
    }
    words.join(" ")
}

/// A line in lines of at most this many characters; those after the first are indented.
pub(crate) fn wrap(line: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "       ";
    let mut lines = vec![String::new()];
    for word in line.split_inclusive(' ') {
        let last = lines.last_mut().expect("one at least");
        if last.len() + word.trim_end().len() > width && !last.trim().is_empty() {
            lines.push(format!("{INDENT}{word}"));
        } else {
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    /// What the lab shows of one Service.
    fn observation() -> Observation {
        let backends: Vec<SocketAddr> = [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]
            .iter()
            .flat_map(|[node, pod]| {
                [format!("10.1.{node}.{pod}:9000"), format!("[fd00:10:1:{node}::{pod}]:9000")]
                    .map(|text| text.parse().expect("an address"))
            })
            .collect();
        let port = |port: u16, node_port| ServicePort {
            addresses: vec![format!("10.96.0.1:{port}"), format!("[fd00:10:96::1]:{port}")],
            node_port: Some(node_port),
            backends: backends.clone(),
        };
        let key = |name: &str, protocol| ("lab/web".to_owned(), name.to_owned(), protocol);
        let services = BTreeMap::from([
            (key("echo-tcp", "TCP"), port(7, 30001)),
            (key("echo-udp", "UDP"), port(7, 30001)),
            (key("http", "TCP"), port(80, 30101)),
        ]);
        Observation { services, verdicts: BTreeMap::new() }
    }

    fn drawn(width: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, 6)).expect("in memory");
        terminal.draw(|frame| draw(frame, frame.area(), "node2", &observation())).expect("in memory");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..6).map(|y| row(y).trim_matches(['│', ' ']).to_owned()).collect()
    }

    #[test]
    fn every_backend_is_in_the_picture_of_80_columns() {
        let lines = drawn(80);
        assert!(lines[0].contains("node2's maps"), "{lines:?}");
        assert_eq!(lines[2], "lab/web echo-tcp/TCP 10.96.0.1:7    30001 12 10.1.1.1 .2 .3 10.1.2.1 .2 .3");
        assert_eq!(lines[4], "lab/web http/TCP     10.96.0.1:80   30101 12 10.1.1.1 .2 .3 10.1.2.1 .2 .3");
    }

    #[test]
    fn the_picture_of_120_columns_has_room_for_ipv6() {
        assert_eq!(
            drawn(120)[4],
            "lab/web http/TCP     10.96.0.1:80  [fd00:10:96::1]:80  30101 12 10.1.1.1 .2 .3 10.1.2.1 .2 .3"
        );
    }

    #[test]
    fn long_lines_are_wrapped_at_words() {
        let line = "maps   nsenter -t 4242 -m -p bpftool map dump pinned /run/lb/node1/bpf/lb/v5/maps/FRONTENDS4";
        let lines = wrap(line, 78);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.trim_end().len() <= 78), "{lines:?}");
        assert_eq!(lines.concat().split_whitespace().collect::<Vec<_>>(), line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(wrap("short", 78), ["short"]);
    }
}
