/// Value of `BACKENDS*`: one endpoint address and port of one service port.
///
/// Each service port has its own element for an endpoint, also where others have the same one: an endpoint that leaves a
/// service port takes its flows with it, whoever else still has it.
///
/// An element is taken into use in this order, with `generation` 0 in between: invalid, address, port and owner,
/// new generation. A reader that finds the same non-zero generation before and after it has read the address read a whole
/// backend. Freed elements are not written again before a grace period has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Backend<A> {
    /// Changes whenever the element is taken for another endpoint or service port, and when a UDP service port loses a
    /// frontend; 0 = not in use.
    pub generation: u32,
    /// Address.
    pub address: A,
    /// Port.
    pub port: u16,
    /// Bits of [`BackendFlags`].
    pub flags: u16,
    /// Index in `SERVICES*` of the service port that it belongs to.
    pub service: u32,
}

/// What is known of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendFlags;

impl BackendFlags {
    /// The endpoint is on this node: packets from outside keep their source address.
    pub const LOCAL: u16 = 1;
    /// Its service port may pick this backend for new flows. A backend that no slot range holds any more, because it is
    /// terminating, keeps its TCP connections and gets no new ones.
    pub const SELECTABLE: u16 = 2;
    /// It is among the service's cluster slots: an affinity to it holds for frontends that use these.
    pub const IN_CLUSTER: u16 = 4;
    /// It is among the service's local slots, likewise.
    pub const IN_LOCAL: u16 = 8;
}
