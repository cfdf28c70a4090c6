//! Which maps are pinned, and how large they are made.

use lb_common::abi::{
    capacity,
    maps::{
        AFFINITY4, AFFINITY6, BACKENDS4, BACKENDS6, CONFIG, COUNTERS, EVENT_COUNTS, EVENTS, FLOWS4, FLOWS6, FRONTENDS4,
        FRONTENDS6, LOADS4, LOADS6, LOCAL_ADDRS4, LOCAL_ADDRS6, MONITOR, NODE_ADDRESSES4, NODE_ADDRESSES6,
        SERVICE_CIDRS4, SERVICE_CIDRS6, SERVICE_NAMES4, SERVICE_NAMES6, SERVICE_STATS4, SERVICE_STATS6, SERVICES4,
        SERVICES6, SLOTS4, SLOTS6, SOCKET_PEERS4, SOCKET_PEERS6, SOCKETS, SOURCE_RANGES4, SOURCE_RANGES6, XDP_DEVICES,
    },
};

/// How many elements the tables of each family are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// `FLOWS*`.
    pub flows: u32,
    /// `FRONTENDS*`.
    pub frontends: u32,
    /// `SERVICES*`, `SERVICE_NAMES*` and `SERVICE_STATS*`.
    pub services: u32,
    /// `SLOTS*`.
    pub slots: u32,
    /// `BACKENDS*`.
    pub backends: u32,
}

impl Default for TableSizes {
    fn default() -> Self {
        Self {
            flows: capacity::FLOWS,
            frontends: capacity::FRONTENDS,
            services: capacity::SERVICES,
            slots: capacity::SLOTS,
            backends: capacity::BACKENDS,
        }
    }
}

/// Every map that is pinned. The rest belongs to one load of the programs: `.rodata`, scratch space, and the ring buffer
/// of the packet trace.
pub const PINNED: &[&str] = &[
    CONFIG,
    COUNTERS,
    SOCKETS,
    SERVICE_STATS4,
    SERVICE_STATS6,
    FLOWS4,
    FLOWS6,
    FRONTENDS4,
    FRONTENDS6,
    SERVICES4,
    SERVICES6,
    SERVICE_NAMES4,
    SERVICE_NAMES6,
    SLOTS4,
    SLOTS6,
    BACKENDS4,
    BACKENDS6,
    NODE_ADDRESSES4,
    NODE_ADDRESSES6,
    LOCAL_ADDRS4,
    LOCAL_ADDRS6,
    SOCKET_PEERS4,
    SOCKET_PEERS6,
    AFFINITY4,
    AFFINITY6,
    LOADS4,
    LOADS6,
    SOURCE_RANGES4,
    SOURCE_RANGES6,
    SERVICE_CIDRS4,
    SERVICE_CIDRS6,
    XDP_DEVICES,
    MONITOR,
    EVENTS,
    EVENT_COUNTS,
];

impl TableSizes {
    /// The number of elements for the map of this name, and the flag that sets it; `None` for a map of fixed size.
    pub fn of(&self, map: &str) -> Option<(u32, &'static str)> {
        let Self { flows, frontends, services, slots, backends } = *self;
        Some(match map {
            FLOWS4 | FLOWS6 => (flows, "--flow-table-size"),
            FRONTENDS4 | FRONTENDS6 => (frontends, "--frontend-table-size"),
            SERVICES4 | SERVICES6 | SERVICE_NAMES4 | SERVICE_NAMES6 | SERVICE_STATS4 | SERVICE_STATS6 => {
                (services, "--service-table-size")
            }
            SLOTS4 | SLOTS6 => (slots, "--slot-table-size"),
            BACKENDS4 | BACKENDS6 => (backends, "--backend-table-size"),
            _ => return None,
        })
    }
}
