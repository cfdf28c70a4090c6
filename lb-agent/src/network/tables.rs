//! What the kernel told, and what follows from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_common::{abi::LocalAddressFlags, ports::Reserved};

use super::Network;
use crate::{
    loader::{Device, LinkLayer, Obstacle, Role},
    model::NodeNetwork,
};

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// A port of a bridge, bond or team: its traffic passes the device that it belongs to.
    pub(super) is_port: bool,
    /// The device that a VLAN device takes its packets from.
    pub(super) vlan_of: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Loopback,
    /// A device without a kind of virtual device: a NIC.
    Physical,
    /// One end of a veth or netkit pair whose other end is in another network namespace.
    Pod,
    Virtual,
    /// One end of a tunnel that carries Ethernet frames (VXLAN, Geneve).
    Tunnel,
    /// One whose packets begin with the IP header (tun, WireGuard).
    Bare,
    /// One whose packets begin with something else (PPP), or that takes from a packet's route where it is to go, and so sends
    /// nothing that a program gives it (IPIP): the programs cannot serve it.
    Foreign,
}

impl Kind {
    /// What its packets begin with. Those of the foreign are never looked at.
    const fn link(self) -> LinkLayer {
        match self {
            Self::Bare => LinkLayer::Bare,
            Self::Loopback | Self::Physical | Self::Pod | Self::Virtual | Self::Tunnel | Self::Foreign => {
                LinkLayer::Ethernet
            }
        }
    }
}

/// An address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) device: u32,
    pub(super) ip: IpAddr,
    /// Valid everywhere: not host or link scope.
    pub(super) global: bool,
    /// Neither tentative, nor deprecated, nor temporary: fit to be a source address.
    pub(super) preferred: bool,
}

/// A unicast route of the main table, either by a gateway or to everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) ipv6: bool,
    /// To everywhere.
    pub(super) default: bool,
    /// Lower wins.
    pub(super) priority: u32,
    pub(super) device: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) links: BTreeMap<u32, Link>,
    /// In the kernel's order: the first one of a device is its primary address.
    pub(super) addresses: Vec<Address>,
    pub(super) routes: BTreeSet<Route>,
    /// Devices that were found to be uplinks. They stay uplinks until they are gone: a link that flaps loses its
    /// routes for a moment, and a node whose NIC is one end of a pair would take it for a pod's.
    pub(super) once_uplinks: BTreeSet<u32>,
    /// Uplinks of a former agent. They stay uplinks while the node's own addresses are not known, for those may be all
    /// that makes them such: a restart takes the programs off no device that will get them again.
    pub(super) inherited: BTreeSet<u32>,
}

impl Tables {
    pub(super) fn insert_address(&mut self, new: Address) {
        let same = |old: &&mut Address| (old.device, old.ip) == (new.device, new.ip);
        match self.addresses.iter_mut().find(same) {
            Some(old) => *old = new,
            None => self.addresses.push(new),
        }
    }

    pub(super) fn remove_address(&mut self, device: u32, ip: IpAddr) {
        self.addresses.retain(|old| (old.device, old.ip) != (device, ip));
    }

    pub(super) fn remove_link(&mut self, index: u32) {
        self.links.remove(&index);
        self.once_uplinks.remove(&index);
        self.inherited.remove(&index);
        self.addresses.retain(|address| address.device != index);
    }

    /// Takes over what devices were to a former agent, where that is known. Where it is not, the kind of the device
    /// tells: only pods' interfaces and uplinks get programs.
    pub(super) fn inherit(&mut self, devices: &BTreeMap<u32, Option<Role>>) {
        let was_uplink = |index: &u32, role: Option<Role>| {
            let link = self.links.get(index).filter(|link| !link.is_port);
            link.is_some_and(|link| role.map_or(link.kind != Kind::Pod, |role| role == Role::Uplink))
        };
        self.inherited =
            devices.iter().filter(|(index, role)| was_uplink(index, **role)).map(|(index, _)| *index).collect();
    }

    /// The outcome. `uplinks` overrides the choice of uplinks by name; `internal` are the node's `InternalIP`s, `None`
    /// while they are not known.
    pub(super) fn network(
        &mut self,
        uplinks: Option<&[String]>,
        known_internal: Option<&[IpAddr]>,
        [local_ports, node_ports]: [Reserved; 2],
    ) -> Network {
        let internal = known_internal.unwrap_or_default();
        if known_internal.is_some() {
            self.inherited.clear();
        }
        let wanted = uplinks.unwrap_or_default();
        let is_uplink = |index: u32, link: &Link| match uplinks {
            Some(names) => names.contains(&link.name) && link.kind != Kind::Foreign,
            None => {
                self.once_uplinks.contains(&index)
                    || self.inherited.contains(&index)
                    || self.has_way_out(index, link, internal)
            }
        };
        let device =
            |(index, link): (&u32, &Link)| Device { index: *index, name: link.name.clone(), link: link.kind.link() };
        let (uplinks, others): (Vec<_>, Vec<_>) = self.links.iter().partition(|(index, link)| is_uplink(**index, link));
        let pods = others.into_iter().filter(|(_, link)| link.kind == Kind::Pod).map(device).collect();
        let uplinks: BTreeSet<Device> = uplinks.into_iter().map(device).collect();
        // Those that are inherited are not found yet.
        let found = uplinks.iter().map(|uplink| uplink.index).filter(|index| {
            let has_way_out = |link| self.has_way_out(*index, link, internal);
            !self.inherited.contains(index) || self.links.get(index).is_some_and(has_way_out)
        });
        self.once_uplinks = found.collect();
        let obstacles =
            uplinks.iter().filter_map(|uplink| Some((uplink.index, self.obstacle(uplink.index)?))).collect();
        let is_there =
            |name: &&String| self.links.values().any(|link| link.name == **name && link.kind != Kind::Foreign);
        let missing = wanted.iter().filter(|name| !is_there(name)).cloned().collect();
        let node = NodeNetwork {
            masquerade4: self.masquerade(false, &uplinks, internal, |address| match address {
                IpAddr::V4(address) => Some(address.octets()),
                IpAddr::V6(_) => None,
            }),
            masquerade6: self.masquerade(true, &uplinks, internal, |address| match address {
                IpAddr::V6(address) => Some(address.octets()),
                IpAddr::V4(_) => None,
            }),
            local_addresses: self.local_addresses(),
            local_ports,
            node_ports,
        };
        Network { uplinks, obstacles, pods, missing, node, internal: known_internal.map(<[IpAddr]>::to_vec) }
    }

