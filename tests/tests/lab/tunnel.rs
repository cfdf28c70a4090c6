//! Tunnels as the way to other nodes' pods, and to clients: VXLAN, whose packets look like any other's, and tun devices, whose
//! packets have no Ethernet header.

use std::net::{IpAddr, SocketAddr};

use lb_tests::lab::{
    Family, Host, Lab, Node, ReversePathFilter, UPLINK, VXLAN, VXLAN_PORT, agent,
    capture::{Capture, Packet},
    client::{
        Ask, Conversation, Outcome, Transport,
        hops::{self, Kind, Told},
        ways,
    },
    cluster::{Cluster, eventually},
    manifest::Service,
    sandbox::Sandbox,
    server::{ECHO_PORT, HTTP_PORT},
    tun::{OVERLAY, ROAMING},
    tunnel_end,
};
use serde_json::Value;

use crate::{
    explain::explain,
    node_port::{assert_in_pool, counted, forget_routes, narrow_routes, start_on},
};

/// The programs of a node's device, ingress first.
fn programs(node: &Node, device: &str) -> Vec<String> {
    let status: Value = serde_json::from_str(&agent::ask(node, &["status", "-o", "json"])).expect("JSON");
    let hooks = status["hooks"].as_array().expect("a list").iter();
    let mut of_device: Vec<_> = hooks.filter(|hook| hook["target"] == device).collect();
    of_device.sort_by_key(|hook| hook["hook"] != "ingress");
    of_device.into_iter().map(|hook| hook["program"].as_str().expect("text").to_owned()).collect()
}

/// How far XDP came on a node's device, and why.
fn xdp(node: &Node, device: &str) -> [String; 2] {
    let status: Value = serde_json::from_str(&agent::ask(node, &["status", "-o", "json"])).expect("JSON");
    let uplinks = status["xdp"].as_array().expect("a list");
    let uplink = uplinks.iter().find(|uplink| uplink["device"] == device).unwrap_or(&Value::Null);
    ["state", "reason"].map(|field| uplink[field].as_str().unwrap_or_default().to_owned())
}

/// Waits until node1 has the programs on a device.
fn wait_for_programs(cluster: &Cluster, device: &str, expected: [&str; 2]) {
    let [node1, _] = cluster.nodes();
    eventually(&format!("programs on {device}"), || programs(node1, device), |programs| programs[..] == expected);
}

/// Flows and packets of a Service that a node has seen, of all ports and families.
fn traffic(node: &Node, service: &Service) -> [u64; 2] {
    let list: Value = serde_json::from_str(&agent::ask(node, &["service", "list", "-o", "json"])).expect("JSON");
    let ports = list["items"].as_array().expect("a list").clone();
    let of_service = ports
        .iter()
        .filter(|port| port["service"].as_str().is_some_and(|name| name.contains(&format!("lab/{}", service.name()))));
    of_service.fold([0, 0], |[flows, packets], port| {
        let number = |field: &str| port[field].as_u64().unwrap_or_else(|| panic!("{field} of {port}"));
        [flows + number("flows"), packets + number("packets")]
    })
}

/// The port of a pod's server.
fn pod_port(transport: Transport) -> u16 {
    if transport == Transport::Http { HTTP_PORT } else { ECHO_PORT }
}

/// A client that is no pod's asks a Service whose backend is on the node that it asks, and is seen as itself.
fn assert_local(client: (&Host, IpAddr), to: SocketAddr, transport: Transport, pod: &Host) {
    let path = format!("{} to {to} over {transport}, backend on the node", client.0.name());
    let answer = Ask::new(transport, to).from(client.0).answer(&path);
    assert_eq!((answer.backend.as_str(), answer.peer), (pod.name(), to), "{path}");
    assert_eq!(answer.client_seen, SocketAddr::new(client.1, answer.local.port()), "{path}");
}

