use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use lb_common::{
    abi::{BackendFlags, FrontendFlags, SlotRange},
    hash,
};

use super::{ClientList, Existing};
use crate::model::Family;

/// Map contents that contradict themselves: no order of complete writes leads to them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frontend names an index that is no service's.
    #[error("frontend {address} port {port} protocol {protocol} names service {service}, which does not exist")]
    NoSuchService {
        /// The frontend's address.
        address: IpAddr,
        /// The frontend's port.
        port: u16,
        /// The frontend's protocol.
        protocol: u8,
        /// Index in `SERVICES*`.
        service: u32,
    },
    /// A frontend's value was written for another key.
    #[error("frontend {address} port {port} protocol {protocol} holds the value of another frontend")]
    WrongOwner {
        /// The frontend's address.
        address: IpAddr,
        /// The frontend's port.
        port: u16,
        /// The frontend's protocol.
        protocol: u8,
    },
    /// A frontend without a port is no cluster IP's, or a cluster IP's entry has one.
    #[error("frontend {address} port {port} protocol {protocol} is a cluster IP's entry only half")]
    HalfClusterIp {
        /// The frontend's address.
        address: IpAddr,
        /// The frontend's port.
        port: u16,
        /// The frontend's protocol.
        protocol: u8,
    },
    /// A frontend lets in some clients only, and there are none.
    #[error(
        "frontend {address} port {port} protocol {protocol} lets nobody in: service {service} has no list {edition}"
    )]
    NobodyAllowed {
        /// The frontend's address.
        address: IpAddr,
        /// The frontend's port.
        port: u16,
        /// The frontend's protocol.
        protocol: u8,
        /// Index in `SERVICES*`.
        service: u32,
        /// Which list of clients it names.
        edition: u8,
    },
    /// Clients may use what does not exist: whoever gets the index next would let them in.
    #[error("service {service} has source ranges and does not exist")]
    StraySourceRange {
        /// Index in `SERVICES*`.
        service: u32,
    },
    /// Two indices have the same name.
    #[error("services {first} and {second} have the same name")]
    SameName {
        /// Index in `SERVICES*`.
        first: u32,
        /// Index in `SERVICES*`.
        second: u32,
    },
    /// A slot belongs to two ranges.
    #[error("slot {slot} is in two ranges, one of them of service {service}")]
    SharedSlot {
        /// Index in `SLOTS*`.
        slot: u32,
        /// Index in `SERVICES*`.
        service: u32,
    },
    /// A slot names a backend that is not in use or is another service's.
    #[error("slot {slot} of service {service} names backend {backend:?}, which its flows may not use")]
    UnusableBackend {
        /// Index in `SLOTS*`.
        slot: u32,
        /// Index in `SERVICES*`.
        service: u32,
        /// Index in `BACKENDS*`; `None` if the slot does not exist.
        backend: Option<u32>,
    },
    /// A backend does not say that it is in a list that it is in.
    #[error("slot {slot} of service {service} names backend {backend}, which is not marked for its list")]
    UnmarkedBackend {
        /// Index in `SLOTS*`.
        slot: u32,
        /// Index in `SERVICES*`.
        service: u32,
        /// Index in `BACKENDS*`.
        backend: u32,
    },
    /// Two elements stand for one endpoint of one service.
    #[error("backends {first} and {second} are the same endpoint of one service")]
    SameEndpoint {
        /// Index in `BACKENDS*`.
        first: u32,
        /// Index in `BACKENDS*`.
        second: u32,
    },
}

/// Looks for contradictions. Maps that [`Reconciler`](super::Reconciler) writes have none, between any two writes.
pub fn check<A: Family>(existing: &Existing<A>) -> Vec<Violation> {
    let mut violations = Vec::new();
    let services: BTreeSet<u32> = existing.services.iter().map(|(index, ..)| *index).collect();
    let lists: BTreeSet<ClientList> = existing.source_ranges.iter().map(|(list, _)| *list).collect();
    for (key, frontend) in &existing.frontends {
        let (address, port, protocol) = (key.address.to_ip(), key.port, key.protocol);
        if !services.contains(&frontend.service) {
            violations.push(Violation::NoSuchService { address, port, protocol, service: frontend.service });
        }
        if frontend.owner != hash::frontend_owner(key) {
            violations.push(Violation::WrongOwner { address, port, protocol });
        }
        let is_cluster_ip = frontend.flags & FrontendFlags::CLUSTER_IP != 0;
        if is_cluster_ip != (port == 0) || is_cluster_ip && protocol != 0 {
            violations.push(Violation::HalfClusterIp { address, port, protocol });
        }
        if let Some(list) = ClientList::of(*frontend).filter(|list| !lists.contains(list)) {
            let ClientList { service, edition } = list;
            violations.push(Violation::NobodyAllowed { address, port, protocol, service, edition });
        }
    }
    let restricted: BTreeSet<u32> = lists.iter().map(|list| list.service).collect();
    let stray = restricted.difference(&services);
    violations.extend(stray.map(|service| Violation::StraySourceRange { service: *service }));

    let mut endpoints = HashMap::new();
    for (second, backend) in &existing.backends {
        if let Some(first) = endpoints.insert((backend.service, backend.address, backend.port), *second) {
            violations.push(Violation::SameEndpoint { first, second: *second });
        }
    }

    let slots: HashMap<u32, u32> = existing.slots.iter().copied().collect();
    let in_use = existing.backends.iter().filter(|(_, backend)| backend.generation != 0);
    let owners: HashMap<u32, (u32, u16)> =
        in_use.map(|(index, backend)| (*index, (backend.service, backend.flags))).collect();
    let mut names = HashMap::new();
    let mut ranges: BTreeMap<u32, u32> = BTreeMap::new();
    for (service, name, value) in &existing.services {
        if let Some(first) = names.insert((name.parts(), name.protocol), *service) {
            violations.push(Violation::SameName { first, second: *service });
        }
        for (range, mark) in [(value.cluster, BackendFlags::IN_CLUSTER), (value.local, BackendFlags::IN_LOCAL)] {
            if let Some(slot) = overlap(&ranges, range) {
                violations.push(Violation::SharedSlot { slot, service: *service });
            } else if range.count > 0 {
                ranges.insert(range.first, range.count);
            }
            for slot in range.first..range.first.saturating_add(range.count) {
                let backend = slots.get(&slot).copied();
                match backend.and_then(|index| Some((index, owners.get(&index)?))) {
                    Some((backend, (owner, flags))) if owner == service => {
                        if flags & mark == 0 {
                            violations.push(Violation::UnmarkedBackend { slot, service: *service, backend });
                        }
                    }
                    _ => violations.push(Violation::UnusableBackend { slot, service: *service, backend }),
                }
            }
        }
    }
    violations
}

