//! What is set on interfaces beyond what `ip` sets: kernel variables, and checksum offload.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
};

use nix::libc::SIOCETHTOOL;

/// Writes variables below `/proc/sys/net` of the calling thread's network namespace.
pub(crate) fn set_variables(variables: &[(&str, &str)]) {
    for (name, value) in variables {
        let path = Path::new("/proc/sys/net").join(name);
        fs::write(&path, value).unwrap_or_else(|error| panic!("write {value} to {}: {error}", path.display()));
    }
}

/// `struct ethtool_value` of include/uapi/linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `struct ifreq` of include/uapi/linux/if.h, as SIOCETHTOOL reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; nix::libc::IFNAMSIZ],
    data: *mut EthtoolValue,
    unused: [u64; 2],
}

nix::ioctl_readwrite_bad!(ethtool, SIOCETHTOOL, InterfaceRequest);

/// `ETHTOOL_STXCSUM` and `ETHTOOL_SGRO` of include/uapi/linux/ethtool.h.
const SET_TX_CHECKSUM: u32 = 0x17;
const SET_GRO: u32 = 0x2c;

/// Makes an interface of the calling thread's network namespace send full checksums, and so no segments larger than
/// its MTU: what a wire carries. A veth as it comes leaves both to the far end, which has no need of them.
pub(super) fn turn_checksum_offload_off(interface: &str) {
    turn_off(interface, "transmit checksum offload", SET_TX_CHECKSUM);
}

/// Makes an interface of the calling thread's network namespace hand on packets as they come, not joined to larger ones, for
/// which their headers would be gathered first.
pub fn turn_receive_offload_off(interface: &str) {
    turn_off(interface, "generic receive offload", SET_GRO);
}

fn turn_off(interface: &str, what: &str, command: u32) {
    let mut value = EthtoolValue { command, data: 0 };
    let mut request = InterfaceRequest { name: [0; nix::libc::IFNAMSIZ], data: &raw mut value, unused: [0; 2] };
    request.name[..interface.len()].copy_from_slice(interface.as_bytes());
    let any_socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a UDP socket");
    // SAFETY: both structures are laid out as the kernel reads them and outlive the call.
    unsafe { ethtool(any_socket.as_raw_fd(), &raw mut request) }
        .unwrap_or_else(|errno| panic!("turn {what} of {interface} off: {errno}"));
}
