//! What the node and its pods ask outside of Services, from ports that mean something to a Service: the numbers of node
//! ports, and those of former connections.

use std::{
    io::{self, Read},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use lb_tests::lab::{
    Family, Lab, ReversePathFilter,
    client::{Ask, Transport},
    sandbox::Sandbox,
    server::{ECHO_PORT, HTTP_PORT, Server},
};
use tokio::{net::TcpSocket, runtime, time::timeout};

use crate::node_port::{self, run};

const PATIENCE: Duration = Duration::from_secs(5);
/// The port that a client uses twice.
const FORMER_PORT: u16 = 40001;

pub(crate) fn a_node_ports_number_is_as_good_a_source_port_as_any(sandbox: Sandbox) {
    assert_answered(Lab::new(sandbox, ReversePathFilter::Strict));
}

pub(crate) fn a_node_ports_number_is_a_source_port_with_xdp(sandbox: Sandbox) {
    assert_answered(Lab::with_xdp(sandbox, ReversePathFilter::Strict));
}

fn assert_answered(lab: Lab) {
    let (cluster, services) = node_port::start_on(lab);
    let [node1, _] = cluster.nodes();
    let _server = Server::start(&cluster.lab.client);
    // Each Service has node ports for the same protocols: two connections each, one to a backend here, one elsewhere.
    for service in &services {
        for family in Family::BOTH {
            let number = |transport| service.node_port_address(&node1.host, family, transport);
            let outside = cluster.lab.client.address(family);
            let [echo, http] = [ECHO_PORT, HTTP_PORT].map(|port| SocketAddr::new(outside, port));

            let from = number(Transport::Tcp);
            let line = node1.host.run(move || ask_by_stream(from, echo));
            assert_eq!(said(line), format!("pod=client client={from}"));

            let from = number(Transport::Udp);
            let line = node1.host.run(move || ask_by_datagram(from, echo));
            assert_eq!(said(line), format!("pod=client client={from}"));

            // As a network plugin masquerades; netfilter takes the port of a range, which is of one here.
            let from = number(Transport::Http);
            let (table, pods) = match family {
                Family::V4 => ("ip", "10.1.1.0/24"),
                Family::V6 => ("ip6", "fd00:10:1:1::/64"),
            };
            let port = from.port();
            let rule = format!(
                "table {table} plugin {{ chain post {{ type nat hook postrouting priority 100; \
                 {table} saddr {pods} oifname eth0 tcp dport {HTTP_PORT} masquerade to :{port}; }}; }}"
            );
            node1.host.run(move || run("nft", &[&rule]));
            let answer = Ask::new(Transport::Http, http).from(&node1.pods[1]).answer(format_args!("{http} by {from}"));
            assert_eq!(answer.client_seen, from);
            node1.host.run(move || run("nft", &["delete", "table", table, "plugin"]));
        }
    }
}

/// Ports of connections are used again, and entries of the flow table that nobody needs stay until there is no room.
pub(crate) fn an_endpoint_is_reached_by_itself_from_the_port_of_a_former_connection(sandbox: Sandbox) {
    let (cluster, services) = node_port::start_on(Lab::new(sandbox, ReversePathFilter::Strict));
    let [node1, node2] = cluster.nodes();
    for (service, pod) in services.iter().zip([&node1.pods[0], &node2.pods[0]]) {
        for family in Family::BOTH {
            let from = SocketAddr::new(node1.vm.address(family), FORMER_PORT);
            let endpoint = SocketAddr::new(pod.address(family), ECHO_PORT);
            for to in [service.cluster_address(family, Transport::Tcp), endpoint] {
                let line = node1.vm.run(move || ask_by_stream(from, to));
                assert_eq!(said(line), format!("pod={} client={from}", pod.name()), "{from} asks {to}");
            }
        }
    }
}

fn said(line: io::Result<String>) -> String {
    line.expect("the server outside answers").lines().next().unwrap_or_default().trim_end().to_owned()
}

fn ask_by_stream(from: SocketAddr, to: SocketAddr) -> io::Result<String> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let mut stream: TcpStream = runtime.block_on(async {
        let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(from)?;
        timeout(PATIENCE, socket.connect(to)).await??.into_std()
    })?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 128];
    let length = stream.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn ask_by_datagram(from: SocketAddr, to: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind(from)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(&[b'?'; 64])?;
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
