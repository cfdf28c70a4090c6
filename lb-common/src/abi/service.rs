/// A contiguous range of `SLOTS*`. 8 aligned bytes, so that a reader sees the old range or the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(8))]
pub struct SlotRange {
    /// First slot.
    pub first: u32,
    /// Number of slots; 0 where no endpoint is eligible.
    pub count: u32,
}

impl SlotRange {
    /// The slot that a hash selects, uniformly and without a division. `None` for an empty range.
    #[inline(always)]
    pub const fn pick(self, hash: u32) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        // Multiply-shift: maps [0, 2^32) onto [0, count). The result is below `count`, so it fits.
        let offset = ((hash as u64 * self.count as u64) >> 32) as u32;
        Some(self.first.wrapping_add(offset))
    }

    /// The slot whose turn it is. `None` for an empty range.
    #[inline(always)]
    pub const fn at_turn(self, turn: u32) -> Option<u32> {
        match turn.checked_rem(self.count) {
            Some(offset) => Some(self.first.wrapping_add(offset)),
            None => None,
        }
    }
}

/// Value of `SLOTS*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot {
    /// Index in `BACKENDS*`.
    pub backend: u32,
}

/// Key of `SERVICE_NAMES*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceIndex {
    /// Index in `SERVICES*`.
    pub service: u32,
}

/// Value of `SERVICES*`: one port of one Service in one IP family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Service {
    /// Backends in the whole cluster, as kube-proxy's `CategorizeEndpoints` selects them.
    pub cluster: SlotRange,
    /// Backends on this node, likewise.
    pub local: SlotRange,
    /// Bits of [`ServiceFlags`].
    pub flags: u32,
    /// Session affinity timeout in seconds; 0 = none.
    pub affinity_seconds: u32,
}

/// What else is known of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceFlags;

impl ServiceFlags {
    /// Some usable endpoint exists somewhere: an empty slot range then means drop. Without it, refuse.
    pub const HAS_ENDPOINTS: u32 = 1;
    /// New flows take the slots in turn, on each CPU by itself. Without it, by their hash.
    pub const ROUND_ROBIN: u32 = 2;
}

/// Value of `SERVICE_STATS*`, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct ServiceStats {
    /// Flows that were given a backend, on the packet path and by sockets.
    pub flows: u64,
    /// Packets translated on the packet path, requests and replies.
    pub packets: u64,
    /// Bytes of those packets, from the IP header on.
    pub bytes: u64,
    /// New flows refused or dropped.
    pub rejected: u64,
}
