//! VXLAN between the nodes, as the way to each other's pods.

use super::{Addresses, Lab, UPLINK, addresses, tunnel_end};

/// The nodes' device.
pub const VXLAN: &str = "vxlan0";
/// The UDP port that the nodes send each other's packets to: Linux' own default.
pub const VXLAN_PORT: u16 = 8472;

/// Its network identifier (RFC 7348 §5).
const IDENTIFIER: u8 = 7;

impl Lab {
    /// Has each node reach the other's pods by VXLAN over IPv4, and nobody else reach them at all. The devices have the first
    /// addresses of their nodes' pod networks, and routes by each other, as flannel lays them. (It tells the nodes each
    /// other's MAC addresses; here they ask.)
    pub fn lay_vxlan(&self) {
        for (number, other) in [(1, 2), (2, 1)] {
            let (near, far) = (addresses::node(number).v4, addresses::node(other).v4);
            let (Addresses { v4, v6 }, gateway) = (tunnel_end(number), tunnel_end(other));
            let [v4_pods, v6_pods] = addresses::pod_networks(other);
            self.nodes[usize::from(number) - 1].host.ip(format!(
                "link add {VXLAN} type vxlan id {IDENTIFIER} dstport {VXLAN_PORT} local {near} remote {far} dev {UPLINK}\n\
                 addr add {v4}/32 dev {VXLAN}\n\
                 addr add {v6}/128 dev {VXLAN} nodad\n\
                 link set {VXLAN} up\n\
                 route del {v4_pods}\n\
                 route del {v6_pods}\n\
                 route add {v4_pods} via {} dev {VXLAN} onlink\n\
                 route add {v6_pods} via {} dev {VXLAN} onlink\n",
                gateway.v4, gateway.v6
            ));
            self.router.ip(format!("route del {v4_pods}\nroute del {v6_pods}\n"));
        }
    }
}
