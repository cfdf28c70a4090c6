//! The name of a device's driver, as ethtool has it. Not from sysfs, which shows the devices of the network namespace that it
//! was mounted in.

use std::{io, mem, net::UdpSocket, os::fd::AsRawFd as _, ptr};

use nix::libc;

/// `SIOCETHTOOL` (`include/uapi/linux/sockios.h`).
const SIOCETHTOOL: u64 = 0x8946;
/// `ETHTOOL_GDRVINFO` (`include/uapi/linux/ethtool.h`).
const GET_DRIVER: u32 = 3;

/// `struct ethtool_drvinfo`; what follows the name is of no interest.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ifreq`: the name of the device, and a union that begins with a pointer.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut DriverInfo,
    rest: [u8; 16],
}

/// The driver of a device of this thread's network namespace.
pub(super) fn driver(device: &str) -> io::Result<String> {
    let mut info = DriverInfo { command: GET_DRIVER, driver: [0; 32], rest: [0; 160] };
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: ptr::from_mut(&mut info), rest: [0; 16] };
    // The last byte stays NUL.
    let name = request.name.get_mut(..device.len()).filter(|name| name.len() < libc::IFNAMSIZ);
    name.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(device.as_bytes());
    let socket = UdpSocket::bind(("127.0.0.1", 0)).or_else(|_| UdpSocket::bind(("::1", 0)))?;
    // SAFETY: the kernel writes an `ethtool_drvinfo` to `info`, which outlives the call and is as large.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, ptr::from_mut(&mut request)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let end = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
    Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
}

/// `sizeof(struct ethtool_drvinfo)` and, on 64 bits, `sizeof(struct ifreq)`.
const _: () = assert!(mem::size_of::<DriverInfo>() == 196 && mem::size_of::<Request>() == 40);
