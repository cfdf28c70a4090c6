//! ICMP and `ICMPv6` errors: an IP header, the error's own, and the start of the packet that it is about, which it quotes.

use lb_common::abi::{Protocol, Reason, Tuple};

use super::{IPV4_FRAGMENT_OFFSET, Packet, ensure, read, transport_length};
use crate::{family::Family, hook::PacketContext, maps::Work};

/// Length of the header of an error (RFC 792, RFC 4443 §2.1).
pub const ICMP: usize = 8;
/// Where its checksum is.
pub const ICMP_CHECKSUM: usize = 2;
/// Bytes of a transport header that are quoted at least: the ports (RFC 792 asks for 8).
const PORTS: usize = 4;

/// Reads the headers of an error, the IP header at `l3`, into `work`. False for any other packet.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "offsets")]
pub fn parse<C: PacketContext, F: Family>(ctx: &C, l3: usize, work: &mut Work<F::Address>) -> Result<bool, Reason> {
    let header = F::header(ctx, l3)?;
    if header.protocol != F::ICMP || header.fragment != 0 {
        return Ok(false);
    }
    ensure(ctx, header.next + ICMP)?;
    if !F::is_icmp_error(read(ctx, header.next)?) {
        return Ok(false);
    }
    if header.end > ctx.length() {
        return Err(Reason::Malformed);
    }
    let tuple = Tuple::new(header.src, 0, header.dst, 0, F::ICMP);
    work.packet =
        Packet { tuple, l3: l3 as u16, l4: header.next as u16, tcp_flags: 0, ttl: header.ttl, first_fragment: 0 };
    work.end = header.end as u32;
    Ok(true)
}

/// Reads what the error of `work` quotes. False where that is no TCP or UDP packet, or has no ports.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "offsets of headers")]
pub fn parse_quoted<C: PacketContext, F: Family>(ctx: &C, work: &mut Work<F::Address>) -> Result<bool, Reason> {
    let l3 = work.packet.l4() + ICMP;
    let header = F::header(ctx, l3)?;
    let Some(protocol) = Protocol::from_number(header.protocol) else { return Ok(false) };
    if header.fragment & IPV4_FRAGMENT_OFFSET != 0 {
        return Ok(false);
    }
    let end = work.end as usize;
    if end < header.next + PORTS {
        return Err(Reason::Malformed);
    }
    // With the checksum, where that is quoted.
    ensure(ctx, end.min(header.next + transport_length(protocol)))?;
    let [src_port, dst_port]: [u16; 2] = read(ctx, header.next)?;
    let tuple = Tuple::new(header.src, u16::from_be(src_port), header.dst, u16::from_be(dst_port), protocol as u8);
    work.quoted =
        Packet { tuple, l3: l3 as u16, l4: header.next as u16, tcp_flags: 0, ttl: header.ttl, first_fragment: 0 };
    Ok(true)
}
