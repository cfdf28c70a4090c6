use std::{collections::BTreeSet, time::Duration};

use lb_agent::{
    dataplane::{ClientList, DataplaneMaps as _, FamilyMaps, KernelMaps},
    loader::{LoadOptions, Loaded, TableSizes},
    model::{Cidr, Family},
};
use lb_common::abi::{
    ABI_VERSION, Backend, BackendFlags, Config, Frontend, FrontendFlags, FrontendKey, LocalAddressFlags, Service,
    ServiceFlags, ServiceName, SlotRange,
};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};

use crate::sandbox;

fn small() -> LoadOptions {
    let sizes = TableSizes { flows: 64, frontends: 8, services: 8, slots: 64, backends: 16 };
    LoadOptions { sizes, ..LoadOptions::default() }
}

fn maps(options: &LoadOptions) -> KernelMaps {
    Loaded::load(options).and_then(|mut loaded| loaded.take_maps()).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn what_is_written_is_what_exists() {
    sandbox::run(|_| {
        let mut maps = maps(&small());
        fill::<[u8; 4]>(&mut maps, [10, 0, 0, 1]);
        fill::<[u8; 16]>(&mut maps, [0xfd; 16]);

        let config = Config { abi_version: ABI_VERSION, node_port_min: 30000, ..Config::default() };
        maps.set_config(&config).expect("written");
        assert_eq!(maps.config().expect("read"), config);
    });
}

/// As of a node that had kube-proxy in ipvs mode, and kube-ipvs0 still: its own address, the highest, is there as well.
pub(crate) fn a_node_may_have_every_cluster_ip_itself() {
    sandbox::run(|_| {
        let mut maps = maps(&small());
        let mut expected: Vec<([u8; 4], u32)> = (0..20_000_u16)
            .map(|number| {
                let [high, low] = number.to_be_bytes();
                ([10, 96, high, low], 0)
            })
            .collect();
        expected.push(([192, 168, 100, 1], LocalAddressFlags::NODE_PORTS));
        for (address, flags) in &expected {
            maps.set_local_address(*address, *flags).expect("there is room");
        }
        let mut found = FamilyMaps::<[u8; 4]>::local_addresses(&maps).expect("read");
        found.sort_unstable();
        assert_eq!(found, expected);
    });
}

fn list(service: u32, edition: u8) -> ClientList {
    ClientList { service, edition }
}

fn fill<A: Family>(maps: &mut KernelMaps, address: A)
where
    KernelMaps: FamilyMaps<A>,
{
    let key = FrontendKey::new(address, 80, 6);
    let frontend = Frontend { service: 3, owner: 7, flags: FrontendFlags::SOURCE_RANGES, edition: 9 };
    let service = Service {
        cluster: SlotRange { first: 4, count: 3 },
        local: SlotRange { first: 20, count: 1 },
        flags: ServiceFlags::HAS_ENDPOINTS,
        affinity_seconds: 0,
    };
    let name = ServiceName::new("default", "web", "http", 6).expect("short");
    let backend = Backend { generation: 9, address, port: 8080, flags: BackendFlags::LOCAL, service: 7 };
    maps.set_frontend(&key, frontend).expect("written");
    maps.set_service(3, service).expect("written");
    maps.set_service_name(3, &name).expect("written");
    maps.set_slots(4, &[1, 2, 15]).expect("written");
    maps.set_slots(20, &[2]).expect("written");
    maps.set_slots(0, &[]).expect("nothing to write");
    maps.set_backend(15, backend).expect("written");
    maps.set_backend(2, Backend { generation: 0, ..backend }).expect("written");
    maps.set_node_address(7, address).expect("written");
    maps.set_local_address(address, 1).expect("written");
    let network = |bits| Cidr { address: address.masked(A::mask(bits)), bits };
    let lists =
        [(list(3, 8), network(8)), (list(3, 9), network(8)), (list(3, 9), network(9)), (list(4, 9), network(0))];
    for (list, clients) in lists {
        maps.set_source_range(list, clients).expect("written");
    }

    let existing = FamilyMaps::<A>::existing(maps).expect("read");
    assert_eq!(existing.frontends, [(key, frontend)]);
    assert_eq!(existing.services, [(3, name, service)]);
    assert_eq!(existing.slots, [(4, 1), (5, 2), (6, 15), (20, 2)]);
    assert_eq!(existing.backends, [(15, backend)]);
    assert_eq!(existing.node_addresses, [(7, address)]);
    assert_eq!(existing.local_addresses, [(address, 1)]);
    assert_eq!(existing.source_ranges.iter().copied().collect::<BTreeSet<_>>(), lists.into());

    for _ in 0..2 {
        maps.remove_frontend(&key).expect("removing what is not there succeeds");
        maps.remove_service_name(3).expect("removing what is not there succeeds");
        FamilyMaps::<A>::remove_node_address(maps, 7).expect("removing what is not there succeeds");
        maps.remove_local_address(address).expect("removing what is not there succeeds");
        maps.remove_source_range(list(3, 9), network(8)).expect("removing what is not there succeeds");
    }
    let existing = FamilyMaps::<A>::existing(maps).expect("read");
    assert_eq!((existing.frontends.len(), existing.services.len(), existing.slots.len()), (0, 0, 0));
    assert_eq!((existing.node_addresses.len(), existing.local_addresses.len()), (0, 0));
    let rest = [lists[0], lists[2], lists[3]];
    assert_eq!(existing.source_ranges.iter().copied().collect::<BTreeSet<_>>(), rest.into());
}

pub(crate) fn a_full_table_and_an_index_beyond_its_end_are_told_apart() {
    sandbox::run(|_| {
        let mut maps = maps(&small());
        let frontend = Frontend::default();
        for port in 1..=8 {
            maps.set_frontend(&FrontendKey::new([1, 2, 3, 4], port, 6), frontend).expect("there is room for 8");
        }
        let error = maps.set_frontend(&FrontendKey::new([1, 2, 3, 4], 9, 6), frontend).expect_err("no room for 9");
        assert!(error.is_full(), "{error}");
        assert!(error.to_string().contains("FRONTENDS4"), "{error}");

        let error = maps.set_backend(16, Backend::<[u8; 4]>::default()).expect_err("beyond the end");
        assert!(!error.is_full(), "{error}");
        let error = FamilyMaps::<[u8; 16]>::set_slots(&mut maps, 62, &[0, 0, 0]).expect_err("beyond the end");
        assert!(error.to_string().contains("SLOTS6"), "{error}");
    });
}

pub(crate) fn tables_of_the_default_size_are_read_in_well_under_a_second() {
    sandbox::run(|_| {
        let mut maps = maps(&LoadOptions::default());
        let sizes = TableSizes::default();
        for index in 0..10_000 {
            let name = ServiceName::new("ns", &format!("service-{index}"), "", 6).expect("short");
            let key = FrontendKey::new(u32::to_be_bytes(0x0a60_0000 + index), 80, 6);
            let cluster = SlotRange { first: index * 10, count: 10 };
            FamilyMaps::<[u8; 4]>::set_service_name(&mut maps, index, &name).expect("written");
            FamilyMaps::<[u8; 4]>::set_service(&mut maps, index, Service { cluster, ..Service::default() })
                .expect("written");
            maps.set_frontend(&key, Frontend { service: index, ..Frontend::default() }).expect("written");
        }
        let last = Backend { generation: 1, address: [10, 1, 2, 3], port: 80, flags: 0, service: 1 };
        maps.set_backend(sizes.backends - 1, last).expect("written");

        let start = time_on_cpu();
        let existing = FamilyMaps::<[u8; 4]>::existing(&maps).expect("read");
        let taken = Duration::from(time_on_cpu() - start);
        assert_eq!((existing.services.len(), existing.frontends.len()), (10_000, 10_000));
        assert_eq!(existing.slots.len(), 100_000);
        assert_eq!(existing.backends, [(sizes.backends - 1, last)]);
        assert!(taken < Duration::from_secs(1), "{taken:?} for 10,000 services and {} backends", sizes.backends);
    });
}

/// What this thread was given of the machine so far, system calls included: others that want it, too, do not count.
pub(crate) fn time_on_cpu() -> TimeSpec {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every kernel has this clock")
}
