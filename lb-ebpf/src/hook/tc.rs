//! A packet at TC: an skb, of which the kernel knows more than its bytes say.

use core::{ffi::c_void, marker::PhantomData, mem::offset_of};

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_IPV6, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_REDIRECT,
        bpf_adj_room_mode::{BPF_ADJ_ROOM_MAC, BPF_ADJ_ROOM_NET},
        bpf_redir_neigh,
    },
    helpers::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_vlan_pop,
    },
    programs::TcContext,
};
use lb_common::{
    abi::{Protocol, Reason},
    checksum::Diff,
};

use super::{L4Checksum, PacketContext, Tag, Verdict, load_pointer, size_i32};
use crate::{
    maps::{Headers, NODE_NETNS_COOKIE, XDP},
    packet::{self, ETHERNET},
};

/// VLAN ID of the tag control information (IEEE 802.1Q §9.6).
const VLAN_ID: u32 = 0x0fff;

/// What the packets of a device begin with.
pub trait LinkLayer {
    /// Length of what is in front of the IP header.
    const HEADER: usize;
}

/// An Ethernet header.
pub struct Ethernet;
/// The IP header (tun, WireGuard): the kernel's `ARPHRD_NONE`.
pub struct Bare;

impl LinkLayer for Ethernet {
    const HEADER: usize = ETHERNET;
}
impl LinkLayer for Bare {
    const HEADER: usize = 0;
}

/// An skb that passes a device whose packets begin as `L` says.
pub struct Skb<L> {
    context: TcContext,
    link: PhantomData<L>,
}

impl<L> Skb<L> {
    #[inline(always)]
    pub const fn new(context: TcContext) -> Self {
        Self { context, link: PhantomData }
    }
}

impl<L> EbpfContext for Skb<L> {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.context.as_ptr()
    }
}

/// The context as the kernel's helpers take it.
#[inline(always)]
fn skb(ctx: &impl EbpfContext) -> *mut __sk_buff {
    ctx.as_ptr().cast()
}

/// `PACKET_OTHERHOST` (`include/uapi/linux/if_packet.h`).
const OTHER_HOST: u32 = 3;
/// `-EINVAL`.
const EINVAL: i64 = -22;

impl<L: LinkLayer> PacketContext for Skb<L> {
    const EARLY: bool = false;
    const LINK: usize = L::HEADER;

