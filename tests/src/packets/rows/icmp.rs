//! ICMP errors about packets of a Service's flows: each tells its receiver of a packet as that one sent it.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, icmpv4, icmpv6};
use lb_common::abi::{Hook, Protocol, Reason};

use super::{
    Case, TARGET, at,
    headers::wrapped,
    lifetimes::{MARGIN, UDP, quieten_all},
};
use crate::packets::{
    Interface, Packet, Place, Row, Verdict,
    world::{OTHER_NODE_MAC, POD_MAC, ROUTER_MAC},
};

const POD_IN: Hook = Hook::PodIngress;
const POD_OUT: Hook = Hook::PodEgress;
const IN: Hook = Hook::UplinkIngress;
const OUT: Hook = Hook::UplinkEgress;

/// What an error says.
#[derive(Clone, Copy, Debug)]
enum Kind {
    NoPort,
    NoHost,
    TooBig,
    TimeExceeded,
    Parameter,
}

impl Kind {
    const ALL: [Self; 5] = [Self::NoPort, Self::NoHost, Self::TooBig, Self::TimeExceeded, Self::Parameter];

    fn v4(self) -> Icmpv4Type {
        use icmpv4::{DestUnreachableHeader, ParameterProblemHeader, TimeExceededCode};
        match self {
            Self::NoPort => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
            Self::NoHost => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host),
            Self::TooBig => {
                let header = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
                Icmpv4Type::DestinationUnreachable(header)
            }
            Self::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
            Self::Parameter => Icmpv4Type::ParameterProblem(ParameterProblemHeader::PointerIndicatesError(8)),
        }
    }

    fn v6(self) -> Icmpv6Type {
        use icmpv6::{DestUnreachableCode, ParameterProblemCode, ParameterProblemHeader, TimeExceededCode};
        match self {
            Self::NoPort => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
            Self::NoHost => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Address),
            Self::TooBig => Icmpv6Type::PacketTooBig { mtu: 1400 },
            Self::TimeExceeded => Icmpv6Type::TimeExceeded(TimeExceededCode::HopLimitExceeded),
            Self::Parameter => Icmpv6Type::ParameterProblem(ParameterProblemHeader {
                code: ParameterProblemCode::UnrecognizedNextHeader,
                pointer: 6,
            }),
        }
    }

    /// The error about what is quoted.
    fn error(self, from: IpAddr, to: IpAddr, quoted: &[u8]) -> Packet {
        match from {
            IpAddr::V4(_) => Packet::icmp4(from, to, self.v4()),
            IpAddr::V6(_) => Packet::icmp6(from, to, self.v6()),
        }
        .payload(quoted)
    }
}

/// A packet as it is quoted with so many bytes of what follows its IP header, one hop before its end.
fn quote(packet: &Packet, bytes: usize) -> Vec<u8> {
    let packet = packet.clone().ttl(1);
    let end = packet.transport_offset() + bytes;
    let frame = packet.bytes();
    frame[packet.ip_offset()..end.min(frame.len())].to_vec()
}

/// A flow of each kind, after its first packet: what its ends send, and what becomes of that.
struct Flow {
    row: Row,
    /// What the client sends, and what the backend gets.
    request: (Packet, Packet),
    /// What the backend sends, and what the client gets.
    reply: (Packet, Packet),
    client: IpAddr,
    /// What the client takes its peer to be.
    frontend: IpAddr,
    /// What the backend takes its peer to be.
    seen: IpAddr,
    backend: IpAddr,
}

impl Flow {
    fn new(
        case: Case,
        sentence: &str,
        client: SocketAddr,
        frontend: SocketAddr,
        seen: SocketAddr,
        backend: (SocketAddr, Place),
    ) -> Self {
        let (request, reply) = (case.later(client, frontend), case.later(backend.0, seen));
        Self {
            row: case.row(sentence, case.one(backend.0, backend.1)),
            request: (request.clone(), request.from(seen).to(backend.0)),
            reply: (reply.clone(), reply.from(frontend).to(client)),
            client: client.ip(),
            frontend: frontend.ip(),
            seen: seen.ip(),
            backend: backend.0.ip(),
        }
    }

