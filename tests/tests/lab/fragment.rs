//! Datagrams that are cut up on their way to a Service, and their answers.

use lb_tests::lab::{
    Family, Lab, ReversePathFilter,
    client::{Ask, Transport},
    sandbox::Sandbox,
};

use crate::icmp;

pub(crate) fn datagrams_in_fragments_reach_services_and_so_do_answers(sandbox: Sandbox) {
    assert_whole(Lab::new(sandbox, ReversePathFilter::Strict));
}

pub(crate) fn xdp_leaves_fragments_to_those_who_can(sandbox: Sandbox) {
    assert_whole(Lab::with_xdp(sandbox, ReversePathFilter::Strict));
}

/// Bytes of data: one that fits, one that is cut in two, one in many.
const SIZES: [usize; 3] = [1400, 2000, 9000];

/// The servers send back what they got, and the clients compare.
fn assert_whole(lab: Lab) {
    let (cluster, services) = icmp::start(lab);
    for family in Family::BOTH {
        for (client, to) in icmp::ways(&cluster, &services, family) {
            for transport in [Transport::Udp, Transport::UdpConnected] {
                for size in SIZES {
                    let path = format!("{size} bytes from {} to {to} over {transport}", client.name());
                    let answer = Ask::new(transport, to).datagram_size(size).from(client).answer(&path);
                    assert_eq!(answer.peer, to, "{path}");
                }
            }
        }
    }
}
