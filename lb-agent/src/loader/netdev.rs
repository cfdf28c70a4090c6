//! What drivers can do with XDP, as the kernel's `netdev` family of generic netlink tells it (from 6.3 on;
//! `Documentation/netlink/specs/netdev.yaml`).

use std::io;

use netlink_sys::{Socket, SocketAddr};

/// `NETLINK_GENERIC`.
const GENERIC: isize = 16;
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME`.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET`, `NETDEV_A_DEV_IFINDEX`, `NETDEV_A_DEV_XDP_FEATURES`.
const GET_DEVICE: u8 = 1;
const INDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_NDO_XMIT`: the driver sends what XDP redirects to the device.
const SENDS_REDIRECTED: u64 = 1 << 2;

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `struct nlmsghdr`, and `struct genlmsghdr` after it.
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

/// Whether the driver of a device sends what XDP redirects to it from other devices. `false` where the kernel does not
/// tell.
pub(super) fn sends_redirected(index: u32) -> bool {
    features(index).is_ok_and(|features| features & SENDS_REDIRECTED != 0)
}

/// What the driver of a device does with XDP: bits of `NETDEV_XDP_ACT_*`.
pub(crate) fn features(index: u32) -> io::Result<u64> {
    let mut socket = Socket::new(GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let family = ask(&socket, CONTROLLER, GET_FAMILY, (FAMILY_NAME, b"netdev\0"), FAMILY_ID)?;
    let family = u16::from_ne_bytes(family.try_into().map_err(|_| io::ErrorKind::InvalidData)?);
    let features = ask(&socket, family, GET_DEVICE, (INDEX, &index.to_ne_bytes()), XDP_FEATURES)?;
    Ok(u64::from_ne_bytes(features.try_into().map_err(|_| io::ErrorKind::InvalidData)?))
}

/// Sends a request of one attribute, and gives the value of one attribute of the answer.
fn ask(socket: &Socket, family: u16, command: u8, (kind, value): (u16, &[u8]), wanted: u16) -> io::Result<Vec<u8>> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut request = vec![0; HEADER];
    request.extend([command, 1, 0, 0]);
    request.extend(u16::try_from(4 + value.len()).map_err(too_long)?.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(request.len().next_multiple_of(4), 0);
    let length = u32::try_from(request.len()).map_err(too_long)?;
    request[..4].copy_from_slice(&length.to_ne_bytes());
    request[4..6].copy_from_slice(&family.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    socket.send(&request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    value_of(&answer, wanted)
}

/// The value of an attribute of a message.
fn value_of(message: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
    let cut_short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let half = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if half(message, 4).ok_or_else(cut_short)? == ERROR {
        let code = message.get(HEADER..HEADER + 4).ok_or_else(cut_short)?;
        let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
        return Err(io::Error::from_raw_os_error(-code));
    }
    let mut rest = message.get(HEADER + GENERIC_HEADER..).ok_or_else(cut_short)?;
    while let (Some(length), Some(kind)) = (half(rest, 0), half(rest, 2)) {
        let length = usize::from(length);
        let value = rest.get(4..length).ok_or_else(cut_short)?;
        if kind == wanted {
            return Ok(value.to_vec());
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.extend(body);
        message
    }

    #[test]
    fn an_attribute_is_found_behind_others_and_an_error_is_the_kernels() {
        // Generic header; attribute 1 of 2 bytes, padded; attribute 3 of 8 bytes.
        let body = [
            &[1, 1, 0, 0][..],
            &6_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            &[7, 7, 0, 0],
            &12_u16.to_ne_bytes(),
            &3_u16.to_ne_bytes(),
            &0x23_u64.to_ne_bytes(),
        ]
        .concat();
        let found = message(0x1c, &body);
        assert_eq!(value_of(&found, XDP_FEATURES).expect("there"), 0x23_u64.to_ne_bytes());
        assert_eq!(value_of(&found, 9).expect_err("not there").kind(), io::ErrorKind::NotFound);
        for length in 0..found.len() {
            assert!(value_of(&found[..length], XDP_FEATURES).is_err(), "cut at {length}");
        }
        let error = value_of(&message(ERROR, &(-2_i32).to_ne_bytes()), 1).expect_err("an error");
        assert_eq!(error.raw_os_error(), Some(2));
    }
}
