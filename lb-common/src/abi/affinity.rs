/// Key of `AFFINITY*` (LRU): a client of one service port with `sessionAffinity: ClientIP`, across all its frontends.
///
/// A client that uses frontends of both lists has an entry for each, since the lists may have no backend in common. Who has
/// none in the one list is looked for in the other.
///
/// A packet names its client by its source address. A socket call has none yet: there the client is the network
/// namespace of the process, which a pod has one of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct AffinityKey<A> {
    /// `bpf_get_netns_cookie` of a socket, low and high half; 0 for a packet.
    pub namespace: [u32; 2],
    /// Source address of a packet; unspecified for a socket.
    pub client: A,
    /// Index in `SERVICES*`.
    pub service: u32,
    /// The list that the frontend uses: [`BackendFlags::IN_CLUSTER`](super::BackendFlags::IN_CLUSTER) or
    /// [`BackendFlags::IN_LOCAL`](super::BackendFlags::IN_LOCAL).
    pub list: u32,
}

/// Value of `AFFINITY*`: the backend of the client's last new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Affinity {
    /// Index in `BACKENDS*`.
    pub backend: u32,
    /// Generation of the backend when it was picked.
    pub generation: u32,
    /// `bpf_jiffies64` of that flow's beginning.
    pub last_used: u64,
}
