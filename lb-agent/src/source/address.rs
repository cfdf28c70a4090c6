//! IP addresses as Kubernetes reads them.

use std::net::{IpAddr, Ipv6Addr};

/// The longest text that is looked at. An IPv6 address needs 45 characters at most; the rest is room for leading zeros.
const MAX_LENGTH: usize = 128;

/// Parses an IP address as `ParseIPSloppy` of k8s.io/utils/net does: strictly, except that leading zeros are skipped
/// and what follows them is decimal in IPv4 (`172.30.0.041` is `172.30.0.41`). An IPv4-mapped IPv6 address is an IPv4
/// address, as it is to Go's `net.IP`.
pub fn parse_ip_sloppy(text: &str) -> Option<IpAddr> {
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
    match strict.parse().ok()? {
        IpAddr::V6(address) => Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)),
        address @ IpAddr::V4(_) => Some(address),
    }
}

/// Why an address cannot be an endpoint or an external IP, if it cannot: the addresses that the API server refuses in
/// these places (`ValidateNonSpecialIP` in `pkg/apis/core/validation`) and multicast, which no backend answers from.
/// They would turn a Service into a way to reach what only the node itself may reach.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => Ipv6Addr::is_unicast_link_local(&address),
    };
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        link_local.then_some("a link-local address")
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
            let _ = parse_ip_sloppy(&text);
        }
    }
}
