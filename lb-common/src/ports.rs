//! The pool of source ports for masquerading: ports that neither a local socket nor a node port uses.

use crate::abi::{Config, MAX_PORT_RANGES, PortRange};

/// The lowest port of the pool: those below need privileges to bind (RFC 6335 §6, "System Ports").
pub const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// What remains of 1024..=65535 when the `reserved` ranges are taken out, ascending. With more than two reserved
/// ranges the smallest remainders beyond [`MAX_PORT_RANGES`] are left unused.
pub fn pool(reserved: [Reserved; 2]) -> [PortRange; MAX_PORT_RANGES] {
    let [a, b] = reserved;
    let [low, high] = if a.first <= b.first { [a, b] } else { [b, a] };
    let mut ranges = [PortRange::default(); MAX_PORT_RANGES];
    let mut next = u32::from(FIRST_UNPRIVILEGED_PORT);
    let mut used = 0;
    for (first, after) in [
        (u32::from(low.first), u32::from(low.last) + 1),
        (u32::from(high.first), u32::from(high.last) + 1),
        (u32::from(u16::MAX) + 1, u32::from(u16::MAX) + 1),
    ] {
        if let (Ok(start), Ok(count)) = (u16::try_from(next), u16::try_from(first.saturating_sub(next)))
            && count > 0
        {
            ranges[used] = PortRange { first: start, count };
            used += 1;
        }
        next = next.max(after);
    }
    ranges
}

/// The port at `index` of the pool, where `index` is below the sum of all counts. `None` beyond it.
#[inline(always)]
pub fn nth(config: &Config, index: u32) -> Option<u16> {
    let mut rest = index;
    // Unrolled by the compiler: the BPF target sees four comparisons.
    for range in config.snat_ports {
        let count = u32::from(range.count);
        if rest < count {
            #[expect(clippy::cast_possible_truncation, reason = "below `count`, a u16")]
            return Some(range.first.wrapping_add(rest as u16));
        }
        rest -= count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(reserved: [Reserved; 2]) -> Config {
        let snat_ports = pool(reserved);
        let snat_port_count = snat_ports.iter().map(|range| u32::from(range.count)).sum();
        Config { snat_ports, snat_port_count, ..Config::default() }
    }

    fn ports(config: &Config) -> Vec<u16> {
        (0..config.snat_port_count).map(|index| nth(config, index).expect("below the count")).collect()
    }

    #[track_caller]
    fn check(reserved: [Reserved; 2]) {
        let config = config(reserved);
        let expected: Vec<u16> =
            (1024..=u16::MAX).filter(|port| !reserved.iter().any(|r| (r.first..=r.last).contains(port))).collect();
        assert_eq!(ports(&config), expected);
        assert_eq!(nth(&config, config.snat_port_count), None);
    }

    #[test]
    fn the_pool_is_every_unreserved_port_once() {
        let ephemeral = Reserved { first: 32_768, last: 60_999 };
        let node_ports = Reserved { first: 30_000, last: 32_767 };
        check([ephemeral, node_ports]);
        check([node_ports, ephemeral]);
        check([Reserved { first: 1024, last: 2000 }, Reserved { first: 60_000, last: 65_535 }]);
        check([Reserved { first: 30_000, last: 40_000 }, Reserved { first: 35_000, last: 36_000 }]);
        check([Reserved { first: 1024, last: 65_535 }, node_ports]);
        check([Reserved { first: 1, last: 100 }, node_ports]);
    }
}
