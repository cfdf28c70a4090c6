//! The two IP families as types, so that one code path serves both, each with its own maps.

use aya_ebpf::{
    bindings::{bpf_fib_lookup, bpf_redir_neigh},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
};
use lb_common::{
    abi::{
        Address, Backend, Flow, Frontend, FrontendKey, Reason, Service, ServiceStats, SocketPeer, SocketPeerKey, Tuple,
    },
    checksum::Diff,
};

use crate::{
    hook::PacketContext,
    maps::{self, BACKENDS, FLOWS, FRONTENDS, INTERFACES, ON_DEMAND, PEERS, SERVICES, SLOTS, Work},
    packet::Packet,
};

/// An IP family and what differs between the two.
pub trait Family: Copy {
    /// An address of the family.
    type Address: Address;

    /// Whether this is IPv6.
    const V6: bool;
    /// `AF_INET` or `AF_INET6`.
    const AF: u8;

    fn backends() -> &'static Array<Backend<Self::Address>, BACKENDS>;
    fn flows() -> &'static LruHashMap<Tuple<Self::Address>, Flow<Self::Address>, FLOWS>;
    fn frontends() -> &'static HashMap<FrontendKey<Self::Address>, Frontend, FRONTENDS, ON_DEMAND>;
    fn node_addresses() -> &'static HashMap<u32, Self::Address, INTERFACES>;
    fn node_port_addresses() -> &'static HashMap<Self::Address, u32, INTERFACES>;
    fn scratch() -> &'static PerCpuArray<Work<Self::Address>, 1>;
    fn services() -> &'static Array<Service, SERVICES>;
    fn service_stats() -> &'static PerCpuArray<ServiceStats, SERVICES>;
    fn slots() -> &'static Array<u32, SLOTS>;
    fn socket_peers() -> &'static LruHashMap<SocketPeerKey<Self::Address>, SocketPeer<Self::Address>, PEERS>;

    /// Adds the replacement of an address to a checksum difference.
    fn diff(diff: Diff, old: Self::Address, new: Self::Address) -> Diff;

    /// Replaces addresses in the IP header of `packet`, and takes one off its time to live where `hop` says so.
    fn rewrite_header<C: PacketContext>(
        ctx: &C,
        packet: &Packet<Self::Address>,
        to: &Tuple<Self::Address>,
        hop: bool,
    ) -> Result<(), Reason>;

    /// Fills in the addresses of a route lookup.
    fn set_fib_addresses(params: &mut bpf_fib_lookup, src: Self::Address, dst: Self::Address);

    /// The next hop that a route lookup found.
    fn next_hop(params: &bpf_fib_lookup) -> bpf_redir_neigh;
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy)]
pub struct Ipv4;

/// IPv6 (RFC 8200).
#[derive(Clone, Copy)]
pub struct Ipv6;

macro_rules! family_maps {
    ($address:ty; $backends:ident $flows:ident $frontends:ident $node_addresses:ident $node_port_addresses:ident
     $scratch:ident $services:ident $service_stats:ident $slots:ident $socket_peers:ident) => {
        #[inline(always)]
        fn backends() -> &'static Array<Backend<$address>, BACKENDS> {
            &maps::$backends
        }
        #[inline(always)]
        fn flows() -> &'static LruHashMap<Tuple<$address>, Flow<$address>, FLOWS> {
            &maps::$flows
        }
        #[inline(always)]
        fn frontends() -> &'static HashMap<FrontendKey<$address>, Frontend, FRONTENDS, ON_DEMAND> {
            &maps::$frontends
        }
        #[inline(always)]
        fn node_addresses() -> &'static HashMap<u32, $address, INTERFACES> {
            &maps::$node_addresses
        }
        #[inline(always)]
        fn node_port_addresses() -> &'static HashMap<$address, u32, INTERFACES> {
            &maps::$node_port_addresses
        }
        #[inline(always)]
        fn scratch() -> &'static PerCpuArray<Work<$address>, 1> {
            &maps::$scratch
        }
        #[inline(always)]
        fn services() -> &'static Array<Service, SERVICES> {
            &maps::$services
        }
        #[inline(always)]
        fn service_stats() -> &'static PerCpuArray<ServiceStats, SERVICES> {
            &maps::$service_stats
        }
        #[inline(always)]
        fn slots() -> &'static Array<u32, SLOTS> {
            &maps::$slots
        }
        #[inline(always)]
        fn socket_peers() -> &'static LruHashMap<SocketPeerKey<$address>, SocketPeer<$address>, PEERS> {
            &maps::$socket_peers
        }
    };
}

