//! IP addresses and networks as Kubernetes reads them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The longest text of an address that is looked at. An IPv6 address needs 45 characters at most; the rest is room for leading zeros.
const MAX_LENGTH: usize = 128;

/// Parses an IP address as `ParseIPSloppy` of k8s.io/utils/net does: strictly, except that leading zeros are skipped
/// and what follows them is decimal in IPv4 (`172.30.0.041` is `172.30.0.41`). An IPv4-mapped IPv6 address is an IPv4
/// address, as it is to Go's `net.IP`.
pub fn parse_ip_sloppy(text: &str) -> Option<IpAddr> {
    parse_as_written(text).map(|address| address.to_canonical())
}

/// Parses a network as `ParseCIDRSloppy` of k8s.io/utils/net does: an address as [`parse_ip_sloppy`] takes it, and the
/// length of the prefix, in which leading zeros count for nothing either (`203.0.113.000/025` is `203.0.113.0/25`). Bits
/// behind the prefix are cleared, as in the `IPNet` that Go returns. A network of IPv4-mapped addresses is one of IPv4,
/// as it is to `IPNet.Contains`.
pub fn parse_cidr_sloppy(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || length.len() > MAX_LENGTH || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let length = length.trim_start_matches('0');
    let length = if length.is_empty() { 0 } else { length.parse().ok()? };
    match IpNet::new(parse_as_written(address)?, length).ok()?.trunc() {
        IpNet::V6(network) => Some(mapped(network).map_or(IpNet::V6(network), IpNet::V4)),
        network @ IpNet::V4(_) => Some(network),
    }
}

/// The IPv4 network that a network of IPv4-mapped addresses stands for.
fn mapped(network: Ipv6Net) -> Option<Ipv4Net> {
    Ipv4Net::new(network.network().to_ipv4_mapped()?, network.prefix_len().checked_sub(96)?).ok()
}

/// An address whose family is that of its notation: an IPv4-mapped one is still one of IPv6.
fn parse_as_written(text: &str) -> Option<IpAddr> {
    if text.len() > MAX_LENGTH {
        return None;
    }
    let mut strict = String::with_capacity(text.len());
    // Whether all of the current run of digits so far were zeros that stand for nothing.
    let mut leading = true;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let more_digits = characters.peek().is_some_and(char::is_ascii_hexdigit);
        if leading && character == '0' && more_digits {
            continue;
        }
        leading = !character.is_ascii_hexdigit();
        strict.push(character);
    }
    strict.parse().ok()
}

/// Why an address cannot be an endpoint or an external IP, if it cannot: the addresses that the API server refuses in
/// these places (`ValidateNonSpecialIP` in `pkg/apis/core/validation`) and multicast, which no backend answers from.
/// They would turn a Service into a way to reach what only the node itself may reach.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => Ipv6Addr::is_unicast_link_local(&address),
    };
    never_served(address).or(link_local.then_some("a link-local address"))
}