    /// Between a pod of this node and a backend anywhere.
    fn of_pod(case: Case, sentence: &str) -> Self {
        let sentence = format!("a pod's flow: {sentence}");
        let flow =
            Self::new(case, &sentence, case.pod(), case.cluster_ip(), case.pod(), (case.remote(), Place::Remote));
        flow.begun(POD_IN, |packet| packet, Verdict::Next)
    }

    /// Between a client outside and a backend of this node.
    fn to_local(case: Case, sentence: &str) -> Self {
        let sentence = format!("a flow from outside to a backend here: {sentence}");
        let flow =
            Self::new(case, &sentence, case.client(), case.node_port(), case.client(), (case.local(), Place::Local));
        flow.begun(IN, |packet| packet, Verdict::Next)
    }

    /// Between a client outside and a backend of another node.
    fn to_remote(case: Case, sentence: &str) -> Self {
        let sentence = format!("a flow from outside to a backend elsewhere: {sentence}");
        let backend = (case.remote(), Place::Remote);
        let flow = Self::new(case, &sentence, case.client(), case.node_port(), case.masqueraded(), backend);
        flow.begun(IN, to_node, Verdict::Redirect)
    }

    /// Between a pod and itself.
    fn of_hairpin(case: Case, sentence: &str) -> Self {
        let sentence = format!("a pod's flow to itself: {sentence}");
        let backend = (at(case.net.pod, TARGET), Place::Local);
        let flow = Self::new(case, &sentence, case.pod(), case.cluster_ip(), case.masqueraded(), backend);
        flow.begun(POD_IN, to_pod, Verdict::Redirect)
    }

    /// After a packet of the client's.
    fn begun(self, hook: Hook, way: impl FnOnce(Packet) -> Packet, verdict: Verdict) -> Self {
        let (sent, received) = self.request.clone();
        self.with(|row| row.packet(hook, sent, verdict, way(received)))
    }

    /// What this node makes of an error about the request that the backend would get.
    fn to_client(&self, kind: Kind, from: IpAddr, bytes: usize) -> (Packet, Packet) {
        let told_by = if from == self.backend { self.frontend } else { from };
        (
            kind.error(from, self.seen, &quote(&self.request.1, bytes)),
            kind.error(told_by, self.client, &quote(&self.request.0, bytes)),
        )
    }

    /// What this node makes of an error about the reply that the client would get; the backend hears of it from `told_by`.
    fn to_backend(&self, kind: Kind, from: IpAddr, told_by: IpAddr, bytes: usize) -> (Packet, Packet) {
        (
            kind.error(from, self.frontend, &quote(&self.reply.1, bytes)),
            kind.error(told_by, self.backend, &quote(&self.reply.0, bytes)),
        )
    }

    /// Then an error becomes another one, by this way.
    fn told(
        self,
        hook: Hook,
        (input, output): (Packet, Packet),
        verdict: Verdict,
        way: impl FnOnce(Packet) -> Packet,
    ) -> Self {
        self.with(|row| row.packet(hook, input, verdict, way(output)).counted(Reason::IcmpError))
    }

    /// What else is said of the row.
    fn with(self, change: impl FnOnce(Row) -> Row) -> Self {
        Self { row: change(self.row), ..self }
    }

    /// Then an error passes as it is.
    fn passes(self, hook: Hook, error: impl Into<Bytes>) -> Self {
        self.with(|row| row.untouched(hook, error))
    }
}

/// The packet as this node sends it towards clients.
fn to_router(packet: Packet) -> Packet {
    packet.forwarded(Interface::Uplink.mac(), ROUTER_MAC)
}

