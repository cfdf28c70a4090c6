//! A pod that is its own backend: if only its destination were replaced, the pod would answer itself and never see the
//! frontend, so the node stands between.

use lb_common::abi::{FlowAction, Hook, Protocol};

use super::{Case, TARGET, at};
use crate::packets::{FlowEntry, Interface, Place, Row, Verdict, world::POD_MAC};

pub(super) fn rows(case: Case) -> Vec<Row> {
    let (pod, target, masqueraded) = (case.pod(), at(case.net.pod, TARGET), case.masqueraded());
    let hook = Hook::PodIngress;
    [("its ClusterIP", case.cluster_ip()), ("its node port", case.node_port())]
        .into_iter()
        .map(|(what, frontend)| {
            let protocol = case.protocol;
            let request = FlowEntry::new(hook, FlowAction::Forward, protocol, (pod, frontend), (masqueraded, target));
            let reply = FlowEntry::new(hook, FlowAction::Forward, protocol, (target, masqueraded), (frontend, pod))
                .at_entrances();
            let first_seen = |entry: FlowEntry| if protocol == Protocol::Tcp { entry.syn() } else { entry };
            let (first, answer) = (case.first(pod, frontend), case.answer(target, masqueraded));
            let (mac, peer) = (Interface::Pod.mac(), POD_MAC);
            case.row(&format!("a pod reaches itself through {what}"), case.one(target, Place::Local))
                .packet(
                    hook,
                    &first,
                    Verdict::Redirect,
                    first.clone().from(masqueraded).to(target).forwarded(mac, peer),
                )
                .flows([first_seen(request), reply])
                .packet(hook, &answer, Verdict::Redirect, answer.clone().from(frontend).to(pod).forwarded(mac, peer))
                .flows([first_seen(request), first_seen(reply)])
        })
        .collect()
}