/// Why an address cannot be a load balancer's, if it cannot. The API server takes any address in a Service's status; a
/// link-local one is of use there, the others would take what every node sends to itself or to a group.
pub(super) fn never_served(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_leading_zeros_are_decimal_and_canonical() {
        for (text, expected) in [
            ("172.30.0.41", "172.30.0.41"),
            ("172.30.0.041", "172.30.0.41"),
            ("010.096.000.010", "10.96.0.10"),
            ("0.0.0.0", "0.0.0.0"),
            ("00.000.0000.00000", "0.0.0.0"),
            ("192.168.000000000000000.1", "192.168.0.1"),
            ("::", "::"),
            ("::1", "::1"),
            ("2001:0db8::0001", "2001:db8::1"),
            ("2001:00000db8::00000001", "2001:db8::1"),
            ("2001:DB8::A", "2001:db8::a"),
            ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
            ("::ffff:10.0.0.010", "10.0.0.10"),
            ("::FFFF:0a00:0001", "10.0.0.1"),
            ("64:ff9b::10.0.0.01", "64:ff9b::a00:1"),
        ] {
            assert_eq!(parse_ip_sloppy(text), Some(expected.parse().expect("canonical")), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "",
            " ",
            "None",
            "10.0.0",
            "10.0.0.",
            ".10.0.0.1",
            "10.0.0.1.",
            "10.0.0.0.1",
            "10.0.0.256",
            "10.0.0.0256",
            "10.0.0.0x1",
            "10.0.0.a",
            "10.0.0.-1",
            "10.0.0.+1",
            " 10.0.0.1",
            "10.0.0.1 ",
            "10.0.0.1\n",
            "10.0.0.1/32",
            "10.0.0.1:80",
            "10..0.1",
            "10",
            "0x0a000001",
            "١٠.٠.٠.١",
            ":",
            ":::",
            "1::2::3",
            "1:2:3:4:5:6:7",
            "1:2:3:4:5:6:7:8:9",
            "1:2:3:4:5:6:7:8::",
            "::1:2:3:4:5:6:7:8",
            "fe80::1%eth0",
            "[::1]",
            "12345::",
            "g::",
            "::10.0.0.256",
            "10.0.0.1::",
            "\0",
        ] {
            assert_eq!(parse_ip_sloppy(text), None, "{text:?}");
        }
        assert_eq!(parse_ip_sloppy(&format!("{}10.0.0.1", "0".repeat(MAX_LENGTH))), None);
    }

    #[test]
    fn networks_with_leading_zeros_are_decimal_and_canonical() {
        for (text, expected) in [
            ("10.96.0.0/12", "10.96.0.0/12"),
            ("203.0.113.000/025", "203.0.113.0/25"),
            ("010.096.000.000/0000012", "10.96.0.0/12"),
            ("10.96.1.2/16", "10.96.0.0/16"),
            ("10.0.0.1/32", "10.0.0.1/32"),
            ("1.2.3.4/0", "0.0.0.0/0"),
            ("0.0.0.0/000", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("fd00:0010::0001/064", "fd00:10::/64"),
            ("2001:DB8::1/128", "2001:db8::1/128"),
            ("::ffff:10.1.2.3/112", "10.1.0.0/16"),
            ("::ffff:10.1.2.3/96", "0.0.0.0/0"),
            ("::ffff:10.1.2.3/80", "::/80"),
        ] {
            assert_eq!(parse_cidr_sloppy(text), Some(expected.parse().expect("canonical")), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_as_a_network_is_refused() {
        for text in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/8 ",
            " 10.0.0.0/8",
            "10.0.0.0/8/8",
            "10.0.0.0/0x8",
            "10.0.0.0/255.0.0.0",
            "10.0.0/8",
            "10.0.0.0/256",
            "::/129",
            "fe80::%eth0/64",
            "::ffff:10.0.0.0/129",
            "primary",
            "10.0.0.0/٨",
        ] {
            assert_eq!(parse_cidr_sloppy(text), None, "{text:?}");
        }
        assert_eq!(parse_cidr_sloppy(&format!("10.0.0.0/{}", "0".repeat(MAX_LENGTH + 1))), None);
    }

    proptest::proptest! {
        #[test]
        fn every_address_survives_added_zeros(bits: u128, bits4: u32, zeros in 0usize..4) {
            let v6 = Ipv6Addr::from_bits(bits);
            let groups = v6.segments().map(|group| format!("{}{group:x}", "0".repeat(zeros))).join(":");
            let expected = v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4);
            proptest::prop_assert_eq!(parse_ip_sloppy(&groups), Some(expected));
            let v4 = std::net::Ipv4Addr::from_bits(bits4);
            let octets = v4.octets().map(|octet| format!("{}{octet}", "0".repeat(zeros))).join(".");
            proptest::prop_assert_eq!(parse_ip_sloppy(&octets), Some(IpAddr::V4(v4)));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = (parse_ip_sloppy(&text), parse_cidr_sloppy(&text));
        }

        #[test]
        fn every_network_is_truncated(bits: u32, length in 0u8..=32) {
            let network = Ipv4Net::new(std::net::Ipv4Addr::from_bits(bits), length).expect("a length");
            proptest::prop_assert_eq!(parse_cidr_sloppy(&network.to_string()), Some(IpNet::V4(network.trunc())));
        }
    }
}
