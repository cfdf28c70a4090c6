use std::{fs, path::Path};

use aya::programs::ProgramInfo;
use lb_agent::{
    dataplane::{Counters, FamilyMaps},
    loader::{
        self, Attached, Device, Direction, LinkLayer, LoadOptions, Loaded, LoaderError, PINNED, Pins, Role, SocketHook,
        TableSizes, attached, cleanup,
    },
};
use lb_common::abi::{Backend, Reason};

use crate::sandbox::{self, Sandbox, command, ip};

pub(crate) fn options(pins: &Pins) -> LoadOptions {
    let sizes = TableSizes { flows: 64, frontends: 8, services: 8, slots: 64, backends: 16 };
    LoadOptions { pins: Some(pins.clone()), sizes, ..LoadOptions::default() }
}

pub(crate) fn pins(sandbox: &Sandbox) -> Pins {
    Pins::create(&sandbox.bpffs).unwrap_or_else(|error| panic!("{error}"))
}

fn load(pins: &Pins) -> Loaded {
    Loaded::load(&options(pins)).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn device(name: &str) -> Device {
    let index = nix::net::if_::if_nametoindex(name).expect(name);
    Device { index, name: name.to_owned(), link: LinkLayer::Ethernet }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

pub(crate) fn programs(pins: &Pins) -> Vec<u32> {
    attached(pins).expect("readable").into_iter().map(|(_, _, program)| program).collect()
}

pub(crate) fn every_map_but_the_trace_is_pinned_and_adopted() {
    sandbox::run(|sandbox| {
        let pins = pins(sandbox);
        let backend = Backend { generation: 5, address: [10, 0, 0, 1], port: 80, flags: 0, service: 3 };
        load(&pins).take_maps().expect("maps").set_backend(3, backend).expect("written");

        let mut expected: Vec<_> = PINNED.iter().map(ToString::to_string).collect();
        expected.sort();
        assert_eq!(names(&pins.maps()), expected);
        let object = aya::Ebpf::load(lb_agent::object::EBPF_OBJECT).expect("loads");
        let of_one_load = [".rodata", ".bss", "AYA_LOG", "FRAGMENTS", "SCRATCH"];
        for (name, _) in object.maps().filter(|(name, _)| !of_one_load.iter().any(|prefix| name.starts_with(prefix))) {
            assert!(PINNED.contains(&name), "{name} is in the object and not in PINNED");
        }

        // Another size is asked for; the one that is there wins.
        let mut other = options(&pins);
        other.sizes.backends = 32;
        let maps = Loaded::load(&other).and_then(|mut loaded| loaded.take_maps()).expect("adopted");
        let existing = FamilyMaps::<[u8; 4]>::existing(&maps).expect("read");
        assert_eq!(existing.backends, [(3, backend)]);
        assert_eq!(FamilyMaps::<[u8; 4]>::capacities(&maps).backends, 16);
    });
}

pub(crate) fn a_pinned_map_of_another_layout_is_refused_by_name_and_kept() {
    sandbox::run(|sandbox| {
        let pins = pins(sandbox);
        let path = pins.map("BACKENDS4");
        command("bpftool", &format!("map create {} type array key 4 value 12 entries 16 name OTHER", path.display()));
        let error = Loaded::load(&options(&pins)).expect_err("another layout").to_string();
        for part in ["BACKENDS4", "value_size is 12, expected 16", "lb-agent cleanup"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(path.exists());

        fs::remove_file(&path).expect("removed");
        cleanup(&pins).expect("clean");
    });
}

pub(crate) fn counters_of_a_version_with_fewer_reasons_are_replaced() {
    sandbox::run(|sandbox| {
        let pins = pins(sandbox);
        let path = pins.map("COUNTERS");
        let create = "map create PATH type percpu_array key 4 value 8 entries 3 name COUNTERS";
        command("bpftool", &create.replace("PATH", path.to_str().expect("text")));
        load(&pins);
        let counters = Counters::open(|map| pins.open(map)).expect("pinned").read();
        assert_eq!(counters.expect("read").len(), Reason::ALL.len());
    });
}

pub(crate) fn the_data_plane_of_another_layout_is_refused_until_it_is_cleaned_up() {
    sandbox::run(|sandbox| {
        ip("link add pod0 type veth peer name eth0");
        let own = pins(sandbox);
        load(&own).attach_device(&device("pod0"), Role::Pod).expect("attached");
        let other = own.root().with_file_name("v999");
        fs::rename(own.root(), &other).expect("renamed");

        let error = Pins::create(&sandbox.bpffs).expect_err("another version").to_string();
        assert!(error.contains("v999") && error.contains("lb-agent cleanup"), "{error}");
        assert_eq!(cleanup(&own).expect("clean"), Vec::<std::path::PathBuf>::new());
        assert!(!other.exists());
        assert!(!command("bpftool", "net show dev pod0").contains("tcx"));
        pins(sandbox);
    });
}

pub(crate) fn a_pin_that_is_not_ours_is_named_and_left_alone() {
    sandbox::run(|sandbox| {
        ip("link add pod0 type veth peer name eth0");
        let pins = pins(sandbox);
        let foreign = pins.link(&format!("tcx-{}-ingress", device("pod0").index));
        command("bpftool", &format!("map create {} type array key 4 value 4 entries 1 name THEIRS", foreign.display()));

        let error = load(&pins).attach_device(&device("pod0"), Role::Pod).expect_err("something is in the way");
        assert!(matches!(error, LoaderError::ForeignPin { .. }), "{error}");
        assert!(error.to_string().contains(foreign.to_str().expect("text")), "{error}");
        assert!(error.to_string().contains("found a map"), "{error}");

        assert_eq!(cleanup(&pins).expect("clean"), std::slice::from_ref(&foreign));
        assert!(foreign.exists());
        assert!(!pins.maps().exists());
    });
}

pub(crate) fn a_new_agent_replaces_programs_in_the_links_of_the_old_one() {
    sandbox::run(|sandbox| {
        ip("link add pod0 type veth peer name eth0");
        let pins = pins(sandbox);
        let attach = || {
            let mut loaded = load(&pins);
            loaded.attach_cgroup(&sandbox.cgroup).unwrap_or_else(|error| panic!("{error}"));
            loaded.attach_device(&device("pod0"), Role::Pod).unwrap_or_else(|error| panic!("{error}"));
            loaded.attach_device(&device("eth0"), Role::Uplink).unwrap_or_else(|error| panic!("{error}"));
        };
        let link_ids = || -> Vec<serde_json::Value> {
            let id = |path: &Path| {
                let shown = command("bpftool", &format!("-j link show pinned {}", path.display()));
                serde_json::from_str::<serde_json::Value>(&shown).expect("JSON")["id"].clone()
            };
            attached(&pins).expect("readable").iter().map(|(path, _, _)| id(path)).collect()
        };

        attach();
        let first = programs(&pins);
        assert_eq!(first.len(), SocketHook::ALL.len() + 4);
        let links = link_ids();
        attach();
        let second = programs(&pins);
        assert_eq!(second.len(), first.len());
        assert!(first.iter().all(|program| !second.contains(program)), "{first:?} {second:?}");
        assert_eq!(link_ids(), links);

        // A device that changes its role gets the other programs through the same links.
        load(&pins).attach_device(&device("pod0"), Role::Uplink).expect("attached");
        assert_eq!(attached(&pins).expect("readable").len(), first.len());

        assert_eq!(cleanup(&pins).expect("clean"), Vec::<std::path::PathBuf>::new());
        assert!(!names(&sandbox.bpffs).contains(&"lb".to_owned()));
        assert_eq!(command("bpftool", "net show dev pod0").matches("tcx").count(), 0);
    });
}

pub(crate) fn links_of_devices_and_cgroups_that_are_gone_are_replaced() {
    sandbox::run(|sandbox| {
        let pins = pins(sandbox);
        let cgroup = sandbox.cgroup.join("node");
        let mut loaded = load(&pins);
        fs::create_dir(&cgroup).expect("a cgroup");
        ip("link add pod0 index 77 type veth peer name eth0");
        loaded.attach_cgroup(&cgroup).expect("attached");
        loaded.attach_device(&device("pod0"), Role::Pod).expect("attached");

        fs::remove_dir(&cgroup).expect("removed");
        fs::create_dir(&cgroup).expect("made anew");
        ip("link del pod0");
        ip("link add pod0 index 77 type veth peer name eth0");
        loaded.attach_cgroup(&cgroup).unwrap_or_else(|error| panic!("{error}"));
        loaded.attach_device(&device("pod0"), Role::Pod).unwrap_or_else(|error| panic!("{error}"));
        let held: Vec<_> = attached(&pins).expect("readable").into_iter().map(|(_, held, _)| held).collect();
        assert!(held.contains(&Attached::Device(Direction::Ingress, 77)), "{held:?}");
        assert!(!held.iter().any(|held| matches!(held, Attached::Cgroup(_, 0))), "{held:?}");

        ip("link del pod0");
        loaded.detach_devices_except(&[].into()).expect("detached");
        assert_eq!(attached(&pins).expect("readable").len(), SocketHook::ALL.len());
        cleanup(&pins).expect("clean");
        fs::remove_dir(&cgroup).expect("removed");
    });
}

pub(crate) fn clsact_filters_are_replaced_in_place_and_cleaned_up() {
    sandbox::run(|sandbox| {
        ip("link add pod0 type veth peer name eth0");
        command("tc", "qdisc add dev pod0 clsact");
        let pins = pins(sandbox);
        for role in [Role::Pod, Role::Uplink] {
            let mut loaded = load(&pins);
            loaded.use_clsact();
            loaded.attach_device(&device("pod0"), role).unwrap_or_else(|error| panic!("{error}"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let found = runtime.block_on(loader::clsact_filters()).unwrap_or_else(|error| panic!("{error}"));
        let index = device("pod0").index;
        let id = |name: &str| ProgramInfo::from_pin(pins.program(name)).expect("pinned").id();
        let expected =
            [(Direction::Ingress, index, id("uplink_ingress")), (Direction::Egress, index, id("uplink_egress"))];
        assert_eq!(found, expected);
        for direction in ["ingress", "egress"] {
            let filters = command("tc", &format!("filter show dev pod0 {direction}"));
            assert_eq!(filters.matches("handle 0x6c620001").count(), 1, "{filters}");
            assert!(filters.contains(&format!("uplink_{direction}")), "{filters}");
        }

        // Somebody else's filter, of the same priority and kind.
        let theirs = pins.program("pod_ingress");
        command("tc", &format!("filter add dev pod0 ingress prio 1 bpf da object-pinned {}", theirs.display()));
        cleanup(&pins).expect("clean");
        assert!(!command("tc", "filter show dev pod0 egress").contains("bpf"));
        let filters = command("tc", "filter show dev pod0 ingress");
        assert!(filters.contains("pod_ingress") && !filters.contains("0x6c620001"), "{filters}");
    });
}

pub(crate) fn a_second_agent_is_refused_and_the_first_is_named() {
    sandbox::run(|sandbox| {
        let pins = pins(sandbox);
        let lock = pins.lock().expect("free");
        for error in [pins.lock().expect_err("held"), cleanup(&pins).expect_err("held")] {
            assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
        }
        drop(lock);
        drop(pins.lock().expect("free again"));
    });
}

pub(crate) fn what_devices_were_to_a_former_agent_is_known_from_its_links_and_filters() {
    sandbox::run(|sandbox| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        for clsact in [false, true] {
            let pins = pins(sandbox);
            let former = || runtime.block_on(loader::former_devices(&pins)).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(former(), [].into());
            ip("link add pod0 type veth peer name eth0");
            let [pod, uplink] = ["pod0", "eth0"].map(device);
            let mut loaded = load(&pins);
            if clsact {
                loaded.use_clsact();
            }
            loaded.attach_device(&pod, Role::Pod).unwrap_or_else(|error| panic!("{error}"));
            loaded.attach_device(&uplink, Role::Uplink).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(former(), [(pod.index, Some(Role::Pod)), (uplink.index, Some(Role::Uplink))].into());
            // One that ended before it attached its programs: those of the first are nobody's that is known.
            drop(load(&pins));
            assert_eq!(former(), [(pod.index, None), (uplink.index, None)].into());
            ip("link del pod0");
            assert_eq!(former(), [].into(), "what is gone");
            cleanup(&pins).expect("clean");
        }
    });
}