    #[inline(always)]
    fn data(&self) -> usize {
        load_pointer::<{ offset_of!(__sk_buff, data) }>(self)
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        load_pointer::<{ offset_of!(__sk_buff, data_end) }>(self)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.context.len() as usize
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "header lengths")]
    fn pull(&self, length: usize) -> Result<(), Reason> {
        // SAFETY: the context is the one that the kernel passed in.
        match unsafe { bpf_skb_pull_data(skb(self), length as u32) } {
            0 => Ok(()),
            _ => Err(Reason::HelperFailed),
        }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "header lengths")]
    fn copy(&self, offset: usize, to: &mut Headers, length: usize) -> Result<(), Reason> {
        // SAFETY: the context is the one that the kernel passed in; the caller says that there is room.
        match unsafe { bpf_skb_load_bytes(self.as_ptr(), offset as u32, to.as_mut_ptr().cast(), length as u32) } {
            0 => Ok(()),
            _ => Err(Reason::HelperFailed),
        }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "header lengths")]
    fn resize(&self, length: usize) -> Result<(), Reason> {
        // SAFETY: the context is the one that the kernel passed in.
        match unsafe { bpf_skb_change_tail(skb(self), length as u32, 0) } {
            0 => Ok(()),
            _ => Err(Reason::HelperFailed),
        }
    }

    #[inline(always)]
    fn remove_after_ip(&self, length: usize) -> Result<(), Reason> {
        adjust_room(self, -length.cast_signed(), BPF_ADJ_ROOM_NET)
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "header lengths")]
    fn insert_before_ip(&self, l3: usize, length: usize) -> Result<(), Reason> {
        if L::HEADER == 0 || l3 == ETHERNET {
            return adjust_room(self, length.cast_signed(), BPF_ADJ_ROOM_MAC);
        }
        // That helper knows no tags in the data, and this one no headers.
        // SAFETY: the context is the one that the kernel passed in.
        match unsafe { bpf_skb_change_head(skb(self), length as u32, 0) } {
            0 => packet::bring_link_forward(self, length),
            _ => Err(Reason::HelperFailed),
        }
    }

    /// The helper is made for this, and does no more (`__bpf_skb_change_head` in `net/core/filter.c`).
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "length of a header")]
    fn insert_ethernet(&self) -> Result<(), Reason> {
        // SAFETY: the context is the one that the kernel passed in.
        match unsafe { bpf_skb_change_head(skb(self), ETHERNET as u32, 0) } {
            0 => Ok(()),
            _ => Err(Reason::HelperFailed),
        }
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*skb(self)).ifindex }
    }

    #[inline(always)]
    fn is_for_another_host(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*skb(self)).pkt_type == OTHER_HOST }
    }

    #[inline(always)]
    fn tag(&self) -> Tag {
        // SAFETY: as above.
        unsafe {
            if (*skb(self)).vlan_present == 0 {
                Tag::Absent
            } else if (*skb(self)).vlan_tci & VLAN_ID == 0 {
                Tag::Priority
            } else {
                Tag::Vlan
            }
        }
    }

    #[inline(always)]
    fn untag(&self) -> Result<(), Reason> {
        // SAFETY: the context is the one that the kernel passed in.
        match unsafe { bpf_skb_vlan_pop(skb(self)) } {
            0 => Ok(()),
            _ => Err(Reason::HelperFailed),
        }
    }

    #[inline(always)]
    fn segment_size(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*skb(self)).gso_size as usize }
    }

    /// Only the kernel knows whether the packet's checksum is complete, partial (`CHECKSUM_PARTIAL`: the pseudo
    /// header's sum, ports not included) or shadowed by the device's sum over the packet (`CHECKSUM_COMPLETE`), and
    /// only its helper keeps all three right. One call does for addresses, which concern all three. For ports, which a
    /// partial sum does not cover, a second call is saved: what the first one made of the field tells which kind it is.
    #[inline(always)]
    fn update_checksum(&self, checksum: L4Checksum, addresses: Diff, ports: Diff) -> Result<(), Reason> {
        let old = packet::read::<_, u16>(self, checksum.offset)?;
        if old == 0 && !checksum.v6 && matches!(checksum.protocol, Protocol::Udp) {
            return Ok(());
        }
        replace_pseudo(self, checksum, addresses)?;
        if ports == Diff::NONE {
            return Ok(());
        }
        let field = packet::pointer::<_, u16>(self, checksum.offset)?;
        // SAFETY: `pointer` checked the bounds.
        let new = unsafe { *field };
        let (full, partial) = (checksum.stored(addresses.apply(old)), addresses.apply_partial(old));
        if full == partial || (new != full && new != partial) {
            return l4_csum_replace(self, checksum, ports, 0);
        }
        if new == full {
            // SAFETY: as above.
            unsafe { *field = checksum.stored(ports.apply(new)) };
        }
        Ok(())
    }

    #[inline(always)]
    fn note_change(&self, diff: Diff) {
        // Fails where there is no such sum, which is as good.
        // SAFETY: the context is the one that the kernel passed in.
        unsafe { bpf_csum_update(skb(self), diff.to_u32()) };
    }

    #[inline(always)]
    fn is_checksum_partial(&self, checksum: L4Checksum) -> Result<bool, Reason> {
        // The two forms move in opposite directions; a change by 1 tells them apart whatever the value.
        let probe = Diff::NONE.word16(0, 1);
        let old = packet::read::<_, u16>(self, checksum.offset)?;
        if old == 0 {
            return Ok(false);
        }
        replace_pseudo(self, checksum, probe)?;
        Ok(packet::read::<_, u16>(self, checksum.offset)? == probe.apply_partial(old))
    }

    /// What the XDP program writes in front of the packet, the kernel keeps beside the skb.
    #[inline(always)]
    fn is_translated(&self) -> bool {
        if XDP.load() == 0 {
            return false;
        }
        let mark = load_pointer::<{ offset_of!(__sk_buff, data_meta) }>(self);
        if mark + size_of::<u64>() > self.data() {
            return false;
        }
        // SAFETY: the bounds were checked; see `packet::read` for alignment.
        unsafe { *(mark as *const u64) == NODE_NETNS_COOKIE.load() }
    }

    /// Nothing of ours follows.
    #[inline(always)]
    fn mark_translated(&self) -> Result<(), Reason> {
        Ok(())
    }

    #[inline(always)]
    fn can_redirect(&self, _interface: u32) -> bool {
        true
    }

    #[inline(always)]
    fn redirect(&self, interface: u32) -> Result<Verdict, Reason> {
        // SAFETY: no pointers are passed.
        redirected(unsafe { bpf_redirect(interface, 0) })
    }

    #[inline(always)]
    fn redirect_unresolved(&self, interface: u32, next_hop: &mut bpf_redir_neigh) -> Result<Verdict, Reason> {
        // SAFETY: `next_hop` is initialized and lives through the call.
        redirected(unsafe { bpf_redirect_neigh(interface, next_hop, size_i32::<bpf_redir_neigh>(), 0) })
    }
}

