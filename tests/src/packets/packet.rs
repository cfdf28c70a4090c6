//! Packets as values, rendered by etherparse.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header,
    PacketBuilder, TcpHeader, VlanId,
};

use super::Interface;

/// Length of an Ethernet header without tags (IEEE 802.3).
pub const ETHERNET: usize = 14;

/// In place of a MAC address: that of the interface on which the packet arrives, see [`addressed`].
pub const THE_INTERFACE: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A frame with the MAC address of the interface where it has [`THE_INTERFACE`].
pub fn addressed(frame: &Bytes, interface: Interface) -> Bytes {
    let mut frame = frame.to_vec();
    for address in frame.chunks_exact_mut(THE_INTERFACE.len()).take(2) {
        if address == THE_INTERFACE {
            address.copy_from_slice(&interface.mac());
        }
    }
    frame.into()
}

/// What the IP header carries.
#[derive(Clone, Debug)]
enum Transport {
    Tcp(TcpHeader),
    Udp { source: u16, destination: u16, checksum: bool },
    Icmp4(Icmpv4Type),
    Icmp6(Icmpv6Type),
    Other(u8),
}

/// One Ethernet frame. Lengths and checksums are computed when it is rendered.
#[derive(Clone, Debug)]
#[must_use]
pub struct Packet {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    vlans: Vec<u16>,
    ip: IpHeaders,
    transport: Transport,
    payload: Vec<u8>,
}

