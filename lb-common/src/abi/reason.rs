//! Why a packet or a socket call was not simply translated: one counter each in `COUNTERS`.
//!
//! Numbers are part of the ABI: never renumber, only append.

/// What happens to the packet or the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disposition {
    /// Left to the kernel, untouched.
    Pass,
    /// Translated with the flow that it is about.
    Translate,
    /// Answered with a TCP RST, an ICMP or ICMPv6 error, or `ECONNREFUSED`.
    Refuse,
    /// Dropped.
    Drop,
}

impl Disposition {
    /// Its name in metrics and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Translate => "translate",
            Self::Refuse => "refuse",
            Self::Drop => "drop",
        }
    }
}

/// Value of `COUNTERS`, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets or socket calls.
    pub count: u64,
}

macro_rules! reasons {
    ($($(#[$doc:meta])+ $variant:ident = $number:literal, $disposition:ident, $name:literal;)+) => {
        /// Why. The names are labels of metrics and the text of the command line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[$doc])+ $variant = $number,)+
        }

        impl Reason {
            /// All reasons, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The reason's name, `snake_case`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What happens for this reason.
            #[inline(always)]
            pub const fn disposition(self) -> Disposition {
                match self { $(Self::$variant => Disposition::$disposition),+ }
            }
        }
    };
}

reasons! {
    /// A fragment without ports whose first one did not pass before it, or was not translated.
    Fragment = 0, Pass, "fragment";
    /// Headers that are cut short or contradict themselves.
    Malformed = 1, Pass, "malformed";
    /// An IPv6 extension header chain longer than we follow.
    ExtensionHeaders = 2, Pass, "extension_headers";
    /// No endpoint anywhere: RFC 9293 RST, ICMP or ICMPv6 port unreachable, `ECONNREFUSED`.
    NoEndpoints = 3, Refuse, "no_endpoints";
    /// No endpoint on this node, and the policy is `Local`.
    NoLocalEndpoints = 4, Drop, "no_local_endpoints";
    /// A frontend names a service, slot or backend that the tables do not hold: the agent is late or wrong.
    TablesInconsistent = 5, Drop, "tables_inconsistent";
    /// No source port is free for masquerading to this backend.
    SnatPortsExhausted = 6, Drop, "snat_ports_exhausted";
    /// This node has no address of the family to masquerade with.
    NoNodeAddress = 7, Drop, "no_node_address";
    /// No route to where the packet must be forwarded.
    NoRoute = 8, Drop, "no_route";
    /// A route that says blackhole, unreachable or prohibit.
    RouteForbids = 9, Drop, "route_forbids";
    /// The packet is larger than the way out takes: ICMP "fragmentation needed" or ICMPv6 "packet too big". (An error is not
    /// answered, but dropped.)
    TooBig = 10, Refuse, "too_big";
    /// Its time to live ends here: ICMP or ICMPv6 "time exceeded". (Likewise.)
    TtlExpired = 11, Refuse, "ttl_expired";
    /// A kernel helper failed (no memory for a copy of the packet, for instance).
    HelperFailed = 12, Drop, "helper_failed";
    /// A flow could not be entered in the flow table.
    FlowInsertFailed = 13, Drop, "flow_insert_failed";
    /// A tagged packet that would have to be forwarded: left to the hook of the VLAN device.
    VlanForward = 14, Pass, "vlan_forward";
    /// A packet to refuse to which no answer may be sent (a RST; what is too big and asks to be fragmented), or no right one
    /// can be made.
    Unanswerable = 15, Drop, "unanswerable";
    /// The frontend's element was given to another frontend while it was read.
    FrontendRaced = 16, Drop, "frontend_raced";
    /// The socket's exchange could not be remembered: its answers would come from an address that it did not ask.
    SocketStateFull = 17, Drop, "socket_state_full";
    /// Forwarding is off on the device that the packet came by (`net.ipv4.conf.*.forwarding`).
    ForwardingDisabled = 18, Drop, "forwarding_disabled";
    /// A client outside the Service's `loadBalancerSourceRanges`.
    SourceNotAllowed = 19, Drop, "source_not_allowed";
    /// A port of a cluster IP that its Service does not have.
    UndefinedPort = 20, Refuse, "undefined_port";
    /// An address from a `ServiceCIDR` that no Service has.
    UnallocatedClusterIp = 21, Drop, "unallocated_cluster_ip";
    /// An ICMP or ICMPv6 error about a packet of a known flow.
    IcmpError = 22, Translate, "icmp_error";
}

impl Reason {
    /// Number of reasons: entries of `COUNTERS`.
    #[expect(clippy::cast_possible_truncation, reason = "a few dozen")]
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The reason of this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}