/// The packet as this node sends it to the other one.
fn to_node(packet: Packet) -> Packet {
    packet.forwarded(Interface::Uplink.mac(), OTHER_NODE_MAC)
}

/// The packet as this node sends it to a pod.
fn to_pod(packet: Packet) -> Packet {
    packet.forwarded(Interface::Pod.mac(), POD_MAC)
}

/// The packet as it came.
fn as_it_came(packet: Packet) -> Packet {
    packet
}

/// All of what follows an IP header.
const ALL: usize = usize::MAX / 2;

pub(super) fn rows(case: Case) -> Vec<Row> {
    let router = case.net.stranger;
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let sentence = |what: &str| format!("{kind:?} about {what}");
        let both = [("the other end", true), ("a router", false)];
        for (who, is_end) in both {
            let from = |end: IpAddr| if is_end { end } else { router };

            let flow = Flow::of_pod(case, &sentence(&format!("the request, from {who}")));
            let error = flow.to_client(kind, from(flow.backend), ALL);
            rows.push(flow.told(POD_OUT, error, Verdict::Next, as_it_came));

            // It passes the backend's interface first.
            let flow = Flow::to_local(case, &sentence(&format!("the request, from {who}")));
            let error = flow.to_client(kind, from(flow.backend), ALL);
            let first = error.0.clone();
            rows.push(flow.passes(POD_IN, first).told(OUT, error, Verdict::Next, as_it_came));

            let flow = Flow::to_remote(case, &sentence(&format!("the request, from {who}")));
            let error = flow.to_client(kind, from(flow.backend), ALL);
            rows.push(flow.told(IN, error, Verdict::Redirect, to_router));

            let flow = Flow::to_local(case, &sentence(&format!("the reply, from {who}")));
            let from_there = from(flow.client);
            let error = flow.to_backend(kind, from_there, from_there, ALL);
            rows.push(flow.told(IN, error, Verdict::Next, as_it_came));

            let flow = Flow::to_remote(case, &sentence(&format!("the reply, from {who}")));
            let error = flow.to_backend(kind, from(flow.client), flow.seen, ALL);
            rows.push(flow.told(IN, error, Verdict::Redirect, to_node));
        }
        let flow = Flow::of_pod(case, &sentence("the reply"));
        let error = flow.to_backend(kind, flow.client, flow.client, ALL);
        rows.push(flow.told(POD_IN, error, Verdict::Next, as_it_came));

        let flow = Flow::of_hairpin(case, &sentence("the request, and about the reply"));
        let about_request = flow.to_client(kind, flow.backend, ALL);
        let about_reply = flow.to_backend(kind, flow.client, flow.seen, ALL);
        rows.push(flow.told(POD_IN, about_request, Verdict::Redirect, to_pod).told(
            POD_IN,
            about_reply,
            Verdict::Redirect,
            to_pod,
        ));
    }
    rows.extend(quotations(case));
    rows.extend(headers(case));
    rows.extend(others(case));
    rows.extend(ways_out(case));
    rows.into_iter().map(|flow: Flow| flow.row).collect()
}

