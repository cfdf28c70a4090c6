//! Packets as they pass an interface, for tests that look at the wire and not only at what sockets say.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use etherparse::{IpNumber, NetSlice, SlicedPacket, TransportSlice, checksum::Sum16BitWords};
use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};

use super::Host;

/// One packet, and its addresses read from it by an independent library.
#[derive(Clone, Debug)]
pub struct Packet {
    /// All of it, with its Ethernet header if it has one.
    pub bytes: Bytes,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source and destination port, where it is TCP or UDP and not a later fragment.
    pub ports: Option<(u16, u16)>,
    /// Whether the checksums of the IPv4 header and of TCP, UDP or ICMP are those of the packet's bytes. On pod
    /// interfaces they are not: checksum offload leaves them to a device.
    pub checksums_hold: bool,
}

/// A running capture of the IP packets that pass an interface, in either direction.
pub struct Capture {
    packets: Arc<Mutex<Vec<Packet>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long the capturing thread waits for a packet before it looks whether it should stop, in milliseconds.
const TICK: u8 = 20;

impl Capture {
    /// Captures on an interface of a host; every packet from now on is seen.
    pub fn start(host: &Host, interface: &str) -> Self {
        let packets = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let interface = interface.to_owned();
        let socket = host.run(move || open(&interface));
        let (seen, stopped) = (Arc::clone(&packets), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 17];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    let packet = Packet::read_frame(&Bytes::copy_from_slice(&buffer[..length]));
                    seen.lock().expect("no thread panics with the lock").extend(packet);
                }
            }
        });
        Self { packets, stop, thread: Some(thread) }
    }

    /// What somebody else sees and adds.
    pub(super) fn of(packets: Arc<Mutex<Vec<Packet>>>) -> Self {
        Self { packets, stop: Arc::default(), thread: None }
    }

    /// The first packet that a condition holds for, waiting for it as long as a client would. Panics with all that
    /// was seen if there is none.
    pub fn wait_for(&self, what: &str, condition: impl Fn(&Packet) -> bool) -> Packet {
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let seen = self.packets();
            if let Some(packet) = seen.iter().find(|packet| condition(packet)) {
                return packet.clone();
            }
            assert!(Instant::now() < deadline, "no {what} among the {} packets seen: {seen:#?}", seen.len());
            thread::sleep(Duration::from_millis(TICK.into()));
        }
    }

    /// All packets so far.
    pub fn packets(&self) -> Vec<Packet> {
        self.packets.lock().expect("no thread panics with the lock").clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Packet {
    /// `None` for what is not IP.
    fn read_frame(bytes: &Bytes) -> Option<Self> {
        Self::read(&SlicedPacket::from_ethernet(bytes).ok()?, bytes)
    }

    /// As [`read_frame`](Self::read_frame), of a packet that has no Ethernet header.
    pub(super) fn read_bare(bytes: &Bytes) -> Option<Self> {
        Self::read(&SlicedPacket::from_ip(bytes).ok()?, bytes)
    }

    fn read(sliced: &SlicedPacket<'_>, bytes: &Bytes) -> Option<Self> {
        let net = sliced.net.as_ref()?;
        let (source, destination): (IpAddr, IpAddr) = match net {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Arp(_) => return None,
        };
        let ports = match sliced.transport.as_ref() {
            Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
            Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
            _ => None,
        };
        let checksums_hold = checksums_hold(net)?;
        Some(Self { source, destination, ports, checksums_hold, bytes: bytes.clone() })
    }
}

/// Sums headers and payload, checksums included: the complement of the sum is 0 where they hold (RFC 1071 §1).
fn checksums_hold(net: &NetSlice) -> Option<bool> {
    let payload = net.ip_payload_ref()?;
    let is_udp_without_checksum = payload.ip_number == IpNumber::UDP && payload.payload.get(6..8) == Some(&[0, 0]);
    let mut pseudo_header = Sum16BitWords::new();
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            if Sum16BitWords::new().add_slice(header.slice()).ones_complement() != 0 {
                return Some(false);
            }
            // ICMP for IPv4 is the one that sums no addresses (RFC 792).
            if payload.ip_number != IpNumber::ICMP {
                pseudo_header = pseudo_header.add_4bytes(header.source()).add_4bytes(header.destination());
            }
            if is_udp_without_checksum {
                return Some(true);
            }
        }
        NetSlice::Ipv6(ip) => pseudo_header = pseudo_header.add_slice(&ip.header().slice()[8..40]),
        NetSlice::Arp(_) => return None,
    }
    // A fragment's checksum covers the whole datagram.
    if payload.fragmented {
        return Some(true);
    }
    if payload.ip_number != IpNumber::ICMP {
        let length = u16::try_from(payload.payload.len()).ok()?;
        pseudo_header = pseudo_header.add_2bytes(length.to_be_bytes()).add_2bytes([0, payload.ip_number.0]);
    }
    Some(pseudo_header.add_slice(payload.payload).ones_complement() == 0)
}

/// `AF_PACKET` of `include/linux/socket.h` and `ETH_P_ALL` of `include/uapi/linux/if_ether.h`, in the types of the address.
const PACKET_FAMILY: libc::sa_family_t = 17;
const ALL_PROTOCOLS: u16 = 3;

/// A packet socket that receives all that passes an interface (packet(7)).
fn open(interface: &str) -> OwnedFd {
    // Protocol 0: nothing arrives before the socket is bound to its interface.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)
        .expect("a packet socket");
    let index = if_nametoindex(interface).unwrap_or_else(|errno| panic!("interface {interface}: {errno}"));
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(TICK.into())).expect("SO_RCVTIMEO");
    let address = libc::sockaddr_ll {
        sll_family: PACKET_FAMILY,
        sll_protocol: ALL_PROTOCOLS.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("a few bytes");
    // SAFETY: the address is one of the family, of the length that is given, and outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "bind a packet socket to {interface}: {}", io::Error::last_os_error());
    socket
}
