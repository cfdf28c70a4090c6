//! Whether the ranges of ports get in each other's way.

use std::{collections::BTreeSet, fs};

use lb_common::{
    abi::PortRange,
    ports::{Reserved, pool},
};

use super::Check;
use crate::network::local_ports;

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// Fewer ports for masquerading than this are soon used up: as many connections go out at once to one endpoint.
const FEW: u32 = 4096;

pub(super) fn checks(node_ports: Reserved) -> Vec<Check> {
    const REMEDY: &str = "look on the node, in its own network namespace";
    let local = match local_ports() {
        Ok(local) => local,
        Err(error) => return vec![Check::unknown("ports", error.to_string(), REMEDY)],
    };
    let reserved = match fs::read_to_string(RESERVED) {
        Ok(text) => parse(&text),
        Err(error) => return vec![Check::unknown("ports", format!("{RESERVED}: {error}"), REMEDY)],
    };
    judge(local, node_ports, &reserved)
}

fn judge(local: Reserved, node_ports: Reserved, reserved: &BTreeSet<u16>) -> Vec<Check> {
    let (locals, nodes) = (local.first..=local.last, node_ports.first..=node_ports.last);
    let taken = nodes.clone().filter(|port| locals.contains(port) && !reserved.contains(port)).count();
    let node_port_range = format!("{}-{}", node_ports.first, node_ports.last);
    let local_range = format!("{}-{}", local.first, local.last);
    let node_port_check = if taken == 0 {
        Check::ok("node-ports", format!("{node_port_range}, apart from ports of local sockets ({local_range})"))
    } else {
        let all: Vec<_> = reserved.iter().copied().chain(nodes).collect();
        Check::warning(
            "node-ports",
            format!("the kernel gives {taken} of {node_port_range} to local sockets, from {local_range}"),
            format!("do `sysctl -w net.ipv4.ip_local_reserved_ports={}`", format(&all.into_iter().collect())),
        )
    };
    let ranges = pool([local, node_ports]);
    let count: u32 = ranges.iter().map(|range| u32::from(range.count)).sum();
    let shown: Vec<_> = ranges.into_iter().filter(|range| range.count > 0).map(show).collect();
    let found =
        format!("{count} for masquerading: {}", if shown.is_empty() { "none".to_owned() } else { shown.join(",") });
    let narrow = "narrow net.ipv4.ip_local_port_range, which takes the others: 32768-60999 is the kernel's default";
    let inside = |port: &&u16| ranges.iter().any(|range| contains(*range, **port));
    let promised = reserved.iter().filter(inside).copied().collect::<BTreeSet<_>>();
    let pool_check = if count == 0 {
        Check::failure("source-ports", format!("{found}: no packet can be sent to another node's endpoint"), narrow)
    } else if count < FEW {
        Check::warning("source-ports", found, narrow)
    } else if promised.is_empty() {
        Check::ok("source-ports", found)
    } else {
        Check::warning(
            "source-ports",
            format!(
                "{found}; {} of them are in net.ipv4.ip_local_reserved_ports: {}",
                promised.len(),
                format(&promised)
            ),
            "where a process binds such a port and connects from it to an endpoint of a Service, give it one from \
             net.ipv4.ip_local_port_range",
        )
    };
    vec![node_port_check, pool_check]
}

fn contains(range: PortRange, port: u16) -> bool {
    port.checked_sub(range.first).is_some_and(|offset| offset < range.count)
}

fn show(range: PortRange) -> String {
    format!("{}-{}", range.first, u32::from(range.first) + u32::from(range.count) - 1)
}

/// As the kernel writes it: `8080,9000-9010`.
fn parse(text: &str) -> BTreeSet<u16> {
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    });
    ranges.flatten().collect()
}

/// As the kernel reads it.
fn format(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*port) => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let ranges =
        ranges.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    ranges.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    const NODE_PORTS: Reserved = Reserved { first: 30000, last: 32767 };
    const DEFAULT: Reserved = Reserved { first: 32768, last: 60999 };

    fn verdicts(local: Reserved, reserved: &str) -> [(Verdict, String, String); 2] {
        let checks = judge(local, NODE_PORTS, &parse(reserved));
        let checks = checks.into_iter().map(|check| (check.verdict, check.found, check.remedy.unwrap_or_default()));
        checks.collect::<Vec<_>>().try_into().expect("two")
    }

    #[test]
    fn the_kernels_defaults_are_right() {
        let [node_ports, pool] = verdicts(DEFAULT, "\n");
        assert_eq!((node_ports.0, pool.0), (Verdict::Ok, Verdict::Ok));
        assert_eq!(pool.1, "33512 for masquerading: 1024-29999,61000-65535");
    }

    #[test]
    fn node_ports_that_local_sockets_may_get_are_to_be_reserved() {
        let wide = Reserved { first: 15000, last: 65000 };
        let [node_ports, pool] = verdicts(wide, "8080,30000-30009");
        assert_eq!(node_ports.0, Verdict::Warning);
        assert!(node_ports.1.starts_with("the kernel gives 2758 of 30000-32767"), "{}", node_ports.1);
        assert!(node_ports.2.contains("ip_local_reserved_ports=8080,30000-32767`"), "{}", node_ports.2);
        assert_eq!(verdicts(wide, "30000-32767")[0].0, Verdict::Ok);
        assert!(pool.1.contains("1 of them are in net.ipv4.ip_local_reserved_ports: 8080"), "{}", pool.1);
    }

    #[test]
    fn too_few_ports_for_masquerading_are_told() {
        let [_, pool] = verdicts(Reserved { first: 1024, last: 65535 }, "30000-32767");
        assert_eq!((pool.0, pool.2.contains("ip_local_port_range")), (Verdict::Failure, true));
        let [_, pool] = verdicts(Reserved { first: 2000, last: 65000 }, "30000-32767");
        assert_eq!(pool.0, Verdict::Warning);
        assert!(pool.1.starts_with("1511 for masquerading: 1024-1999,65001-65535"), "{}", pool.1);
    }

    #[test]
    fn lists_of_ports_are_read_and_written_as_the_kernel_does() {
        assert_eq!(format(&parse("9000-9002,80,82-82,9003,x\n")), "80,82,9000-9003");
        assert_eq!(format(&parse("\n")), "");
        assert_eq!(format(&parse("65534-65535")), "65534-65535");
    }
}
