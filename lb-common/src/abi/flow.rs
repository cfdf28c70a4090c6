use super::Tuple;

/// The places where a packet meets our programs. A [`Flow`] names those at which it applies, since a packet passes
/// several: a reply from a local backend, for instance, enters by the backend's interface and must only be translated
/// where it leaves the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// TC ingress of a pod's interface on the node: packets that the pod sent.
    PodIngress = 1,
    /// TC egress of a pod's interface on the node: packets for the pod.
    PodEgress = 2,
    /// TC ingress or XDP of an uplink: packets that reach the node.
    UplinkIngress = 4,
    /// TC egress of an uplink: packets that leave the node.
    UplinkEgress = 8,
}

/// What follows the translation of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowAction {
    /// The kernel's stack goes on with the packet. One half of the tuple is unchanged.
    Stack = 1,
    /// The program looks up the way out (`bpf_fib_lookup`) and sends the packet itself. Both halves change.
    Forward = 2,
}

/// Which way the packets of an entry go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowDirection {
    /// From the client to the frontend. Only requests are given another backend.
    Request = 0,
    /// From the backend to the client.
    Reply = 1,
}

/// What has been seen of a TCP connection, as bits; both entries of a flow note their own direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState;

impl TcpState {
    /// A SYN passed in this direction.
    pub const SYN: u8 = 1;
    /// A segment without SYN passed in this direction: the handshake went on.
    pub const ESTABLISHED: u8 = 2;
    /// A FIN passed in this direction.
    pub const FIN: u8 = 4;
    /// A RST passed in this direction.
    pub const RST: u8 = 8;
}

/// Value of `FLOWS*`: what becomes of the packets of one direction of one flow.
///
/// The programs read values that another CPU may be reusing for another flow (preallocated hash maps hand elements
/// out again at once, `kernel/bpf/hashtab.c`). `owner` is written first and must be read last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Flow<A> {
    /// [`hash::owner`](crate::hash::owner) of the key that this value was written for.
    pub owner: u32,
    /// A [`FlowAction`].
    pub action: u8,
    /// Bits of [`Hook`]: where this entry applies. 0: nowhere, it only keeps its packets, which answer an exchange that
    /// began on this node, from being taken for requests.
    pub hooks: u8,
    /// Bits of [`TcpState`]; 0 for UDP.
    pub tcp_state: u8,
    /// A [`FlowDirection`].
    pub direction: u8,
    /// The tuple that replaces the key's.
    pub to: Tuple<A>,
    /// Index in `BACKENDS*`.
    pub backend: u32,
    /// Generation of the backend when it was picked.
    pub generation: u32,
    /// Index in `SERVICES*`.
    pub service: u32,
    /// Always zero.
    pub pad2: u32,
    /// `bpf_jiffies64` of the last packet.
    pub last_seen: u64,
}
