//! Every map, under the name that the kernel, the pins and `bpftool` know it by.
//!
//! Sizes here are the defaults of `lb_common::abi::capacity`; the agent sets those of the tables when it creates them.
//! Keys and values are described in `lb_common::abi`.

use aya_ebpf::{
    Global,
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use lb_common::abi::{
    Affinity, AffinityKey, Allowed, Backend, Config, Counter, Event, EventCounts, Flow, Frontend, FrontendKey,
    Interface, Load, LoadKey, LocalAddress, LocalAddressKey, Monitor, NodeAddress, Reason, Service, ServiceCidr,
    ServiceIndex, ServiceName, ServiceStats, Slot, SocketFrontend, SocketPeer, SocketPeerKey, SourceRange, Tuple,
    XdpDevice, capacity,
};

use crate::{balance::Picked, forward::Route, packet::Packet, snat::Search};

type V4 = [u8; 4];
type V6 = [u8; 16];

const REASONS: usize = Reason::COUNT as usize;
pub const FRONTENDS: usize = capacity::FRONTENDS as usize;
pub const SERVICES: usize = capacity::SERVICES as usize;
pub const SLOTS: usize = capacity::SLOTS as usize;
pub const BACKENDS: usize = capacity::BACKENDS as usize;
pub const FLOWS: usize = capacity::FLOWS as usize;
pub const FRAGMENTS: usize = capacity::FRAGMENTS as usize;
pub const PEERS: usize = capacity::SOCKET_PEERS as usize;
pub const AFFINITIES: usize = capacity::AFFINITY as usize;
pub const LOADS: usize = capacity::LOADS as usize;
pub const RANGES: usize = capacity::SOURCE_RANGES as usize;
pub const CIDRS: usize = capacity::SERVICE_CIDRS as usize;
pub const LOCALS: usize = capacity::LOCAL_ADDRESSES as usize;
pub const RING: usize = capacity::EVENTS as usize;
pub const INTERFACES: usize = capacity::INTERFACES as usize;
/// Elements are allocated when they are written: tables that are mostly empty cost nothing.
pub const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<Counter, REASONS> = PerCpuArray::new();
#[btf_map]
pub static SOCKETS: SkStorage<SocketFrontend> = SkStorage::new();

#[btf_map]
pub static MONITOR: Array<Monitor, 1> = Array::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, RING> = RingBuf::new();
#[btf_map]
pub static EVENT_COUNTS: PerCpuArray<EventCounts, 1> = PerCpuArray::new();

#[btf_map]
pub static XDP_DEVICES: HashMap<Interface, XdpDevice, INTERFACES> = HashMap::new();

#[btf_map]
pub static FLOWS4: LruHashMap<Tuple<V4>, Flow<V4>, FLOWS> = LruHashMap::new();
#[btf_map]
pub static FLOWS6: LruHashMap<Tuple<V6>, Flow<V6>, FLOWS> = LruHashMap::new();
#[btf_map]
pub static FRONTENDS4: HashMap<FrontendKey<V4>, Frontend, FRONTENDS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static FRONTENDS6: HashMap<FrontendKey<V6>, Frontend, FRONTENDS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static SERVICES4: Array<Service, SERVICES> = Array::new();
#[btf_map]
pub static SERVICES6: Array<Service, SERVICES> = Array::new();
#[btf_map]
pub static SERVICE_NAMES4: HashMap<ServiceIndex, ServiceName, SERVICES, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static SERVICE_NAMES6: HashMap<ServiceIndex, ServiceName, SERVICES, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static SERVICE_STATS4: PerCpuArray<ServiceStats, SERVICES> = PerCpuArray::new();
#[btf_map]
pub static SERVICE_STATS6: PerCpuArray<ServiceStats, SERVICES> = PerCpuArray::new();
#[btf_map]
pub static SLOTS4: Array<Slot, SLOTS> = Array::new();
#[btf_map]
pub static SLOTS6: Array<Slot, SLOTS> = Array::new();
#[btf_map]
pub static BACKENDS4: Array<Backend<V4>, BACKENDS> = Array::new();
#[btf_map]
pub static BACKENDS6: Array<Backend<V6>, BACKENDS> = Array::new();
#[btf_map]
pub static NODE_ADDRESSES4: HashMap<Interface, NodeAddress<V4>, INTERFACES> = HashMap::new();
#[btf_map]
pub static NODE_ADDRESSES6: HashMap<Interface, NodeAddress<V6>, INTERFACES> = HashMap::new();
#[btf_map]
pub static LOCAL_ADDRS4: HashMap<LocalAddressKey<V4>, LocalAddress, LOCALS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static LOCAL_ADDRS6: HashMap<LocalAddressKey<V6>, LocalAddress, LOCALS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static SOCKET_PEERS4: LruHashMap<SocketPeerKey<V4>, SocketPeer<V4>, PEERS> = LruHashMap::new();
#[btf_map]
pub static SOCKET_PEERS6: LruHashMap<SocketPeerKey<V6>, SocketPeer<V6>, PEERS> = LruHashMap::new();
#[btf_map]
pub static AFFINITY4: LruHashMap<AffinityKey<V4>, Affinity, AFFINITIES> = LruHashMap::new();
#[btf_map]
pub static AFFINITY6: LruHashMap<AffinityKey<V6>, Affinity, AFFINITIES> = LruHashMap::new();
#[btf_map]
pub static LOADS4: HashMap<LoadKey, Load, LOADS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static LOADS6: HashMap<LoadKey, Load, LOADS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static SOURCE_RANGES4: LpmTrie<SourceRange<V4>, Allowed, RANGES> = LpmTrie::new();
#[btf_map]
pub static SOURCE_RANGES6: LpmTrie<SourceRange<V6>, Allowed, RANGES> = LpmTrie::new();
#[btf_map]
pub static SERVICE_CIDRS4: LpmTrie<V4, ServiceCidr, CIDRS> = LpmTrie::new();
#[btf_map]
pub static SERVICE_CIDRS6: LpmTrie<V6, ServiceCidr, CIDRS> = LpmTrie::new();

/// What became of the first fragments of packets, for those that follow. Of one load, as `SCRATCH*`.
#[btf_map]
pub static FRAGMENTS4: LruHashMap<Tuple<V4>, Flow<V4>, FRAGMENTS> = LruHashMap::new();
#[btf_map]
pub static FRAGMENTS6: LruHashMap<Tuple<V6>, Flow<V6>, FRAGMENTS> = LruHashMap::new();

/// What the steps of a new flow hand on to each other. The stack is too small for it: 512 bytes for a whole chain of
/// calls, of which an IPv6 flow needs half.
#[btf_map]
pub static SCRATCH4: PerCpuArray<Work<V4>, 1> = PerCpuArray::new();
#[btf_map]
pub static SCRATCH6: PerCpuArray<Work<V6>, 1> = PerCpuArray::new();

/// A packet that takes more than one lookup, and both directions of its flow in the making.
#[repr(C)]
pub struct Work<A> {
    /// The packet.
    pub packet: Packet<A>,
    /// What its fragments have in common, where it is the first of them.
    pub fragment_id: u32,
    /// What it quotes, where it is an ICMP error.
    pub quoted: Packet<A>,
    /// Offset of its end, likewise.
    pub end: u32,
    /// The tuple that what it quotes was sent with.
    pub original: Tuple<A>,
    /// Index in `SERVICES*`.
    pub service: u32,
    /// The flow's hash.
    pub hash: u32,
    /// Number of the [`Reason`] why it is refused or dropped.
    pub reason: u32,
    /// The backend.
    pub picked: Picked<A>,
    /// The search for its source port.
    pub search: Search,
    /// The value for the request's tuple.
    pub request: Flow<A>,
    /// The value for `reply_key`.
    pub reply: Flow<A>,
    /// The tuple of the replies.
    pub reply_key: Tuple<A>,
    /// The way out, for packets that are forwarded.
    pub route: Route,
    /// A copy of headers of a packet that is refused.
    pub headers: Headers,
}

/// More than any header has, and as much as `bpf_csum_diff` takes.
pub type Headers = [u32; 128];

// Options: constants of the loaded object, which the agent sets. Their values here are arbitrary and must be unlike any
// other constant: LLVM merges equal ones, and a plain `&0` somewhere would change with an option that is 0.

/// Mixed into every hash that picks a backend. The same on all nodes.
#[unsafe(no_mangle)]
pub static HASH_SEED: Global<u32> = Global::new(0x5eed_c0de);
/// Cookie of the node's own network namespace.
#[unsafe(no_mangle)]
pub static NODE_NETNS_COOKIE: Global<u64> = Global::new(0xc00c_1e00_5eed_c0de);
/// 1 while kube-proxy's connections go on beside ours: a TCP packet of a connection that we did not see begin is for the
/// stack, whose connection tracking may know it. Else 0: it is one of ours that was evicted, and gets its backend again.
#[unsafe(no_mangle)]
pub static TAKEOVER: Global<u32> = Global::new(0x7a6e_c0de);
/// 1 where an XDP program of ours may have met a packet before TC, else 0.
#[unsafe(no_mangle)]
pub static XDP: Global<u32> = Global::new(0x0dd9_c0de);
/// `CONFIG_HZ`: what `bpf_jiffies64` counts in a second.
#[unsafe(no_mangle)]
pub static TICKS_PER_SECOND: Global<u32> = Global::new(0x7ee1_c0de);
