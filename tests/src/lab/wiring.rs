//! Builds the cluster: hosts, links, addresses, routes, kernel variables.

use std::{
    env, fs,
    net::{Ipv4Addr, Ipv6Addr},
};

use nix::net::if_::if_nametoindex;

use super::{
    Addresses, Host, Lab, Node, ReversePathFilter,
    addresses::{self, CLIENT, CLIENT_GATEWAY, NODE_GATEWAY},
    cgroup::Cgroup,
    host,
    interface::{set_variables, turn_checksum_offload_off},
    sandbox::{self, Sandbox},
};
use crate::bench::tiny::pass_at_xdp;

/// The interface that leads out, of every host but the router.
pub const UPLINK: &str = "eth0";
/// The router's interfaces: to the client, and the bridge that holds one more per node, named like the node.
const TO_CLIENT: &str = "client";
const BRIDGE: &str = "nodes";

/// The pods of each node whose sockets are in the node's cgroup.
const CONTAINER_PODS: u8 = 2;

/// The MAC address of the node's side of every pod interface (Calico's choice), so that its link-local address, the
/// pods' IPv6 gateway, is known (RFC 4291, appendix A).
const POD_GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
const POD_GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";
/// The pods' IPv4 gateway: nobody's address, for which the node's side answers ARP.
const POD_GATEWAY_V4: &str = "169.254.1.1";

/// With `native` or `generic` in it, the agents of every lab use XDP: for runs of all tests with it.
const XDP_VARIABLE: &str = "LB_LAB_XDP";

/// What every host sets before it has interfaces.
const EVERY_HOST: [(&str, &str); 3] = [
    // Duplicate address detection would keep each link-local address unusable for a second.
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];
const ROUTERS: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    // Tell every client that asks for what is not there, not one a second.
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv6/icmp/ratelimit", "0"),
];

impl Lab {
    /// Builds the cluster in the sandbox that the process is in.
    pub fn new(sandbox: Sandbox, reverse_path_filter: ReversePathFilter) -> Self {
        let [lab] = Self::twins(sandbox, [""], reverse_path_filter);
        lab
    }

    /// As [`new`](Self::new); the agents use XDP in the nodes' ends of the wires.
    pub fn with_xdp(sandbox: Sandbox, reverse_path_filter: ReversePathFilter) -> Self {
        let mut lab = Self::new(sandbox, reverse_path_filter);
        if lab.wires.is_empty() {
            lab.use_xdp("native");
        }
        lab
    }

    /// Has the agents use XDP. The router's ends of the wires get a program that passes all, without which a veth does
    /// not hand on what the far end's XDP sends.
    fn use_xdp(&mut self, mode: &str) {
        let ends = self.nodes.each_ref().map(|node| node.host.name().to_owned());
        self.wires = self.router.run(|| {
            let pass = |end: String| {
                let index = if_nametoindex(end.as_str()).unwrap_or_else(|errno| panic!("{end}: {errno}"));
                pass_at_xdp(index).unwrap_or_else(|error| panic!("XDP on {end} of the router: {error}"))
            };
            ends.into_iter().map(pass).collect()
        });
        for node in &mut self.nodes {
            node.arguments = vec![format!("--xdp={mode}").into()];
        }
    }

    /// Builds the cluster several times, with the same addresses and no way from one to another. Each twin's namespaces,
    /// cgroups and directories begin with its label.
    pub fn twins<const N: usize>(
        sandbox: Sandbox,
        labels: [&str; N],
        reverse_path_filter: ReversePathFilter,
    ) -> [Self; N] {
        let Sandbox { cgroup, outer_pid } = sandbox;
        labels.map(|label| Self::build(&cgroup, outer_pid, label, reverse_path_filter))
    }

    fn build(cgroup: &Cgroup, outer_pid: u32, twin: &str, reverse_path_filter: ReversePathFilter) -> Self {
        let mut lab = Self {
            client: new_host("client", twin, CLIENT, None),
            router: new_host("router", twin, NODE_GATEWAY, None),
            nodes: [1, 2].map(|number| Node::new(number, twin, cgroup.threaded_child(&format!("{twin}node{number}")))),
            wires: Vec::new(),
            outer_pid,
        };
        let [node1, node2] = &lab.nodes;
        for node in &lab.nodes {
            node.host.run(move || {
                set_variables(&ROUTERS);
                set_variables(&[("ipv4/conf/all/rp_filter", &(reverse_path_filter as u8).to_string())]);
            });
        }
        lab.router.run(|| set_variables(&ROUTERS));

        lab.wire();
        lab.set_up_router();
        lab.client.ip(up_with_subnet(UPLINK, CLIENT) + &default_routes(CLIENT_GATEWAY));
        node1.set_up(2);
        node2.set_up(1);
        for host in [&lab.client, &node1.host, &node2.host] {
            host.run(|| turn_checksum_offload_off(UPLINK));
        }
        if let Ok(mode) = env::var(XDP_VARIABLE) {
            lab.use_xdp(&mode);
        }
        lab
    }

