//! What the maps say of themselves, for metrics: read from the pins, beside the thread that writes them.
//!
//! Whole tables are read in batches, thousands of elements in one system call, and of those that are only counted nothing
//! is kept.

use std::{mem, os::fd::AsFd as _};

use aya::{
    maps::{MapData, MapType},
    util::nr_cpus,
};
use lb_common::abi::{Reason, ServiceIndex, ServiceName, ServiceStats, maps};

use super::{Counters, MapError, Operation, table::HashTable};
use crate::{
    loader::{LoaderError, PINNED, Pins, syscall},
    model::{Family, TableNames},
};

/// How much of a table is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFill {
    /// Name of the map.
    pub table: &'static str,
    /// Elements in use.
    pub used: u32,
    /// Elements that there are.
    pub capacity: u32,
}

/// The counters of one service port.
#[derive(Clone, Copy, Debug)]
pub struct ServiceTraffic {
    /// Whose they are.
    pub name: ServiceName,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Summed over the CPUs.
    pub stats: ServiceStats,
}

/// What was read at once.
#[derive(Debug, Default)]
pub struct Scrape {
    /// The hash tables that only the kernel can count.
    pub tables: Vec<TableFill>,
    /// Every reason for which a packet or a call was not translated, with its count.
    pub reasons: Vec<(Reason, u64)>,
    /// Service ports that had any traffic.
    pub services: Vec<ServiceTraffic>,
}

/// Reads the maps.
pub struct Scraper {
    counters: Counters,
    counted: Vec<(&'static str, MapData)>,
    services: [ServiceMaps; 2],
}

impl std::fmt::Debug for Scraper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scraper").finish_non_exhaustive()
    }
}

/// The counters of a family's service ports, and whose they are.
struct ServiceMaps {
    family: &'static str,
    names: HashTable<ServiceIndex, ServiceName>,
    stats_name: &'static str,
    stats: MapData,
}

impl ServiceMaps {
    fn open<A: Family>(pins: &Pins) -> Result<Self, LoaderError> {
        let TableNames { service_names, service_stats, .. } = A::TABLES;
        let stats = pins.data(service_stats)?;
        let names = HashTable::open(&mut |map| pins.open(map), service_names)?;
        Ok(Self { family: A::NAME, names, stats_name: service_stats, stats })
    }

    fn read(&self, services: &mut Vec<ServiceTraffic>) -> Result<(), MapError> {
        let failed = |source| MapError { map: self.stats_name, operation: Operation::Read, source };
        let mut names = self.names.read_all()?;
        names.sort_unstable_by_key(|(index, _)| *index);
        let Some((highest, _)) = names.last() else { return Ok(()) };
        let cpus = nr_cpus().map_err(|(_, error)| failed(error))?.get() as usize;
        let size = mem::size_of::<ServiceStats>();
        let mut upcoming = names.iter().peekable();
        let mut index = 0_u32;
        // Names and counters are both in the order of the index.
        syscall::walk(self.stats.fd().as_fd(), 4, cpus * size, highest.service as usize + 1, |values| {
            for value in values.chunks_exact(cpus * size) {
                if let Some((_, name)) = upcoming.next_if(|(next, _)| next.service == index) {
                    let stats = value.chunks_exact(size).map(stats).fold(ServiceStats::default(), sum);
                    if stats != ServiceStats::default() {
                        services.push(ServiceTraffic { name: *name, family: self.family, stats });
                    }
                }
                index += 1;
            }
        })
        .map_err(failed)?;
        Ok(())
    }
}

fn stats(bytes: &[u8]) -> ServiceStats {
    let mut words = bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word));
    let mut next = || words.next().unwrap_or(0);
    ServiceStats { flows: next(), packets: next(), bytes: next(), rejected: next() }
}

/// Adds one CPU's counts.
pub(super) fn sum(sum: ServiceStats, add: ServiceStats) -> ServiceStats {
    ServiceStats {
        flows: sum.flows + add.flows,
        packets: sum.packets + add.packets,
        bytes: sum.bytes + add.bytes,
        rejected: sum.rejected + add.rejected,
    }
}

impl Scraper {
    /// Opens the pinned maps.
    pub fn open(pins: &Pins) -> Result<Self, LoaderError> {
        let mut counted = Vec::new();
        for name in PINNED.iter().filter(|name| !KNOWN_TO_THE_AGENT.contains(name) && !OF_WATCHERS.contains(name)) {
            let data = pins.data(name)?;
            let kind = data.info().and_then(|info| info.map_type());
            let kind = kind.map_err(|source| LoaderError::Map { map: name, source })?;
            if matches!(kind, MapType::Hash | MapType::LruHash) {
                counted.push((*name, data));
            }
        }
        Ok(Self {
            counters: Counters::open(|map| pins.open(map))?,
            counted,
            services: [ServiceMaps::open::<[u8; 4]>(pins)?, ServiceMaps::open::<[u8; 16]>(pins)?],
        })
    }

    /// Reads all of it. Packets and the agent go on meanwhile, so the numbers are of about one moment.
    pub fn read(&self) -> Result<Scrape, MapError> {
        Ok(Scrape { reasons: self.read_reasons()?, tables: self.read_tables()?, services: self.read_services()? })
    }

    /// [`Scrape::reasons`].
    pub fn read_reasons(&self) -> Result<Vec<(Reason, u64)>, MapError> {
        self.counters.read()
    }

    /// [`Scrape::tables`].
    pub fn read_tables(&self) -> Result<Vec<TableFill>, MapError> {
        self.counted.iter().map(|(table, data)| fill(table, data)).collect()
    }

    /// [`Scrape::services`].
    pub fn read_services(&self) -> Result<Vec<ServiceTraffic>, MapError> {
        let mut services = Vec::new();
        for maps in &self.services {
            maps.read(&mut services)?;
        }
        Ok(services)
    }
}

/// Hash tables whose fill the agent knows without counting: it alone writes them.
const KNOWN_TO_THE_AGENT: [&str; 4] = [maps::FRONTENDS4, maps::FRONTENDS6, maps::SERVICE_NAMES4, maps::SERVICE_NAMES6];

/// What `lb-agent monitor` reads. An agent from before it has not made them, and its counters can be read all the same.
const OF_WATCHERS: [&str; 3] = [maps::MONITOR, maps::EVENTS, maps::EVENT_COUNTS];

fn fill(table: &'static str, data: &MapData) -> Result<TableFill, MapError> {
    let failed = |source| MapError { map: table, operation: Operation::Read, source };
    let info = data.info().map_err(|error| super::table::failed(table, Operation::Read, error))?;
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    let mut used = 0_usize;
    syscall::walk(data.fd().as_fd(), key, value, usize::MAX, |values| used += values.len() / value).map_err(failed)?;
    let used = u32::try_from(used).unwrap_or(u32::MAX);
    Ok(TableFill { table, used, capacity: info.max_entries() })
}
