//! Pods on a bridge, as many network plugins connect them: they send to the bridge's MAC, and to each other without the
//! node's routing.

use lb_tests::lab::{Family, Lab, Node, ReversePathFilter, sandbox::Sandbox};

use crate::{
    cluster_ip,
    node_port::{self, run},
};

const BRIDGE: &str = "cni0";

pub(crate) fn pods_reach_local_and_remote_backends_and_are_seen_as_themselves(sandbox: Sandbox) {
    // (The node has another address on the bridge, which its own pods see.)
    cluster_ip::assert_transparent(bridged(sandbox), |node| vec![&node.pods[0], &node.vm]);
}

pub(crate) fn a_pod_reaches_itself_through_its_service(sandbox: Sandbox) {
    cluster_ip::assert_reaches_itself(bridged(sandbox));
}

pub(crate) fn a_service_without_endpoints_refuses_everybody_at_once(sandbox: Sandbox) {
    cluster_ip::assert_refused(bridged(sandbox));
}

pub(crate) fn clients_outside_reach_pods_on_bridges(sandbox: Sandbox) {
    let (cluster, services) = node_port::start_on(bridged(sandbox));
    node_port::assert_seen_from_outside(&cluster, &services);
}

fn bridged(sandbox: Sandbox) -> Lab {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    (1..).zip(&lab.nodes).for_each(|(number, node)| bridge(number, node));
    lab
}

/// Puts the pods of a node, which are routed, on one link.
fn bridge(number: u8, node: &Node) {
    let gateways = [format!("10.1.{number}.254"), format!("fd00:10:1:{number:x}::fe")];
    let lengths = ["24", "64"];
    let ports: Vec<_> = (1..).zip(node.all_pods()).map(|(port, pod): (u8, _)| (port, pod.name().to_owned())).collect();
    let routes: Vec<_> =
        node.all_pods().flat_map(|pod| Family::BOTH.map(|family| pod.address(family).to_string())).collect();
    let own = gateways.clone();
    node.host.run(move || {
        let mac = format!("02:00:00:00:{number:02x}:00");
        run(
            "ip",
            &["link", "add", BRIDGE, "address", &mac, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0"],
        );
        for route in routes {
            run("ip", &["route", "del", &route]);
        }
        for (port, name) in ports {
            let mac = format!("02:00:00:00:{number:02x}:{port:02x}");
            run("ip", &["link", "set", &name, "address", &mac, "master", BRIDGE, "up"]);
        }
        run("ip", &["link", "set", BRIDGE, "up"]);
        for (gateway, length) in own.iter().zip(lengths) {
            run("ip", &["address", "add", &format!("{gateway}/{length}"), "dev", BRIDGE, "nodad"]);
        }
    });
    for pod in node.all_pods() {
        let addresses = Family::BOTH.map(|family| pod.address(family).to_string());
        let gateways = gateways.clone();
        pod.run(move || {
            for ((address, length), gateway) in addresses.iter().zip(lengths).zip(&gateways) {
                run("ip", &["address", "del", address, "dev", "eth0"]);
                run("ip", &["address", "add", &format!("{address}/{length}"), "dev", "eth0", "nodad"]);
                run("ip", &["route", "replace", "default", "via", gateway]);
            }
        });
    }
}
