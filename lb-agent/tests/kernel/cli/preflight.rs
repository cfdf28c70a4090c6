//! `lb-agent preflight`: what it says of nodes that can and cannot run the agent.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, LinkOrder, SchedClassifier, TcAttachType, tc::TcAttach},
};
use lb_agent::{
    loader::{LoadOptions, Loaded, Pins, TableSizes},
    object::EBPF_OBJECT,
};
use serde_json::Value;

use super::AGENT;
use crate::sandbox::{self, Sandbox, command, ip};

fn make_uplink() {
    ip("link add eth0 type veth peer name far0");
    ip("link set eth0 up");
    ip("link set far0 up");
    ip("addr add 10.0.0.1/24 dev eth0");
    ip("route add default via 10.0.0.254");
}

fn preflight(sandbox: &Sandbox, wrapper: &[&str], more: &[&str]) -> Output {
    let mut line = wrapper.to_vec();
    line.extend([AGENT, "preflight", "--bpffs", sandbox.bpffs.to_str().expect("text")]);
    line.extend(["--cgroup", sandbox.cgroup.to_str().expect("text")]);
    line.extend(more);
    Command::new(line[0]).args(&line[1..]).output().expect("the agent")
}

/// The checks of this name, and the exit code.
fn checks(sandbox: &Sandbox, wrapper: &[&str], more: &[&str]) -> (Vec<Value>, Option<i32>) {
    let output = preflight(sandbox, wrapper, &[more, &["-o", "json"]].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(report["kind"], "Preflight");
    (report["checks"].as_array().expect("a list").clone(), output.status.code())
}

#[track_caller]
fn found<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    let mut named = checks.iter().filter(|check| check["check"] == name);
    let check = named.next().unwrap_or_else(|| panic!("no {name} in {checks:#?}"));
    assert!(named.next().is_none(), "{name} twice in {checks:#?}");
    check
}

pub(crate) fn a_node_that_can_run_the_agent_is_left_as_it_was() {
    sandbox::run(|sandbox| {
        make_uplink();
        fs::write("/proc/sys/net/ipv4/conf/eth0/forwarding", "1").expect("written");
        fs::write("/proc/sys/net/ipv6/conf/eth0/forwarding", "1").expect("written");
        let (checks, code) = checks(sandbox, &[], &[]);
        assert_eq!(code, Some(0), "{checks:#?}");
        for (name, said) in [
            ("kernel", fs::read_to_string("/proc/sys/kernel/osrelease").expect("read").trim()),
            ("btf", "/sys/kernel/btf/vmlinux"),
            ("capabilities", "BPF"),
            ("programs", "accepted by the verifier"),
            ("jit", "on: the programs are "),
            ("device-hook", ""),
            ("bpffs", sandbox.bpffs.to_str().expect("text")),
            ("cgroup2", sandbox.cgroup.to_str().expect("text")),
            ("installed", "no"),
            ("devices", "eth0"),
            ("forwarding", "on"),
            ("device-programs", "none of others"),
            ("cgroup-programs", "none of others"),
            ("kube-proxy", "neither runs nor left anything"),
            ("node-ports", "30000-32767"),
            ("source-ports", "33512 for masquerading: 1024-29999,61000-65535"),
        ] {
            let check = found(&checks, name);
            assert_eq!(check["verdict"], "ok", "{check}");
            assert!(check["found"].as_str().is_some_and(|found| found.contains(said)), "{said}: {check}");
            assert_eq!(check["remedy"], Value::Null, "{check}");
        }
        // Of veth, the kernel tells from 6.3 on.
        assert!(found(&checks, "xdp")["found"].as_str().is_some_and(|found| found.starts_with("veth: ")));
        assert!(!sandbox.bpffs.join("lb").exists(), "nothing was pinned");
        assert!(command("tc", "qdisc show dev eth0").contains("noqueue"), "nothing was attached");
        let text = String::from_utf8(preflight(sandbox, &[], &[]).stdout).expect("text");
        assert!(
            text.starts_with("CHECK             DEVICE   VERDICT   FOUND\nkernel            -        ok "),
            "{text}"
        );
    });
}

pub(crate) fn what_is_missing_is_a_failure_with_a_remedy() {
    sandbox::run(|sandbox| {
        make_uplink();
        let few = ["setpriv", "--bounding-set", "-all,+net_admin", "--inh-caps", "-all"];
        let (unprivileged, code) = checks(sandbox, &few, &[]);
        assert_eq!(code, Some(1));
        let capabilities = found(&unprivileged, "capabilities");
        assert_eq!(capabilities["verdict"], "failure");
        let said = |check: &Value, field: &str, text: &str| {
            assert!(check[field].as_str().is_some_and(|said| said.contains(text)), "{text}: {check}");
        };
        said(capabilities, "found", "BPF, PERFMON are missing");
        said(capabilities, "remedy", "securityContext");
        // What needs no privileges is told all the same.
        assert_eq!(found(&unprivileged, "source-ports")["verdict"], "ok");
        assert!(!unprivileged.iter().any(|check| check["check"] == "programs"), "not tried");

        // A directory that is no bpffs, and none may be mounted.
        let plain = sandbox.dir.join("plain");
        fs::create_dir(&plain).expect("a directory");
        let enough = ["setpriv", "--bounding-set", "-all,+bpf,+net_admin,+perfmon", "--inh-caps", "-all"];
        let at = ["--bpffs", plain.to_str().expect("text"), "--cgroup", plain.to_str().expect("text")];
        let output =
            Command::new(enough[0]).args(&enough[1..]).args([AGENT, "preflight"]).args(at).output().expect("setpriv");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("as it is: bpffs, cgroup2"), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.contains(&format!("\n  bpffs: do `mount -t bpf bpf {}`", plain.display())), "{text}");
        // With three capabilities, the programs and the hooks of devices can be looked at.
        let (limited, code) = checks(sandbox, &enough, &[]);
        assert_eq!(code, Some(0), "{limited:#?}");
        for name in ["programs", "device-programs", "cgroup-programs", "kube-proxy"] {
            assert_eq!(found(&limited, name)["verdict"], "ok", "{limited:#?}");
        }
        assert_eq!(found(&limited, "other-proxies")["verdict"], "unknown");
    });
}

