use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    ops::Bound,
};

use lb_common::{
    abi::{
        Backend, BackendFlags, Config, ConfigFlags, Frontend, FrontendFlags, FrontendKey, LocalAddressFlags, Prefix,
        ProtocolNumber, Service, ServiceFlags, ServiceName, SlotRange, maps,
    },
    hash,
};
use nix::libc::E2BIG;

use super::{
    Capacities, ClientList, DataplaneMaps, Existing, FamilyMaps, MapError, Operation, Page, Prefixes, SourcePrefix,
};
use crate::model::{Cidr, Family};

/// Called after every single write, with the maps as a reader would find them.
pub type Observer = Box<dyn FnMut(&Fake)>;

/// The maps in memory: as large as they are told to be, counting what is written to them. For tests, and for showing
/// what the kernel's maps would hold.
#[derive(Default)]
pub struct Fake {
    v4: Tables<[u8; 4]>,
    v6: Tables<[u8; 16]>,
    config: Config,
    writes: BTreeMap<&'static str, u64>,
    observer: Option<Observer>,
}

/// The tables of one family.
#[derive(Debug)]
pub struct Tables<A> {
    capacities: Capacities,
    frontends: BTreeMap<FrontendKey<A>, Frontend>,
    services: BTreeMap<u32, Service>,
    names: BTreeMap<u32, ServiceName>,
    slots: BTreeMap<u32, u32>,
    backends: BTreeMap<u32, Backend<A>>,
    node_addresses: BTreeMap<u32, A>,
    local_addresses: BTreeMap<A, u32>,
    source_ranges: BTreeSet<(ClientList, Cidr<A>)>,
    service_cidrs: BTreeSet<Cidr<A>>,
}

/// What comes next in a table of which a page is read whose elements are these, by bucket.
fn page<K, V>(mut elements: Vec<(u32, K, V)>, about: usize) -> Page<K, V> {
    elements.sort_by_key(|(bucket, ..)| *bucket);
    // Whole buckets, as the kernel's tables.
    let end = elements.get(about.max(1)).map(|(bucket, ..)| *bucket);
    let first = elements.first().map(|(bucket, ..)| *bucket);
    let end = if end == first { end.map(|bucket| bucket + 1) } else { end };
    let whole = elements.into_iter().take_while(|(bucket, ..)| end.is_none_or(|end| *bucket < end));
    (whole.map(|(_, key, value)| (key, value)).collect(), end)
}

impl<A> Default for Tables<A> {
    fn default() -> Self {
        Self {
            capacities: Capacities {
                frontends: 1 << 18,
                services: 1 << 16,
                slots: 1 << 20,
                backends: 1 << 18,
                source_ranges: 1 << 16,
            },
            frontends: BTreeMap::new(),
            services: BTreeMap::new(),
            names: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: BTreeMap::new(),
            node_addresses: BTreeMap::new(),
            local_addresses: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            service_cidrs: BTreeSet::new(),
        }
    }
}

/// Lets one implementation of [`FamilyMaps`] serve both families.
pub trait HasTables<A> {
    /// The family's tables.
    fn tables(&self) -> &Tables<A>;
    /// The family's tables, to write.
    fn tables_mut(&mut self) -> &mut Tables<A>;
}

impl HasTables<[u8; 4]> for Fake {
    fn tables(&self) -> &Tables<[u8; 4]> {
        &self.v4
    }
    fn tables_mut(&mut self) -> &mut Tables<[u8; 4]> {
        &mut self.v4
    }
}

impl HasTables<[u8; 16]> for Fake {
    fn tables(&self) -> &Tables<[u8; 16]> {
        &self.v6
    }
    fn tables_mut(&mut self) -> &mut Tables<[u8; 16]> {
        &mut self.v6
    }
}

impl Fake {
    /// Empty maps of these sizes, the same for both families.
    pub fn new(capacities: Capacities) -> Self {
        let mut fake = Self::default();
        fake.v4.capacities = capacities;
        fake.v6.capacities = capacities;
        fake
    }

