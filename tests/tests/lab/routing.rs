//! The lab itself: routing without any Service, which all other tests rely on.

use std::{net::SocketAddr, time::{Duration, Instant}};

use lb_tests::lab::{
    Family, Lab, ReversePathFilter,
    client::{Transport, exchange},
    sandbox::Sandbox,
    server::{ECHO_PORT, HTTP_PORT, Server},
};

pub(crate) fn all_hosts_reach_all_pods_without_services(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let _servers: Vec<Server> = lab.nodes.iter().flat_map(|node| node.all_pods()).map(Server::start).collect();
    for family in Family::BOTH {
        for client in lab.hosts() {
            for pod in lab.nodes.iter().flat_map(|node| node.all_pods()) {
                for transport in [Transport::Tcp, Transport::Http, Transport::UdpConnected, Transport::Udp] {
                    let port = if transport == Transport::Http { HTTP_PORT } else { ECHO_PORT };
                    let to = SocketAddr::new(pod.address(family), port);
                    let answer = exchange(client, transport, to).answer();
                    assert_eq!(answer.backend, pod.name());
                    assert_eq!(answer.client_seen.ip(), client.address(family), "{} to {} over {transport}", client.name(), pod.name());
                    assert_eq!(answer.peer, to);
                }
            }
        }
    }
}

pub(crate) fn a_lab_is_built_within_a_second(sandbox: Sandbox) {
    let start = Instant::now();
    let _lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let took = start.elapsed();
    println!("{took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}
