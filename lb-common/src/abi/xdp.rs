/// Value of `XDP_DEVICES`: how far XDP came on an uplink. For people, and for the programs, which must know where they can
/// send packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct XdpDevice {
    /// A [`XdpState`].
    pub state: u32,
    /// Bits of [`XdpFlags`].
    pub flags: u32,
    /// What the state says it is; else 0.
    pub detail: u32,
}

/// What an uplink can do at XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFlags;

impl XdpFlags {
    /// Its driver sends packets that XDP redirects to it from other devices.
    pub const REDIRECT: u32 = 1;
}

macro_rules! states {
    ($($(#[$doc:meta])+ $variant:ident = $number:literal, $name:literal, $meaning:literal;)+) => {
        /// Where the packets of an uplink meet us first. Numbers are never given another meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum XdpState {
            $($(#[$doc])+ $variant = $number,)+
        }

        impl XdpState {
            /// All states, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// A name, `snake_case`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What it means, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),+ }
            }
        }
    };
}

states! {
    /// At TC, as was asked for.
    Off = 0, "off", "not asked for";
    /// At XDP, in the driver.
    Native = 1, "native", "in the driver";
    /// At XDP, in the kernel's stand-in for drivers that have none.
    Generic = 2, "generic", "as was asked for: for tests, not faster than TC";
    /// At TC: the driver has no XDP. `detail` is the error of the kernel.
    NotSupported = 3, "not_supported", "the driver has no XDP, or not as the device is set up";
    /// At TC: another program is there. `detail` is its id, where the kernel tells.
    Occupied = 4, "occupied", "an XDP program of somebody else's is attached";
    /// At TC: a virtual device, whose packets may have checksums that are still to be finished.
    Virtual = 5, "virtual", "a virtual device: its packets may have unfinished checksums, which XDP cannot see";
    /// At TC: the device has VLAN devices, and may take the tags out of packets before XDP sees these.
    Vlans = 6, "vlans", "the device has VLAN devices, whose tags XDP may not see";
    /// At TC: attaching failed. `detail` is the error of the kernel.
    Failed = 7, "failed", "attaching failed";
    /// At TC: the device's packets have no Ethernet header.
    Bare = 8, "bare", "the device's packets have no Ethernet header";
}

impl XdpState {
    /// The state of this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}
