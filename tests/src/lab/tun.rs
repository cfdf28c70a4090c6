//! Wires between tun devices: hosts whose packets to each other have no Ethernet header.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
    thread,
};

use bytes::Bytes;
use nix::libc::{self, c_int};

use super::{
    Addresses, Host, Lab, addresses,
    capture::{Capture, Packet},
    tunnel_end, wiring,
};

/// The nodes' ends of a wire to each other.
pub const OVERLAY: &str = "tun-nodes";
/// Both ends of the wire from node1 to a host that is on no other.
pub const ROAMING: &str = "tun-roam";
/// Of that host, which has no other, and of node1's end.
const ROAMER: Addresses =
    Addresses { v4: Ipv4Addr::new(203, 0, 113, 2), v6: Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 2) };
const ROAMERS_GATEWAY: Addresses =
    Addresses { v4: Ipv4Addr::new(203, 0, 113, 1), v6: Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 1) };

/// Bytes that a tun device hands out at most: those of an IP packet.
const LONGEST: usize = 1 << 16;

/// `struct ifreq` of include/uapi/linux/if.h, as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    unused: [u8; 22],
}

nix::ioctl_write_ptr_bad!(
    /// `TUNSETIFF` of include/uapi/linux/if_tun.h, whose argument is called an integer there, and is a structure.
    set_interface,
    nix::request_code_write!(b'T', 202, size_of::<c_int>()),
    InterfaceRequest
);

impl Lab {
    /// Has each node reach the other's pods by a tun device, and nobody else reach them at all. The devices have the first
    /// addresses of their nodes' pod networks; the routes name no gateway. Gives what is on the wire.
    pub fn lay_tun(&self) -> Capture {
        let [node1, node2] = &self.nodes;
        let wire = lay_wire([&node1.host, &node2.host], OVERLAY);
        for (number, other) in [(1, 2), (2, 1)] {
            let (Addresses { v4, v6 }, [v4_pods, v6_pods]) = (tunnel_end(number), addresses::pod_networks(other));
            self.nodes[usize::from(number) - 1].host.ip(format!(
                "addr add {v4}/32 dev {OVERLAY}\n\
                 addr add {v6}/128 dev {OVERLAY} nodad\n\
                 link set {OVERLAY} up\n\
                 route del {v4_pods}\n\
                 route del {v6_pods}\n\
                 route add {v4_pods} dev {OVERLAY}\n\
                 route add {v6_pods} dev {OVERLAY}\n"
            ));
            self.router.ip(format!("route del {v4_pods}\nroute del {v6_pods}\n"));
        }
        wire
    }

    /// A client that reaches node1, and all else by it, through a tun device; and what is on the wire between them.
    pub fn roamer(&self) -> (Host, Capture) {
        let host = wiring::new_host("roamer", "", ROAMER, None);
        let node1 = &self.nodes[0].host;
        let wire = lay_wire([&host, node1], ROAMING);
        host.ip(wiring::up_with_subnet(ROAMING, ROAMER) + &wiring::default_routes(ROAMERS_GATEWAY));
        node1.ip(wiring::up_with_subnet(ROAMING, ROAMERS_GATEWAY));
        (host, wire)
    }
}

/// Makes two devices, and lays a wire between them for as long as the process lives: what the one host sends into its own comes
/// out of the other's. They are down, and have no addresses.
fn lay_wire(ends: [&Host; 2], device: &'static str) -> Capture {
    let packets = Arc::default();
    let [one, other] = ends.map(|host| host.run(move || open(device)));
    let clone = |end: &File| end.try_clone().expect("dup");
    carry(clone(&one), clone(&other), Arc::clone(&packets));
    carry(other, one, Arc::clone(&packets));
    Capture::of(packets)
}

/// Makes a tun device of the calling thread's network namespace. It is there for as long as somebody has it open.
fn open(name: &str) -> File {
    const TUN: &str = "/dev/net/tun";
    let file = OpenOptions::new().read(true).write(true).open(TUN).unwrap_or_else(|error| panic!("{TUN}: {error}"));
    let flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).expect("16 bits");
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, unused: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the structure is laid out as the kernel reads it and outlives the call.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }
        .unwrap_or_else(|errno| panic!("tun device {name}: {errno}"));
    file
}

/// Carries packets from one device to the other, and notes them.
fn carry(mut from: File, mut to: File, packets: Arc<Mutex<Vec<Packet>>>) {
    thread::spawn(move || {
        let mut buffer = vec![0; LONGEST];
        while let Ok(length) = from.read(&mut buffer) {
            let packet = Packet::read_bare(&Bytes::copy_from_slice(&buffer[..length]));
            packets.lock().expect("no thread panics with the lock").extend(packet);
            // A device that is down takes nothing in: the packet is lost.
            let _ = to.write(&buffer[..length]);
        }
    });
}
