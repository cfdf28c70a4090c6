//! Where one contender is measured: a lab of its own, because what a proxy leaves in a network namespace outlives it.
//!
//! ```text
//!  client: node1-vm0 ── node1, the proxy ─┬─ node1-pod0: has all of 10.128.0.0/11
//!                                         └─ node2 ── node2-pod0: has all of 10.160.0.0/11
//! ```
//!
//! The client's sockets are not in the node's cgroup, so that it takes the packet path with `lb-agent`, too, and all
//! contenders are asked in the same way.

use std::{
    io::{self, BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

use crate::lab::{Family, Host, Lab, Node, ReversePathFilter, UPLINK, sandbox::Sandbox, server::Server};

/// How long a connection may take. The answer is there in a fraction of a millisecond, where there is one.
const PATIENCE: Duration = Duration::from_millis(100);

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// node1-pod0.
    Near,
    /// node2-pod0.
    Far,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Near, Self::Far];

    /// The first of its addresses.
    pub(super) const fn base(self) -> Ipv4Addr {
        match self {
            Self::Near => Ipv4Addr::new(10, 128, 0, 0),
            Self::Far => Ipv4Addr::new(10, 160, 0, 0),
        }
    }

    /// All of its addresses.
    fn network(self) -> String {
        format!("{}/11", self.base())
    }

    /// The name of its node.
    pub(super) fn node(self) -> &'static str {
        match self {
            Self::Near => "node1",
            Self::Far => "node2",
        }
    }

    /// The name of its pod, which its servers answer with.
    pub(super) fn pod(self) -> &'static str {
        match self {
            Self::Near => "node1-pod0",
            Self::Far => "node2-pod0",
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }
}

/// A lab whose pods have enough addresses for every endpoint.
pub(super) struct Ground {
    lab: Lab,
    _servers: Vec<Server>,
}

impl Ground {
    /// Builds it in the sandbox; `label` tells it from others there.
    pub(super) fn build(sandbox: &Sandbox, label: &str) -> Self {
        let sandbox = Sandbox { cgroup: sandbox.cgroup.clone(), outer_pid: sandbox.outer_pid };
        let [lab] = Lab::twins(sandbox, [label], ReversePathFilter::Strict);
        for (side, node) in Side::BOTH.into_iter().zip(&lab.nodes) {
            let (pod, network) = (&node.pods[0], side.network());
            // Every address of the network is the pod's own; to the node it is one neighbour.
            pod.ip(format!("route add local {network} dev lo\n"));
            node.host.ip(format!("route add {network} via {} dev {} onlink\n", pod.address(Family::V4), pod.name()));
        }
        let [node1, node2] = &lab.nodes;
        node1.host.ip(format!(
            "route add {} via {} dev {UPLINK}\n",
            Side::Far.network(),
            node2.host.address(Family::V4)
        ));
        let servers = lab.nodes.iter().map(|node| Server::start(&node.pods[0])).collect();
        Self { lab, _servers: servers }
    }

    /// Both nodes.
    pub(super) fn nodes(&self) -> &[Node; 2] {
        &self.lab.nodes
    }

    /// The node with the proxy.
    pub(super) fn node(&self) -> &Node {
        &self.lab.nodes[0]
    }

    /// Who connects.
    pub(super) fn client(&self) -> &Host {
        &self.node().vm
    }
}

/// Connects from the host of the calling thread, and gives the name of the pod that answers.
pub(super) fn ask(to: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    // Closed by a RST: thousands of ports that wait for old segments to die would run out.
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let pod = line.strip_prefix("pod=").and_then(|rest| rest.split(' ').next());
    pod.map(str::to_owned).ok_or_else(|| io::Error::other(format!("not an answer of a lab server: {line:?}")))
}