/// As much as may be quoted, or as little.
fn quotations(case: Case) -> Vec<Flow> {
    let mut rows = Vec::new();
    // The ports; what RFC 792 asks for; up to a TCP checksum, and with it; a TCP header without options, and a byte of data.
    for bytes in [4, 8, 16, 18, 20, 21] {
        for remote in [false, true] {
            let sentence = format!("{bytes} bytes are quoted");
            let flow = if remote { Flow::to_remote(case, &sentence) } else { Flow::to_local(case, &sentence) };
            let (hook, verdict, way): (_, _, fn(Packet) -> Packet) =
                if remote { (IN, Verdict::Redirect, to_router) } else { (OUT, Verdict::Next, as_it_came) };
            let error = flow.to_client(Kind::NoPort, flow.backend, bytes);
            rows.push(flow.told(hook, error, verdict, way));
        }
    }
    let flow = Flow::of_pod(case, "less than the ports is quoted");
    let (error, _) = flow.to_client(Kind::NoPort, flow.backend, 3);
    rows.push(flow.passes(POD_OUT, error).with(|row| row.counted(Reason::Malformed)));

    // A frame's padding is no part of the quotation.
    let flow = Flow::of_pod(case, "what follows the quotation is not looked at");
    let (input, output) = flow.to_client(Kind::NoPort, flow.backend, 4);
    let padded = |packet: &Packet| packet.bytes_with(|frame| frame.extend([0xaa; 20]));
    rows.push(
        flow.with(|row| row.packet(POD_OUT, padded(&input), Verdict::Next, padded(&output)).counted(Reason::IcmpError)),
    );

    if case.protocol == Protocol::Udp && case.net.pod.is_ipv4() {
        let mut flow = Flow::of_pod(case, "a quoted datagram without a checksum has none afterwards");
        flow.request = (flow.request.0.without_checksum(), flow.request.1.without_checksum());
        let error = flow.to_client(Kind::NoPort, flow.backend, 8);
        rows.push(flow.told(POD_OUT, error, Verdict::Next, as_it_came));
    }
    rows
}

/// All that may stand before the transport header, in the error and in what it quotes.
fn headers(case: Case) -> Vec<Flow> {
    let mut rows = Vec::new();
    let start = Flow::of_pod(case, "");
    let (request, sent) = (wrapped(&start.request.0), wrapped(&start.request.1));
    for ((what, request), (_, sent)) in request.into_iter().zip(sent) {
        // Programs follow headers up to 512 bytes, and there are two IP headers.
        if !request.tags().is_empty() || request.transport_offset() > 300 {
            continue;
        }
        let mut flow = Flow::of_pod(case, &format!("{what} in what is quoted"));
        flow.request = (request, sent);
        let error = flow.to_client(Kind::TooBig, flow.backend, ALL);
        rows.push(flow.told(POD_OUT, error, Verdict::Next, as_it_came));
    }
    let (input, output) = start.to_client(Kind::TooBig, start.backend, 8);
    for ((what, input), (_, output)) in wrapped(&input).into_iter().zip(wrapped(&output)) {
        if input.transport_offset() > 300 {
            continue;
        }
        let flow = Flow::of_pod(case, &format!("{what} in front of the error"));
        rows.push(flow.told(POD_OUT, (input, output), Verdict::Next, as_it_came));
    }
    // The VLAN's device sees it next.
    let flow = Flow::to_remote(case, "an error behind a VLAN tag, to forward, is left to the VLAN's device");
    let (error, _) = flow.to_client(Kind::NoPort, flow.backend, ALL);
    rows.push(flow.passes(IN, error.vlans(&[7])).with(|row| row.counted(Reason::VlanForward)));
    rows
}

