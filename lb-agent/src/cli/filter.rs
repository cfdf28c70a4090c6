//! What of a list is asked for.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lb_agent::model::Family;
use lb_common::abi::{Protocol, ServiceName};

use super::view::View;

/// By IP family.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct FamilyFilter {
    /// IPv4 only.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// IPv6 only.
    #[arg(short = '6', long)]
    ipv6: bool,
}

/// By service port.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ServiceFilter {
    #[command(flatten)]
    pub(super) family: FamilyFilter,
    /// Of this Service: [NAMESPACE/]NAME[:PORT], PORT being the port's name; or as a table shows it. May be repeated.
    #[arg(short, long, value_name = "SERVICE")]
    pub(super) service: Vec<ServicePattern>,
    /// Of Services in this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
    /// Of this protocol.
    #[arg(short, long, value_enum, ignore_case = true, value_name = "PROTOCOL")]
    pub(super) protocol: Option<ProtocolName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ProtocolName {
    Tcp,
    Udp,
}

/// The end of a connection: an address or a network, with a port or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndPattern {
    net: IpNet,
    port: Option<u16>,
}

/// A Service or one of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePattern {
    namespace: Option<String>,
    name: String,
    port: Option<String>,
    protocol: Option<ProtocolName>,
}

impl FamilyFilter {
    pub(super) fn includes<A: Family>(self) -> bool {
        !(self.ipv4 && A::BITS != u32::BITS || self.ipv6 && A::BITS == u32::BITS)
    }

    /// Whether the family of this number, 4 or 6, is asked for.
    pub(super) fn includes_number(self, number: u8) -> bool {
        !(self.ipv4 && number != 4 || self.ipv6 && number != 6)
    }

    /// Whether everything is asked for.
    pub(super) fn is_open(self) -> bool {
        !self.ipv4 && !self.ipv6
    }
}

impl ProtocolName {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Tcp => Protocol::Tcp as u8,
            Self::Udp => Protocol::Udp as u8,
        }
    }
}

/// Indices of services, as the maps name them.
pub(super) enum Wanted {
    /// Those without a name as well.
    All,
    Only(HashSet<u32>),
}

impl Wanted {
    pub(super) fn contains(&self, index: u32) -> bool {
        match self {
            Self::All => true,
            Self::Only(indices) => indices.contains(&index),
        }
    }
}

impl ServiceFilter {
    /// Whether everything is asked for.
    pub(super) fn is_open(&self) -> bool {
        let Self { family, service, namespace, protocol } = self;
        family.is_open() && service.is_empty() && namespace.is_none() && protocol.is_none()
    }

    /// The services that are asked for.
    pub(super) fn services<A: Family>(&self, view: &View<A>) -> Wanted {
        if self.service.is_empty() && self.namespace.is_none() && self.protocol.is_none() {
            return Wanted::All;
        }
        let matching = view.services.iter().filter(|(_, (name, _))| self.matches(name));
        Wanted::Only(matching.map(|(index, _)| *index).collect())
    }

    /// Whether a service port of this name and family (`IPv4` or `IPv6`) is asked for.
    pub(super) fn includes(&self, name: &ServiceName, family: &str) -> bool {
        let v4 = family == <[u8; 4]>::NAME;
        let family = if v4 { self.family.includes::<[u8; 4]>() } else { self.family.includes::<[u8; 16]>() };
        family && self.matches(name)
    }

    fn matches(&self, name: &ServiceName) -> bool {
        (self.service.is_empty() || self.service.iter().any(|pattern| pattern.matches(name)))
            && self.namespace.as_ref().is_none_or(|namespace| namespace == name.parts().0)
            && self.protocol.is_none_or(|protocol| protocol.number() == name.protocol)
    }
}

impl ServicePattern {
    pub(super) fn matches(&self, service: &ServiceName) -> bool {
        let Self { namespace, name, port, protocol } = self;
        let parts = service.parts();
        name == parts.1
            && namespace.as_ref().is_none_or(|namespace| namespace == parts.0)
            && port.as_ref().is_none_or(|port| port == parts.2)
            && protocol.is_none_or(|protocol| protocol.number() == service.protocol)
    }
}

