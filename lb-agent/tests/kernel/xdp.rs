//! XDP on uplinks: attached, adopted, replaced, kept off, and taken away.

use lb_agent::loader::{
    Attached, LoadOptions, Loaded, Obstacle, Pins, XdpDevices, XdpMode, XdpPlace, attached, cleanup,
};
use lb_common::abi::XdpState;
use nix::libc;

use crate::{
    agent::{Agent, healthy, lb_agent, log, make_uplink, show, until, write_manifest},
    loading::{device, options, pins},
    sandbox::{self, command, ip},
};

fn load(pins: &Pins) -> Loaded {
    Loaded::load(&LoadOptions { xdp: true, ..options(pins) }).unwrap_or_else(|error| panic!("{error}"))
}

/// What a new agent makes of XDP on a device.
fn attach(pins: &Pins, name: &str, mode: XdpMode, obstacle: Option<Obstacle>) -> XdpState {
    let found = load(pins).attach_xdp(&device(name), mode, obstacle).unwrap_or_else(|error| panic!("{error}"));
    let known = XdpDevices::open(pins).and_then(|devices| devices.read()).expect("readable");
    assert!(known.contains(&(device(name).index, found)), "{found:?} {known:?}");
    XdpState::from_number(found.state).expect("a state")
}

/// Where XDP is attached, and the ids of link and program.
fn links(pins: &Pins) -> Vec<(XdpPlace, serde_json::Value, u32)> {
    let id = |path: &std::path::Path| {
        let shown = command("bpftool", &format!("-j link show pinned {}", path.display()));
        serde_json::from_str::<serde_json::Value>(&shown).expect("JSON")["id"].clone()
    };
    let all = attached(pins).expect("readable").into_iter();
    all.filter_map(|(path, attached, program)| match attached {
        Attached::Xdp(place, _) => Some((place, id(&path), program)),
        Attached::Cgroup(..) | Attached::Device(..) => None,
    })
    .collect()
}

fn at_device(name: &str) -> String {
    let shown = command("bpftool", &format!("net show dev {name}"));
    shown.split("tc:").next().unwrap_or_default().to_owned()
}

pub(crate) fn a_new_agent_takes_the_link_over_and_another_mode_replaces_it() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name far0");
        let pins = pins(sandbox);
        assert_eq!(attach(&pins, "eth0", XdpMode::Native, None), XdpState::Native);
        let first = links(&pins);
        assert_eq!(first.len(), 1);
        assert!(at_device("eth0").contains(&format!("driver id {}", first[0].2)), "{}", at_device("eth0"));

        assert_eq!(attach(&pins, "eth0", XdpMode::Native, None), XdpState::Native);
        let second = links(&pins);
        assert_eq!((second[0].0, &second[0].1), (XdpPlace::Native, &first[0].1), "another link");
        assert_ne!(second[0].2, first[0].2, "the old program");

        assert_eq!(attach(&pins, "eth0", XdpMode::Generic, None), XdpState::Generic);
        let third = links(&pins);
        assert_eq!((third.len(), third[0].0), (1, XdpPlace::Generic));
        assert!(at_device("eth0").contains("generic id"), "{}", at_device("eth0"));

        assert_eq!(attach(&pins, "eth0", XdpMode::Off, None), XdpState::Off);
        assert_eq!(links(&pins), []);
        assert!(!at_device("eth0").contains("id"), "{}", at_device("eth0"));
    });
}

pub(crate) fn cleanup_removes_xdp_and_so_does_a_device_that_is_no_uplink_any_more() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name far0");
        ip("link add eth1 index 78 type veth peer name far1");
        let pins = pins(sandbox);
        let known = || XdpDevices::open(&pins).and_then(|devices| devices.read()).expect("readable").len();
        for name in ["eth0", "eth1"] {
            assert_eq!(attach(&pins, name, XdpMode::Native, None), XdpState::Native);
        }
        assert_eq!((links(&pins).len(), known()), (2, 2));
        load(&pins).detach_xdp(device("eth0").index).expect("detached");
        assert_eq!((links(&pins).len(), known()), (1, 1));
        assert!(!at_device("eth0").contains("id"));

        // A link of a device that is gone is no link of the one that has its index now.
        ip("link del eth1");
        ip("link add eth1 index 78 type veth peer name far1");
        assert_eq!(attach(&pins, "eth1", XdpMode::Native, None), XdpState::Native);
        assert!(at_device("eth1").contains("driver id"), "{}", at_device("eth1"));
        load(&pins).detach_devices_except(&[].into()).expect("detached");
        assert_eq!((links(&pins).len(), known()), (0, 0));

        assert_eq!(attach(&pins, "eth0", XdpMode::Native, None), XdpState::Native);
        assert_eq!(cleanup(&pins).expect("clean"), Vec::<std::path::PathBuf>::new());
        assert!(!pins.root().exists());
        assert!(!at_device("eth0").contains("id"), "{}", at_device("eth0"));
    });
}

