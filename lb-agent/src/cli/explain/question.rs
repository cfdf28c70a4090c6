//! Who asks what.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use anyhow::{Result, bail};
use clap::ValueEnum;
use lb_agent::{
    loader::{Attached, Direction},
    model::Family,
};
use lb_common::abi::{FrontendFlags, FrontendKey, LocalAddressFlags, Protocol};
use serde::Serialize;

use super::{
    super::{
        filter::{ProtocolName, ServicePattern},
        hooks::{Hook, device},
    },
    tables::{Networks, Tables},
};

pub(super) const POD_INGRESS: &str = "pod_ingress";
/// What packets from outside meet; they are shown to the first whatever their device is, as one with an Ethernet header:
/// the second differs in nothing else.
const UPLINK_INGRESS: [&str; 2] = ["uplink_ingress", "bare_ingress"];

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A process of the node, wherever it sends from.
    Node,
    Address(IpAddr, Option<u16>),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Address(SocketAddr),
    Service(ServicePattern),
}

/// Where a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Place {
    /// In a pod of this node.
    Pod,
    /// A process of this node.
    Node,
    /// Where packets come by an uplink: outside the cluster, or on another node.
    Outside,
}

/// The device by which a source's packets come, and what meets them there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entrance {
    pub(super) index: u32,
    pub(super) name: String,
    /// At TC.
    pub(super) program: &'static str,
    /// Whether XDP is before it.
    pub(super) xdp: bool,
}

impl Source {
    /// The address as one of family `A`, the unspecified one where none was given; `None` for another family's.
    pub(super) fn address<A: Family>(self) -> Option<A> {
        match self {
            Self::Node => Some(A::UNSPECIFIED),
            Self::Address(ip, _) => A::from_ip(ip),
        }
    }

    pub(super) fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Node => None,
            Self::Address(ip, _) => Some(ip),
        }
    }

    pub(super) fn port(self) -> Option<u16> {
        match self {
            Self::Node => None,
            Self::Address(_, port) => port,
        }
    }

    /// Where it is, by its address and by the device that leads there.
    pub(super) fn place<A: Networks>(self, tables: &Tables<A>, hooks: &[Hook], towards: Option<u32>) -> Place {
        match self.address::<A>() {
            Some(address) if self != Self::Node && tables.local_flags(address).is_none() => {
                let is_of_pod = at_ingress(hooks, &[POD_INGRESS]).any(|index| Some(index) == towards);
                if is_of_pod { Place::Pod } else { Place::Outside }
            }
            _ => Place::Node,
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "node" {
            return Ok(Self::Node);
        }
        // An IPv4 address is one as well in the form that `AF_INET6` sockets name it by.
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Address(ip.to_canonical(), None));
        }
        match text.parse::<SocketAddr>() {
            Ok(end) if end.port() != 0 => Ok(Self::Address(end.ip().to_canonical(), Some(end.port()))),
            _ => Err("expected `node`, ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT".to_owned()),
        }
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Ok(Self::Address(SocketAddr::new(end.ip().to_canonical(), end.port())));
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err("an address needs a port: ADDRESS:PORT or [ADDRESS]:PORT".to_owned());
        }
        let service = text.parse().map(Self::Service);
        service.map_err(|_| "expected ADDRESS:PORT, [ADDRESS]:PORT or [NAMESPACE/]NAME[:PORT]".to_owned())
    }
}

impl Destination {
    /// What somebody at `place` would ask, in family `A`.
    pub(super) fn keys<A: Networks>(
        &self,
        tables: &Tables<A>,
        place: Place,
        protocol: Option<ProtocolName>,
    ) -> Vec<FrontendKey<A>> {
        match self {
            Self::Address(end) => {
                let protocol = protocol.map_or(Protocol::Tcp as u8, ProtocolName::number);
                A::from_ip(end.ip()).map(|ip| FrontendKey::new(ip, end.port(), protocol)).into_iter().collect()
            }
            Self::Service(pattern) => {
                let wanted = tables.view.services.iter().filter(|(_, (name, _))| {
                    pattern.matches_with_any_port(name)
                        && protocol.is_none_or(|protocol| protocol.number() == name.protocol)
                });
                wanted
                    .filter_map(|(index, (name, _))| {
                        let port = if pattern.matches(name) { None } else { Some(pattern.port_number()?) };
                        frontend(tables, *index, place, port)
                    })
                    .collect()
            }
        }
    }
}

