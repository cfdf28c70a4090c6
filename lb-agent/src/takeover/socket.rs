//! A netlink socket to nftables: lists, and batches that apply whole or not at all.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::SndBufForce},
};

use super::{
    TakeoverError,
    message::{Family, Kind, Message, NETLINK_HEADER, attributes, body},
};

/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: the ruleset changed while it was listed.
const INTERRUPTED: u16 = 0x10;
/// Room beyond a batch that the kernel counts for its own structures (`netlink_sendmsg` wants 32 bytes).
const SEND_MARGIN: usize = 4096;

/// The socket.
pub(super) struct Netfilter {
    socket: Socket,
    sequence: u32,
}

struct Received {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: Vec<u8>,
}

impl Netfilter {
    /// Opens a socket; `None` where the kernel has no netfilter.
    pub(super) fn open() -> Result<Option<Self>, TakeoverError> {
        let open = || {
            let mut socket = Socket::new(NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        match open() {
            Ok(socket) => Ok(Some(Self { socket, sequence: 0 })),
            Err(error) if errno(&error) == Errno::EPROTONOSUPPORT => Ok(None),
            Err(error) => Err(TakeoverError::Socket(error)),
        }
    }

    /// The number of the ruleset's last change; `None` where the kernel has no nftables.
    pub(super) fn generation(&mut self) -> Result<Option<u32>, TakeoverError> {
        let failed = |source| TakeoverError::List { what: "the ruleset's generation".to_owned(), source };
        let sequence = self.send(&Message::get_generation()).map_err(failed)?;
        let mut generation = None;
        loop {
            for message in self.receive(true).map_err(failed)? {
                if message.sequence != sequence {
                    continue;
                }
                if message.kind != ERROR {
                    let number = attributes(body(&message.payload)).find(|(kind, _)| *kind == 1);
                    generation = number.and_then(|(_, value)| Some(u32::from_be_bytes(value.try_into().ok()?)));
                    continue;
                }
                return match status(&message.payload) {
                    Ok(()) => Ok(generation),
                    // No such subsystem, or no such message.
                    Err(error) if matches!(errno(&error), Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(None),
                    Err(error) => Err(failed(error)),
                };
            }
        }
    }

    /// The payloads of all objects of a kind; `None` if the ruleset changed meanwhile.
    pub(super) fn dump(
        &mut self,
        kind: Kind,
        family: Family,
        table: Option<&str>,
    ) -> Result<Option<Vec<Vec<u8>>>, TakeoverError> {
        let failed = |source| {
            let what = match (kind, table) {
                (Kind::GetRule, Some(table)) => format!("rules of {} {table}", family.name()),
                _ => format!("chains of family {}", family.name()),
            };
            TakeoverError::List { what, source }
        };
        let sequence = self.send(&Message::dump(kind, family, table)).map_err(failed)?;
        let (mut payloads, mut interrupted) = (Vec::new(), false);
        loop {
            for message in self.receive(true).map_err(failed)? {
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & INTERRUPTED != 0;
                match message.kind {
                    DONE => return Ok((!interrupted).then_some(payloads)),
                    // The family has no nftables here, or the table has just gone.
                    ERROR => match status(&message.payload) {
                        Err(error) if matches!(errno(&error), Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => {
                            return Ok(Some(Vec::new()));
                        }
                        Err(error) if matches!(errno(&error), Errno::EINTR | Errno::ENOENT) => return Ok(None),
                        result => result.map_err(failed)?,
                    },
                    _ => payloads.push(message.payload),
                }
            }
        }
    }

    /// Applies all of the messages, or none. `false`: the ruleset is no longer of that generation.
    pub(super) fn apply(&mut self, generation: u32, batch: &[(String, Message)]) -> Result<bool, TakeoverError> {
        let Some(((_, last), before)) = batch.split_last() else { return Ok(true) };
        let failed = |what: &str, source| TakeoverError::Remove { what: what.to_owned(), source };
        let whole = |source| failed("the batch", source);
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        let messages =
            [Message::begin(generation)].into_iter().chain(before.iter().map(|(_, message)| message.clone()));
        for message in messages.chain([last.clone().acknowledged(), Message::end()]) {
            self.sequence += 1;
            message.write(self.sequence, &mut bytes);
        }
        setsockopt(&self.socket, SndBufForce, &(bytes.len() + SEND_MARGIN)).map_err(|errno| whole(errno.into()))?;
        self.socket.send(&bytes, 0).map_err(whole)?;
        // The kernel has done all by now, and its answers wait.
        let mut result = Err(whole(io::Error::other("the kernel gave no answer")));
        loop {
            let received = match self.receive(false) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return result,
                Err(error) => return Err(whole(error)),
            };
            for message in received.into_iter().filter(|message| message.kind == ERROR) {
                // Of the batch itself (its first message), or of one in it.
                let index = message.sequence.checked_sub(first + 1).and_then(|index| usize::try_from(index).ok());
                match (status(&message.payload), &result) {
                    (Ok(()), Err(TakeoverError::Remove { what, .. })) if what == "the batch" => result = Ok(true),
                    (Err(error), _) if errno(&error) == Errno::ERESTART => return self.drain(Ok(false)),
                    (Err(error), _) => {
                        let what = index.and_then(|index| batch.get(index)).map_or("the batch", |(what, _)| what);
                        return self.drain(Err(failed(what, error)));
                    }
                    (Ok(()), _) => {}
                }
            }
        }
    }

    /// Throws further answers away.
    fn drain(&mut self, result: Result<bool, TakeoverError>) -> Result<bool, TakeoverError> {
        while self.receive(false).is_ok() {}
        result
    }

    fn send(&mut self, message: &Message) -> io::Result<u32> {
        self.sequence += 1;
        let mut bytes = Vec::new();
        message.write(self.sequence, &mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(self.sequence)
    }

    fn receive(&self, wait: bool) -> io::Result<Vec<Received>> {
        self.socket.set_non_blocking(!wait)?;
        let (bytes, _) = self.socket.recv_from_full()?;
        Ok(split(&bytes))
    }
}

/// The messages of one read. What is cut short ends the list.
fn split(mut bytes: &[u8]) -> Vec<Received> {
    let mut messages = Vec::new();
    while let Some((header, _)) = bytes.split_at_checked(NETLINK_HEADER) {
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        let Some(payload) = bytes.get(NETLINK_HEADER..length) else { break };
        messages.push(Received { kind: half(4), flags: half(6), sequence: word(8), payload: payload.to_vec() });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// The error of `NLMSG_ERROR`, which is an acknowledgement where it is 0.
fn status(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}
