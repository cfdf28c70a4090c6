//! What the modules need of the place where a packet meets them: TC (`tc`) or XDP (`xdp`).

mod tc;
mod xdp;

pub use tc::{Bare, Ethernet, Skb};

use core::arch::asm;

use aya_ebpf::{EbpfContext, bindings::bpf_redir_neigh};
use lb_common::{
    abi::{Hook, Protocol, Reason},
    checksum::Diff,
};

use crate::maps::Headers;

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// It is as it was. The kernel, and whoever is hooked after us, go on with it.
    Next = 0,
    /// It ends here.
    Drop = 1,
    /// It was sent on by the program.
    Redirected = 2,
    /// It was translated. The kernel, and whoever is hooked after us, go on with it.
    Translated = 3,
    /// It is sent back by the device that it came by, without the redirect that TC needs for that.
    Returned = 4,
}

/// Where a packet meets a program.
pub trait Place {
    /// The hook, as flow entries name it.
    const HOOK: Hook;
}

/// A place where flows begin.
pub trait Entrance: Place {
    /// Where replies of flows that begin here and go through the stack are translated back.
    const REPLY_HOOK: Hook;
    /// Packets come by a pod's interface.
    const FROM_POD: bool;
}

/// Packets that a pod sends.
pub struct PodIngress;
/// Packets that reach the node.
pub struct UplinkIngress;
/// Packets for a pod.
pub struct PodEgress;
/// Packets that leave the node.
pub struct UplinkEgress;

impl Place for PodIngress {
    const HOOK: Hook = Hook::PodIngress;
}
impl Place for UplinkIngress {
    const HOOK: Hook = Hook::UplinkIngress;
}
impl Place for PodEgress {
    const HOOK: Hook = Hook::PodEgress;
}
impl Place for UplinkEgress {
    const HOOK: Hook = Hook::UplinkEgress;
}
impl Entrance for PodIngress {
    const REPLY_HOOK: Hook = PodEgress::HOOK;
    const FROM_POD: bool = true;
}
impl Entrance for UplinkIngress {
    const REPLY_HOOK: Hook = UplinkEgress::HOOK;
    const FROM_POD: bool = false;
}

/// A layer-4 checksum: where it is and what the protocol asks of it.
#[derive(Clone, Copy)]
pub struct L4Checksum {
    /// Offset in the packet.
    pub offset: usize,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Over IPv6.
    pub v6: bool,
}

impl L4Checksum {
    /// The value to store for a computed one: a UDP checksum of 0 means that there is none, so its other form is sent
    /// (RFC 768, RFC 8200 §8.1).
    #[inline(always)]
    pub fn stored(self, computed: u16) -> u16 {
        if computed == 0 && matches!(self.protocol, Protocol::Udp) { 0xffff } else { computed }
    }
}

/// A VLAN tag that is not in the packet's data. (The kernel takes the outer one out of what a device receives before any
/// program at TC sees it.)
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// None.
    Absent,
    /// VLAN ID 0: a priority, and no VLAN (IEEE 802.1Q §9.6). The kernel hands the packet to the device that it came by.
    Priority,
    /// A VLAN's. The kernel hands the packet to the VLAN's device, or to nobody.
    Vlan,
}

/// A packet in the hands of a program.
pub trait PacketContext: EbpfContext {
    /// Whether a packet that is left alone here meets a program of ours again, at a place that can do more. What cannot
    /// be finished here is left to that one: nothing is written, entered or counted before it is known that it can.
    const EARLY: bool;
    /// Length of what is in front of the IP header of a packet without VLAN tags: that of an Ethernet header, or 0.
    const LINK: usize;

