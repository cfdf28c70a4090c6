//! The two IP families as types, so that one code path serves both with the twin maps of each.

use lb_common::abi::Address;

/// An IP family and what differs between the two.
pub trait Family: Copy {
    /// An address of the family.
    type Address: Address;
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy)]
pub struct Ipv4;

/// IPv6 (RFC 8200).
#[derive(Clone, Copy)]
pub struct Ipv6;

impl Family for Ipv4 {
    type Address = [u8; 4];
}

impl Family for Ipv6 {
    type Address = [u8; 16];
}
