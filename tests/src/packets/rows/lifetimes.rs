//! When flows end: ports that go to other flows, tuples that are used again, entries met where they are not for.

use anyhow::ensure;
use lb_agent::jiffies::Jiffies;
use lb_common::abi::{Flow, FlowAction, FlowDirection, Hook, Protocol, Reason, TcpState, Tuple};

use super::{CLIENT_PORT, Case, at};
use crate::packets::{
    Dataplane, FlowEntry, Interface, Packet, Place, Row, Tables, TestService, Verdict,
    dataplane::{FlowOf, MapAddress},
    world::OTHER_NODE_MAC,
};

const POD_IN: Hook = Hook::PodIngress;
const POD_OUT: Hook = Hook::PodEgress;
const UPLINK_IN: Hook = Hook::UplinkIngress;

/// Seconds after which a quiet UDP exchange is over.
pub(super) const UDP: u64 = 120;
/// Seconds around the end of a lifetime at which rows look: the machine may stall in between.
pub(super) const MARGIN: u64 = 5;

pub(super) fn rows(case: Case) -> Vec<Row> {
    let mut rows = ports(case);
    rows.extend(other_hooks(case));
    match case.protocol {
        Protocol::Tcp => {
            rows.extend(resets(case));
            rows.extend(same_tuple(case));
            rows.extend(foreign_handshakes(case));
        }
        Protocol::Udp => {
            rows.push(foreign_datagram(case));
            rows.extend(silent_exchanges(case));
        }
    }
    rows
}

/// What was seen of a flow, in words; the bits; for how many seconds it may be quiet.
fn lifetimes(protocol: Protocol) -> &'static [(&'static str, u8, u64)] {
    const OPEN: u8 = TcpState::SYN | TcpState::ESTABLISHED;
    match protocol {
        Protocol::Udp => &[("an exchange", 0, UDP)],
        Protocol::Tcp => &[
            ("a connection that was reset", OPEN | TcpState::RST, 10),
            ("a connection that was closed and reset", OPEN | TcpState::FIN | TcpState::RST, 10),
            ("a connection that was closed", OPEN | TcpState::FIN, 60),
            ("a connection that is not answered", 0, 60),
            ("a connection that is not established", TcpState::SYN, 60),
            ("an established connection", OPEN, 24 * 60 * 60),
        ],
    }
}

/// The only port to masquerade with, wanted by a second client.
fn ports(case: Case) -> Vec<Row> {
    let (client, frontend, remote, masqueraded) = (case.client(), case.node_port(), case.remote(), case.masqueraded());
    let second_client = at(case.net.client, CLIENT_PORT + 1);
    let (first, second) = (case.first(client, frontend), case.first(second_client, frontend));
    let out = |packet: &Packet| {
        packet.clone().from(masqueraded).to(remote).forwarded(Interface::Uplink.mac(), OTHER_NODE_MAC)
    };
    let request = |client| {
        let entry =
            FlowEntry::new(UPLINK_IN, FlowAction::Forward, case.protocol, (client, frontend), (masqueraded, remote));
        if case.protocol == Protocol::Tcp { entry.syn() } else { entry }
    };
    let reply =
        FlowEntry::new(UPLINK_IN, FlowAction::Forward, case.protocol, (remote, masqueraded), (frontend, second_client))
            .at_entrances();
    lifetimes(case.protocol)
        .iter()
        .map(|&(what, state, lifetime)| {
            case.row(&format!("{what} keeps its port for {lifetime} s, and no longer"), case.one_remote())
                .packet(UPLINK_IN, &first, Verdict::Redirect, out(&first))
                .spoil("letting both entries be quiet for less than the lifetime", move |dataplane| {
                    quieten(dataplane, state, 0)?;
                    quieten_all(dataplane, lifetime - MARGIN)
                })
                .dropped(UPLINK_IN, &second, Reason::SnatPortsExhausted)
                .spoil("letting them be quiet for longer", |dataplane| quieten_all(dataplane, MARGIN + 1))
                .packet(UPLINK_IN, &second, Verdict::Redirect, out(&second))
                .flows([request(client), request(second_client), reply])
        })
        .collect()
}

/// Segments with these flags besides ACK.
fn ending(packet: Packet, state: u8) -> Packet {
    packet.tcp_header(|tcp| {
        tcp.fin = state & TcpState::FIN != 0;
        tcp.rst = state & TcpState::RST != 0;
    })
}

