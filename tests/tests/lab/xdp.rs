//! XDP on the nodes' uplinks, in the driver of a veth.

use std::fmt::Write as _;

use lb_tests::lab::{
    Family, Lab, ReversePathFilter, UPLINK, agent,
    capture::Capture,
    client::{Ask, Outcome, Transport, ways},
    cluster::{Cluster, eventually},
    load::Load,
    manifest::Service,
    sandbox::Sandbox,
    server::ECHO_PORT,
};
use serde_json::Value;

use crate::node_port;

/// The cluster of [`node_port::start_on`], with XDP.
pub(crate) fn start(sandbox: Sandbox) -> (Cluster, [Service; 2]) {
    let (cluster, services) = node_port::start_on(Lab::with_xdp(sandbox, ReversePathFilter::Strict));
    assert_native(&cluster);
    (cluster, services)
}

/// The nodes' uplinks have XDP in the driver.
fn assert_native(cluster: &Cluster) {
    for node in cluster.nodes() {
        let look = || {
            let status: Value = serde_json::from_str(&agent::ask(node, &["status", "-o", "json"])).expect("JSON");
            status["xdp"].clone()
        };
        let native = |xdp: &Value| xdp[0]["device"] == UPLINK && xdp[0]["state"] == "native";
        eventually(&format!("XDP on {}", node.host.name()), look, native);
    }
}

pub(crate) fn node_ports_are_served_from_outside_without_a_look_from_the_stack(sandbox: Sandbox) {
    let (cluster, services) = start(sandbox);
    // What XDP sends back is not seen by a capture on the device. The first packets find the neighbours, by TC.
    node_port::assert_seen_from_outside(&cluster, &services);
    let [node1, _] = cluster.nodes();
    let remote = &services[1];
    let on_wire = Capture::start(&cluster.lab.router, node1.host.name());
    let in_stack = Capture::start(&node1.host, UPLINK);
    for (family, transport) in ways() {
        let to = remote.node_port_address(&node1.host, family, transport);
        let answer = Ask::new(transport, to).from(&cluster.lab.client).answer(format_args!("{to} over {transport}"));
        let (client, lent) = (answer.local.port(), answer.client_seen.port());
        for port in [client, lent] {
            on_wire.wait_for(&format!("{to} over {transport} from port {port}"), |packet| {
                packet.ports.is_some_and(|(source, _)| source == port)
            });
        }
        let of_flow = |port: u16| port == client || port == lent;
        let seen = in_stack.packets();
        let seen: Vec<_> = seen
            .iter()
            .filter(|packet| packet.ports.is_some_and(|(source, destination)| of_flow(source) || of_flow(destination)))
            .collect();
        assert!(seen.is_empty(), "{to} over {transport}: the stack of node1 saw {seen:#?}");
    }
}

pub(crate) fn the_wire_shows_right_addresses_and_checksums(sandbox: Sandbox) {
    let (cluster, [_, remote]) = start(sandbox);
    node_port::assert_right_on_the_wire(&cluster, &remote);
}

pub(crate) fn pods_and_nodes_reach_node_ports_of_every_node(sandbox: Sandbox) {
    let (cluster, services) = start(sandbox);
    node_port::assert_reached_from_inside(&cluster, &services);
}

pub(crate) fn a_local_policy_keeps_to_the_node_and_drops_where_it_has_no_backend(sandbox: Sandbox) {
    node_port::assert_local_policy(Lab::with_xdp(sandbox, ReversePathFilter::Strict));
}

pub(crate) fn large_transfers_from_outside_arrive_whole(sandbox: Sandbox) {
    let (cluster, services) = start(sandbox);
    node_port::assert_large_transfers(&cluster, &services);
}

/// Manifest of a Service whose external addresses are those of another Service's endpoint, and whose own is elsewhere.
fn trap(lab: &Lab) -> String {
    let (endpoint, other) = (lab.nodes[0].pods[0].addresses(), lab.nodes[1].pods[0].addresses());
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: lab, name: trap}}\nspec:\n  \
         clusterIP: 10.96.0.200\n  clusterIPs: [10.96.0.200, \"fd00:10:96::c8\"]\n  ipFamilies: [IPv4, IPv6]\n  \
         ipFamilyPolicy: RequireDualStack\n  externalIPs: [\"{}\", \"{}\"]\n  ports:\n  \
         - {{name: tcp, protocol: TCP, port: {ECHO_PORT}}}\n  - {{name: udp, protocol: UDP, port: {ECHO_PORT}}}\n",
        endpoint.v4, endpoint.v6
    );
    for family in Family::BOTH {
        let address = other.of(family);
        let slice = family.to_string().to_lowercase();
        write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{namespace: lab, name: trap-{slice}, labels: {{kubernetes.io/service-name: trap}}}}\n\
             addressType: {family}\nports:\n- {{name: tcp, protocol: TCP, port: {ECHO_PORT}}}\n\
             - {{name: udp, protocol: UDP, port: {ECHO_PORT}}}\n\
             endpoints: [{{addresses: [\"{address}\"], nodeName: node2}}]\n",
        )
        .expect("write to a string");
    }
    text
}

pub(crate) fn what_xdp_has_translated_is_not_translated_again(sandbox: Sandbox) {
    let (cluster, [local, _]) = start(sandbox);
    let [node1, node2] = cluster.nodes();
    let client = &cluster.lab.client;
    cluster.manifests.write("trap.yaml", &trap(&cluster.lab));
    for family in Family::BOTH {
        for transport in [Transport::Tcp, Transport::Udp] {
            let pod = &node1.pods[0];
            let direct = std::net::SocketAddr::new(pod.address(family), ECHO_PORT);
            let answered_elsewhere = |outcome: &Outcome| matches!(outcome, Outcome::Reached(answer) if answer.backend == node2.pods[0].name());
            eventually("the trap is set", || Ask::new(transport, direct).from(client), answered_elsewhere);
            let to = local.node_port_address(&node1.host, family, transport);
            for _ in 0..3 {
                let answer = Ask::new(transport, to).from(client).answer(format_args!("{to} over {transport}"));
                assert_eq!(answer.backend, pod.name(), "{to} over {transport}");
                assert_eq!(answer.client_seen.ip(), client.address(family));
            }
        }
    }
}

pub(crate) fn agents_that_are_killed_and_started_again_are_not_noticed(sandbox: Sandbox) {
    let lab = Lab::with_xdp(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints(lab.all_pods());
    let mut cluster = Cluster::start(lab, [&service]);
    assert_native(&cluster);
    let mut load = Load::start(&cluster, &service);
    load.assert_unharmed("before");
    cluster.kill_agents();
    assert_native(&cluster);
    load.assert_unharmed("while the agents are dead");
    cluster.restart_agents();
    assert_native(&cluster);
    load.assert_unharmed("after the agents came back");
}
