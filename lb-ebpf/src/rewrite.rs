//! Replaces a packet's addresses and ports, and keeps its checksums right.

use lb_common::{
    abi::{Reason, Tuple},
    checksum::Diff,
};

use crate::{family::Family, hook::PacketContext, packet::Packet};

/// Makes `packet` one of tuple `to`. With `hop`, the packet is forwarded by us and loses one of its time to live.
#[inline(always)]
pub fn rewrite<C: PacketContext, F: Family>(
    ctx: &C,
    packet: &Packet<F::Address>,
    to: &Tuple<F::Address>,
    hop: bool,
) -> Result<(), Reason> {
    F::rewrite_header(ctx, packet, to, hop)?;
    let ports = packet.rewrite_ports(ctx, to)?;
    // Copied whole, at the alignment of a tuple: addresses behind a reference are compared byte by byte.
    let (from, to) = (packet.tuple, *to);
    let mut addresses = Diff::NONE;
    // Adding "unchanged" is not free, and one side usually is.
    if from.src != to.src {
        addresses = F::diff(addresses, from.src, to.src);
    }
    if from.dst != to.dst {
        addresses = F::diff(addresses, from.dst, to.dst);
    }
    ctx.update_checksum(packet.checksum(), addresses, ports)
}
