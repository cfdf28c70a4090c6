//! The network namespace that packet tests run in: three interfaces of a node, its routes and its neighbours.
//!
//! ```text
//!  pod 10.244.1.10 ── lbpod ┌──────────────────┐ lbuplink ── router 192.0.2.1 ── client 198.51.100.7
//!                           │ node 192.0.2.10  │        └─── other node 192.0.2.2 ── its pods 10.244.2.0/24
//!                           └──────────────────┘ lbnarrow (MTU 1280) ── 172.16.0.2 ── pods 10.244.3.0/24
//! ```
//!
//! Nothing is sent: the far ends only have to exist, and every neighbour is permanent.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder, packet_route::route::RouteType};

/// An interface of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// The node's end of the pod's interface.
    Pod,
    /// Where the cluster's other nodes and the clients outside are.
    Uplink,
    /// An uplink with the smallest MTU that IPv6 allows.
    Narrow,
}

impl Interface {
    const ALL: [Self; 3] = [Self::Pod, Self::Uplink, Self::Narrow];

    fn name(self) -> &'static str {
        match self {
            Self::Pod => "lbpod",
            Self::Uplink => "lbuplink",
            Self::Narrow => "lbnarrow",
        }
    }

    /// The interface's own MAC address.
    pub const fn mac(self) -> [u8; 6] {
        match self {
            Self::Pod => [2, 0, 0, 0, 0x10, 1],
            Self::Uplink => [2, 0, 0, 0, 0x20, 1],
            Self::Narrow => [2, 0, 0, 0, 0x30, 1],
        }
    }
}

/// MAC address of the pod.
pub const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0x10, 2];
/// MAC address of the router on the uplink, behind which clients are.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0x20, 0xfe];
/// MAC address of the other node on the uplink.
pub const OTHER_NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0x20, 2];
/// MAC address of the gateway on the narrow uplink.
pub const NARROW_GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0x30, 2];

/// Bytes of an IP packet that the narrow uplink takes (RFC 8200 §5).
pub const NARROW_MTU: u32 = 1280;

/// The addresses of one IP family in this world.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// "IPv4" or "IPv6".
    pub name: &'static str,
    /// A pod on this node, behind [`Interface::Pod`].
    pub pod: IpAddr,
    /// Another pod on this node.
    pub local_backend: IpAddr,
    /// A pod on the other node.
    pub remote_backend: IpAddr,
    /// Another one.
    pub second_remote_backend: IpAddr,
    /// A pod behind the narrow uplink.
    pub narrow_backend: IpAddr,
    /// An address whose route is a blackhole.
    pub blackholed_backend: IpAddr,
    /// An address to which there is no route.
    pub unrouted_backend: IpAddr,
    /// An address behind a gateway on the uplink whose MAC address is not known.
    pub unresolved_backend: IpAddr,
    /// This node, on the uplink.
    pub node: IpAddr,
    /// This node, on the narrow uplink.
    pub narrow_node: IpAddr,
    /// A client outside the cluster.
    pub client: IpAddr,
    /// A cluster IP.
    pub cluster_ip: IpAddr,
    /// Another cluster IP.
    pub second_cluster_ip: IpAddr,
    /// An address of a load balancer.
    pub load_balancer: IpAddr,
    /// An address that is nobody's.
    pub stranger: IpAddr,
    /// The loopback address.
    pub loopback: IpAddr,
    router: IpAddr,
    other_node: IpAddr,
    narrow_gateway: IpAddr,
    unresolved_gateway: IpAddr,
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// An address of `fd00::/8` (RFC 4193): subnet and host.
const fn v6(subnet: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, subnet, 0, 0, 0, 0, host))
}

impl Net {
    /// IPv4.
    pub const V4: Self = Self {
        name: "IPv4",
        pod: v4(10, 244, 1, 10),
        local_backend: v4(10, 244, 1, 20),
        remote_backend: v4(10, 244, 2, 30),
        second_remote_backend: v4(10, 244, 2, 31),
        narrow_backend: v4(10, 244, 3, 40),
        blackholed_backend: v4(10, 244, 4, 50),
        unrouted_backend: v4(10, 244, 5, 60),
        unresolved_backend: v4(10, 244, 6, 70),
        node: v4(192, 0, 2, 10),
        narrow_node: v4(172, 16, 0, 1),
        client: v4(198, 51, 100, 7),
        cluster_ip: v4(10, 96, 0, 1),
        second_cluster_ip: v4(10, 96, 0, 2),
        load_balancer: v4(203, 0, 113, 80),
        stranger: v4(203, 0, 113, 200),
        loopback: IpAddr::V4(Ipv4Addr::LOCALHOST),
        router: v4(192, 0, 2, 1),
        other_node: v4(192, 0, 2, 2),
        narrow_gateway: v4(172, 16, 0, 2),
        unresolved_gateway: v4(192, 0, 2, 66),
    };

