//! Which sockets there are that were given a backend: the agent asks where it counts flows. No program hears of the end of a
//! socket, but its storage ends with it.

use core::{ffi::c_void, mem::offset_of, ptr};

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use lb_common::abi::{LiveSocket, SocketFrontend};

use crate::family::MAPPED_PREFIX;

/// `struct bpf_iter__bpf_sk_storage_map` (`net/core/bpf_sk_storage.c`): what a program meets of one element of a socket
/// storage.
#[repr(C)]
pub struct Visit {
    meta: *const Meta,
    map: *const c_void,
    socket: *const c_void,
    /// Null after the last one.
    value: *const SocketFrontend,
}

/// `struct bpf_iter_meta` (`include/linux/bpf.h`), as far as it is of interest.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// Writes a [`LiveSocket`] for whoever reads, if the socket has a backend.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "twelve bytes")]
pub fn write(visit: *const Visit) -> i32 {
    // SAFETY: the context is the one that the kernel passed in. What the verifier knows it to point to is read by plain loads
    // at constant offsets.
    unsafe {
        let value = ptr::read_volatile(&raw const (*visit).value);
        // No peer has port 0: one that has left its frontend.
        if value.is_null() || ptr::read_volatile(&raw const (*value).backend_port) == 0 {
            return 0;
        }
        let live = LiveSocket {
            backend: ptr::read_volatile(&raw const (*value).backend),
            generation: ptr::read_volatile(&raw const (*value).generation),
            is_v4: u32::from(is_v4(value)),
        };
        let meta = ptr::read_volatile(&raw const (*visit).meta);
        let seq = ptr::read_volatile(&raw const (*meta).seq);
        // Where the buffer is full, the kernel shows the element once more.
        let _ = bpf_seq_write(seq, (&raw const live).cast(), size_of::<LiveSocket>() as u32);
    }
    0
}

/// Whether a socket's backend has an IPv4 address, in its IPv4-mapped form.
///
/// # Safety
///
/// The socket's storage is in a map.
#[inline(always)]
unsafe fn is_v4(socket: *const SocketFrontend) -> bool {
    const FIRST: usize = offset_of!(SocketFrontend, backend_address) / size_of::<u32>();
    // SAFETY: the caller says so; the indices are constants within the address.
    let word = |index| unsafe { ptr::read_volatile(socket.cast::<u32>().add(FIRST + index)) };
    word(0) == 0 && word(1) == 0 && word(2) == MAPPED_PREFIX
}