    /// Calls `observer` after every write from now on.
    pub fn observe(&mut self, observer: impl FnMut(&Fake) + 'static) {
        self.observer = Some(Box::new(observer));
    }

    /// How many elements of each map were written or removed since the last call. Each slot counts.
    pub fn take_writes(&mut self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.writes)
    }

    fn wrote(&mut self, map: &'static str) {
        *self.writes.entry(map).or_default() += 1;
        if let Some(mut observer) = self.observer.take() {
            observer(self);
            self.observer.get_or_insert(observer);
        }
    }

    fn write<A: Family, R>(
        &mut self,
        map: &'static str,
        fits: bool,
        write: impl FnOnce(&mut Tables<A>) -> R,
    ) -> Result<(), MapError>
    where
        Self: HasTables<A>,
    {
        if !fits {
            let source = std::io::Error::from_raw_os_error(E2BIG);
            return Err(MapError { map, operation: Operation::Write, source });
        }
        write(self.tables_mut());
        self.wrote(map);
        Ok(())
    }
}

impl<A: Family> FamilyMaps<A> for Fake
where
    Self: HasTables<A>,
{
    fn capacities(&self) -> Capacities {
        self.tables().capacities
    }

    fn existing(&self) -> Result<Existing<A>, MapError> {
        let tables = self.tables();
        let service = |index| tables.services.get(index).copied().unwrap_or_default();
        let services: Vec<_> = tables.names.iter().map(|(index, name)| (*index, *name, service(index))).collect();
        let slots = |range: SlotRange| tables.slots.range(range.first..range.first.saturating_add(range.count));
        let slots: BTreeMap<u32, u32> = services
            .iter()
            .flat_map(|(_, _, s)| slots(s.cluster).chain(slots(s.local)))
            .map(|(k, v)| (*k, *v))
            .collect();
        Ok(Existing {
            frontends: tables.frontends.iter().map(|(key, value)| (*key, *value)).collect(),
            services,
            slots: slots.into_iter().collect(),
            backends: tables.backends.iter().filter(|(_, b)| b.generation != 0).map(|(k, v)| (*k, *v)).collect(),
            node_addresses: self.node_addresses()?,
            local_addresses: self.local_addresses()?,
            source_ranges: tables.source_ranges.iter().copied().collect(),
            service_cidrs: self.service_cidrs()?,
        })
    }

    fn frontend(&self, key: &FrontendKey<A>) -> Result<Option<Frontend>, MapError> {
        Ok(self.tables().frontends.get(key).copied())
    }

    fn some_frontends(&self, from: Option<u32>, about: usize) -> Result<Page<FrontendKey<A>, Frontend>, MapError> {
        let elements =
            self.tables().frontends.iter().map(|(key, value)| (hash::frontend_owner(key).into(), *key, *value));
        Ok(page(elements.filter(|(bucket, ..)| *bucket >= from.unwrap_or(0)).collect(), about))
    }

    fn service(&self, index: u32) -> Result<Service, MapError> {
        Ok(HasTables::<A>::tables(self).services.get(&index).copied().unwrap_or_default())
    }

    fn service_name(&self, index: u32) -> Result<Option<ServiceName>, MapError> {
        Ok(HasTables::<A>::tables(self).names.get(&index).copied())
    }

    fn some_service_names(&self, from: Option<u32>, about: usize) -> Result<Page<u32, ServiceName>, MapError> {
        let elements = HasTables::<A>::tables(self).names.range(from.unwrap_or(0)..);
        Ok(page(elements.map(|(index, name)| (*index, *index, *name)).collect(), about))
    }

    fn slots(&self, range: SlotRange) -> Result<Vec<u32>, MapError> {
        let slots = &HasTables::<A>::tables(self).slots;
        let slot = |slot| slots.get(&slot).copied().unwrap_or_default();
        Ok((range.first..range.first.saturating_add(range.count)).map(slot).collect())
    }

    fn backends(&self, first: u32, count: u32) -> Result<Vec<Backend<A>>, MapError> {
        let Tables { backends, capacities, .. } = self.tables();
        let end = first.saturating_add(count).min(capacities.backends);
        Ok((first..end).map(|index| backends.get(&index).copied().unwrap_or_default()).collect())
    }

    fn node_addresses(&self) -> Result<Vec<(u32, A)>, MapError> {
        Ok(self.tables().node_addresses.iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn local_addresses(&self) -> Result<Vec<(A, u32)>, MapError> {
        Ok(self.tables().local_addresses.iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn source_prefixes(&self) -> Result<Vec<SourcePrefix<A>>, MapError> {
        Ok(self.tables().source_ranges.iter().map(|(list, clients)| SourcePrefix::new(*list, *clients)).collect())
    }

    fn some_source_prefixes(&self, after: Option<SourcePrefix<A>>, about: usize) -> Result<Prefixes<A>, MapError> {
        let ranges = &self.tables().source_ranges;
        // One that is gone is no place to go on from.
        let after = after.and_then(SourcePrefix::network).filter(|range| ranges.contains(range));
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = ranges.range((from, Bound::Unbounded)).map(|(list, clients)| SourcePrefix::new(*list, *clients));
        let found: Vec<_> = rest.take(about).collect();
        let last = found.last().filter(|_| found.len() == about).copied();
        Ok((found, last))
    }

    fn service_cidrs(&self) -> Result<Vec<Cidr<A>>, MapError> {
        Ok(self.tables().service_cidrs.iter().copied().collect())
    }

    fn set_frontend(&mut self, key: &FrontendKey<A>, value: Frontend) -> Result<(), MapError> {
        let tables = self.tables();
        let fits = tables.frontends.contains_key(key) || tables.frontends.len() < tables.capacities.frontends as usize;
        self.write(A::TABLES.frontends, fits, |tables: &mut Tables<A>| tables.frontends.insert(*key, value))
    }

    fn remove_frontend(&mut self, key: &FrontendKey<A>) -> Result<(), MapError> {
        self.write(A::TABLES.frontends, true, |tables: &mut Tables<A>| tables.frontends.remove(key))
    }

    fn set_service(&mut self, index: u32, value: Service) -> Result<(), MapError> {
        let fits = index < self.tables().capacities.services;
        self.write(A::TABLES.services, fits, |tables: &mut Tables<A>| tables.services.insert(index, value))
    }

    fn set_service_name(&mut self, index: u32, name: &ServiceName) -> Result<(), MapError> {
        let fits = index < self.tables().capacities.services;
        self.write(A::TABLES.service_names, fits, |tables: &mut Tables<A>| tables.names.insert(index, *name))
    }

    fn reset_service_stats(&mut self, index: u32) -> Result<(), MapError> {
        // Nothing counts here; the write does.
        let fits = index < self.tables().capacities.services;
        self.write(A::TABLES.service_stats, fits, |_: &mut Tables<A>| ())
    }

    fn remove_service_name(&mut self, index: u32) -> Result<(), MapError> {
        self.write(A::TABLES.service_names, true, |tables: &mut Tables<A>| tables.names.remove(&index))
    }

    fn set_slots(&mut self, first: u32, backends: &[u32]) -> Result<(), MapError> {
        let limit = self.tables().capacities.slots;
        for (slot, backend) in (first..).zip(backends) {
            let write = |tables: &mut Tables<A>| tables.slots.insert(slot, *backend);
            self.write(A::TABLES.slots, slot < limit, write)?;
        }
        Ok(())
    }

    fn set_backend(&mut self, index: u32, value: Backend<A>) -> Result<(), MapError> {
        let fits = index < self.tables().capacities.backends;
        self.write(A::TABLES.backends, fits, |tables: &mut Tables<A>| tables.backends.insert(index, value))
    }

    fn set_node_address(&mut self, interface: u32, address: A) -> Result<(), MapError> {
        let write = |tables: &mut Tables<A>| tables.node_addresses.insert(interface, address);
        self.write(A::TABLES.node_addresses, true, write)
    }

    fn remove_node_address(&mut self, interface: u32) -> Result<(), MapError> {
        let write = |tables: &mut Tables<A>| tables.node_addresses.remove(&interface);
        self.write(A::TABLES.node_addresses, true, write)
    }

    fn set_local_address(&mut self, address: A, flags: u32) -> Result<(), MapError> {
        let write = |tables: &mut Tables<A>| tables.local_addresses.insert(address, flags);
        self.write(A::TABLES.local_addresses, true, write)
    }

    fn remove_local_address(&mut self, address: A) -> Result<(), MapError> {
        let write = |tables: &mut Tables<A>| tables.local_addresses.remove(&address);
        self.write(A::TABLES.local_addresses, true, write)
    }

    fn set_source_range(&mut self, list: ClientList, clients: Cidr<A>) -> Result<(), MapError> {
        let tables = self.tables();
        let range = (list, clients);
        let fits = tables.source_ranges.contains(&range)
            || tables.source_ranges.len() < tables.capacities.source_ranges as usize;
        self.write(A::TABLES.source_ranges, fits, |tables: &mut Tables<A>| tables.source_ranges.insert(range))
    }

    fn remove_source_range(&mut self, list: ClientList, clients: Cidr<A>) -> Result<(), MapError> {
        let write = |tables: &mut Tables<A>| tables.source_ranges.remove(&(list, clients));
        self.write(A::TABLES.source_ranges, true, write)
    }

    fn remove_source_prefix(&mut self, prefix: SourcePrefix<A>) -> Result<(), MapError> {
        // Shorter prefixes cannot be entered here.
        prefix.network().map_or(Ok(()), |(list, clients)| self.remove_source_range(list, clients))
    }

    fn set_service_cidr(&mut self, cidr: Cidr<A>) -> Result<(), MapError> {
        let write = |tables: &mut Tables<A>| tables.service_cidrs.insert(cidr);
        self.write(A::TABLES.service_cidrs, true, write)
    }

    fn remove_service_cidr(&mut self, cidr: Cidr<A>) -> Result<(), MapError> {
        let write = |tables: &mut Tables<A>| tables.service_cidrs.remove(&cidr);
        self.write(A::TABLES.service_cidrs, true, write)
    }
}

impl DataplaneMaps for Fake {
    fn config(&self) -> Result<Config, MapError> {
        Ok(self.config)
    }

    fn set_config(&mut self, config: &Config) -> Result<(), MapError> {
        self.config = *config;
        self.wrote(maps::CONFIG);
        Ok(())
    }
}

/// What a reader finds: one line a frontend, then the node's own addresses and the ranges of cluster IPs, IPv4 first, and
/// last the configuration. A dangling index is shown as one.
impl fmt::Display for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.v4.fmt(f)?;
        self.v6.fmt(f)?;
        self.v4.write_node(f)?;
        self.v6.write_node(f)?;
        let Config { node_port_min, node_port_max, flags, cluster_ips4, cluster_ips6, pods4, pods6, .. } = self.config;
        let flags =
            named(flags, &[(ConfigFlags::PODS_BY_INTERFACE, "interface"), (ConfigFlags::PODS_BY_ADDRESS, "address")]);
        writeln!(f, "config: pods by [{flags}] {} {}", prefix(pods4), prefix(pods6))?;
        writeln!(f, "config: node ports {node_port_min}-{node_port_max}")?;
        writeln!(f, "config: cluster IPs {} {}", prefix(cluster_ips4), prefix(cluster_ips6))
    }
}

impl<A: Family> fmt::Display for Tables<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, frontend) in &self.frontends {
            let index = frontend.service;
            let name = self.names.get(&index).map_or_else(|| "(no such service)".to_owned(), ToString::to_string);
            if frontend.flags & FrontendFlags::CLUSTER_IP != 0 {
                writeln!(f, "{} CLUSTER_IP -> #{index} {name}", key.address.to_ip())?;
                continue;
            }
            let address = SocketAddr::new(key.address.to_ip(), key.port);
            let flags = named(
                frontend.flags.into(),
                &[
                    (FrontendFlags::LOCAL.into(), "LOCAL"),
                    (FrontendFlags::EXTERNAL.into(), "EXTERNAL"),
                    (FrontendFlags::NODE_PORT.into(), "NODE_PORT"),
                    (FrontendFlags::SOURCE_RANGES.into(), "SOURCE_RANGES"),
                ],
            );
            let flags = if flags.is_empty() { flags } else { format!(" {flags}") };
            write!(f, "{address}/{}{flags} -> #{index} {name}", ProtocolNumber(key.protocol.into()))?;
            self.write_service(f, *frontend)?;
        }
        Ok(())
    }
}

