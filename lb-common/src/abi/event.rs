/// The only element of `MONITOR`: what is asked of the programs by whoever watches. All zero, as the map is made, is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Monitor {
    /// `bpf_jiffies64` at which nobody watches any more, unless it is put off again. A watcher that was killed costs nothing
    /// from then on.
    pub until: u64,
    /// Bits of [`EventKind`]: what is written.
    pub kinds: u32,
    /// One event of so many is written, by chance; 0 and 1: every one.
    pub sample: u32,
    /// How many are written at most in a second, on each CPU.
    pub rate: u32,
    /// Always zero.
    pub pad: u32,
}

/// The only element of `EVENT_COUNTS`, per CPU: what became of the events that were to be written. Counts go on from one
/// watcher to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct EventCounts {
    /// `bpf_jiffies64` at which this CPU's present second began.
    pub since: u64,
    /// Written in that second.
    pub written: u64,
    /// Not written, because [`Monitor::rate`] of them were.
    pub over_rate: u64,
    /// Not written, because `EVENTS` had no room: the watcher is too slow.
    pub no_room: u64,
}

/// What an [`Event`] tells, as a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// A flow, or a socket, was given a backend.
    NewFlow = 1,
    /// A packet or a call was refused.
    Refusal = 2,
    /// A packet was dropped, or a call failed in place of it.
    Drop = 4,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::NewFlow, Self::Refusal, Self::Drop];

    /// The kind of this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Where something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventPlace {
    /// A packet at TC.
    Tc = 1,
    /// A packet at XDP.
    Xdp = 2,
    /// A socket call.
    Socket = 3,
}

impl EventPlace {
    /// The place of this number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Tc, Self::Xdp, Self::Socket].into_iter().find(|place| *place as u8 == number)
    }
}

/// A record of `EVENTS`: one new flow, refusal or drop.
///
/// Addresses are 16 octets in wire order, IPv4 as IPv4-mapped (RFC 4291 §2.5.5.2); what is not known is all zero. Of a packet
/// that was dropped so early that nobody knew what it was, only the reason is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Event {
    /// When: nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Who asks. Of a socket, the address that it is bound to.
    pub client: [u8; 16],
    /// What is asked.
    pub frontend: [u8; 16],
    /// Who answers: of a new flow, and of what is dropped of a known one.
    pub backend: [u8; 16],
    /// The client's port; 0 for a socket.
    pub client_port: u16,
    /// The frontend's port.
    pub frontend_port: u16,
    /// The backend's port.
    pub backend_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// An [`EventKind`].
    pub kind: u8,
    /// Index in `SERVICES*`, or [`Event::NOTHING`].
    pub service: u32,
    /// Number of a [`Reason`](super::Reason), or [`Event::NOTHING`] for a new flow.
    pub reason: u32,
    /// Index of the device that the packet came by or leaves by; 0 for a socket.
    pub interface: u32,
    /// Process (thread group) that made the socket call; 0 for a packet.
    pub process: u32,
    /// 4 or 6; 0 where it is not known.
    pub family: u8,
    /// An [`EventPlace`].
    pub place: u8,
    /// A [`FlowDirection`](super::FlowDirection): whether it is about a packet to the client.
    pub direction: u8,
    /// Always zero.
    pub pad: [u8; 5],
}

impl Event {
    /// No service, no reason.
    pub const NOTHING: u32 = u32::MAX;
}
