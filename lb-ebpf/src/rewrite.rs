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
    let mut addresses = Diff::NONE;
    // Adding "unchanged" is not free, and one side usually is.
    if packet.tuple.src != to.src {
        addresses = F::diff(addresses, packet.tuple.src, to.src);
    }
    if packet.tuple.dst != to.dst {
        addresses = F::diff(addresses, packet.tuple.dst, to.dst);
    }
    ctx.update_checksum(packet.checksum(), addresses, ports)
}