impl ServicePattern {
    /// Whether it is of this Service and protocol, whatever it says of the port.
    pub(super) fn matches_with_any_port(&self, service: &ServiceName) -> bool {
        Self { port: None, ..self.clone() }.matches(service)
    }

    /// The port as a number, if it is one. (It may be a name all the same.)
    pub(super) fn port_number(&self) -> Option<u16> {
        self.port.as_ref()?.parse().ok()
    }
}

impl FromStr for ServicePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names are in lower case, so the protocol that a table shows is none.
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "TCP")) => (rest, Some(ProtocolName::Tcp)),
            Some((rest, "UDP")) => (rest, Some(ProtocolName::Udp)),
            _ => (text, None),
        };
        let (namespace, rest) = rest.split_once('/').map_or((None, rest), |(namespace, rest)| (Some(namespace), rest));
        let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
        let is_name = |name: &str| !name.is_empty() && !name.contains(['/', ':']);
        if !is_name(name) || !namespace.is_none_or(is_name) || !port.is_none_or(|port| port.is_empty() || is_name(port))
        {
            return Err("expected [NAMESPACE/]NAME[:PORT]".to_owned());
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            port: port.map(str::to_owned),
            protocol,
        })
    }
}

impl EndPattern {
    pub(super) fn matches(self, end: SocketAddr) -> bool {
        self.port.is_none_or(|port| port == end.port()) && self.net.contains(&end.ip())
    }

    /// Whether it says no port, and the address is among its.
    pub(super) fn matches_address(self, address: IpAddr) -> bool {
        self.port.is_none() && self.net.contains(&address)
    }
}

impl FromStr for EndPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self { net: net.trunc(), port: None });
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { net: address.into(), port: None });
        }
        let end: SocketAddr =
            text.parse().map_err(|_| "expected ADDRESS, ADDRESS:PORT, [ADDRESS]:PORT or NETWORK/BITS".to_owned())?;
        Ok(Self { net: end.ip().into(), port: Some(end.port()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_told_by_as_much_of_its_name_as_is_given() {
        let name = ServiceName::new("shop", "web", "http", 6).expect("short");
        for (pattern, matches) in [
            ("web", true),
            ("shop/web", true),
            ("shop/web:http", true),
            ("web:http", true),
            ("shop/web:http/TCP", true),
            ("shop/web/TCP", true),
            ("shop/web:http/UDP", false),
            ("shop/web:", false),
            ("other/web", false),
            ("web:https", false),
            ("we", false),
        ] {
            let parsed: ServicePattern = pattern.parse().expect(pattern);
            assert_eq!(parsed.matches(&name), matches, "{pattern}");
        }
        for wrong in ["", "/", "a/b/c", "a/", "/b", "a/b:c:d", ":http"] {
            assert!(wrong.parse::<ServicePattern>().is_err(), "{wrong}");
        }
        let unnamed = ServiceName::new("shop", "web", "", 17).expect("short");
        assert!("shop/web:".parse::<ServicePattern>().expect("a name").matches(&unnamed));
    }

    #[test]
    fn an_end_is_told_by_address_network_and_port() {
        let end = |text: &str| text.parse::<SocketAddr>().expect(text);
        for (pattern, of, matches) in [
            ("10.0.0.5", "10.0.0.5:80", true),
            ("10.0.0.5:80", "10.0.0.5:80", true),
            ("10.0.0.5:81", "10.0.0.5:80", false),
            ("10.0.0.0/24", "10.0.0.5:80", true),
            ("10.0.0.9/24", "10.0.0.5:80", true),
            ("10.0.1.0/24", "10.0.0.5:80", false),
            ("fd00::5", "[fd00::5]:80", true),
            ("[fd00::5]:80", "[fd00::5]:80", true),
            ("fd00::/64", "[fd00::5]:80", true),
            ("0.0.0.0/0", "[fd00::5]:80", false),
        ] {
            assert_eq!(pattern.parse::<EndPattern>().expect(pattern).matches(end(of)), matches, "{pattern} {of}");
        }
        for wrong in ["", "10.0.0", "10.0.0.5:", "10.0.0.5/33", "[fd00::5]", "web"] {
            assert!(wrong.parse::<EndPattern>().is_err(), "{wrong}");
        }
    }
}
