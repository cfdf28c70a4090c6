//! The two IP families as types, so that one code path serves both, each with its own maps.

use aya_ebpf::{
    bindings::{bpf_fib_lookup, bpf_redir_neigh},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use aya_log_ebpf::macro_support::{Argument, IpFormatter};
use lb_common::{
    abi::{
        Address, Affinity, AffinityKey, Allowed, Backend, Config, Flow, Frontend, FrontendKey, Interface, Load,
        LoadKey, LocalAddress, LocalAddressKey, NodeAddress, Prefix, Reason, Service, ServiceCidr, ServiceStats, Slot,
        SocketPeer, SocketPeerKey, SourceRange, Tuple,
    },
    checksum::Diff,
};

use crate::{
    hook::PacketContext,
    maps::{
        self, AFFINITIES, BACKENDS, CIDRS, FLOWS, FRAGMENTS, FRONTENDS, INTERFACES, LOADS, LOCALS, ON_DEMAND, PEERS,
        RANGES, SERVICES, SLOTS, Work,
    },
    packet::{
        self, Packet,
        header::{self, FRAGMENT, Header},
    },
};

/// An IP family and what differs between the two.
pub trait Family: Copy {
    /// An address of the family.
    type Address: Address + Argument + IpFormatter;

    /// Whether this is IPv6.
    const V6: bool;
    /// 4 or 6.
    const NUMBER: u8;
    /// `AF_INET` or `AF_INET6`.
    const AF: u8;
    /// What follows an Ethernet header.
    const ETHERTYPE: u16;
    /// Bits of an address.
    const BITS: u32;

    fn affinity() -> &'static LruHashMap<AffinityKey<Self::Address>, Affinity, AFFINITIES>;
    fn backends() -> &'static Array<Backend<Self::Address>, BACKENDS>;
    fn flows() -> &'static LruHashMap<Tuple<Self::Address>, Flow<Self::Address>, FLOWS>;
    fn fragments() -> &'static LruHashMap<Tuple<Self::Address>, Flow<Self::Address>, FRAGMENTS>;
    fn frontends() -> &'static HashMap<FrontendKey<Self::Address>, Frontend, FRONTENDS, ON_DEMAND>;
    fn loads() -> &'static HashMap<LoadKey, Load, LOADS, ON_DEMAND>;
    fn local_addresses() -> &'static HashMap<LocalAddressKey<Self::Address>, LocalAddress, LOCALS, ON_DEMAND>;
    fn node_addresses() -> &'static HashMap<Interface, NodeAddress<Self::Address>, INTERFACES>;
    fn scratch() -> &'static PerCpuArray<Work<Self::Address>, 1>;
    fn services() -> &'static Array<Service, SERVICES>;
    fn service_cidrs() -> &'static LpmTrie<Self::Address, ServiceCidr, CIDRS>;
    fn service_stats() -> &'static PerCpuArray<ServiceStats, SERVICES>;
    fn slots() -> &'static Array<Slot, SLOTS>;
    fn socket_peers() -> &'static LruHashMap<SocketPeerKey<Self::Address>, SocketPeer<Self::Address>, PEERS>;
    fn source_ranges() -> &'static LpmTrie<SourceRange<Self::Address>, Allowed, RANGES>;

    /// The network that holds every cluster IP.
    fn cluster_ips(config: &Config) -> &Prefix<Self::Address>;
    /// The pods' network, where pods are told by their addresses.
    fn pods(config: &Config) -> &Prefix<Self::Address>;

    /// An address in 16 octets, IPv4 as IPv4-mapped (RFC 4291 §2.5.5.2).
    fn wide(address: Self::Address) -> [u8; 16];

    /// Adds the replacement of an address to a checksum difference.
    fn diff(diff: Diff, old: Self::Address, new: Self::Address) -> Diff;

    /// The replacement of one tuple's addresses by another's.
    #[inline(always)]
    fn difference(from: &Tuple<Self::Address>, to: &Tuple<Self::Address>) -> Diff {
        Self::diff(Self::diff(Diff::NONE, from.src, to.src), from.dst, to.dst)
    }

    /// Protocol number of the family's ICMP.
    const ICMP: u8;

    /// Whether ICMP messages of this type are errors that quote a packet.
    fn is_icmp_error(kind: u8) -> bool;

    /// What the fragments of a packet have in common, of which this is the first.
    fn fragment_id<C: PacketContext>(ctx: &C, packet: &Packet<Self::Address>) -> Result<u32, Reason>;

    /// Reads the IP header at `l3`, with what belongs to it.
    fn header<C: PacketContext>(ctx: &C, l3: usize) -> Result<Header<Self::Address>, Reason>;

    /// Parses a packet whose IP header is at `l3`. `None` for what is neither TCP nor UDP.
    fn parse<C: PacketContext>(ctx: &C, l3: usize) -> Result<Option<Packet<Self::Address>>, Reason>;

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

/// The third word of an IPv4-mapped address.
pub const MAPPED_PREFIX: u32 = 0x0000_ffff_u32.to_be();

/// IPv4 (RFC 791).
#[derive(Clone, Copy)]
pub struct Ipv4;

/// IPv6 (RFC 8200).
#[derive(Clone, Copy)]
pub struct Ipv6;

macro_rules! family_maps {
    ($address:ty; $affinity:ident $backends:ident $flows:ident $fragments:ident $frontends:ident $loads:ident $local_addresses:ident
     $node_addresses:ident $scratch:ident $services:ident $service_cidrs:ident $service_stats:ident $slots:ident
     $socket_peers:ident $source_ranges:ident; $cluster_ips:ident $pods:ident) => {
        #[inline(always)]
        fn affinity() -> &'static LruHashMap<AffinityKey<$address>, Affinity, AFFINITIES> {
            &maps::$affinity
        }
        #[inline(always)]
        fn service_cidrs() -> &'static LpmTrie<$address, ServiceCidr, CIDRS> {
            &maps::$service_cidrs
        }
        #[inline(always)]
        fn source_ranges() -> &'static LpmTrie<SourceRange<$address>, Allowed, RANGES> {
            &maps::$source_ranges
        }
        #[inline(always)]
        fn cluster_ips(config: &Config) -> &Prefix<$address> {
            &config.$cluster_ips
        }
        #[inline(always)]
        fn pods(config: &Config) -> &Prefix<$address> {
            &config.$pods
        }
        #[inline(always)]
        fn backends() -> &'static Array<Backend<$address>, BACKENDS> {
            &maps::$backends
        }
        #[inline(always)]
        fn flows() -> &'static LruHashMap<Tuple<$address>, Flow<$address>, FLOWS> {
            &maps::$flows
        }
        #[inline(always)]
        fn fragments() -> &'static LruHashMap<Tuple<$address>, Flow<$address>, FRAGMENTS> {
            &maps::$fragments
        }
        #[inline(always)]
        fn frontends() -> &'static HashMap<FrontendKey<$address>, Frontend, FRONTENDS, ON_DEMAND> {
            &maps::$frontends
        }
        #[inline(always)]
        fn node_addresses() -> &'static HashMap<Interface, NodeAddress<$address>, INTERFACES> {
            &maps::$node_addresses
        }
        #[inline(always)]
        fn loads() -> &'static HashMap<LoadKey, Load, LOADS, ON_DEMAND> {
            &maps::$loads
        }
        #[inline(always)]
        fn local_addresses() -> &'static HashMap<LocalAddressKey<$address>, LocalAddress, LOCALS, ON_DEMAND> {
            &maps::$local_addresses
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
        fn slots() -> &'static Array<Slot, SLOTS> {
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
    const NUMBER: u8 = 4;
    const AF: u8 = 2;
    const ETHERTYPE: u16 = packet::ETHERTYPE_IPV4;
    const BITS: u32 = 32;

    family_maps!([u8; 4]; AFFINITY4 BACKENDS4 FLOWS4 FRAGMENTS4 FRONTENDS4 LOADS4 LOCAL_ADDRS4 NODE_ADDRESSES4 SCRATCH4 SERVICES4
        SERVICE_CIDRS4 SERVICE_STATS4 SLOTS4 SOCKET_PEERS4 SOURCE_RANGES4; cluster_ips4 pods4);

    #[inline(always)]
    fn wide(address: [u8; 4]) -> [u8; 16] {
        octets([0, 0, MAPPED_PREFIX, u32::from_ne_bytes(address)])
    }

    #[inline(always)]
    fn diff(diff: Diff, old: [u8; 4], new: [u8; 4]) -> Diff {
        diff.ipv4(old, new)
    }

    const ICMP: u8 = 1;

    /// Destination unreachable, time exceeded, parameter problem (RFC 792). A redirect is for whoever sent the packet as it
    /// is quoted; source quench is no more (RFC 6633).
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn fragment_id<C: PacketContext>(ctx: &C, packet: &Packet<[u8; 4]>) -> Result<u32, Reason> {
        // RFC 791 §3.1.
        packet::read::<_, u16>(ctx, packet.l3() + 4).map(u32::from)
    }

    #[inline(always)]
    fn header<C: PacketContext>(ctx: &C, l3: usize) -> Result<Header<[u8; 4]>, Reason> {
        header::ipv4(ctx, l3)
    }

    #[inline(always)]
    fn parse<C: PacketContext>(ctx: &C, l3: usize) -> Result<Option<Packet<[u8; 4]>>, Reason> {
        Packet::parse_ipv4(ctx, l3)
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
    const NUMBER: u8 = 6;
    const AF: u8 = 10;
    const ETHERTYPE: u16 = packet::ETHERTYPE_IPV6;
    const BITS: u32 = 128;

    family_maps!([u8; 16]; AFFINITY6 BACKENDS6 FLOWS6 FRAGMENTS6 FRONTENDS6 LOADS6 LOCAL_ADDRS6 NODE_ADDRESSES6 SCRATCH6 SERVICES6
        SERVICE_CIDRS6 SERVICE_STATS6 SLOTS6 SOCKET_PEERS6 SOURCE_RANGES6; cluster_ips6 pods6);

    #[inline(always)]
    fn wide(address: [u8; 16]) -> [u8; 16] {
        address
    }

    #[inline(always)]
    fn diff(diff: Diff, old: [u8; 16], new: [u8; 16]) -> Diff {
        diff.ipv6(old, new)
    }

    const ICMP: u8 = 58;

    /// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443 §3).
    #[inline(always)]
    fn is_icmp_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    /// Nothing is between the fragment header and the transport header, or `parse` would not have taken the packet.
    #[inline(always)]
    fn fragment_id<C: PacketContext>(ctx: &C, packet: &Packet<[u8; 16]>) -> Result<u32, Reason> {
        header::ipv6_fragment(ctx, packet.before_l4(FRAGMENT)).map(|header| header.id)
    }

    #[inline(always)]
    fn header<C: PacketContext>(ctx: &C, l3: usize) -> Result<Header<[u8; 16]>, Reason> {
        header::ipv6(ctx, l3)
    }

    #[inline(always)]
    fn parse<C: PacketContext>(ctx: &C, l3: usize) -> Result<Option<Packet<[u8; 16]>>, Reason> {
        Packet::parse_ipv6(ctx, l3)
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
