//! A packet at XDP: bytes in a buffer of the device, of which the kernel knows nothing yet.

use core::mem::offset_of;

use aya_ebpf::{
    EbpfContext,
    bindings::{bpf_redir_neigh, xdp_action::XDP_REDIRECT, xdp_md},
    helpers::{bpf_redirect, bpf_xdp_adjust_meta},
    programs::XdpContext,
};
use lb_common::{
    abi::{Interface, Protocol, Reason, XdpFlags},
    checksum::Diff,
};

use super::{L4Checksum, PacketContext, Tag, Verdict, load_pointer, size_i32};
use crate::{
    maps::{Headers, NODE_NETNS_COOKIE, XDP_DEVICES},
    packet::{self, ETHERNET},
};

/// The context as the kernel's helpers take it.
#[inline(always)]
fn buffer(ctx: &XdpContext) -> *mut xdp_md {
    ctx.as_ptr().cast()
}

impl PacketContext for XdpContext {
    const EARLY: bool = true;
    /// The agent attaches to no other devices.
    const LINK: usize = ETHERNET;

    #[inline(always)]
    fn data(&self) -> usize {
        load_pointer::<{ offset_of!(xdp_md, data) }>(self)
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        load_pointer::<{ offset_of!(xdp_md, data_end) }>(self)
    }

    /// What lies in the first buffer. A packet that goes on in others is longer than that by its own header, and so is
    /// left to TC; asking the kernel for the sum would cost every packet a helper call.
    #[inline(always)]
    fn length(&self) -> usize {
        self.data_end() - self.data()
    }

    /// What is not in the first buffer cannot be reached directly.
    #[inline(always)]
    fn pull(&self, _length: usize) -> Result<(), Reason> {
        Err(Reason::HelperFailed)
    }

    /// Only answers need it, and they are given at TC.
    #[inline(always)]
    fn resize(&self, _length: usize) -> Result<(), Reason> {
        Err(Reason::HelperFailed)
    }

    /// As `resize`.
    #[inline(always)]
    fn copy(&self, _offset: usize, _to: &mut Headers, _length: usize) -> Result<(), Reason> {
        Err(Reason::HelperFailed)
    }

    /// As `resize`.
    #[inline(always)]
    fn remove_after_ip(&self, _length: usize) -> Result<(), Reason> {
        Err(Reason::HelperFailed)
    }

    /// As `resize`.
    #[inline(always)]
    fn insert_before_ip(&self, _l3: usize, _length: usize) -> Result<(), Reason> {
        Err(Reason::HelperFailed)
    }

    /// Every packet has one.
    #[inline(always)]
    fn insert_ethernet(&self) -> Result<(), Reason> {
        Err(Reason::HelperFailed)
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is the one that the kernel passed in.
        unsafe { (*buffer(self)).ingress_ifindex }
    }

    /// The device's address is not to be seen here.
    #[inline(always)]
    fn is_for_another_host(&self) -> bool {
        false
    }

    /// A tag that the device took out of the packet cannot be seen here: the agent keeps the program off devices that
    /// have VLAN devices.
    #[inline(always)]
    fn tag(&self) -> Tag {
        Tag::Absent
    }

    #[inline(always)]
    fn untag(&self) -> Result<(), Reason> {
        Ok(())
    }

    /// Packets are put together, to be cut up again, only after this place.
    #[inline(always)]
    fn segment_size(&self) -> usize {
        0
    }

    /// Packets that come by a wire have finished checksums. The other kind, which a local sender on the far end of a
    /// veth leaves to the device, cannot be told from it here: the agent attaches to such devices only when asked to.
    #[inline(always)]
    fn update_checksum(&self, checksum: L4Checksum, addresses: Diff, ports: Diff) -> Result<(), Reason> {
        let field = packet::pointer::<_, u16>(self, checksum.offset)?;
        // SAFETY: `pointer` checked the bounds.
        let old = unsafe { *field };
        if old == 0 && !checksum.v6 && matches!(checksum.protocol, Protocol::Udp) {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { *field = checksum.stored(addresses.and(ports).apply(old)) };
        Ok(())
    }

    /// No device's sum is known yet.
    #[inline(always)]
    fn note_change(&self, _diff: Diff) {}

    #[inline(always)]
    fn is_checksum_partial(&self, _checksum: L4Checksum) -> Result<bool, Reason> {
        Ok(false)
    }

    /// Nothing of ours comes before.
    #[inline(always)]
    fn is_translated(&self) -> bool {
        false
    }

    /// In the bytes before the packet, where the device's driver has room for such; TC finds them beside the skb. The mark
    /// is a number that no other node has: an skb that is given on to another network namespace keeps it.
    #[inline(always)]
    fn mark_translated(&self) -> Result<(), Reason> {
        // SAFETY: the context is the one that the kernel passed in.
        if unsafe { bpf_xdp_adjust_meta(buffer(self), -size_i32::<u64>()) } != 0 {
            return Err(Reason::HelperFailed);
        }
        let mark = load_pointer::<{ offset_of!(xdp_md, data_meta) }>(self);
        if mark + size_of::<u64>() > self.data() {
            return Err(Reason::HelperFailed);
        }
        // SAFETY: the bounds were checked; see `packet::read` for alignment.
        unsafe { *(mark as *mut u64) = NODE_NETNS_COOKIE.load() };
        Ok(())
    }

    /// The way back is always there. Another device takes packets only where its driver can send them, and a packet for one
    /// that does not is lost without a word: the agent says which do.
    #[inline(always)]
    fn can_redirect(&self, interface: u32) -> bool {
        if interface == self.interface() {
            return true;
        }
        // SAFETY: one aligned word is read; an element that was reused meanwhile is another device's.
        match unsafe { XDP_DEVICES.get(&Interface { interface }) } {
            Some(device) => device.flags & XdpFlags::REDIRECT != 0,
            None => false,
        }
    }

    #[inline(always)]
    fn redirect(&self, interface: u32) -> Result<Verdict, Reason> {
        if interface == self.interface() {
            return Ok(Verdict::Returned);
        }
        // SAFETY: no pointers are passed.
        match unsafe { bpf_redirect(interface, 0) } {
            code if code == i64::from(XDP_REDIRECT) => Ok(Verdict::Redirected),
            _ => Err(Reason::HelperFailed),
        }
    }

    /// The kernel asks for neighbours at TC.
    #[inline(always)]
    fn redirect_unresolved(&self, _interface: u32, _next_hop: &mut bpf_redir_neigh) -> Result<Verdict, Reason> {
        Err(Reason::HelperFailed)
    }
}