/// The entries of a pod's connection to an endpoint, no packet of which was seen yet.
fn entries(case: Case, backend: std::net::SocketAddr) -> (FlowEntry, FlowEntry) {
    let (pod, frontend, protocol) = (case.pod(), case.cluster_ip(), case.protocol);
    (
        FlowEntry::new(POD_IN, FlowAction::Stack, protocol, (pod, frontend), (pod, backend)),
        FlowEntry::new(POD_OUT, FlowAction::Stack, protocol, (backend, pod), (frontend, pod)),
    )
}

/// A handshake of a pod with its Service's endpoint on this node.
fn handshake(case: Case, sentence: &str) -> Row {
    let (pod, frontend, local) = (case.pod(), case.cluster_ip(), case.local());
    let (first, answer) = (case.first(pod, frontend), case.answer(local, pod));
    case.row(sentence, case.one_local()).packet(POD_IN, &first, Verdict::Next, first.clone().to(local)).packet(
        POD_OUT,
        &answer,
        Verdict::Next,
        answer.clone().from(frontend),
    )
}

/// A RST is not answered, so one packet must do for both directions.
fn resets(case: Case) -> Vec<Row> {
    let (pod, frontend, local) = (case.pod(), case.cluster_ip(), case.local());
    let (request, reply) = entries(case, local);
    let (open, reset) = (TcpState::SYN | TcpState::ESTABLISHED, TcpState::RST);
    let from_client = ending(case.later(pod, frontend), reset);
    let from_backend = ending(case.later(local, pod), reset);
    vec![
        handshake(case, "a client's RST ends both directions")
            .packet(POD_IN, &from_client, Verdict::Next, from_client.clone().to(local))
            .flows([request.with(open | reset), reply.syn().with(reset)]),
        handshake(case, "an endpoint's RST ends both directions")
            .packet(POD_OUT, &from_backend, Verdict::Next, from_backend.clone().from(frontend))
            .flows([request.syn().with(reset), reply.with(open | reset)]),
    ]
}

/// A client that takes the port of a former connection for its next one.
fn same_tuple(case: Case) -> Vec<Row> {
    let (pod, frontend, local, remote) = (case.pod(), case.cluster_ip(), case.local(), case.remote());
    let first = case.first(pod, frontend);
    // Both may be picked, but a pod's new flows go to the one on its node only.
    let elsewhere = || {
        let both = case.service().endpoint(local, Place::Local).endpoint(remote, Place::Remote);
        Tables::new([both.internal_local()])
    };
    let (request, reply) = entries(case, local);
    let mut rows = vec![
        case.row("a SYN that is sent again is not picked for again", case.one_remote())
            .packet(POD_IN, &first, Verdict::Next, first.clone().to(remote))
            .then(elsewhere())
            .packet(POD_IN, &first, Verdict::Next, first.clone().to(remote)),
    ];
    for (what, state) in [("was closed", TcpState::FIN), ("was reset", TcpState::RST)] {
        let last = ending(case.later(pod, frontend), state);
        let last_answer = ending(case.later(local, pod), state);
        let answer = case.answer(local, pod);
        rows.push(
            case.row(&format!("a SYN after a connection that {what} is picked for again"), case.one_remote())
                .packet(POD_IN, &first, Verdict::Next, first.clone().to(remote))
                .packet(POD_IN, &last, Verdict::Next, last.clone().to(remote))
                .then(elsewhere())
                .packet(POD_IN, &first, Verdict::Next, first.clone().to(local)),
        );
        rows.push(
            handshake(case, &format!("nothing is left of a connection that {what} when its tuple is used again"))
                .packet(POD_IN, &last, Verdict::Next, last.clone().to(local))
                .packet(POD_OUT, &last_answer, Verdict::Next, last_answer.clone().from(frontend))
                .packet(POD_IN, &first, Verdict::Next, first.clone().to(local))
                .flows([request.syn(), reply])
                .packet(POD_OUT, &answer, Verdict::Next, answer.clone().from(frontend))
                .flows([request.syn(), reply.syn()]),
        );
    }
    rows
}