impl<A: Family> Tables<A> {
    /// The rest of a frontend's line.
    fn write_service(&self, f: &mut fmt::Formatter<'_>, frontend: Frontend) -> fmt::Result {
        let index = frontend.service;
        let service = self.services.get(&index).copied().unwrap_or_default();
        write!(f, " cluster [{}] local [{}]", self.list(service.cluster), self.list(service.local))?;
        let closed = self.backends.values().filter(|backend| {
            backend.service == index && backend.generation != 0 && backend.flags & BackendFlags::SELECTABLE == 0
        });
        let closed: Vec<_> = closed.map(|b| SocketAddr::new(b.address.to_ip(), b.port).to_string()).collect();
        if !closed.is_empty() {
            write!(f, " no new flows [{}]", closed.join(" "))?;
        }
        if service.affinity_seconds > 0 {
            write!(f, " affinity {} s", service.affinity_seconds)?;
        }
        if let Some(list) = ClientList::of(frontend) {
            let clients =
                self.source_ranges.iter().filter(|(of, _)| *of == list).map(|(_, clients)| clients.to_string());
            write!(f, " clients [{}]", clients.collect::<Vec<_>>().join(" "))?;
        }
        if service.flags & ServiceFlags::ROUND_ROBIN != 0 {
            write!(f, " in turn")?;
        }
        if service.flags & ServiceFlags::LEAST_CONN != 0 {
            write!(f, " by flows")?;
        }
        writeln!(f, "{}", if service.flags & ServiceFlags::HAS_ENDPOINTS == 0 { " no endpoints" } else { "" })
    }