pub(crate) fn a_program_of_somebody_elses_is_named_and_left_alone() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name far0");
        let pins = pins(sandbox);
        let mut loaded = load(&pins);
        for (theirs, ours) in
            [("xdpdrv", XdpMode::Native), ("xdpgeneric", XdpMode::Generic), ("xdpgeneric", XdpMode::Native)]
        {
            command(
                "bpftool",
                &format!("net attach {theirs} pinned {} dev eth0", pins.program("uplink_xdp").display()),
            );
            let before = at_device("eth0");
            let found = loaded.attach_xdp(&device("eth0"), ours, None).expect("no error");
            assert_eq!(found.state, XdpState::Occupied as u32);
            assert!(before.contains(&format!("id {}", found.detail)), "{found:?} {before}");
            assert_eq!((at_device("eth0"), links(&pins).len()), (before, 0));
            command("bpftool", &format!("net detach {theirs} dev eth0"));
        }
        let found = loaded.attach_xdp(&device("eth0"), XdpMode::Native, None).expect("no error");
        assert_eq!((found.state, found.detail), (XdpState::Native as u32, 0));
    });
}

pub(crate) fn a_device_without_xdp_and_one_that_is_no_place_for_it_are_left_to_tc() {
    sandbox::run(|sandbox| {
        ip("link add eth0 type veth peer name far0");
        ip("link add br0 type bridge");
        let pins = pins(sandbox);
        let mut loaded = load(&pins);
        let found = loaded.attach_xdp(&device("br0"), XdpMode::Native, None).expect("no error");
        assert_eq!((found.state, found.detail), (XdpState::NotSupported as u32, libc::EOPNOTSUPP.unsigned_abs()));
        assert_eq!(attach(&pins, "br0", XdpMode::Generic, None), XdpState::Generic);

        assert_eq!(attach(&pins, "eth0", XdpMode::Auto, None), XdpState::Native);
        assert_eq!(attach(&pins, "eth0", XdpMode::Auto, Some(Obstacle::Virtual)), XdpState::Virtual);
        assert!(!at_device("eth0").contains("id"), "{}", at_device("eth0"));
        assert_eq!(attach(&pins, "eth0", XdpMode::Native, Some(Obstacle::Virtual)), XdpState::Native);
        for mode in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
            assert_eq!(attach(&pins, "eth0", mode, Some(Obstacle::Vlans)), XdpState::Vlans);
            assert_eq!(attach(&pins, "eth0", mode, Some(Obstacle::Bare)), XdpState::Bare);
        }
    });
}

pub(crate) fn the_agent_attaches_as_its_flag_says_and_status_gives_the_reason() {
    sandbox::run(|sandbox| {
        make_uplink();
        write_manifest(sandbox, &["10.244.0.5"]);
        let xdp = || show(sandbox, &["status"])["xdp"].clone();
        let state_is = |state: &str| {
            let found = xdp();
            found[0]["device"] == "eth0"
                && found[0]["state"] == state
                && found.as_array().is_some_and(|all| all.len() == 1)
        };
        let at_hook = || {
            let hooks = show(sandbox, &["status"])["hooks"].as_array().expect("hooks").clone();
            let ours = hooks.into_iter().find(|hook| hook["program"] == "uplink_xdp");
            ours.map(|hook| (hook["target"].clone(), hook["hook"].clone()))
        };
        let run = |flags: &[&str], state: &str, hook: Option<&str>| {
            let agent = Agent::start(sandbox, &[], flags);
            until(sandbox, "healthy", healthy);
            until(sandbox, &format!("{state} with {flags:?}: {}", xdp()), || state_is(state));
            assert_eq!(at_hook(), hook.map(|hook| ("eth0".into(), hook.into())));
            agent
        };
        drop(run(&[], "off", None));
        drop(run(&["--xdp=auto"], "virtual", None));
        assert!(
            log(sandbox).contains("no XDP: packets are balanced at TC device=\"eth0\" reason="),
            "{}",
            log(sandbox)
        );
        assert!(xdp()[0]["reason"].as_str().is_some_and(|reason| reason.contains("unfinished checksums")), "{}", xdp());
        let three = ["setpriv", "--bounding-set", "-all,+bpf,+net_admin,+perfmon", "--inh-caps", "-all"];
        for _ in 0..2 {
            let mut agent = Agent::start(sandbox, &three, &["--xdp=native"]);
            until(sandbox, "native with three capabilities", || healthy() && state_is("native"));
            assert!(agent.signal(libc::SIGTERM).success());
            assert_eq!(at_hook(), Some(("eth0".into(), "xdp native".into())));
        }
        let mut agent = run(&["--xdp=generic"], "generic", Some("xdp generic"));
        assert!(agent.signal(libc::SIGTERM).success());

        drop(run(&["--xdp=off"], "off", None));
        drop(run(&["--xdp=native"], "native", Some("xdp native")));
        let bpffs = sandbox.bpffs.display().to_string();
        assert!(lb_agent(&["cleanup", "--bpffs", &bpffs]).status.success());
        assert!(!sandbox.bpffs.join("lb").exists());
        assert!(!at_device("eth0").contains("id"), "{}", at_device("eth0"));
    });
}
