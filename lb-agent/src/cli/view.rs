//! One family's maps, joined.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
};

use anyhow::Result;
use lb_agent::{
    dataplane::{ClientList, Existing, FamilyMaps, KernelMaps},
    loader::Pins,
    model::{Cidr, Family},
};
use lb_common::abi::{Backend, Frontend, Service, ServiceName, SlotRange};

/// What the maps of a family hold, by index.
pub(super) struct View<A> {
    pub(super) services: BTreeMap<u32, (ServiceName, Service)>,
    pub(super) backends: BTreeMap<u32, Backend<A>>,
    pub(super) existing: Existing<A>,
    slots: HashMap<u32, u32>,
}

impl<A: Family> View<A>
where
    KernelMaps: FamilyMaps<A>,
{
    /// Reads the pinned maps.
    pub(super) fn read(pins: &Pins) -> Result<Self> {
        let maps = KernelMaps::open(|map| pins.open(map))?;
        Ok(Self::new(FamilyMaps::<A>::existing(&maps)?))
    }
}

impl<A: Family> View<A> {
    pub(super) fn new(existing: Existing<A>) -> Self {
        Self {
            services: existing.services.iter().map(|(index, name, service)| (*index, (*name, *service))).collect(),
            backends: existing.backends.iter().copied().collect(),
            slots: existing.slots.iter().copied().collect(),
            existing,
        }
    }

    /// The name of a service port; an index that has no name shows as dangling.
    pub(super) fn service(&self, index: u32) -> String {
        self.services.get(&index).map_or_else(|| format!("<service {index}?>"), |(name, _)| name.to_string())
    }

    /// Address and port, if the backend is still the one of this generation.
    pub(super) fn backend(&self, index: u32, generation: Option<u32>) -> String {
        match self.backends.get(&index) {
            Some(backend) if generation.is_none_or(|generation| generation == backend.generation) => {
                SocketAddr::new(backend.address.to_ip(), backend.port).to_string()
            }
            _ => format!("<backend {index}?>"),
        }
    }

    /// Networks of the clients that a frontend lets in; none where it lets in everybody, or nobody.
    pub(super) fn clients(&self, frontend: Frontend) -> impl Iterator<Item = Cidr<A>> {
        let list = ClientList::of(frontend);
        let of_list = self.existing.source_ranges.iter().filter(move |(of, _)| Some(*of) == list);
        of_list.map(|(_, clients)| *clients)
    }

    /// Indices of the backends in a range of slots, each once: a Maglev table has them many times.
    pub(super) fn backends_in(&self, range: SlotRange) -> impl Iterator<Item = u32> {
        let slots = range.first..range.first.saturating_add(range.count);
        let mut seen = HashSet::new();
        slots.filter_map(|slot| self.slots.get(&slot).copied()).filter(move |index| seen.insert(*index))
    }

    /// The backends in a range of slots, each with how many of the slots it has.
    pub(super) fn shares_in(&self, range: SlotRange) -> BTreeMap<u32, u32> {
        let slots = range.first..range.first.saturating_add(range.count);
        let mut shares = BTreeMap::new();
        for index in slots.filter_map(|slot| self.slots.get(&slot)) {
            *shares.entry(*index).or_default() += 1;
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::FrontendFlags;

    use super::*;

    #[test]
    fn indices_without_a_name_or_a_backend_show_as_dangling() {
        let name = ServiceName::new("default", "web", "http", 6).expect("short");
        let backend = Backend { generation: 2, address: [10, 0, 0, 1], port: 80, flags: 0, service: 3 };
        let view = View::new(Existing {
            services: vec![(3, name, Service::default())],
            backends: vec![(5, backend)],
            ..Existing::default()
        });
        assert_eq!(view.service(3), "default/web:http/TCP");
        assert_eq!(view.service(17), "<service 17?>");
        assert_eq!(view.backend(5, Some(2)), "10.0.0.1:80");
        assert_eq!(view.backend(5, Some(1)), "<backend 5?>");
        assert_eq!(view.backend(6, None), "<backend 6?>");
    }

    #[test]
    fn a_frontend_lets_in_the_clients_of_the_list_that_it_names() {
        let list = |service, edition| ClientList { service, edition };
        let network = |host| Cidr::of_address([198, 51, 100, host]);
        let lists =
            [(list(3, 0), network(1)), (list(3, 2), network(2)), (list(3, 2), network(3)), (list(4, 2), network(4))];
        let view = View::new(Existing { source_ranges: lists.into(), ..Existing::default() });
        let restricted = Frontend {
            service: 3,
            owner: 0,
            flags: FrontendFlags::EXTERNAL | FrontendFlags::SOURCE_RANGES,
            edition: 2,
        };
        assert_eq!(view.clients(restricted).collect::<Vec<_>>(), [network(2), network(3)]);
        assert_eq!(view.clients(Frontend { edition: 1, ..restricted }).count(), 0);
        let open = Frontend { flags: FrontendFlags::EXTERNAL, edition: 0, ..restricted };
        assert_eq!(view.clients(open).count(), 0);
    }
}
