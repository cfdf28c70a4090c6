//! One family's maps, joined.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
};

use anyhow::Result;
use lb_agent::{
    dataplane::{Existing, FamilyMaps, KernelMaps},
    loader::Pins,
    model::Family,
};
use lb_common::abi::{Backend, Service, ServiceName, SlotRange};

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
}