/// A client that is no pod's asks a Service whose backend is on another node, and is seen as `node`; each leg shows on the wires
/// of the client and of the backend.
fn assert_remote(
    client: (&Host, IpAddr),
    to: SocketAddr,
    transport: Transport,
    pod: (&Host, IpAddr),
    node: IpAddr,
    wires: [&Capture; 2],
) {
    let path = format!("{} to {to} over {transport}, backend elsewhere", client.0.name());
    let answer = Ask::new(transport, to).from(client.0).answer(&path);
    assert_eq!((answer.backend.as_str(), answer.peer), (pod.0.name(), to), "{path}");
    assert_eq!(answer.client_seen.ip(), node, "{path}");
    assert_in_pool(answer.client_seen.port());
    let [client, pod] = [(client.1, answer.local.port()), (pod.1, pod_port(transport))];
    let [frontend, lent] = [to, answer.client_seen].map(|address| (address.ip(), address.port()));
    let legs = [
        ("request to the node", 0, client, frontend),
        ("request to the pod", 1, lent, pod),
        ("reply to the node", 1, pod, lent),
        ("reply to the client", 0, frontend, client),
    ];
    for (leg, wire, from, to) in legs {
        let packet = wires[wire].wait_for(&format!("{path}: {leg}"), |packet| is_of(packet, from, to));
        assert!(packet.checksums_hold, "{path}: {leg}: {packet:?}");
    }
}

fn is_of(packet: &Packet, from: (IpAddr, u16), to: (IpAddr, u16)) -> bool {
    packet.ports == Some((from.1, to.1)) && (packet.source, packet.destination) == (from.0, to.0)
}

/// Pods and the node reach a Service whose backend is on another node, and pods are seen as themselves.
fn assert_reached_from_inside(cluster: &Cluster, remote: &Service) {
    let [node1, node2] = cluster.nodes();
    for (family, transport) in ways() {
        let to = remote.cluster_address(family, transport);
        for (client, is_pod) in [(&node1.pods[1], true), (&node1.vm, true), (&node1.host, false)] {
            let path = format!("{} to {to} over {transport}", client.name());
            let answer = Ask::new(transport, to).from(client).answer(&path);
            assert_eq!((answer.backend.as_str(), answer.peer), (node2.pods[0].name(), to), "{path}");
            // The node takes the address of the device that leads there.
            let address = if is_pod { client.address(family) } else { tunnel_end(1).of(family) };
            assert_eq!(answer.client_seen.ip(), address, "{path}");
        }
    }
}

/// Who sends a datagram that does not fit the way out is told at once.
fn assert_told_what_fits(from: &Host, to: SocketAddr) {
    forget_routes(from);
    let outcome = Ask::new(Transport::UdpConnected, to).datagram_size(1452).from(from);
    let too_long = Outcome::Failed(std::io::Error::from(nix::errno::Errno::EMSGSIZE).to_string());
    assert_eq!(outcome, too_long, "a datagram from {} to {to}", from.name());
}

/// All that is sent arrives, and all that is sent back.
fn assert_transfer(from: &Host, to: SocketAddr) {
    let path = format!("{} to {to}", from.name());
    let opened = Conversation::open(from, to);
    let conversation = opened.unwrap_or_else(|outcome| panic!("{path}: {outcome:?}"));
    conversation.send_and_check(1_000_000).unwrap_or_else(|error| panic!("{path}: {error}"));
}

pub(crate) fn vxlan_leads_to_backends_of_other_nodes(sandbox: Sandbox) {
    assert_by_vxlan(Lab::new(sandbox, ReversePathFilter::Strict));
}

pub(crate) fn xdp_leaves_what_goes_by_vxlan_to_who_can_send_it(sandbox: Sandbox) {
    let cluster = assert_by_vxlan(Lab::with_xdp(sandbox, ReversePathFilter::Strict));
    let [node1, _] = cluster.nodes();
    assert_eq!(xdp(node1, UPLINK)[0], "native");
    let [state, reason] = xdp(node1, VXLAN);
    assert_eq!(state, "not_supported", "{reason}");
}