impl Family for Ipv4 {
    type Address = [u8; 4];

    const V6: bool = false;
    const AF: u8 = 2;

    family_maps!([u8; 4]; BACKENDS4 FLOWS4 FRONTENDS4 NODE_ADDRESSES4 NODEPORT_ADDRS4
        SCRATCH4 SERVICES4 SERVICE_STATS4 SLOTS4 SOCKET_PEERS4);

    #[inline(always)]
    fn diff(diff: Diff, old: [u8; 4], new: [u8; 4]) -> Diff {
        diff.ipv4(old, new)
    }

    #[inline(always)]
    fn rewrite_header<C: PacketContext>(
        ctx: &C,
        packet: &Packet<[u8; 4]>,
        to: &Tuple<[u8; 4]>,
        hop: bool,
    ) -> Result<(), Reason> {
        packet.rewrite_ipv4(ctx, to, hop)
    }

    #[inline(always)]
    fn set_fib_addresses(params: &mut bpf_fib_lookup, src: [u8; 4], dst: [u8; 4]) {
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(src);
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(dst);
    }

    #[inline(always)]
    fn next_hop(params: &bpf_fib_lookup) -> bpf_redir_neigh {
        let mut hop = empty_next_hop();
        // The lookup may answer an IPv4 destination with an IPv6 gateway (RFC 5549) and says so in `family`.
        hop.nh_family = u32::from(params.family);
        // SAFETY: every bit pattern is an address of either form.
        hop.__bindgen_anon_1.ipv6_nh = unsafe { params.__bindgen_anon_4.ipv6_dst };
        hop
    }
}

impl Family for Ipv6 {
    type Address = [u8; 16];

    const V6: bool = true;
    const AF: u8 = 10;

    family_maps!([u8; 16]; BACKENDS6 FLOWS6 FRONTENDS6 NODE_ADDRESSES6 NODEPORT_ADDRS6
        SCRATCH6 SERVICES6 SERVICE_STATS6 SLOTS6 SOCKET_PEERS6);

    #[inline(always)]
    fn diff(diff: Diff, old: [u8; 16], new: [u8; 16]) -> Diff {
        diff.ipv6(old, new)
    }

    #[inline(always)]
    fn rewrite_header<C: PacketContext>(
        ctx: &C,
        packet: &Packet<[u8; 16]>,
        to: &Tuple<[u8; 16]>,
        hop: bool,
    ) -> Result<(), Reason> {
        packet.rewrite_ipv6(ctx, to, hop)
    }

    #[inline(always)]
    fn set_fib_addresses(params: &mut bpf_fib_lookup, src: [u8; 16], dst: [u8; 16]) {
        params.__bindgen_anon_3.ipv6_src = words(src);
        params.__bindgen_anon_4.ipv6_dst = words(dst);
    }

    #[inline(always)]
    fn next_hop(params: &bpf_fib_lookup) -> bpf_redir_neigh {
        let mut hop = empty_next_hop();
        hop.nh_family = u32::from(Self::AF);
        // SAFETY: the lookup was made with an IPv6 destination, which the kernel replaced by the next hop.
        hop.__bindgen_anon_1.ipv6_nh = unsafe { params.__bindgen_anon_4.ipv6_dst };
        hop
    }
}

#[inline(always)]
fn empty_next_hop() -> bpf_redir_neigh {
    // SAFETY: integers only; zero is a value of each.
    unsafe { core::mem::zeroed() }
}

/// An address as the four words, in wire order, in which the kernel's structures hold it. Not byte by byte: what is taken
/// apart in bytes stays so in the compiled program.
#[inline(always)]
pub fn words(address: [u8; 16]) -> [u32; 4] {
    // SAFETY: both are 16 bytes of which every bit pattern is a value.
    unsafe { core::mem::transmute(address) }
}

/// The octets of [`words`].
#[inline(always)]
pub fn octets(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: as in `words`.
    unsafe { core::mem::transmute(words) }
}