    /// First byte that can be read directly.
    fn data(&self) -> usize;
    /// End of what can be read directly.
    fn data_end(&self) -> usize;
    /// Length of the whole packet.
    fn length(&self) -> usize;
    /// Makes the first `length` bytes readable and writable directly. Pointers into the packet end here.
    fn pull(&self, length: usize) -> Result<(), Reason>;
    /// Copies `length` bytes from `offset` on: at least one, and no more than there is room.
    fn copy(&self, offset: usize, to: &mut Headers, length: usize) -> Result<(), Reason>;
    /// Cuts or extends the packet. Pointers into the packet end here.
    fn resize(&self, length: usize) -> Result<(), Reason>;
    /// Removes bytes that follow an IP header's fixed part, in a packet without tags in its data. Pointers into the packet
    /// end here.
    fn remove_after_ip(&self, length: usize) -> Result<(), Reason>;
    /// Makes room, to be written over, before the IP header at `l3`. Pointers into the packet end here.
    fn insert_before_ip(&self, l3: usize, length: usize) -> Result<(), Reason>;
    /// Puts an Ethernet header of zeroes in front of a packet that came without. Pointers into the packet end here.
    fn insert_ethernet(&self) -> Result<(), Reason>;
    /// Index of the device that the packet came by.
    fn interface(&self) -> u32;
    /// Whether the packet is for another host: the device hears it because it is promiscuous, and the stack drops it.
    /// `false` where that cannot be known yet.
    fn is_for_another_host(&self) -> bool;
    /// What a VLAN tag outside the packet's data says.
    fn tag(&self) -> Tag;
    /// Takes a tag outside the packet's data off. Pointers into the packet end here.
    fn untag(&self) -> Result<(), Reason>;
    /// Bytes of data in each of the segments that the kernel or the device will cut the packet into; 0 where it will not.
    fn segment_size(&self) -> usize;
    /// Applies changes of addresses and ports to a layer-4 checksum. Pointers into the packet end here.
    fn update_checksum(&self, checksum: L4Checksum, addresses: Diff, ports: Diff) -> Result<(), Reason>;
    /// Notes a change of a header that has no checksum of its own, where the device summed the whole packet. Pointers into
    /// the packet end here.
    fn note_change(&self, diff: Diff);
    /// Whether the layer-4 checksum is only the sum of the pseudo header, to be completed by the device that sends the
    /// packet. Destroys the checksum, and pointers into the packet end here.
    fn is_checksum_partial(&self, checksum: L4Checksum) -> Result<bool, Reason>;
    /// Whether an earlier place has translated the packet already.
    fn is_translated(&self) -> bool;
    /// Tells the places that follow that the packet is translated here. Pointers into the packet end here.
    fn mark_translated(&self) -> Result<(), Reason>;
    /// Whether [`redirect`](Self::redirect) can send packets out of a device.
    fn can_redirect(&self, interface: u32) -> bool;
    /// Sends the packet out of a device as it is.
    fn redirect(&self, interface: u32) -> Result<Verdict, Reason>;
    /// Sends the packet out of a device to a neighbour that the kernel has to resolve first.
    fn redirect_unresolved(&self, interface: u32, next_hop: &mut bpf_redir_neigh) -> Result<Verdict, Reason>;
}

/// Loads one of a context's pointers into the packet, the field at `OFFSET`. They are 32 bits wide in the context's type
/// and 64 in the register that the verifier puts them in; LLVM, which cannot know, would now and then widen them by
/// shifts, which the verifier does not allow on pointers.
#[inline(always)]
fn load_pointer<const OFFSET: usize>(ctx: &impl EbpfContext) -> usize {
    let pointer: usize;
    // SAFETY: reads a field of the context that the kernel passed in.
    unsafe {
        asm!(
            "{pointer} = *(u32 *)({ctx} + {offset})",
            pointer = out(reg) pointer,
            ctx = in(reg) ctx.as_ptr(),
            offset = const OFFSET,
            options(pure, readonly, nostack),
        );
    }
    pointer
}

/// The size of a type, as the kernel's helpers take it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "tens of bytes")]
pub const fn size_i32<T>() -> i32 {
    size_of::<T>() as i32
}