    /// What keeps XDP off a device.
    fn obstacle(&self, index: u32) -> Option<Obstacle> {
        if self.links.values().any(|link| link.vlan_of == Some(index)) {
            return Some(Obstacle::Vlans);
        }
        match self.links.get(&index)?.kind {
            Kind::Physical => None,
            Kind::Bare => Some(Obstacle::Bare),
            Kind::Loopback | Kind::Pod | Kind::Virtual | Kind::Tunnel | Kind::Foreign => Some(Obstacle::Virtual),
        }
    }

    /// Whether packets may leave the node, or reach it, by this device: it carries a route by a gateway or to
    /// everywhere, or the node's own address, or is a NIC or a tunnel's end with an address. A pod's interface has none of
    /// these; a node whose NIC is itself one end of a pair (a node in a container) does.
    fn has_way_out(&self, index: u32, link: &Link, internal: &[IpAddr]) -> bool {
        let leads_elsewhere = match link.kind {
            Kind::Loopback | Kind::Foreign => return false,
            Kind::Physical | Kind::Tunnel | Kind::Bare => true,
            Kind::Pod | Kind::Virtual => false,
        };
        if link.is_port {
            return false;
        }
        let routed = self.routes.iter().any(|route| route.device == index);
        let mut addresses = self.addresses.iter().filter(|address| address.device == index && address.global);
        routed || addresses.any(|address| leads_elsewhere || internal.contains(&address.ip))
    }

    /// The source address for each uplink, the node's own where it holds it and its first one otherwise; under 0 the
    /// one for all other devices, that of the default route.
    ///
    /// An uplink without an address of the family (BGP unnumbered) has the node's own, wherever that is. Global addresses
    /// of the loopback device come last, for where there is nothing else: they may be a load balancer's, on many nodes.
    fn masquerade<A: Copy>(
        &self,
        ipv6: bool,
        uplinks: &BTreeSet<Device>,
        internal: &[IpAddr],
        octets: impl Fn(IpAddr) -> Option<A>,
    ) -> BTreeMap<u32, A> {
        let best_of = |is_candidate: &dyn Fn(&Address) -> bool| {
            let candidates = self.addresses.iter().filter(|address| address.global && is_candidate(address));
            candidates
                .filter_map(|address| Some((!internal.contains(&address.ip), !address.preferred, octets(address.ip)?)))
                .min_by_key(|(foreign, unfit, _)| (*unfit, *foreign))
                .map(|(_, _, address)| address)
        };
        let of_device = |device| best_of(&|address| address.device == device);
        let mut sources: BTreeMap<_, _> =
            uplinks.iter().filter_map(|uplink| Some((uplink.index, of_device(uplink.index)?))).collect();
        if let Some(own) = best_of(&|address| internal.contains(&address.ip)) {
            for uplink in uplinks {
                sources.entry(uplink.index).or_insert(own);
            }
        }
        let is_loopback = |device| self.links.get(&device).is_some_and(|link| link.kind == Kind::Loopback);
        let last = || best_of(&|address| is_loopback(address.device) && !address.ip.is_loopback());
        // The other family's default route will do where this one has none.
        let defaults = self.routes.iter().filter(|route| route.default);
        let primary = defaults
            .map(|route| (route.ipv6 != ipv6, route.priority, route.device))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .find_map(|(_, _, device)| sources.get(&device))
            .or_else(|| sources.values().next())
            .copied()
            .or_else(last);
        if let Some(primary) = primary {
            sources.insert(0, primary);
        }
        sources
    }

    /// Every address that a device has, whatever its scope, as kube-proxy lists the node's own (`GetNodeIPs` in
    /// `pkg/proxy/util/nodeport_addresses.go`), and for the node itself one of each loopback network.
    ///
    /// Not what is local by a route alone (`ip route add local`, or the other addresses of a network on the loopback
    /// device): kube-proxy's rules match that, too (`fib daddr type local`), but the map holds addresses, not networks.
    ///
    /// Not the IPv6 addresses of a link: the kernel forwards nothing from such a client (`ip6_forward`), and the map's key does
    /// not say which link.
    fn local_addresses(&self) -> BTreeMap<IpAddr, u32> {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let is_of_link = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let own = self.addresses.iter().map(|address| address.ip);
        own.filter(|ip| !ip.is_loopback() && !is_of_link(*ip))
            .map(|ip| (ip, 0))
            .chain(loopback.map(|ip| (ip, LocalAddressFlags::LOOPBACK)))
            .collect()
    }
}
