/// Value of `BACKENDS*`: one endpoint address and port.
///
/// An element is taken into use in this order, with `generation` 0 in between: invalid, address and port, new
/// generation. A reader that finds the same non-zero generation before and after it has read the address read a whole
/// backend. Freed elements are not written again before a grace period has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Backend<A> {
    /// Changes whenever the element is taken for another endpoint; 0 = not in use.
    pub generation: u32,
    /// Address.
    pub address: A,
    /// Port.
    pub port: u16,
    /// Bits of [`BackendFlags`].
    pub flags: u16,
}

/// What is known of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendFlags;

impl BackendFlags {
    /// The endpoint is on this node: packets from outside keep their source address.
    pub const LOCAL: u16 = 1;
    /// Some service may pick this backend for new flows. A backend that no slot range holds any more, because it is
    /// terminating, keeps its TCP connections and gets no new ones.
    pub const SELECTABLE: u16 = 2;
}
