//! How many elements each table holds unless the operator says otherwise. The object is built with these; the agent may
//! set others when it creates the maps.

/// `FLOWS*`: two entries a flow.
pub const FLOWS: u32 = 1 << 18;
/// `FRAGMENTS*`: one for each packet whose fragments are on their way. On many CPUs, each keeps a hundred of an LRU map's
/// elements for itself.
pub const FRAGMENTS: u32 = 1 << 13;
/// `FRONTENDS*`: elements are allocated when they are written.
pub const FRONTENDS: u32 = 1 << 18;
/// `SERVICES*`, `SERVICE_NAMES*`, `SERVICE_STATS*`: one for each port of a Service.
pub const SERVICES: u32 = 1 << 17;
/// `SLOTS*`.
pub const SLOTS: u32 = 1 << 20;
/// `BACKENDS*`: one for each endpoint of each port of a Service, and the former one beside the new one while endpoints are
/// replaced: 10,000 Services of 10 endpoints and 2 ports need 200,000, and twice that when all change at once. 8 MiB for
/// IPv4, 16 for IPv6 (an array rounds its elements up to 8 bytes).
pub const BACKENDS: u32 = 1 << 19;
/// `LOADS*`: one for each backend that is selected by its flows and has any on this node. Elements are allocated when they
/// are written; the empty table is 1 MiB.
pub const LOADS: u32 = 1 << 16;
/// `SOCKET_PEERS*`: two entries for each exchange of an unconnected UDP socket.
pub const SOCKET_PEERS: u32 = 1 << 16;
/// `AFFINITY*`: one for each client of each service port with affinity.
pub const AFFINITY: u32 = 1 << 16;
/// `SOURCE_RANGES*`: elements are allocated when they are written. A list that changes is there twice until nobody reads the
/// former one any more: a list of up to half of the table can be replaced.
pub const SOURCE_RANGES: u32 = 1 << 17;
/// `SERVICE_CIDRS*`.
pub const SERVICE_CIDRS: u32 = 1 << 8;
/// `LOCAL_ADDRS*`: elements are allocated when they are written. A node that had kube-proxy in ipvs mode may still have every
/// cluster IP, on kube-ipvs0.
pub const LOCAL_ADDRESSES: u32 = 1 << 16;
/// `EVENTS`, in bytes: whole pages of any size that kernels have, and a power of two. 2,730 events, each with the kernel's
/// header of 8 bytes.
pub const EVENTS: u32 = 1 << 18;
/// `NODE_ADDRESSES*` and `XDP_DEVICES`.
pub const INTERFACES: u32 = 1 << 10;
