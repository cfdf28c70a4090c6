//! What becomes of flows when the tables change, or the flow table forgets.

use lb_common::{
    abi::{FlowAction, FlowDirection, Hook, Protocol, Reason, Tuple},
    hash,
};

use super::{Case, TARGET, at};
use crate::packets::{
    Dataplane, FlowEntry, Place, Row, Tables, Verdict,
    dataplane::{FlowOf, MapAddress},
};

const IN: Hook = Hook::PodIngress;
const OUT: Hook = Hook::PodEgress;

pub(super) fn rows(case: Case) -> Vec<Row> {
    let (pod, frontend, old, new) = (case.pod(), case.cluster_ip(), case.local(), case.remote());
    let (first, later) = (case.first(pod, frontend), case.later(pod, frontend));
    let started =
        |sentence: &str| case.row(sentence, case.one_local()).packet(IN, &first, Verdict::Next, first.clone().to(old));
    let replaced = || Tables::new([case.service().endpoint(new, Place::Remote)]);
    let terminating = || Tables::new([case.service().terminating(old, Place::Local).endpoint(new, Place::Remote)]);
    let none = || Tables::new([case.service()]);
    let answer = case.answer(old, pod);

    let mut rows = vec![
        started("a flow goes on while its endpoint terminates")
            .then(terminating())
            .packet(IN, &later, Verdict::Next, later.clone().to(old))
            .packet(OUT, &answer, Verdict::Next, answer.clone().from(frontend)),
        started("a new endpoint beside the old one leaves flows where they are")
            .then(Tables::new([case.service().endpoint(old, Place::Local).endpoint(new, Place::Remote)]))
            .packet(IN, &later, Verdict::Next, later.clone().to(old)),
        started("a value that was written for another flow is not believed")
            .spoil("giving the flow's entry to another flow", |dataplane| {
                disown::<[u8; 4]>(dataplane)?;
                disown::<[u8; 16]>(dataplane)
            })
            .packet(IN, &later, Verdict::Next, later.clone().to(old)),
        case.row("a flow that was forgotten finds its endpoint again", case.one_local())
            .packet(IN, &later, Verdict::Next, later.clone().to(old))
            .flows([
                FlowEntry::new(IN, FlowAction::Stack, case.protocol, (pod, frontend), (pod, old)).established(),
                FlowEntry::new(OUT, FlowAction::Stack, case.protocol, (old, pod), (frontend, pod)),
            ]),
    ];
    match case.protocol {
        Protocol::Tcp => rows.extend([
            started("a connection outlives its endpoint's place in the tables")
                .then(replaced())
                .packet(IN, &later, Verdict::Next, later.clone().to(old))
                .packet(OUT, &answer, Verdict::Next, answer.clone().from(frontend)),
            started("a connection outlives its Service's last endpoint").then(none()).packet(
                IN,
                &later,
                Verdict::Next,
                later.clone().to(old),
            ),
            case.row("a SYN leaves an endpoint that terminates", case.one_remote())
                .packet(IN, &first, Verdict::Next, first.clone().to(new))
                .then(Tables::new([case.service().terminating(new, Place::Remote).endpoint(old, Place::Local)]))
                .packet(IN, &first, Verdict::Next, first.clone().to(old)),
            started("a SYN leaves an endpoint that is gone").then(replaced()).packet(
                IN,
                &first,
                Verdict::Next,
                first.clone().to(new),
            ),
            started("a SYN that is sent again goes where the first one went")
                .then(Tables::new([case.service().endpoint(old, Place::Local).endpoint(new, Place::Remote)]))
                .packet(IN, &first, Verdict::Next, first.clone().to(old)),
        ]),
        Protocol::Udp => rows.extend([
            started("an exchange leaves an endpoint that is gone with its next datagram")
                .then(replaced())
                .packet(IN, &later, Verdict::Next, later.clone().to(new))
                .packet(IN, &later, Verdict::Next, later.clone().to(new)),
            case.row("a masqueraded exchange leaves an endpoint that is gone", case.one_remote())
                .packet(
                    Hook::UplinkIngress,
                    case.first(case.client(), case.node_port()),
                    Verdict::Redirect,
                    case.first(case.masqueraded(), case.remote())
                        .forwarded(crate::packets::Interface::Uplink.mac(), crate::packets::world::OTHER_NODE_MAC),
                )
                .then(case.one_local())
                .packet(
                    Hook::UplinkIngress,
                    case.later(case.client(), case.node_port()),
                    Verdict::Next,
                    case.later(case.client(), old),
                ),
        ]),
    }
    rows.extend(late_agent(case));
    rows
}

/// Tables as they never are while the agent is right.
fn late_agent(case: Case) -> Vec<Row> {
    let first = case.first(case.pod(), case.cluster_ip());
    vec![
        case.row("a slot that names no backend drops", case.one(at(case.net.pod, TARGET), Place::Local))
            .spoil("taking the backends out of use", Dataplane::invalidate_backends)
            .dropped(IN, &first, Reason::TablesInconsistent)
            .flows([]),
        case.row("a frontend's value that was written for another frontend drops", case.one_local())
            .spoil("giving the frontends' values to others", Dataplane::disown_frontends)
            .dropped(IN, &first, Reason::FrontendRaced)
            .flows([]),
    ]
}

/// Makes every request's entry of a family one of another flow, which goes elsewhere.
fn disown<A: MapAddress>(dataplane: &mut Dataplane) -> anyhow::Result<()>
where
    Tuple<A>: aya::Pod,
    lb_common::abi::Flow<A>: aya::Pod,
{
    for FlowOf { key, mut flow } in dataplane.flows::<A>()? {
        // The reply's entry stays: it is the reservation of the client's port.
        if flow.direction == FlowDirection::Request as u8 {
            flow.to = key.reversed();
            flow.owner = !hash::owner(&key);
            A::flow_table(dataplane).insert(&key, &flow, 0)?;
        }
    }
    Ok(())
}
