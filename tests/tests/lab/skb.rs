//! Packets that reach the node in pieces: how much of one is in the linear part of its skb is for a driver to choose, and
//! programs read and write no further than that before they ask for more (`bpf_skb_pull_data`).

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, Read, Write},
    net::{IpAddr, SocketAddr},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    time::{Duration, Instant},
};

use etherparse::{NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice};
use lb_tests::lab::{
    Family, Host, Lab, ReversePathFilter, client::Transport, cluster::Cluster, manifest::Service, sandbox::Sandbox,
    turn_receive_offload_off,
};
use nix::libc;

use crate::node_port::run;

/// The device by which the packets come, and who is beyond it.
const DEVICE: &str = "tap0";
const CLIENT: [&str; 2] = ["198.51.100.77", "2001:db8::77"];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DEVICE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ETHERNET: usize = 14;
/// Bytes in front of the first fragment of a page: the Ethernet header alone, which no driver can do without, one of the IP
/// header, and two of what is behind it, over IPv4 and over IPv6.
const LINEAR: [usize; 4] = [ETHERNET, ETHERNET + 1, ETHERNET + 22, ETHERNET + 42];
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn headers_beyond_the_linear_part_are_read_and_written(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let mut tap = Tap::new(&lab.nodes[0].host);
    let services = [
        Service::new("on-node1", 1).with_endpoints([&lab.nodes[0].pods[0]]),
        Service::new("on-node2", 2).with_endpoints([&lab.nodes[1].pods[0]]),
    ];
    let cluster = Cluster::start(lab, &services);
    let [node1, _] = cluster.nodes();
    let mut port = 40000;
    for (family, client) in Family::BOTH.into_iter().zip(CLIENT) {
        for service in &services {
            for transport in [Transport::Udp, Transport::Tcp] {
                let to = service.node_port_address(&node1.host, family, transport);
                for linear in LINEAR {
                    port += 1;
                    let from = SocketAddr::new(client.parse().expect("an address"), port);
                    let request = frame(transport, from, to);
                    tap.send(&request, linear);
                    tap.receive(
                        &format!("an answer of {to} over {transport} to {from}, {linear} bytes linear"),
                        |packet| is_answer(packet, transport, from, to),
                    );
                }
            }
        }
    }
}

/// A datagram, or a SYN.
fn frame(transport: Transport, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, DEVICE_MAC);
    let ip: PacketBuilderStep<etherparse::IpHeaders> = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("both are of one family"),
    };
    let (data, mut frame) = ([b'?'; 64], Vec::new());
    let written = match transport {
        Transport::Tcp | Transport::Http => ip.tcp(from.port(), to.port(), 1, 65535).syn().write(&mut frame, &[]),
        Transport::Udp | Transport::UdpConnected => ip.udp(from.port(), to.port()).write(&mut frame, &data),
    };
    written.expect("write to memory");
    frame
}

/// Whether it is what the frontend answers: a datagram that tells who was seen, if that was not the node, or a SYN with an
/// ACK.
fn is_answer(packet: &SlicedPacket<'_>, transport: Transport, from: SocketAddr, to: SocketAddr) -> bool {
    let addresses: (IpAddr, IpAddr) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        _ => return false,
    };
    let ports = match (&packet.transport, transport) {
        (Some(TransportSlice::Tcp(tcp)), Transport::Tcp) if tcp.syn() && tcp.ack() => {
            (tcp.source_port(), tcp.destination_port())
        }
        (Some(TransportSlice::Udp(udp)), Transport::Udp) if udp.payload().starts_with(b"pod=") => {
            (udp.source_port(), udp.destination_port())
        }
        _ => return false,
    };
    addresses == (to.ip(), from.ip()) && ports == (to.port(), from.port())
}

/// A device of a node whose far end is this test.
struct Tap(File);

/// `struct ifreq` of include/uapi/linux/if.h, as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    unused: [u8; 22],
}

nix::ioctl_write_ptr_bad!(attach, libc::TUNSETIFF, InterfaceRequest);

impl Tap {
    /// Adds it to a host, as one more way out.
    fn new(host: &Host) -> Self {
        host.run(|| {
            let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
            let file = file.unwrap_or_else(|error| panic!("/dev/net/tun: {error}"));
            // What is written in several pieces becomes an skb of these pieces (Documentation/networking/tuntap.rst).
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_NAPI | libc::IFF_NAPI_FRAGS;
            let flags = libc::c_short::try_from(flags).expect("flags of 16 bits");
            let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, unused: [0; 22] };
            request.name[..DEVICE.len()].copy_from_slice(DEVICE.as_bytes());
            // SAFETY: the structure is laid out as the kernel reads it and outlives the call.
            unsafe { attach(file.as_raw_fd(), &raw const request) }.unwrap_or_else(|errno| panic!("{DEVICE}: {errno}"));
            turn_receive_offload_off(DEVICE);
            let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
            run("ip", &["link", "set", DEVICE, "address", &text(DEVICE_MAC), "up"]);
            for client in CLIENT {
                run("ip", &["neighbour", "add", client, "lladdr", &text(CLIENT_MAC), "dev", DEVICE]);
                run("ip", &["route", "add", client, "dev", DEVICE]);
            }
            // What makes it an uplink; nothing goes by it.
            run("ip", &["route", "add", "default", "dev", DEVICE, "metric", "10000"]);
            Self(file)
        })
    }

    /// Has the node receive a frame whose skb has so many linear bytes.
    fn send(&mut self, frame: &[u8], linear: usize) {
        let (linear, rest) = frame.split_at(linear.min(frame.len()));
        // Two fragments, the first of them no longer than a word.
        let (first, second) = rest.split_at(rest.len().min(4));
        let pieces = [linear, first, second].into_iter().filter(|piece| !piece.is_empty()).map(IoSlice::new);
        let pieces: Vec<_> = pieces.collect();
        let written = self.0.write_vectored(&pieces).expect("write to the device");
        assert_eq!(written, frame.len());
    }

    /// Waits for a frame of the node's.
    fn receive(&mut self, what: &str, is_it: impl Fn(&SlicedPacket<'_>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            match self.0.read(&mut buffer) {
                Ok(length) if SlicedPacket::from_ethernet(&buffer[..length]).is_ok_and(|packet| is_it(&packet)) => {
                    return;
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("read from the device: {error}"),
            }
        }
        panic!("not received within {PATIENCE:?}: {what}");
    }
}
