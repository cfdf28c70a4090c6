//! Exchanges of the node's own, from the number of a node port: their answers are nobody's requests.

use lb_common::abi::{FlowAction, Hook, Protocol};

use super::{CLIENT_PORT, Case, at};
use crate::packets::{FlowEntry, Row, Verdict};

pub(super) fn rows(case: Case) -> Vec<Row> {
    let ways = [
        ("outside", case.client(), Hook::UplinkEgress, Hook::UplinkIngress),
        ("a pod", case.local(), Hook::PodEgress, Hook::PodIngress),
    ];
    let mut rows = Vec::new();
    for (whom, server, out, back) in ways {
        let node = case.node_port();
        let (request, answer, later) = (case.first(node, server), case.answer(server, node), case.later(server, node));
        let passes = FlowEntry {
            hooks: 0,
            ..FlowEntry::new(back, FlowAction::Stack, case.protocol, (server, node), (server, node))
        };
        rows.push(
            case.row(&format!("{whom} answers what the node asks from a node port's number"), case.one_local())
                .untouched(out, &request)
                .flows([passes])
                .untouched(back, &answer)
                .untouched(back, &later)
                .flows([passes]),
        );
        let other = at(node.ip(), CLIENT_PORT);
        rows.push(
            case.row(&format!("what the node asks of {whom} from another port needs no entry"), case.one_local())
                .untouched(out, case.first(other, server))
                .flows([]),
        );
    }
    let (client, node) = (case.client(), case.node_port());
    if case.protocol == Protocol::Tcp {
        let opens = case.first(client, node);
        rows.push(
            case.row("who was asked by the node may ask in turn", case.one_local())
                .untouched(Hook::UplinkEgress, case.first(node, client))
                .packet(Hook::UplinkIngress, &opens, Verdict::Next, opens.clone().to(case.local())),
        );
        rows.push(
            case.row("a SYN with an ACK begins nothing", case.one_local())
                .untouched(Hook::UplinkIngress, case.answer(client, node))
                .flows([]),
        );
    }
    rows
}