    /// Adds every link, its ends in their namespaces.
    fn wire(&self) {
        let link = |host: &Host, far: &Host, far_end: &str| {
            let (near, far) = (host.namespace(), far.namespace());
            format!("link add {UPLINK} netns {near} type veth peer name {far_end} netns {far}\n")
        };
        let mut batch = link(&self.client, &self.router, TO_CLIENT);
        for node in &self.nodes {
            batch += &link(&node.host, &self.router, node.host.name());
            batch.extend(node.all_pods().map(|pod| link(pod, &node.host, pod.name())));
        }
        // From the sandbox's own namespace, where nothing else ever happens.
        host::ip_batch("the lab", &batch);
    }

    fn set_up_router(&self) {
        let mut batch = format!("link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0\n");
        batch += &up_with_subnet(TO_CLIENT, CLIENT_GATEWAY);
        batch += &up_with_subnet(BRIDGE, NODE_GATEWAY);
        for (number, node) in (1..).zip(&self.nodes) {
            batch.extend([format!("link set {} master {BRIDGE} up\n", node.host.name()), routes_to_pods_of(number)]);
        }
        self.router.ip(batch);
        self.router.run(|| [TO_CLIENT, "node1", "node2"].into_iter().for_each(turn_checksum_offload_off));
    }
}

impl Node {
    fn new(number: u8, twin: &str, cgroup: Cgroup) -> Self {
        let name = format!("node{number}");
        let pod = |kind: &str, index: u8, cgroup| {
            let ordinal = index % CONTAINER_PODS;
            new_host(&format!("{name}-{kind}{ordinal}"), twin, addresses::pod(number, index), cgroup)
        };
        let node = Self {
            host: new_host(&name, twin, addresses::node(number), Some(&cgroup)),
            pods: (0..CONTAINER_PODS).map(|index| pod("pod", index, Some(&cgroup))).collect(),
            vm: pod("vm", CONTAINER_PODS, None),
            cgroup,
            arguments: Vec::new(),
        };
        fs::create_dir_all(node.bpffs()).expect("mkdir in a new tmpfs");
        sandbox::mount_bpffs(&node.bpffs());
        node
    }

    /// Gives the node and its pods their addresses and routes; `other` is the other node's number.
    fn set_up(&self, other: u8) {
        let mut batch = up_with_subnet(UPLINK, self.host.addresses()) + &default_routes(NODE_GATEWAY);
        batch += &routes_to_pods_of(other);
        for pod in self.all_pods() {
            let (interface, Addresses { v4, v6 }) = (pod.name(), pod.addresses());
            batch.extend([format!(
                "link set {interface} address {POD_GATEWAY_MAC} up\n\
                 route add {v4} dev {interface}\n\
                 route add {v6} dev {interface}\n"
            )]);
            pod.ip(format!(
                "addr add {v4}/32 dev {UPLINK}\n\
                 addr add {v6}/128 dev {UPLINK} nodad\n\
                 link set {UPLINK} up\n\
                 route add default via {POD_GATEWAY_V4} dev {UPLINK} onlink\n\
                 route add default via {POD_GATEWAY_V6} dev {UPLINK}\n"
            ));
        }
        self.host.ip(batch);
        let interfaces: Vec<String> = self.all_pods().map(|pod| pod.name().to_owned()).collect();
        self.host.run(move || {
            for interface in interfaces {
                set_variables(&[
                    (&format!("ipv4/conf/{interface}/proxy_arp"), "1"),
                    // Answer at once, not after a random time of up to 0.8 s.
                    (&format!("ipv4/neigh/{interface}/proxy_delay"), "0"),
                ]);
            }
        });
    }
}

/// A host without links, beside the labs of the sandbox: for what the cluster needs and is no part of it.
pub fn lone_host(name: &str) -> Host {
    let nowhere = Addresses { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };
    new_host(name, "", nowhere, None)
}

pub(super) fn new_host(name: &str, twin: &str, addresses: Addresses, cgroup: Option<&Cgroup>) -> Host {
    let host = Host::new(name, twin, addresses, cgroup);
    host.run(|| set_variables(&EVERY_HOST));
    host.ip("link set lo up\n".to_owned());
    host
}

pub(super) fn up_with_subnet(interface: &str, Addresses { v4, v6 }: Addresses) -> String {
    format!("addr add {v4}/24 dev {interface}\naddr add {v6}/64 dev {interface} nodad\nlink set {interface} up\n")
}

pub(super) fn default_routes(Addresses { v4, v6 }: Addresses) -> String {
    format!("route add default via {v4}\nroute add default via {v6}\n")
}

fn routes_to_pods_of(node: u8) -> String {
    let (Addresses { v4, v6 }, [v4_pods, v6_pods]) = (addresses::node(node), addresses::pod_networks(node));
    format!("route add {v4_pods} via {v4}\nroute add {v6_pods} via {v6}\n")
}
