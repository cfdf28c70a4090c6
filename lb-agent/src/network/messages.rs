//! What rtnetlink's messages say, as far as it is used.

use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use super::tables::{Address, Kind, Link, Route};

/// A device as a message describes it.
pub(super) fn link(message: &LinkMessage) -> Link {
    let mut name = String::new();
    let mut kind = Kind::Physical;
    let mut is_port = false;
    let mut elsewhere = false;
    let mut below = None;
    let mut is_vlan = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name.clone_from(text),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit) => kind = Kind::Pod,
                        LinkInfo::Kind(InfoKind::Vxlan | InfoKind::Geneve | InfoKind::GreTap | InfoKind::GreTap6) => {
                            kind = Kind::Tunnel;
                        }
                        LinkInfo::Kind(other) => {
                            kind = Kind::Virtual;
                            is_vlan = *other == InfoKind::Vlan;
                        }
                        LinkInfo::PortKind(port) => is_port = *port != InfoPortKind::Vrf,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    kind = match message.header.link_layer_type {
        LinkLayerType::Ether if kind == Kind::Pod && !elsewhere => Kind::Virtual,
        LinkLayerType::Ether => kind,
        LinkLayerType::Loopback => Kind::Loopback,
        LinkLayerType::None => Kind::Bare,
        _ => Kind::Foreign,
    };
    Link { name, kind, is_port, vlan_of: below.filter(|_| is_vlan && !elsewhere) }
}

/// The address that a message is about.
pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let header = &message.header;
    let mut own = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            // Of a point-to-point device `Address` is the other end's.
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let own = own?;
    let mut unfit = AddressHeaderFlags::Deprecated | AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    if own.is_ipv6() {
        // `IFA_F_TEMPORARY` is the same bit.
        unfit |= AddressHeaderFlags::Secondary;
    }
    Some(Address {
        device: header.index,
        ip: own,
        global: header.scope == AddressScope::Universe,
        preferred: flags.bits() & u32::from(unfit.bits()) == 0,
    })
}

/// The devices of a route of the main table that leads away from the node.
pub(super) fn ways_out(message: &RouteMessage) -> Vec<Route> {
    let header = &message.header;
    let mut route = Route {
        ipv6: header.address_family == AddressFamily::Inet6,
        default: header.destination_prefix_length == 0,
        priority: 0,
        device: 0,
    };
    let mut table = u32::from(header.table);
    let mut gateway = false;
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::Oif(device) => route.device = *device,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = true,
            RouteAttribute::MultiPath(paths) => {
                for path in paths {
                    let by_gateway = path
                        .attributes
                        .iter()
                        .any(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)));
                    hops.push((path.interface_index, by_gateway));
                }
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) || header.kind != RouteType::Unicast {
        return Vec::new();
    }
    hops.push((route.device, gateway));
    hops.into_iter()
        .filter(|(device, gateway)| *device != 0 && (*gateway || route.default))
        .map(|(device, _)| Route { device, ..route })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_packets_begin_with_goes_before_what_kind_of_device_it_is() {
        let kind = |link_layer_type, kind: Option<InfoKind>| {
            let mut message = LinkMessage::default();
            message.header.link_layer_type = link_layer_type;
            message.attributes =
                kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])).into_iter().collect();
            link(&message).kind
        };
        for (link_layer_type, info, expected) in [
            (LinkLayerType::Ether, None, Kind::Physical),
            (LinkLayerType::Ether, Some(InfoKind::Vxlan), Kind::Tunnel),
            (LinkLayerType::Ether, Some(InfoKind::Geneve), Kind::Tunnel),
            // A tap device, of a virtual machine.
            (LinkLayerType::Ether, Some(InfoKind::Tun), Kind::Virtual),
            (LinkLayerType::None, Some(InfoKind::Tun), Kind::Bare),
            (LinkLayerType::None, Some(InfoKind::Wireguard), Kind::Bare),
            (LinkLayerType::Tunnel, Some(InfoKind::IpIp), Kind::Foreign),
            (LinkLayerType::Ppp, None, Kind::Foreign),
            (LinkLayerType::Loopback, None, Kind::Loopback),
        ] {
            assert_eq!(kind(link_layer_type, info.clone()), expected, "{link_layer_type:?} {info:?}");
        }
    }

    #[test]
    fn a_vlan_device_names_the_device_below_and_other_devices_do_not() {
        let message = |kind: InfoKind, here: bool| {
            let mut message = LinkMessage::default();
            message.header.link_layer_type = LinkLayerType::Ether;
            message.attributes = vec![LinkAttribute::Link(2), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])];
            if !here {
                message.attributes.push(LinkAttribute::LinkNetNsId(1));
            }
            link(&message)
        };
        assert_eq!(message(InfoKind::Vlan, true).vlan_of, Some(2));
        // The index is one of another network namespace.
        assert_eq!(message(InfoKind::Vlan, false).vlan_of, None);
        assert_eq!(message(InfoKind::Veth, true).vlan_of, None);
        assert_eq!(message(InfoKind::MacVlan, true).vlan_of, None);
    }
}
