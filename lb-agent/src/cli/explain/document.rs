//! How an explanation is shown.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{
    super::{output::table, service::Frontend},
    question::Place,
};

/// What `explain` prints for programs.
#[derive(Debug, Serialize)]
pub(super) struct Explanations {
    pub(super) items: Vec<Explanation>,
}

/// What becomes of one question.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explanation {
    /// `IPv4` or `IPv6`.
    pub(super) family: &'static str,
    pub(super) protocol: String,
    /// `pod`, `node` or `outside`.
    pub(super) from: Place,
    /// `null` for the node where no address was given.
    pub(super) source: Option<IpAddr>,
    /// `null` for the node's sockets, which have none when they are translated.
    pub(super) source_port: Option<u16>,
    /// Nobody gave the port: it is one that is free.
    pub(super) source_port_made_up: bool,
    /// What is asked, `address:port`.
    pub(super) destination: SocketAddr,
    /// `namespace/name:port/PROTOCOL`; `null` where no Service is asked.
    pub(super) service: Option<String>,
    /// The frontend that matches; `null` where none does. That of a port that a cluster IP does not have has port 0.
    pub(super) frontend: Option<Frontend>,
    /// Networks of clients that may ask, where the frontend is restricted.
    pub(super) source_ranges: Vec<String>,
    /// 0 = none.
    pub(super) affinity_seconds: u32,
    /// How an endpoint is picked: `hash` (a Maglev table is one as well), `roundRobin` or `leastConn`; `null` without a
    /// Service.
    pub(super) balance: Option<&'static str>,
    /// The programs that were run are those that are attached, instruction by instruction; `null` where none was run.
    pub(super) attached_build: Option<bool>,
    /// In the order in which they are met. The first one that does not pass decides.
    pub(super) ways: Vec<Way>,
}

/// What one hook does.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Way {
    /// `socket` (a call of a process in the agent's cgroup) or `packet`.
    pub(super) asker: &'static str,
    /// `connect4`, `connect6`, `sendmsg4`, `sendmsg6`, `podIngress`, `uplinkXdp`, `uplinkIngress`.
    pub(super) hooks: Vec<&'static str>,
    /// By which the packet comes.
    pub(super) device: Option<String>,
    /// `run`: the program was run on such a packet. `tables`: read from what the program would read.
    pub(super) found_by: &'static str,
    /// `translate`, `pass` (untouched), `refuse` or `drop`.
    pub(super) verdict: &'static str,
    pub(super) reason: Option<&'static str>,
    /// Of endpoints: `cluster` or `local`; `null` where it does not come to that.
    pub(super) list: Option<&'static str>,
    /// Every endpoint that a new flow may get.
    pub(super) endpoints: Vec<Share>,
    /// The endpoint that affinity holds the client to.
    pub(super) affinity: Option<SocketAddr>,
    /// The endpoint that this packet got.
    pub(super) endpoint: Option<SocketAddr>,
    /// Whether the node's address takes the place of the client's.
    pub(super) masquerade: Option<bool>,
    /// The client as the endpoint sees it, where that is decided here.
    pub(super) endpoint_sees: Option<SocketAddr>,
    /// Where answers are translated back.
    pub(super) reply_hooks: Vec<&'static str>,
    /// The packet is of a flow that is open.
    pub(super) known_flow: bool,
    /// What else there is to say, for people.
    pub(super) notes: Vec<String>,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Share {
    /// `address:port`.
    pub(super) address: SocketAddr,
    /// On this node.
    pub(super) local: bool,
    /// With which the next new flow gets it, from 0 to 1; of `leastConn`, where all have as many flows.
    pub(super) probability: f64,
}

impl Explanations {
    pub(super) fn text(&self) -> String {
        self.items.iter().map(Explanation::text).collect::<Vec<_>>().join("\n\n")
    }
}