    fn write_node(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (address, flags) in &self.local_addresses {
            let flags = named(
                *flags,
                &[(LocalAddressFlags::NODE_PORTS, "NODE_PORTS"), (LocalAddressFlags::LOOPBACK, "LOOPBACK")],
            );
            writeln!(f, "{}", format!("node: {} {flags}", address.to_ip()).trim_end())?;
        }
        self.service_cidrs.iter().try_for_each(|cidr| writeln!(f, "service CIDR: {cidr}"))
    }

    fn list(&self, range: SlotRange) -> String {
        let backend = |slot| {
            let index = self.slots.get(&slot)?;
            let backend = self.backends.get(index).filter(|backend| backend.generation != 0)?;
            Some(SocketAddr::new(backend.address.to_ip(), backend.port).to_string())
        };
        let slots = range.first..range.first.saturating_add(range.count);
        let found: Vec<_> = slots.map(|slot| backend(slot).unwrap_or_else(|| format!("(slot {slot})"))).collect();
        // A Maglev table: how often each is in it.
        let mut shares = BTreeMap::<&str, usize>::new();
        for backend in &found {
            *shares.entry(backend).or_default() += 1;
        }
        if shares.len() < found.len() {
            let shares: Vec<_> = shares.iter().map(|(backend, slots)| format!("{backend} in {slots}")).collect();
            return format!("{} of {} slots", shares.join(" "), found.len());
        }
        found.join(" ")
    }
}

fn prefix<A: Family>(prefix: Prefix<A>) -> String {
    Cidr::from_prefix(prefix).map_or_else(|| "-".to_owned(), |cidr| cidr.to_string())
}

/// The names of the bits that are set; of those without one, the number.
fn named(bits: u32, names: &[(u32, &str)]) -> String {
    let known: u32 = names.iter().map(|(bit, _)| bit).sum();
    let unknown = Some(bits & !known).filter(|rest| *rest != 0).map(|rest| format!("{rest:#x}"));
    let names = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned());
    names.chain(unknown).collect::<Vec<_>>().join(" ")
}
