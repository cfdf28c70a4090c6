//! Sockets whose packets have more than a plain IP header.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, connect as connect_socket, setsockopt, socket,
            sockopt::SendTimeout,
        },
        time::TimeVal,
    },
};

/// Three "no operation" and an "end of option list" (RFC 791 §3.1).
const IPV4_OPTIONS: [u8; 4] = [1, 1, 1, 0];
/// A destination options header of 8 bytes: one `PadN` option (RFC 8200 §4.2). The kernel fills in the next header.
const IPV6_DESTINATION_OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

/// Has a socket send options of the family of `to` (ip(7), `IP_OPTIONS`; RFC 3542 §9.2).
pub(super) fn set(socket: &impl AsRawFd, to: SocketAddr) -> io::Result<()> {
    let (level, name, value): (_, _, &[u8]) = if to.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_OPTIONS, &IPV4_OPTIONS)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &IPV6_DESTINATION_OPTIONS)
    };
    let length = libc::socklen_t::try_from(value.len()).expect("a few bytes");
    // SAFETY: `value` has `length` bytes and outlives the call.
    let code = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    Errno::result(code).map(drop).map_err(io::Error::from)
}

/// Connects a socket that has them in its SYN already.
pub(super) fn connect(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // What `connect` waits at most, too (socket(7)).
    setsockopt(&socket.as_fd(), SendTimeout, &TimeVal::new(patience.as_secs().cast_signed(), 0))?;
    set(&socket, to)?;
    match connect_socket(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => Ok(socket.into()),
        Err(Errno::EINPROGRESS) => Err(io::ErrorKind::TimedOut.into()),
        Err(errno) => Err(errno.into()),
    }
}