fn assert_by_vxlan(lab: Lab) -> Cluster {
    lab.lay_vxlan();
    let (cluster, [local, remote]) = start_on(lab);
    wait_for_programs(&cluster, VXLAN, ["uplink_ingress", "uplink_egress"]);
    let [node1, node2] = cluster.nodes();
    let (client, pod) = (&cluster.lab.client, &node2.pods[0]);
    let between_nodes = Capture::start(&cluster.lab.router, node1.host.name());
    let in_tunnel = Capture::start(&node1.host, VXLAN);
    let at_client = Capture::start(&cluster.lab.router, "client");
    let before = traffic(node1, &remote);
    let mut asked = 0;
    for (family, transport) in ways() {
        let outside = (client, client.address(family));
        assert_local(outside, local.node_port_address(&node1.host, family, transport), transport, &node1.pods[0]);
        let to = remote.node_port_address(&node1.host, family, transport);
        let (pod, node) = ((pod, pod.address(family)), tunnel_end(1).of(family));
        assert_remote(outside, to, transport, pod, node, [&at_client, &in_tunnel]);
        asked += 1;
    }
    let [flows, packets] = traffic(node1, &remote);
    assert_eq!(flows - before[0], asked);
    assert!(packets - before[1] >= 2 * asked, "{packets} packets");
    assert_reached_from_inside(&cluster, &remote);

    // All that the nodes said to each other's pods was packed up.
    let pods = Family::BOTH.map(|family| pod.address(family));
    let seen = between_nodes.packets();
    let open = seen.iter().filter(|packet| pods.contains(&packet.source) || pods.contains(&packet.destination));
    assert_eq!(open.count(), 0);
    let [here, there] = [&node1.host, &node2.host].map(|host| host.address(Family::V4));
    for (from, to) in [(here, there), (there, here)] {
        let is_packed = |packet: &Packet| {
            (packet.source, packet.destination) == (from, to) && packet.ports.is_some_and(|(_, to)| to == VXLAN_PORT)
        };
        assert!(seen.iter().any(is_packed), "{from} to {to}");
    }
    cluster
}

pub(crate) fn who_sends_what_does_not_fit_into_vxlan_is_told_what_does(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    lab.lay_vxlan();
    let (cluster, [_, remote]) = start_on(lab);
    wait_for_programs(&cluster, VXLAN, ["uplink_ingress", "uplink_egress"]);
    let [node1, _] = cluster.nodes();
    let (client, vm) = (&cluster.lab.client, &node1.vm);
    for family in Family::BOTH {
        // Forwarded by us, who answer; and by the stack, whose answer is about a packet that its sender does not know.
        for (from, to, reason) in [
            (client, remote.node_port_address(&node1.host, family, Transport::Udp), "too_big"),
            (vm, remote.cluster_address(family, Transport::Udp), "icmp_error"),
        ] {
            let before = counted(node1, reason);
            assert_told_what_fits(from, to);
            assert!(counted(node1, reason) > before, "{reason} of {} to {to}", from.name());
            forget_routes(from);
            assert_transfer(from, SocketAddr::new(to.ip(), to.port()));
        }
    }
}

/// A lab with a client that reaches node1 by a tun device, and what is on their wire.
struct Roaming {
    cluster: Cluster,
    client: Host,
    wire: Capture,
    services: [Service; 3],
}

impl Roaming {
    /// The Services have a backend on node1, one on node2, and none.
    fn start(lab: Lab) -> Self {
        let (client, wire) = lab.roamer();
        let services = [
            Service::new("on-node1", 1).with_endpoints([&lab.nodes[0].pods[0]]),
            Service::new("on-node2", 2).with_endpoints([&lab.nodes[1].pods[0]]),
            Service::new("nowhere", 3),
        ];
        let cluster = Cluster::start(lab, &services);
        wait_for_programs(&cluster, ROAMING, ["bare_ingress", "bare_egress"]);
        Self { cluster, client, wire, services }
    }

