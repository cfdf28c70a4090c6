//! The lab: hosts that are network namespaces, wired as a small cluster, with real sockets, real agents, and nothing
//! of the machine's own touched.
//!
//! ```text
//!                    client 198.51.100.2
//!                       │
//!                    router 198.51.100.1 ─ 192.168.100.254 (a bridge)
//!                       ├─────────────────────────┐  full checksums, as on a wire
//!              node1 192.168.100.1       node2 192.168.100.2
//!               │      │      │           │      │      │     a route to each pod, as Calico lays them
//!             pod0   pod1    vm0        pod0   pod1    vm0
//!         10.1.1.1     .2     .3    10.1.2.1     .2     .3
//! ```
//!
//! | | IPv4 | IPv6 |
//! |---|---|---|
//! | outside client, its gateway | `198.51.100.2`, `.1` | `2001:db8::2`, `::1` |
//! | node N, the router | `192.168.100.N`, `.254` | `fd00:192:168:100::N`, `::fe` |
//! | pod I of node N | `10.1.N.(I+1)` | `fd00:10:1:N::(I+1)` |
//! | Services, known to agents only | `10.96.0.0/16` | `fd00:10:96::/112` |
//!
//! The threads of a pod are in its node's cgroup, as containers are. Those of `vm0` are not: it stands for pods whose
//! sockets the node cannot see (a virtual machine's, say), and takes the packet path where others take the socket path.

pub(crate) mod addresses;
pub mod agent;
pub mod capture;
mod cgroup;
pub mod client;
pub mod cluster;
mod host;
pub(crate) mod interface;
pub mod load;
pub mod manifest;
mod owner;
pub mod path;
pub mod sandbox;
pub mod server;
pub mod traffic;
pub mod tun;
mod vxlan;
mod wiring;

use std::{
    ffi::OsString,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

pub use addresses::{Addresses, Family, cluster_ips, tunnel_end};
use cgroup::Cgroup;
pub use cgroup::sweep;
pub use host::Host;
pub use interface::turn_receive_offload_off;
use server::Server;
pub use vxlan::{VXLAN, VXLAN_PORT};
pub use wiring::{UPLINK, lone_host};

/// Where each agent has a directory, named like its node's namespace.
pub const AGENTS: &str = "/run/lb";
/// The agent's log, in its directory.
pub const LOG: &str = "agent.log";

/// `rp_filter` of the nodes (RFC 3704): distributions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReversePathFilter {
    /// A packet must arrive by the interface that the way back to its source leaves by.
    Strict = 1,
    /// There must be some way back to its source.
    Loose = 2,
}

/// A cluster of two nodes, and a client outside it.
pub struct Lab {
    /// The outside client.
    pub client: Host,
    /// Between the client and the nodes.
    pub router: Host,
    /// node1 and node2.
    pub nodes: [Node; 2],
    /// What keeps the wires fit for XDP.
    wires: Vec<OwnedFd>,
    /// Process 1 of the lab, as the machine numbers it: what `nsenter -t` takes.
    pub outer_pid: u32,
}

impl Lab {
    /// The pods of both nodes.
    pub fn all_pods(&self) -> impl Iterator<Item = &Host> {
        self.nodes.iter().flat_map(Node::all_pods)
    }

    /// Starts servers in all pods.
    #[must_use]
    pub fn start_servers(&self) -> Vec<Server> {
        self.all_pods().map(Server::start).collect()
    }

    /// The router, as the outside client knows it.
    pub fn gateway_of_the_client(&self, family: Family) -> IpAddr {
        addresses::CLIENT_GATEWAY.of(family)
    }

    /// All hosts that talk to others on their own account.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.nodes.iter().flat_map(|node| [&node.host].into_iter().chain(node.all_pods())).chain([&self.client])
    }
}

/// A node with its pods.
pub struct Node {
    /// The node itself.
    pub host: Host,
    /// Pods whose sockets are in the node's cgroup.
    pub pods: Vec<Host>,
    /// A pod whose sockets are not.
    pub vm: Host,
    cgroup: Cgroup,
    /// What its agent is told beside what all agents are told.
    arguments: Vec<OsString>,
}

impl Node {
    /// Its directory in the cgroup2 hierarchy.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Its directory for what its agent keeps.
    pub fn directory(&self) -> PathBuf {
        Path::new(AGENTS).join(self.host.namespace())
    }

    /// Its own BPF file system.
    pub fn bpffs(&self) -> PathBuf {
        self.directory().join("bpf")
    }

    /// All its pods.
    pub fn all_pods(&self) -> impl Iterator<Item = &Host> {
        self.pods.iter().chain([&self.vm])
    }
}
