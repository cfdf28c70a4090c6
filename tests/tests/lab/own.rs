//! What the node and its pods ask outside of Services, from ports that mean something to a Service: the numbers of node
//! ports, and those of former connections.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use lb_tests::lab::{
    Family, Lab, ReversePathFilter,
    client::{Ask, Outcome, Transport},
    cluster::{Cluster, eventually},
    manifest::Service,
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

/// A client talks with a process of the node at a port that becomes a Service's meanwhile.
pub(crate) fn a_connection_with_the_node_ends_where_its_port_becomes_a_node_port(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let existing = Service::new("existing", 1).with_endpoints([&lab.nodes[0].pods[0]]);
    let cluster = Cluster::start(lab, [&existing]);
    let [node1, node2] = cluster.nodes();
    let client = &cluster.lab.client;
    let late = Service::new("late", 2).with_endpoints([&node2.pods[0]]);
    let open = |family| {
        let to = late.node_port_address(&node1.host, family, Transport::Tcp);
        let listener = node1.host.run(move || TcpListener::bind(to).expect("listen"));
        let mut here = client.run(move || TcpStream::connect_timeout(&to, PATIENCE)).expect("connect");
        let (mut there, _) = listener.accept().expect("a connection that is open");
        for stream in [&here, &there] {
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
        }
        here.write_all(b"?").expect("written");
        there.read_exact(&mut [0]).expect("what the client wrote");
        (to, here, there)
    };
    let connections = Family::BOTH.map(open);
    cluster.manifests.apply(&late);
    for (to, mut here, _there) in connections {
        let by_the_service =
            |outcome: &Outcome| matches!(outcome, Outcome::Reached(answer) if answer.backend == node2.pods[0].name());
        eventually("the Service is served", || Ask::new(Transport::Tcp, to).from(client), by_the_service);
        // An endpoint of the Service gets it, and knows of no such connection.
        here.write_all(b"?").expect("written");
        let error = here.read_exact(&mut [0]).expect_err("the process is not asked");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{to}");
    }
}

fn said(line: io::Result<String>) -> String {
    line.expect("the server outside answers").lines().next().unwrap_or_default().trim_end().to_owned()
}

/// What the server says to a connection from an address and port.
pub(crate) fn ask_by_stream(from: SocketAddr, to: SocketAddr) -> io::Result<String> {
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