/// A client that reaches the endpoint by itself, from a port that it had used for the Service before.
fn foreign_handshakes(case: Case) -> Vec<Row> {
    let (pod, frontend, local) = (case.pod(), case.cluster_ip(), case.local());
    let (answer, late) = (case.answer(local, pod), case.later(local, pod));
    let (request, _) = entries(case, local);
    let mut rows: Vec<Row> = [("was closed", TcpState::FIN), ("was reset", TcpState::RST)]
        .into_iter()
        .map(|(what, state)| {
            let last = ending(case.later(local, pod), state);
            let request = if state == TcpState::RST { request.syn().with(state) } else { request.syn() };
            handshake(
                case,
                &format!("a SYN-ACK after a connection that {what} is of another one, and so is what follows"),
            )
            .packet(POD_OUT, &last, Verdict::Next, last.clone().from(frontend))
            .packet(POD_OUT, &late, Verdict::Next, late.clone().from(frontend))
            .untouched(POD_OUT, &answer)
            .flows([request])
            .untouched(POD_OUT, &late)
        })
        .collect();
    for &(what, state, lifetime) in lifetimes(Protocol::Tcp) {
        let row = handshake(case, &format!("a SYN-ACK long after {what} is of another one, and so is what follows"))
            .spoil("letting the reply's entry be quiet for less than the lifetime", move |dataplane| {
                quieten(dataplane, state, lifetime - MARGIN)
            });
        let row = if state & (TcpState::FIN | TcpState::RST) == 0 {
            row.packet(POD_OUT, &answer, Verdict::Next, answer.clone().from(frontend))
                .spoil("letting it be quiet for longer", move |dataplane| quieten(dataplane, state, lifetime + 1))
        } else {
            row
        };
        rows.push(row.untouched(POD_OUT, &answer).flows([request.syn()]).untouched(POD_OUT, &late));
    }
    rows.push(
        handshake(case, "a client's connection of its own from the port of one that is open is taken for that one")
            .packet(POD_OUT, &late, Verdict::Next, late.clone().from(frontend))
            .packet(POD_OUT, &answer, Verdict::Next, answer.clone().from(frontend)),
    );
    rows
}

/// The same in UDP, where only silence tells.
fn foreign_datagram(case: Case) -> Row {
    let (pod, frontend, local) = (case.pod(), case.cluster_ip(), case.local());
    let answer = case.answer(local, pod);
    handshake(case, "a datagram after a long silence is of another exchange")
        .spoil("letting both entries be quiet for a while", |dataplane| quieten_all(dataplane, UDP - MARGIN))
        .packet(POD_OUT, &answer, Verdict::Next, answer.clone().from(frontend))
        .spoil("letting them be quiet for longer", |dataplane| quieten_all(dataplane, UDP + 1))
        .untouched(POD_OUT, &answer)
}

/// Exchanges that one side, or both, left alone for longer than entries are kept.
fn silent_exchanges(case: Case) -> Vec<Row> {
    let (pod, frontend, local) = (case.pod(), case.cluster_ip(), case.local());
    let (client, node_port, second_client) = (case.client(), case.node_port(), at(case.net.client, CLIENT_PORT + 1));
    let (first, answer) = (case.first(pod, frontend), case.answer(local, pod));
    let (from_client, from_second) = (case.first(client, node_port), case.first(second_client, node_port));
    let out = |packet: &Packet| {
        let to_remote = packet.clone().from(case.masqueraded()).to(case.remote());
        to_remote.forwarded(Interface::Uplink.mac(), OTHER_NODE_MAC)
    };
    // Both may be picked, but a pod's new flows go to the one on its node only.
    let both = case.service().endpoint(local, Place::Local).endpoint(case.remote(), Place::Remote);
    vec![
        case.row("an exchange whose client only listened for long stays with its endpoint", case.one_remote())
            .packet(POD_IN, &first, Verdict::Next, first.clone().to(case.remote()))
            .then(Tables::new([both.internal_local()]))
            .spoil("letting the client be silent", |dataplane| {
                age(dataplane, UDP + 1, &[FlowDirection::Request], None).map(drop)
            })
            .packet(POD_IN, &first, Verdict::Next, first.clone().to(case.remote()))
            .spoil("letting both be silent", |dataplane| quieten_all(dataplane, UDP + 1))
            .packet(POD_IN, &first, Verdict::Next, first.clone().to(local)),
        handshake(case, "an exchange that its client takes up again after a long silence is answered")
            .spoil("letting both entries be quiet", |dataplane| quieten_all(dataplane, UDP + 1))
            .packet(POD_IN, &first, Verdict::Next, first.clone().to(local))
            .packet(POD_OUT, &answer, Verdict::Next, answer.clone().from(frontend)),
        case.row("a port whose client goes on sending is kept, answers or not", case.one_remote())
            .packet(UPLINK_IN, &from_client, Verdict::Redirect, out(&from_client))
            .spoil("letting the reply's entry be quiet", |dataplane| quieten(dataplane, 0, UDP + 1))
            .packet(UPLINK_IN, &from_client, Verdict::Redirect, out(&from_client))
            .dropped(UPLINK_IN, &from_second, Reason::SnatPortsExhausted),
        case.row("an exchange whose port another one took over is not sent from it any more", case.one_remote())
            .packet(UPLINK_IN, &from_client, Verdict::Redirect, out(&from_client))
            .spoil("letting both entries be quiet", |dataplane| quieten_all(dataplane, UDP + 1))
            .packet(UPLINK_IN, &from_second, Verdict::Redirect, out(&from_second))
            .dropped(UPLINK_IN, &from_client, Reason::SnatPortsExhausted),
    ]
}