/// What is none of our business.
fn others(case: Case) -> Vec<Flow> {
    let net = case.net;
    let flow = Flow::of_pod(case, "errors that are not for its packets, and messages that are no errors, pass");
    let (error, _) = flow.to_client(Kind::NoPort, flow.backend, ALL);
    let sent = &flow.request.1;
    let about = |packet: &Packet| Kind::NoPort.error(flow.backend, flow.client, &quote(packet, ALL));
    let mut messages = vec![
        // Another flow's; the reply itself; to somebody else than the sender.
        about(&sent.clone().to(at(flow.backend, TARGET + 1))),
        about(&flow.reply.0),
        Kind::NoPort.error(flow.backend, net.local_backend, &quote(sent, ALL)),
        about(&Packet::other(flow.client, flow.backend, 132)),
    ];
    let echo = IcmpEchoHeader { id: 1, seq: 2 };
    if net.pod.is_ipv4() {
        let icmp = |kind| Packet::icmp4(flow.backend, flow.client, kind).payload(&quote(sent, ALL));
        messages.extend(vec![
            icmp(Icmpv4Type::EchoReply(echo)),
            // Redirect (5), source quench (4).
            icmp(Icmpv4Type::Unknown { type_u8: 5, code_u8: 1, bytes5to8: [192, 0, 2, 1] }),
            icmp(Icmpv4Type::Unknown { type_u8: 4, code_u8: 0, bytes5to8: [0; 4] }),
            // A later fragment, whose ports are data; and a fragment of an error.
            about(&sent.clone().ipv4(|ip| ip.fragment_offset = 8_u16.try_into().expect("13 bits"))),
            error.clone().ipv4(|ip| ip.more_fragments = true),
        ]);
    } else {
        let icmp = |kind| Packet::icmp6(flow.backend, flow.client, kind).payload(&quote(sent, ALL));
        messages.extend(vec![
            icmp(Icmpv6Type::EchoReply(echo)),
            // Reserved for errors to come (RFC 4443 §2.1).
            icmp(Icmpv6Type::Unknown { type_u8: 5, code_u8: 0, bytes5to8: [0; 4] }),
        ]);
    }
    let mut rows = vec![ended(case)];
    rows.push(messages.into_iter().fold(flow, |flow, message| flow.passes(POD_OUT, message)));
    let flow = Flow::of_pod(case, "an error does not count where its flow's replies are not translated");
    rows.push([POD_IN, IN, OUT].into_iter().fold(flow, |flow, hook| flow.passes(hook, &error)));
    rows
}

/// A datagram exchange that is over: its tuples may be others' by now. (A TCP connection's are its own until they are taken.)
fn ended(case: Case) -> Flow {
    let flow = Flow::of_pod(case, "an error about an exchange that is long over passes");
    let (request, told) = flow.to_client(Kind::NoPort, flow.backend, ALL);
    let (reply, told_backend) = flow.to_backend(Kind::NoPort, flow.client, flow.client, ALL);
    let flow = flow
        .with(|row| {
            row.spoil("letting both entries be quiet for a while", |dataplane| quieten_all(dataplane, UDP - MARGIN))
        })
        .told(POD_OUT, (request.clone(), told.clone()), Verdict::Next, as_it_came)
        .told(POD_IN, (reply.clone(), told_backend.clone()), Verdict::Next, as_it_came)
        .with(|row| row.spoil("letting them be quiet for longer", |dataplane| quieten_all(dataplane, MARGIN + 1)));
    match case.protocol {
        Protocol::Udp => flow.passes(POD_OUT, request).passes(POD_IN, reply),
        Protocol::Tcp => flow.told(POD_OUT, (request, told), Verdict::Next, as_it_came).told(
            POD_IN,
            (reply, told_backend),
            Verdict::Next,
            as_it_came,
        ),
    }
}

/// What may be in the way of errors that we send on.
fn ways_out(case: Case) -> Vec<Flow> {
    let flow = Flow::to_remote(case, "an error that has no time left is dropped");
    let (error, _) = flow.to_client(Kind::NoPort, flow.backend, ALL);
    let expired = flow.with(|row| row.dropped(IN, error.ttl(1), Reason::TtlExpired));

    let flow = Flow::to_remote(case, "an error that does not fit the way out is dropped: errors are not answered");
    let long = flow.request.1.clone().payload(&[0x5a; 1480]);
    let error = Kind::NoPort.error(flow.backend, flow.seen, &quote(&long, ALL));
    let too_big = flow.with(|row| row.dropped(IN, error, Reason::TooBig));

    let flow = Flow::to_remote(case, "");
    let (error, told) = flow.to_client(Kind::TimeExceeded, case.net.stranger, 8);
    let sentence = "a router on the way stays the source of its error";
    let named = Flow::to_remote(case, sentence).told(IN, (error, told), Verdict::Redirect, to_router);
    vec![expired, too_big, named]
}