    /// All ways of all kinds to backends on both nodes; `node` is who pods of node2 see, and `between_nodes` what they hear.
    fn assert_served(&self, node: impl Fn(Family) -> IpAddr, between_nodes: &Capture) {
        let Self { cluster, client, wire, services: [local, remote, _] } = self;
        let [node1, node2] = cluster.nodes();
        let pod = &node2.pods[0];
        let before = [local, remote].map(|service| traffic(node1, service));
        let mut asked = 0;
        for (family, transport) in ways() {
            let outside = (client, client.address(family));
            let to = local.node_port_address(&node1.host, family, transport);
            assert_local(outside, to, transport, &node1.pods[0]);
            let to = remote.node_port_address(&node1.host, family, transport);
            let pod = (pod, pod.address(family));
            assert_remote(outside, to, transport, pod, node(family), [wire, between_nodes]);
            asked += 1;
        }
        for (service, [flows, packets]) in [local, remote].into_iter().zip(before) {
            let now = traffic(node1, service);
            assert_eq!(now[0] - flows, asked, "{}", service.name());
            assert!(now[1] - packets >= 2 * asked, "{} packets of {}", now[1] - packets, service.name());
        }
        for family in Family::BOTH {
            for service in [local, remote] {
                assert_transfer(client, service.node_port_address(&node1.host, family, Transport::Tcp));
            }
        }
        assert_all_hold(wire);
    }
}