/// Entries that were made under another hook.
fn other_hooks(case: Case) -> Vec<Row> {
    let (pod, frontend, local, remote) = (case.pod(), case.cluster_ip(), case.local(), case.remote());
    let masqueraded = case.masqueraded();
    let first = case.first(pod, frontend);
    let first_seen = |entry: FlowEntry| if case.protocol == Protocol::Tcp { entry.syn() } else { entry };
    let (_, former_reply) = entries(case, remote);
    let forward = |key, to| FlowEntry::new(UPLINK_IN, FlowAction::Forward, case.protocol, key, to);
    let at_the_client = Tables::new([
        case.service().endpoint(local, Place::Local),
        TestService::new("at-the-client", case.protocol, pod).endpoint(local, Place::Local),
    ]);
    let answer = case.answer(local, pod);
    vec![
        case.row(
            "a request that was known where pods are is picked for again when it reaches the node",
            case.one_remote(),
        )
        .packet(POD_IN, &first, Verdict::Next, first.clone().to(remote))
        .packet(
            UPLINK_IN,
            &first,
            Verdict::Redirect,
            first.clone().from(masqueraded).to(remote).forwarded(Interface::Uplink.mac(), OTHER_NODE_MAC),
        )
        .flows([
            first_seen(forward((pod, frontend), (masqueraded, remote))),
            forward((remote, masqueraded), (frontend, pod)).at_entrances(),
            former_reply,
        ]),
        // Were its entry not known, the answer would be a request to the second Service.
        case.row(
            "an answer passes where it is not translated, even if a frontend has its client's address",
            at_the_client,
        )
        .packet(POD_IN, &first, Verdict::Next, first.clone().to(local))
        .untouched(UPLINK_IN, &answer)
        .untouched(POD_IN, &answer)
        .packet(POD_OUT, &answer, Verdict::Next, answer.clone().from(frontend)),
    ]
}

/// Makes the entry of the reply one that was last seen these seconds earlier than it was, in this state.
fn quieten(dataplane: &mut Dataplane, state: u8, seconds: u64) -> anyhow::Result<()> {
    let changed = age(dataplane, seconds, &[FlowDirection::Reply], Some(state))?;
    ensure!(changed == 1, "{changed} replies instead of one");
    Ok(())
}

/// Makes every entry one that was last seen these seconds earlier than it was.
pub(in super::super) fn quieten_all(dataplane: &mut Dataplane, seconds: u64) -> anyhow::Result<()> {
    age(dataplane, seconds, &[FlowDirection::Request, FlowDirection::Reply], None).map(drop)
}

/// Makes the entries of these directions ones that were last seen these seconds earlier than they were, in this state if there
/// is one. Gives their number.
fn age(
    dataplane: &mut Dataplane,
    seconds: u64,
    directions: &[FlowDirection],
    state: Option<u8>,
) -> anyhow::Result<usize> {
    let ticks = seconds * Jiffies::now()?.per_second;
    let v4 = age_family::<[u8; 4]>(dataplane, ticks, directions, state)?;
    Ok(v4 + age_family::<[u8; 16]>(dataplane, ticks, directions, state)?)
}

fn age_family<A: MapAddress>(
    dataplane: &mut Dataplane,
    ticks: u64,
    directions: &[FlowDirection],
    state: Option<u8>,
) -> anyhow::Result<usize>
where
    Tuple<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let mut changed = 0;
    for FlowOf { key, mut flow } in dataplane.flows::<A>()? {
        if directions.iter().any(|direction| *direction as u8 == flow.direction) {
            flow.tcp_state = state.unwrap_or(flow.tcp_state);
            flow.last_seen -= ticks;
            A::flow_table(dataplane).insert(&key, &flow, 0)?;
            changed += 1;
        }
    }
    Ok(changed)
}
