//! Datagrams that may not go far, and who says so: what traceroute does.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use nix::{
    cmsg_space,
    libc::{self, sock_extended_err, sockaddr_in6},
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
        sockopt::{Ipv4RecvErr, Ipv4Ttl, Ipv6RecvErr, Ipv6Ttl},
    },
};

use super::PATIENCE;
use crate::lab::Host;

/// An ICMP or `ICMPv6` error that a socket was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Who sent it.
    pub by: IpAddr,
    /// What it says.
    pub kind: Kind,
}

/// What an error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody listens on the port.
    PortUnreachable,
    /// It has been on its way for too long.
    TimeExceeded,
    /// Anything else: type and code.
    Other(u8, u8),
}

impl Kind {
    /// RFC 792, RFC 4443 §3.
    fn new(family_is_v4: bool, kind: u8, code: u8) -> Self {
        match (family_is_v4, kind, code) {
            (true, 3, 3) | (false, 1, 4) => Self::PortUnreachable,
            (true, 11, 0) | (false, 3, 0) => Self::TimeExceeded,
            (_, kind, code) => Self::Other(kind, code),
        }
    }
}

/// Sends a datagram from a host that may take this many hops, and waits for the error about it.
pub fn expire(from: &Host, to: SocketAddr, hops: u8) -> io::Result<Told> {
    from.run(move || {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        if to.is_ipv4() {
            setsockopt(&socket, Ipv4Ttl, &i32::from(hops))?;
            setsockopt(&socket, Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, Ipv6Ttl, &i32::from(hops))?;
            setsockopt(&socket, Ipv6RecvErr, &true)?;
        }
        socket.send_to(b"how far is it?", to)?;
        let mut buffer = [0; 64];
        match socket.recv_from(&mut buffer) {
            // An error ends the wait; who sent it is in the queue.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => queued(&socket),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
            Ok((_, sender)) => Err(io::Error::other(format!("{sender} answered"))),
        }
    })
}

/// The first error in a socket's queue (ip(7), `IP_RECVERR`).
fn queued(socket: &UdpSocket) -> io::Result<Told> {
    let mut space = cmsg_space!(sock_extended_err, sockaddr_in6);
    let mut buffer = [0; 64];
    let mut buffers = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut space),
        MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
    )?;
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv4RecvErr(error, Some(by)) if error.ee_origin == libc::SO_EE_ORIGIN_ICMP => {
                let by = Ipv4Addr::from(by.sin_addr.s_addr.to_ne_bytes()).into();
                return Ok(Told { by, kind: Kind::new(true, error.ee_type, error.ee_code) });
            }
            ControlMessageOwned::Ipv6RecvErr(error, Some(by)) if error.ee_origin == libc::SO_EE_ORIGIN_ICMP6 => {
                let by = Ipv6Addr::from(by.sin6_addr.s6_addr).into();
                return Ok(Told { by, kind: Kind::new(false, error.ee_type, error.ee_code) });
            }
            _ => {}
        }
    }
    Err(io::Error::other("the socket's queue has no ICMP error"))
}