/// A slot of `range` that is in one of `ranges`, which do not overlap each other.
fn overlap(ranges: &BTreeMap<u32, u32>, range: SlotRange) -> Option<u32> {
    let end = range.first.saturating_add(range.count);
    let (first, count) = ranges.range(..end).next_back()?;
    (range.count > 0 && first.saturating_add(*count) > range.first).then(|| range.first.max(*first))
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Backend, Frontend, FrontendKey, Service, ServiceName};

    use super::*;
    use crate::model::Cidr;

    #[test]
    fn every_contradiction_is_found() {
        let range = |first, count| SlotRange { first, count };
        let service = |cluster, local| Service { cluster, local, ..Service::default() };
        let name = |name| ServiceName::new("default", name, "", 6).expect("short");
        let backend = |address, generation, flags| Backend { generation, address, port: 80, flags, service: 7 };
        let key = FrontendKey::new([10, 96, 0, 1], 80, 6);
        let owner = hash::frontend_owner(&key);
        let sound = Existing {
            frontends: vec![(key, Frontend { service: 7, owner, ..Frontend::default() })],
            services: vec![(7, name("a"), service(range(0, 2), range(2, 1)))],
            slots: vec![(0, 1), (1, 2), (2, 1)],
            backends: vec![(1, backend([10, 0, 0, 1], 5, 14)), (2, backend([10, 0, 0, 2], 6, 7))],
            ..Existing::default()
        };
        assert_eq!(check(&sound), []);

        let (address, port, protocol) = (IpAddr::from([10, 96, 0, 1]), 80, 6);
        let mut broken = sound.clone();
        broken.frontends[0].1 = Frontend { service: 8, owner: !owner, ..Frontend::default() };
        assert_eq!(
            check(&broken),
            [
                Violation::NoSuchService { address, port, protocol, service: 8 },
                Violation::WrongOwner { address, port, protocol }
            ]
        );

        let mut broken = sound.clone();
        broken.services.push((9, name("a"), service(range(1, 1), range(0, 0))));
        assert_eq!(
            check(&broken),
            [
                Violation::SameName { first: 7, second: 9 },
                Violation::SharedSlot { slot: 1, service: 9 },
                Violation::UnusableBackend { slot: 1, service: 9, backend: Some(2) },
            ]
        );

        let mut broken = sound.clone();
        broken.slots.pop();
        broken.backends[0].1.generation = 0;
        broken.backends[1].1.address = [10, 0, 0, 1];
        assert_eq!(
            check(&broken),
            [
                Violation::SameEndpoint { first: 1, second: 2 },
                Violation::UnusableBackend { slot: 0, service: 7, backend: Some(1) },
                Violation::UnusableBackend { slot: 2, service: 7, backend: None },
            ]
        );

        let mut broken = sound.clone();
        broken.backends[0].1.flags = BackendFlags::SELECTABLE | BackendFlags::IN_CLUSTER;
        assert_eq!(check(&broken), [Violation::UnmarkedBackend { slot: 2, service: 7, backend: 1 }]);

        let mut broken = sound.clone();
        broken.frontends[0].1.flags = FrontendFlags::SOURCE_RANGES | FrontendFlags::CLUSTER_IP;
        broken.frontends[0].1.edition = 3;
        let lists = [ClientList { service: 8, edition: 3 }, ClientList { service: 7, edition: 2 }];
        broken.source_ranges = lists.map(|list| (list, Cidr::of_address([10, 0, 0, 1]))).into();
        assert_eq!(
            check(&broken),
            [
                Violation::HalfClusterIp { address, port, protocol },
                Violation::NobodyAllowed { address, port, protocol, service: 7, edition: 3 },
                Violation::StraySourceRange { service: 8 },
            ]
        );

        let mut broken = sound;
        broken.backends[1].1.service = 9;
        assert_eq!(check(&broken), [Violation::UnusableBackend { slot: 1, service: 7, backend: Some(2) }]);
    }
}
