/// Key of `NODE_ADDRESSES*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Interface {
    /// Interface index; 0 = any that has no element of its own.
    pub interface: u32,
}

/// Value of `NODE_ADDRESSES*`: the address that masqueraded packets leave an interface with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct NodeAddress<A> {
    /// Address of this node.
    pub address: A,
}

/// Key of `LOCAL_ADDRS*`: an address of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct LocalAddressKey<A> {
    /// The address.
    pub address: A,
}

/// Value of `LOCAL_ADDRS*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LocalAddress {
    /// Bits of [`LocalAddressFlags`].
    pub flags: u32,
}

/// What an address of this node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddressFlags;

impl LocalAddressFlags {
    /// Node ports answer on it.
    pub const NODE_PORTS: u32 = 1;
    /// A loopback address: it is this node's for sockets of the node itself only.
    pub const LOOPBACK: u32 = 2;
}
