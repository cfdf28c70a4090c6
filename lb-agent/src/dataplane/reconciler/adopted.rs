//! What was taken over from the maps, as far as it says what the objects were.

use std::collections::HashSet;

use lb_common::abi::{BackendFlags, FrontendKey};

use super::{Applied, Reconciler};
use crate::model::{Balance, Cidr, Family, ServicePortName};

/// A service port in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptedPort<A> {
    /// Whose port it is.
    pub name: ServicePortName,
    /// Its frontends with their [`FrontendFlags`](lb_common::abi::FrontendFlags), ascending.
    pub frontends: Vec<(FrontendKey<A>, u8)>,
    /// Networks of the clients that may use its frontends with `SOURCE_RANGES`.
    pub clients: Vec<Cidr<A>>,
    /// Session affinity timeout in seconds; 0 = none.
    pub affinity_seconds: u32,
    /// How its backends are picked; `None` where it has none, which do not tell.
    pub balance: Option<Balance>,
    /// Its endpoints, ascending by address and port.
    pub endpoints: Vec<AdoptedEndpoint<A>>,
}

/// An endpoint of a service port in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptedEndpoint<A> {
    /// Its address.
    pub address: A,
    /// Its port.
    pub port: u16,
    /// It is on this node.
    pub is_local: bool,
    /// It is in one of the lists that new flows are given endpoints from.
    pub is_listed: bool,
}

impl<A: Family> Reconciler<A> {
    /// The service ports in the maps, ascending by name.
    pub fn adopted(&self) -> impl Iterator<Item = AdoptedPort<A>> {
        self.applied.iter().filter(|(_, applied)| applied.named).map(|(name, applied)| {
            let flags = |key: &FrontendKey<A>| Some((*key, self.frontends.get(key)?.flags));
            let listed: HashSet<u32> = applied.cluster.iter().chain(&applied.local).copied().collect();
            let endpoint = |index: &u32| {
                let (address, port) = self.backends.endpoint(*index);
                AdoptedEndpoint {
                    address,
                    port,
                    is_local: self.backends.flags(*index) & BackendFlags::LOCAL != 0,
                    is_listed: listed.contains(index),
                }
            };
            AdoptedPort {
                name: name.clone(),
                frontends: applied.frontends.iter().filter_map(flags).collect(),
                clients: applied.clients.into_iter().flat_map(|list| self.lists.of(list)).collect(),
                affinity_seconds: applied.value.affinity_seconds,
                balance: applied.balance(),
                endpoints: applied.backends.iter().map(endpoint).collect(),
            }
        })
    }
}

impl<A> Applied<A> {
    /// How its slots and flags say that backends are picked.
    fn balance(&self) -> Option<Balance> {
        let by_flags = Balance::ALL.into_iter().find(|balance| balance.flags() & self.value.flags != 0);
        let lists = [&self.cluster, &self.local];
        // A table has each backend many times, a list once.
        let is_table = |slots: &[u32]| slots.iter().collect::<HashSet<_>>().len() < slots.len();
        by_flags.or_else(|| {
            if lists.iter().any(|slots| is_table(slots)) {
                return Some(Balance::Maglev);
            }
            // A table of one backend is a list.
            lists.iter().any(|slots| slots.len() > 1).then_some(Balance::Hash)
        })
    }
}