/// The frontend of a service that somebody at `place` would ask: clients outside an external address or a node port, the
/// others its cluster IP, each what there is of it. `port`: only one with this number.
fn frontend<A: Networks>(tables: &Tables<A>, service: u32, place: Place, port: Option<u16>) -> Option<FrontendKey<A>> {
    let frontends = tables.view.existing.frontends.iter().filter(|(key, frontend)| {
        frontend.service == service
            && frontend.flags & FrontendFlags::CLUSTER_IP == 0
            && port.is_none_or(|port| port == key.port)
    });
    let (key, _) = frontends.min_by_key(|(key, frontend)| {
        let is_external = frontend.flags & FrontendFlags::EXTERNAL != 0;
        let is_node_port = frontend.flags & FrontendFlags::NODE_PORT != 0;
        (is_external != (place == Place::Outside), is_node_port, *key)
    })?;
    if key.address != A::UNSPECIFIED {
        return Some(*key);
    }
    let answers =
        |address: &A| tables.local_flags(*address).is_some_and(|flags| flags & LocalAddressFlags::NODE_PORTS != 0);
    let own = tables.view.existing.local_addresses.iter().map(|(address, _)| *address);
    let address = tables.node_address().into_iter().chain(own).find(answers)?;
    Some(FrontendKey { address, ..*key })
}

/// Devices that have one of these programs at ingress.
fn at_ingress(hooks: &[Hook], programs: &[&str]) -> impl Iterator<Item = u32> {
    let is_one = |hook: &&Hook| hook.program.is_some_and(|program| programs.contains(&program));
    hooks.iter().filter(is_one).filter_map(|hook| match hook.attached {
        Attached::Device(Direction::Ingress, index) if index != 0 => Some(index),
        _ => None,
    })
}

/// By which device packets from `place` come: the one that was named, that leads to the source, or any that the place has.
/// `None` where it has none, and for the node's own, which come by no device.
pub(super) fn entrance(
    hooks: &[Hook],
    place: Place,
    named: Option<&str>,
    towards: Option<u32>,
) -> Result<Option<Entrance>> {
    let programs = match place {
        Place::Pod => &[POD_INGRESS][..],
        Place::Outside => &UPLINK_INGRESS,
        Place::Node => return Ok(None),
    };
    let program = programs[0];
    let devices: Vec<_> = at_ingress(hooks, programs).collect();
    let index = match named {
        Some(name) => {
            let found = nix::net::if_::if_nametoindex(name).ok().filter(|index| devices.contains(index));
            match found {
                None => bail!(
                    "--device {name}: no {} is attached there; `lb-agent status` shows where one is",
                    programs.join(" or ")
                ),
                found => found,
            }
        }
        None => towards.filter(|index| devices.contains(index)).or_else(|| devices.first().copied()),
    };
    let has_xdp = |index| {
        hooks.iter().any(|hook| {
            hook.program == Some("uplink_xdp") && matches!(hook.attached, Attached::Xdp(_, found) if found == index)
        })
    };
    Ok(index.map(|index| Entrance { index, name: device(index), program, xdp: has_xdp(index) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_by_address_or_name() {
        let source = |text: &str| text.parse::<Source>();
        assert_eq!(source("node"), Ok(Source::Node));
        assert_eq!(source("10.0.0.1"), Ok(Source::Address([10, 0, 0, 1].into(), None)));
        assert_eq!(source("10.0.0.1:7"), Ok(Source::Address([10, 0, 0, 1].into(), Some(7))));
        assert_eq!(source("[::1]:7"), Ok(Source::Address(std::net::Ipv6Addr::LOCALHOST.into(), Some(7))));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        for wrong in ["", "pod", "10.0.0.1:0", "[::1]", "shop/web"] {
            assert!(source(wrong).is_err(), "{wrong}");
        }
        let destination = |text: &str| text.parse::<Destination>();
        assert_eq!(destination("[::1]:7"), Ok(Destination::Address("[::1]:7".parse().expect("an address"))));
        assert!(matches!(destination("shop/web:80"), Ok(Destination::Service(_))));
        assert!(destination("10.0.0.1").is_err_and(|error| error.contains("needs a port")));
        assert!(destination("a/b/c").is_err());
    }
}