pub(crate) fn others_on_our_hooks_and_ranges_that_overlap_are_warnings() {
    sandbox::run(|sandbox| {
        make_uplink();
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "15000 64999").expect("written");
        fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "8080,30000-30009").expect("written");
        fs::write("/proc/sys/net/ipv4/conf/eth0/forwarding", "0").expect("written");
        // Programs that are none of ours, because they are not those that are pinned.
        let mut others = Ebpf::load(EBPF_OBJECT).expect("loaded");
        let tc: &mut SchedClassifier =
            others.program_mut("pod_egress").expect("there").try_into().expect("a classifier");
        tc.load().expect("accepted");
        let attach = TcAttach::Tcx { attach_type: TcAttachType::Ingress, order: LinkOrder::default() };
        let has_tcx = tc.attach(c"eth0", attach).is_ok();
        let connect: &mut CgroupSockAddr =
            others.program_mut("connect4").expect("there").try_into().expect("a socket program");
        connect.load().expect("accepted");
        let cgroup = fs::File::open(&sandbox.cgroup).expect("a directory");
        let link = connect.attach(cgroup, CgroupAttachMode::Single).expect("attached");

        let (warned, code) = checks(sandbox, &[], &["--devices", "eth0,eth7"]);
        assert_eq!(code, Some(0), "{warned:#?}");
        let mut expected = vec![
            ("cgroup-programs", "connect4: connect4 ("),
            ("devices", "--devices eth7: there is no such device"),
            ("forwarding", "off for ipv4"),
            ("node-ports", "the kernel gives 2758 of 30000-32767 to local sockets, from 15000-64999"),
            ("source-ports", "1 of them are in net.ipv4.ip_local_reserved_ports: 8080"),
        ];
        if has_tcx {
            expected.push(("device-programs", "tcx ingress: pod_egress ("));
        }
        for (name, said) in expected {
            let check = found(&warned, name);
            assert_eq!(check["verdict"], "warning", "{check}");
            assert!(check["found"].as_str().is_some_and(|found| found.contains(said)), "{said}: {check}");
            assert!(check["remedy"].is_string(), "{check}");
        }
        connect.detach(link).expect("detached");
    });
}

pub(crate) fn a_data_plane_that_is_there_and_a_kube_proxy_are_told() {
    sandbox::run(|sandbox| {
        make_uplink();
        let pins = Pins::create(&sandbox.bpffs).unwrap_or_else(|error| panic!("{error}"));
        let sizes = TableSizes { flows: 64, frontends: 8, services: 8, slots: 64, backends: 16 };
        let options = LoadOptions { pins: Some(pins.clone()), sizes, ..LoadOptions::default() };
        let mut loaded = Loaded::load(&options).unwrap_or_else(|error| panic!("{error}"));
        loaded.attach_cgroup(&sandbox.cgroup).unwrap_or_else(|error| panic!("{error}"));
        let lock = pins.lock().unwrap_or_else(|error| panic!("{error}"));
        // A program of that name, which serves this network namespace.
        let kube_proxy = sandbox.dir.join("kube-proxy");
        fs::copy(Path::new("/bin/sleep"), &kube_proxy).expect("copied");
        let mut process = Command::new(&kube_proxy).arg("60").stdout(Stdio::null()).spawn().expect("started");

        let (there, code) = checks(sandbox, &[], &[]);
        drop(process.kill());
        process.wait().expect("a child");
        assert_eq!(code, Some(0), "{there:#?}");
        let installed = found(&there, "installed");
        let pid = format!("an lb-agent runs here, pid {}", std::process::id());
        assert_eq!((&installed["verdict"], &installed["found"]), (&"warning".into(), &pid.into()));
        let kube_proxy = found(&there, "kube-proxy");
        assert_eq!(kube_proxy["verdict"], "warning");
        assert_eq!(kube_proxy["found"], format!("runs (process {})", process.id()));
        // Ours are not others'.
        assert_eq!(found(&there, "cgroup-programs")["verdict"], "ok", "{there:#?}");
        drop(lock);
        fs::create_dir_all(sandbox.bpffs.join("lb/v1/maps")).expect("a directory");
        let (other, code) = checks(sandbox, &[], &[]);
        assert_eq!((code, &found(&other, "installed")["verdict"]), (Some(1), &"failure".into()));
        fs::remove_dir_all(sandbox.bpffs.join("lb/v1")).expect("removed");
        assert_eq!(found(&checks(sandbox, &[], &[]).0, "installed")["verdict"], "ok");
    });
}