impl Explanation {
    fn text(&self) -> String {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
        let mut fields = vec![
            ("From:", self.client()),
            ("To:", format!("{}/{}", self.destination, self.protocol)),
            ("Service:", or_none(self.service.clone())),
            ("Frontend:", or_none(self.frontend.as_ref().map(|frontend| self.describe(frontend)))),
        ];
        let has_port = self.frontend.as_ref().is_some_and(|frontend| frontend.port != 0);
        if self.balance.is_some() && has_port {
            let affinity = match self.affinity_seconds {
                0 => "no affinity".to_owned(),
                seconds => format!("affinity for {seconds}s"),
            };
            let picked = match self.balance {
                Some("roundRobin") => "in turn",
                Some("leastConn") => "of two by hash, the one with fewer flows",
                _ => "by hash",
            };
            fields.push(("Picking:", format!("{picked}, {affinity}")));
        }
        let fields = fields.iter().map(|(name, value)| format!("{name:<10}{value}"));
        let mut parts = vec![fields.collect::<Vec<_>>().join("\n")];
        let header =
            ["ASKER", "HOOK", "DEVICE", "VERDICT", "REASON", "LIST", "MASQUERADED", "ENDPOINT SEES", "FOUND BY"];
        parts.push(table(&header, self.ways.iter().map(Way::row)));
        let endpoints: Vec<_> = self.ways.iter().flat_map(Way::endpoint_rows).collect();
        if !endpoints.is_empty() {
            parts.push(table(&["ASKER", "ENDPOINT", "ON THIS NODE", "PROBABILITY", ""], endpoints));
        }
        let notes: Vec<_> = self.ways.iter().flat_map(|way| &way.notes).map(|note| format!("Note: {note}")).collect();
        if !notes.is_empty() {
            parts.push(notes.join("\n"));
        }
        parts.join("\n\n")
    }

    fn client(&self) -> String {
        let from = match self.from {
            Place::Pod => "pod",
            Place::Node => "node",
            Place::Outside => "outside",
        };
        match (self.source, self.source_port) {
            (None, _) => from.to_owned(),
            (Some(address), None) => format!("{from} {address}"),
            (Some(address), Some(port)) => {
                let made_up = if self.source_port_made_up { " (port made up)" } else { "" };
                format!("{from} {}{made_up}", SocketAddr::new(address, port))
            }
        }
    }

    fn describe(&self, frontend: &Frontend) -> String {
        if let (0, Some(address)) = (frontend.port, frontend.address) {
            return format!("{address}, a cluster IP without this port");
        }
        let clients = match (frontend.restricted, &self.source_ranges[..]) {
            (false, _) => "any".to_owned(),
            (true, []) => "none".to_owned(),
            (true, ranges) => ranges.join(","),
        };
        format!("{} {}, policy {}, clients {clients}", frontend.text(), frontend.kind(), frontend.policy())
    }
}

impl Way {
    fn row(&self) -> Vec<String> {
        let dash = || "-".to_owned();
        let masquerade = self.masquerade.map(|masquerade| if masquerade { "yes" } else { "no" });
        vec![
            self.asker.to_owned(),
            self.hooks.join(","),
            self.device.clone().unwrap_or_else(dash),
            self.verdict.to_owned(),
            self.reason.map_or_else(dash, ToOwned::to_owned),
            self.list.map_or_else(dash, ToOwned::to_owned),
            masquerade.map_or_else(dash, ToOwned::to_owned),
            self.endpoint_sees.map_or_else(dash, |seen| seen.to_string()),
            self.found_by.to_owned(),
        ]
    }

    fn endpoint_rows(&self) -> impl Iterator<Item = Vec<String>> {
        self.endpoints.iter().map(|Share { address, local, probability }| {
            let is = |endpoint: Option<SocketAddr>| endpoint == Some(*address);
            let mark = match (is(self.endpoint), is(self.affinity), self.known_flow) {
                (true, _, true) => "of the flow that is open",
                (_, true, _) => "kept by affinity",
                (true, false, false) => "this packet's",
                (false, false, _) => "",
            };
            vec![
                self.asker.to_owned(),
                address.to_string(),
                local.to_string(),
                format!("{:.1}%", probability * 100.0),
                mark.to_owned(),
            ]
        })
    }
}