/// No packet on a wire has a wrong checksum.
fn assert_all_hold(wire: &Capture) {
    let broken: Vec<_> = wire.packets().into_iter().filter(|packet| !packet.checksums_hold).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

pub(crate) fn a_client_beyond_a_tun_device_reaches_backends_of_every_node(sandbox: Sandbox) {
    let roaming = assert_roaming(Lab::new(sandbox, ReversePathFilter::Strict));
    let Roaming { cluster, client, services: [local, _, nowhere], .. } = &roaming;
    let [node1, _] = cluster.nodes();
    for family in Family::BOTH {
        let address = client.address(family).to_string();
        let explained = |service: &Service, more: &[&str]| {
            let to = service.node_port_address(&node1.host, family, Transport::Tcp).to_string();
            explain(node1, &address, &to, more)
        };
        for (service, more, verdict) in [(local, &[][..], "translate"), (nowhere, &["--device", ROAMING], "refuse")] {
            let explanation = explained(service, more);
            let way = explanation["ways"].as_array().and_then(|ways| ways.last()).expect("a way");
            let found = ["asker", "device", "foundBy", "verdict"].map(|field| &way[field]);
            assert_eq!(found, ["packet", ROAMING, "run", verdict], "{explanation}");
        }
    }
}

pub(crate) fn xdp_keeps_off_tun_devices_and_leaves_what_goes_there(sandbox: Sandbox) {
    let roaming = assert_roaming(Lab::with_xdp(sandbox, ReversePathFilter::Strict));
    let [node1, _] = roaming.cluster.nodes();
    assert_eq!(xdp(node1, UPLINK)[0], "native");
    assert_eq!(xdp(node1, ROAMING), ["bare", "the device's packets have no Ethernet header"]);
}

fn assert_roaming(lab: Lab) -> Roaming {
    let roaming = Roaming::start(lab);
    let [node1, _] = roaming.cluster.nodes();
    let between_nodes = Capture::start(&roaming.cluster.lab.router, "node2");
    roaming.assert_served(|family| node1.host.address(family), &between_nodes);
    roaming
}

pub(crate) fn who_asks_by_a_tun_device_is_answered_there(sandbox: Sandbox) {
    let mut roaming = Roaming::start(Lab::new(sandbox, ReversePathFilter::Strict));
    let Roaming { cluster, client, wire, services: [local, remote, nowhere] } = &roaming;
    let [node1, node2] = cluster.nodes();
    for (family, transport) in ways() {
        let to = nowhere.node_port_address(&node1.host, family, transport);
        assert_eq!(Ask::new(transport, to).from(client), Outcome::Refused, "{to} over {transport}");
    }
    for family in Family::BOTH {
        for service in [local, remote] {
            let to = service.node_port_address(&node1.host, family, Transport::Udp);
            for size in [1400, 4000] {
                Ask::new(Transport::Udp, to)
                    .datagram_size(size)
                    .from(client)
                    .answer(format_args!("{size} bytes to {to}"));
            }
            // In front of TCP, IPv4 options and an IPv6 extension header.
            let path = format!("{to} with more than a plain header");
            Ask::new(Transport::Tcp, to).with_ip_options().from(client).answer(&path);
            let to = nowhere.node_port_address(&node1.host, family, Transport::Tcp);
            assert_eq!(Ask::new(Transport::Tcp, to).with_ip_options().from(client), Outcome::Refused, "{path}");
        }
        // By node1, who masquerades.
        let to = remote.node_port_address(&node1.host, family, Transport::Udp);
        for (hops, by) in [(1, to.ip()), (2, node2.host.address(family))] {
            let told = hops::expire(client, to, hops).unwrap_or_else(|error| panic!("{hops} hops to {to}: {error}"));
            assert_eq!(told, Told { by, kind: Kind::TimeExceeded }, "{hops} hops to {to}");
        }
    }
    narrow_routes(&node1.host);
    for family in Family::BOTH {
        let before = counted(node1, "too_big");
        let to = remote.node_port_address(&node1.host, family, Transport::Udp);
        assert_told_what_fits(client, to);
        assert!(counted(node1, "too_big") > before, "{to}");
        forget_routes(client);
        assert_transfer(client, to);
    }
    assert_all_hold(wire);

    // The ports are closed from here on, and the Services know nothing of it.
    roaming.cluster.stop_servers();
    let Roaming { cluster, client, wire, services: [local, remote, _] } = &roaming;
    let [node1, _] = cluster.nodes();
    let before = counted(node1, "icmp_error");
    for family in Family::BOTH {
        for service in [local, remote] {
            let to = service.node_port_address(&node1.host, family, Transport::Udp);
            assert_eq!(Ask::new(Transport::Udp, to).from(client), Outcome::Refused, "{to}");
        }
    }
    assert_eq!(counted(node1, "icmp_error") - before, 4);
    assert_all_hold(wire);
}

pub(crate) fn a_tun_device_leads_to_backends_of_other_nodes(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let overlay = lab.lay_tun();
    // By one tun device to the other.
    let roaming = Roaming::start(lab);
    let Roaming { cluster, services: [local, remote, _], .. } = &roaming;
    wait_for_programs(cluster, OVERLAY, ["bare_ingress", "bare_egress"]);
    roaming.assert_served(|family| tunnel_end(1).of(family), &overlay);

    // From a wire to a tun device.
    let [node1, node2] = cluster.nodes();
    let (client, pod) = (&cluster.lab.client, &node2.pods[0]);
    let at_client = Capture::start(&cluster.lab.router, "client");
    for (family, transport) in ways() {
        let outside = (client, client.address(family));
        assert_local(outside, local.node_port_address(&node1.host, family, transport), transport, &node1.pods[0]);
        let to = remote.node_port_address(&node1.host, family, transport);
        let (pod, node) = ((pod, pod.address(family)), tunnel_end(1).of(family));
        assert_remote(outside, to, transport, pod, node, [&at_client, &overlay]);
    }
    for family in Family::BOTH {
        assert_transfer(client, remote.node_port_address(&node1.host, family, Transport::Tcp));
    }
    assert_reached_from_inside(cluster, remote);
    assert_all_hold(&overlay);
}
