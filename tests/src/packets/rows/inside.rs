//! Who counts as a pod where the external policy is `Local`: pods use endpoints of the whole cluster.

use lb_agent::model::DetectLocal;
use lb_common::abi::{Hook, Reason};

use super::{CLIENT_PORT, Case, at};
use crate::packets::{Interface, Place, Row, Tables, Verdict, tables::network, world::OTHER_NODE_MAC};

const UPLINK: Hook = Hook::UplinkIngress;
const POD: Hook = Hook::PodIngress;

pub(super) fn rows(case: Case) -> Vec<Row> {
    let (pod, remote, frontend) = (case.pod(), case.remote(), case.node_port());
    // A pod of the other node, by the uplink.
    let other_pod = at(case.net.second_remote_backend, CLIENT_PORT);
    let tables = |detect_local| Tables {
        detect_local,
        ..Tables::new([case.service().external_local().endpoint(remote, Place::Remote)])
    };
    let pods = network(case.net.pod, if case.net.pod.is_ipv4() { 16 } else { 36 });
    let (by_interface, by_address) = (DetectLocal::Interface, DetectLocal::ClusterCidr(vec![pods]));
    let from_pod = case.first(pod, frontend);
    let from_other = case.first(other_pod, frontend);
    let other_out =
        from_other.clone().from(case.masqueraded()).to(remote).forwarded(Interface::Uplink.mac(), OTHER_NODE_MAC);
    // An address that is no pod's, by a pod's interface.
    let odd = case.first(at(case.net.stranger, CLIENT_PORT), frontend);
    let from_outside = case.first(case.client(), frontend);
    vec![
        case.row("who comes by a pod's interface is a pod", tables(by_interface))
            .packet(POD, &from_pod, Verdict::Next, from_pod.clone().to(remote))
            .packet(POD, &odd, Verdict::Next, odd.clone().to(remote))
            .dropped(UPLINK, &from_other, Reason::NoLocalEndpoints)
            .dropped(UPLINK, &from_outside, Reason::NoLocalEndpoints),
        case.row("who has a pod's address is a pod, whichever way it comes", tables(by_address))
            .packet(POD, &from_pod, Verdict::Next, from_pod.clone().to(remote))
            .packet(UPLINK, &from_other, Verdict::Redirect, other_out)
            .dropped(POD, &odd, Reason::NoLocalEndpoints)
            .dropped(UPLINK, &from_outside, Reason::NoLocalEndpoints),
        case.row(
            "a node that tells nobody from others sends pods to endpoints on it only",
            tables(DetectLocal::Nothing),
        )
        .dropped(POD, &from_pod, Reason::NoLocalEndpoints)
        .dropped(UPLINK, &from_other, Reason::NoLocalEndpoints)
        .flows([]),
        case.row("who is a pod does not matter under other policies", {
            Tables {
                detect_local: DetectLocal::Nothing,
                ..Tables::new([case.service().endpoint(remote, Place::Remote)])
            }
        })
        .packet(POD, &from_pod, Verdict::Next, from_pod.clone().to(remote)),
    ]
}