/// Changes the length of a packet at one of its headers.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "header lengths")]
fn adjust_room(ctx: &impl EbpfContext, difference: isize, mode: u32) -> Result<(), Reason> {
    // SAFETY: the context is the one that the kernel passed in.
    match unsafe { bpf_skb_adjust_room(skb(ctx), difference as i32, mode, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO)) } {
        0 => Ok(()),
        _ => Err(Reason::HelperFailed),
    }
}

#[inline(always)]
fn redirected(code: i64) -> Result<Verdict, Reason> {
    if code == i64::from(TC_ACT_REDIRECT) { Ok(Verdict::Redirected) } else { Err(Reason::HelperFailed) }
}

#[inline(always)]
fn l4_csum_replace(ctx: &impl EbpfContext, checksum: L4Checksum, diff: Diff, flags: u32) -> Result<(), Reason> {
    match l4_csum_replace_code(ctx, checksum, diff, flags) {
        0 => Ok(()),
        _ => Err(Reason::HelperFailed),
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "header lengths")]
fn l4_csum_replace_code(ctx: &impl EbpfContext, checksum: L4Checksum, diff: Diff, flags: u32) -> i64 {
    let flags = if matches!(checksum.protocol, Protocol::Udp) { flags | BPF_F_MARK_MANGLED_0 } else { flags };
    // SAFETY: the context is the one that the kernel passed in. A field size of 0 (in `flags`) makes `to` the whole
    // difference.
    unsafe { bpf_l4_csum_replace(skb(ctx), checksum.offset as u32, 0, u64::from(diff.to_u32()), u64::from(flags)) }
}

/// Applies a change of the pseudo header.
#[inline(always)]
fn replace_pseudo(ctx: &impl PacketContext, checksum: L4Checksum, diff: Diff) -> Result<(), Reason> {
    if !checksum.v6 {
        return l4_csum_replace(ctx, checksum, diff, BPF_F_PSEUDO_HDR);
    }
    // An IPv6 header has no checksum of its own that would balance the change of an address in the device's sum, and
    // kernels before 6.16 forget that (commit "bpf: Fix L4 csum update on IPv6 in CHECKSUM_COMPLETE"). They do not know
    // the flag either: undo what they do to that sum.
    match l4_csum_replace_code(ctx, checksum, diff, BPF_F_PSEUDO_HDR | BPF_F_IPV6) {
        0 => Ok(()),
        EINVAL => {
            l4_csum_replace(ctx, checksum, diff, BPF_F_PSEUDO_HDR)?;
            ctx.note_change(diff);
            Ok(())
        }
        _ => Err(Reason::HelperFailed),
    }
}