    /// IPv6.
    pub const V6: Self = Self {
        name: "IPv6",
        pod: v6(0x2441, 0x10),
        local_backend: v6(0x2441, 0x20),
        remote_backend: v6(0x2442, 0x30),
        second_remote_backend: v6(0x2442, 0x31),
        narrow_backend: v6(0x2443, 0x40),
        blackholed_backend: v6(0x2444, 0x50),
        unrouted_backend: v6(0x2445, 0x60),
        unresolved_backend: v6(0x2446, 0x70),
        node: v6(0x192, 0x10),
        narrow_node: v6(0x172, 1),
        client: v6(0x198, 7),
        cluster_ip: v6(0x96, 1),
        second_cluster_ip: v6(0x96, 2),
        load_balancer: v6(0x203, 0x80),
        stranger: v6(0x203, 0x200),
        loopback: IpAddr::V6(Ipv6Addr::LOCALHOST),
        router: v6(0x192, 1),
        other_node: v6(0x192, 2),
        narrow_gateway: v6(0x172, 2),
        unresolved_gateway: v6(0x192, 0x66),
    };

    /// Prefix lengths of the subnets on the links, and of those behind a gateway.
    const fn prefix(&self) -> u8 {
        if self.pod.is_ipv4() { 24 } else { 64 }
    }

    const fn host_prefix(&self) -> u8 {
        if self.pod.is_ipv4() { 32 } else { 128 }
    }
}

/// The namespace, once [`World::enter`] has made it.
#[derive(Clone, Copy, Debug)]
pub struct World {
    indices: [u32; Interface::ALL.len()],
}

impl World {
    /// Moves this thread, and the threads that it starts from now on, into a new namespace, and sets it up.
    pub fn enter() -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // Before the interfaces: they inherit from `default`. Addresses are used at once, without duplicate detection.
        for family in ["ipv4", "ipv6"] {
            for scope in ["all", "default"] {
                fs::write(format!("/proc/sys/net/{family}/conf/{scope}/forwarding"), "1")?;
            }
        }
        fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            build(&handle).await
        })
    }

    /// The kernel's index of an interface.
    pub const fn index(&self, interface: Interface) -> u32 {
        let [pod, uplink, narrow] = self.indices;
        match interface {
            Interface::Pod => pod,
            Interface::Uplink => uplink,
            Interface::Narrow => narrow,
        }
    }
}

/// What rtnetlink could not do, as the error of the system call.
fn netlink(what: &'static str) -> impl Fn(rtnetlink::Error) -> io::Error {
    move |error| io::Error::other(format!("{what}: {error}"))
}

async fn build(handle: &Handle) -> io::Result<World> {
    // The loader asks a socket on it for the namespace's cookie.
    let loopback = LinkUnspec::new_with_name("lo").up().build();
    handle.link().set(loopback).execute().await.map_err(netlink("setting the loopback device up"))?;
    let mut indices = [0; Interface::ALL.len()];
    for (interface, index) in Interface::ALL.into_iter().zip(&mut indices) {
        let (name, peer) = (interface.name(), format!("{}-far", interface.name()));
        let add = LinkVeth::new(name, &peer).address(interface.mac().to_vec()).build();
        handle.link().add(add).execute().await.map_err(netlink("adding a veth"))?;
        let mtu = if interface == Interface::Narrow { NARROW_MTU } else { 1500 };
        for end in [name, &peer] {
            let set = LinkUnspec::new_with_name(end).mtu(mtu).up().build();
            handle.link().set(set).execute().await.map_err(netlink("setting a link up"))?;
        }
        *index = if_nametoindex(name)?;
    }
    let world = World { indices };
    for net in [Net::V4, Net::V6] {
        address_interfaces(handle, world, &net).await?;
    }
    Ok(world)
}

/// Addresses, neighbours, routes of one family.
async fn address_interfaces(handle: &Handle, world: World, net: &Net) -> io::Result<()> {
    let (uplink, narrow, pod) =
        (world.index(Interface::Uplink), world.index(Interface::Narrow), world.index(Interface::Pod));
    for (index, address) in [(uplink, net.node), (narrow, net.narrow_node)] {
        handle.address().add(index, address, net.prefix()).execute().await.map_err(netlink("adding an address"))?;
    }
    for (index, address, mac) in [
        (pod, net.pod, POD_MAC),
        (uplink, net.router, ROUTER_MAC),
        (uplink, net.other_node, OTHER_NODE_MAC),
        (narrow, net.narrow_gateway, NARROW_GATEWAY_MAC),
    ] {
        let add = handle.neighbours().add(index, address).link_layer_address(&mac);
        add.execute().await.map_err(netlink("adding a neighbour"))?;
    }

    let to = |destination, prefix| {
        RouteMessageBuilder::<IpAddr>::new().destination_prefix(destination, prefix).map_err(io::Error::other)
    };
    let mut routes = vec![to(net.pod, net.host_prefix())?.output_interface(pod).build()];
    for (destination, gateway) in [
        (net.client, net.router),
        (net.remote_backend, net.other_node),
        (net.narrow_backend, net.narrow_gateway),
        (net.unresolved_backend, net.unresolved_gateway),
    ] {
        let subnet = to(network(destination, net.prefix()), net.prefix())?;
        routes.push(subnet.gateway(gateway).map_err(io::Error::other)?.build());
    }
    routes.push(to(net.blackholed_backend, net.host_prefix())?.kind(RouteType::BlackHole).build());
    for route in routes {
        handle.route().add(route).execute().await.map_err(netlink("adding a route"))?;
    }
    Ok(())
}

/// The network of an address: the kernel refuses routes with host bits.
fn network(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << (32 - prefix))).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - prefix))).into(),
    }
}