impl Packet {
    fn new(source: IpAddr, destination: IpAddr, transport: Transport) -> Self {
        let ip = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = Ipv4Header {
                    // Odd on purpose: a program that touches it shows.
                    identification: 0xbeef,
                    dont_fragment: true,
                    time_to_live: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv4Header::default()
                };
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    flow_label: Ipv6FlowLabel::try_new(0x1_2345).expect("20 bits"),
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, Ipv6Extensions::default())
            }
            _ => panic!("{source} and {destination} are of two families"),
        };
        Self {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: THE_INTERFACE,
            vlans: Vec::new(),
            ip,
            transport,
            // An odd length: the last byte of a checksum is padded.
            payload: b"all the world's a stage, and all".iter().copied().chain([0xff]).collect(),
        }
    }

    /// A TCP segment with ACK and data.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        let mut header = TcpHeader::new(source.port(), destination.port(), 0x0102_0304, 8192);
        header.acknowledgment_number = 0xa0b0_c0d0;
        header.ack = true;
        header.psh = true;
        Self::new(source.ip(), destination.ip(), Transport::Tcp(header))
    }

    /// A TCP SYN with the options of a usual one (MSS, SACK permitted, window scale).
    pub fn syn(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::tcp(source, destination).payload(b"").tcp_header(|tcp| {
            tcp.syn = true;
            tcp.ack = false;
            tcp.psh = false;
            tcp.acknowledgment_number = 0;
            tcp.set_options_raw(&[2, 4, 5, 0xb4, 4, 2, 3, 3, 7, 0, 0, 0]).expect("12 bytes");
        })
    }

    /// A UDP datagram with a checksum.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = Transport::Udp { source: source.port(), destination: destination.port(), checksum: true };
        Self::new(source.ip(), destination.ip(), transport)
    }

    /// An ICMP message.
    pub fn icmp4(source: IpAddr, destination: IpAddr, icmp: Icmpv4Type) -> Self {
        Self::new(source, destination, Transport::Icmp4(icmp))
    }

    /// An `ICMPv6` message.
    pub fn icmp6(source: IpAddr, destination: IpAddr, icmp: Icmpv6Type) -> Self {
        Self::new(source, destination, Transport::Icmp6(icmp))
    }

    /// A packet of another protocol, whose number is IANA's.
    pub fn other(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self::new(source, destination, Transport::Other(protocol))
    }

    /// The same from another address and port.
    pub fn from(mut self, source: SocketAddr) -> Self {
        match (&mut self.ip, source.ip()) {
            (IpHeaders::Ipv4(header, _), IpAddr::V4(address)) => header.source = address.octets(),
            (IpHeaders::Ipv6(header, _), IpAddr::V6(address)) => header.source = address.octets(),
            _ => panic!("{source} is of the other family"),
        }
        match &mut self.transport {
            Transport::Tcp(header) => header.source_port = source.port(),
            Transport::Udp { source: port, .. } => *port = source.port(),
            other => panic!("{other:?} has no ports"),
        }
        self
    }

    /// The same to another address and port.
    pub fn to(mut self, destination: SocketAddr) -> Self {
        match (&mut self.ip, destination.ip()) {
            (IpHeaders::Ipv4(header, _), IpAddr::V4(address)) => header.destination = address.octets(),
            (IpHeaders::Ipv6(header, _), IpAddr::V6(address)) => header.destination = address.octets(),
            _ => panic!("{destination} is of the other family"),
        }
        match &mut self.transport {
            Transport::Tcp(header) => header.destination_port = destination.port(),
            Transport::Udp { destination: port, .. } => *port = destination.port(),
            other => panic!("{other:?} has no ports"),
        }
        self
    }

    /// The same between other MAC addresses.
    pub fn between(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.source_mac = source;
        self.destination_mac = destination;
        self
    }

    /// The same one hop later: between other MAC addresses, with one less to live.
    pub fn forwarded(self, source: [u8; 6], destination: [u8; 6]) -> Self {
        let ttl = self.time_to_live() - 1;
        self.between(source, destination).ttl(ttl)
    }

    /// The same with another time to live or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        match &mut self.ip {
            IpHeaders::Ipv4(header, _) => header.time_to_live = ttl,
            IpHeaders::Ipv6(header, _) => header.hop_limit = ttl,
        }
        self
    }

    fn time_to_live(&self) -> u8 {
        match &self.ip {
            IpHeaders::Ipv4(header, _) => header.time_to_live,
            IpHeaders::Ipv6(header, _) => header.hop_limit,
        }
    }

    /// The same with IEEE 802.1Q tags, the outer one first.
    pub fn vlans(mut self, tags: &[u16]) -> Self {
        self.vlans = tags.to_vec();
        self
    }

    /// Its tags, the outer one first.
    pub fn tags(&self) -> &[u16] {
        &self.vlans
    }

    /// The same with this data.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The same without a UDP checksum (RFC 768: all zero).
    pub fn without_checksum(mut self) -> Self {
        match &mut self.transport {
            Transport::Udp { checksum, .. } => *checksum = false,
            other => panic!("{other:?} has a checksum always"),
        }
        self
    }

    /// The same with changes of its TCP header.
    pub fn tcp_header(mut self, change: impl FnOnce(&mut TcpHeader)) -> Self {
        match &mut self.transport {
            Transport::Tcp(header) => change(header),
            other => panic!("{other:?} is not TCP"),
        }
        self
    }

    /// The same with changes of its IPv4 header.
    pub fn ipv4(mut self, change: impl FnOnce(&mut Ipv4Header)) -> Self {
        match &mut self.ip {
            IpHeaders::Ipv4(header, _) => change(header),
            IpHeaders::Ipv6(..) => panic!("not IPv4"),
        }
        self
    }

    /// The same with changes of its IPv6 header and extension headers.
    pub fn ipv6(mut self, change: impl FnOnce(&mut Ipv6Header, &mut Ipv6Extensions)) -> Self {
        match &mut self.ip {
            IpHeaders::Ipv6(header, extensions) => change(header, extensions),
            IpHeaders::Ipv4(..) => panic!("not IPv6"),
        }
        self
    }

    /// Whether it is an IPv4 packet.
    pub fn is_ipv4(&self) -> bool {
        matches!(self.ip, IpHeaders::Ipv4(..))
    }

    /// Length of the Ethernet header with its tags: where the IP header starts.
    pub fn ip_offset(&self) -> usize {
        ETHERNET + 4 * self.vlans.len()
    }

    /// Where the transport header starts.
    pub fn transport_offset(&self) -> usize {
        self.ip_offset() + self.ip.header_len()
    }

    /// The frame.
    pub fn bytes(&self) -> Bytes {
        let id = |tag: u16| VlanId::try_new(tag).expect("12 bits");
        let ethernet = PacketBuilder::ethernet2(self.source_mac, self.destination_mac);
        let ip = match *self.vlans {
            [] => ethernet.ip(self.ip.clone()),
            [tag] => ethernet.single_vlan(id(tag)).ip(self.ip.clone()),
            [outer, inner] => ethernet.double_vlan(id(outer), id(inner)).ip(self.ip.clone()),
            _ => panic!("etherparse builds up to two tags"),
        };
        let mut frame = Vec::new();
        match &self.transport {
            Transport::Tcp(header) => ip.tcp_header(header.clone()).write(&mut frame, &self.payload),
            Transport::Udp { source, destination, .. } => {
                ip.udp(*source, *destination).write(&mut frame, &self.payload)
            }
            Transport::Icmp4(icmp) => ip.icmpv4(icmp.clone()).write(&mut frame, &self.payload),
            Transport::Icmp6(icmp) => ip.icmpv6(*icmp).write(&mut frame, &self.payload),
            Transport::Other(protocol) => ip.write(&mut frame, IpNumber(*protocol), &self.payload),
        }
        .expect("a packet that fits its length fields");
        if let Transport::Udp { checksum: false, .. } = self.transport {
            // Offset of the checksum in RFC 768's header.
            frame[self.transport_offset() + 6..][..2].fill(0);
        }
        frame.into()
    }

    /// The frame with some of its bytes changed after lengths and checksums were computed.
    pub fn bytes_with(&self, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut frame = self.bytes().to_vec();
        change(&mut frame);
        frame.into()
    }
}

impl From<Packet> for Bytes {
    fn from(packet: Packet) -> Self {
        packet.bytes()
    }
}

impl From<&Packet> for Bytes {
    fn from(packet: &Packet) -> Self {
        packet.bytes()
    }
}
