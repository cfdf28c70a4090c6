//! The command line on pinned maps, while no agent runs.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::Ipv4Addr,
    process::{Command, Output, Stdio},
};

use aya::maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use lb_agent::{
    dataplane::{FamilyMaps, KernelMaps},
    loader::{LoadOptions, Loaded, Pins, TableSizes},
    model::Family,
};
use lb_common::abi::{
    Affinity, AffinityKey, Backend, BackendFlags, Counter, Flow, FlowAction, FlowDirection, Frontend, FrontendFlags,
    FrontendKey, Hook, Reason, Service, ServiceFlags, ServiceName, SlotRange, TcpState, Tuple, maps,
};
use nix::libc;
use serde_json::{Value, json};

use crate::sandbox::{self, Sandbox};

const AGENT: &str = env!("CARGO_BIN_EXE_lb-agent");

/// Pinned maps with two Services of both families: `shop/web:http/TCP`, with two endpoints and affinity, and `dns/dns/UDP`,
/// without endpoints.
fn pinned(sandbox: &Sandbox, flows: u32) -> Pins {
    let pins = Pins::create(&sandbox.bpffs).unwrap_or_else(|error| panic!("{error}"));
    let sizes = TableSizes { flows, frontends: 16, services: 8, slots: 64, backends: 16 };
    let options = LoadOptions { pins: Some(pins.clone()), sizes, ..LoadOptions::default() };
    let mut maps =
        Loaded::load(&options).and_then(|mut loaded| loaded.take_maps()).unwrap_or_else(|error| panic!("{error}"));
    fill(&mut maps, [10, 96, 0, 10], [[10, 244, 1, 5], [10, 244, 2, 6]]);
    let v6 = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    fill(&mut maps, v6(0x10), [v6(5), v6(6)]);
    pins
}

fn fill<A: Family>(maps: &mut KernelMaps, cluster_ip: A, endpoints: [A; 2])
where
    KernelMaps: FamilyMaps<A>,
{
    let flags = BackendFlags::SELECTABLE | BackendFlags::IN_CLUSTER;
    for ((index, address), flags) in (5..).zip(endpoints).zip([flags | BackendFlags::LOCAL, flags]) {
        maps.set_backend(index, Backend { generation: 2, address, port: 8080, flags, service: 3 }).expect("written");
    }
    maps.set_slots(0, &[5, 6]).expect("written");
    let cluster = SlotRange { first: 0, count: 2 };
    let flags = ServiceFlags::HAS_ENDPOINTS;
    maps.set_service(3, Service { cluster, flags, affinity_seconds: 60, ..Service::default() }).expect("written");
    FamilyMaps::<A>::set_service(maps, 4, Service::default()).expect("written");
    for (index, name) in [(3, ("shop", "web", "http", 6)), (4, ("dns", "dns", "", 17))] {
        let name = ServiceName::new(name.0, name.1, name.2, name.3).expect("short");
        FamilyMaps::<A>::set_service_name(maps, index, &name).expect("written");
    }
    for (key, service, flags) in [
        (FrontendKey::new(cluster_ip, 80, 6), 3, 0),
        (FrontendKey::new(cluster_ip, 0, 0), 3, FrontendFlags::CLUSTER_IP),
        (FrontendKey::new(A::UNSPECIFIED, 30080, 6), 3, FrontendFlags::EXTERNAL | FrontendFlags::NODE_PORT),
        (FrontendKey::new(cluster_ip, 53, 17), 4, 0),
    ] {
        maps.set_frontend(&key, Frontend { service, owner: 0, flags }).expect("written");
    }
}

/// What is pinned under this name.
fn map(pins: &Pins, name: &'static str) -> Map {
    pins.open(name).unwrap_or_else(|error| panic!("{error}"))
}

type FlowTable = HashMap<MapData, Tuple<[u8; 4]>, Flow<[u8; 4]>>;

fn flows(pins: &Pins) -> FlowTable {
    map(pins, maps::FLOWS4).try_into().expect("a hash map")
}

/// Enters both directions of a flow from a client outside to a backend on this node, as `connect` of the programs does.
fn enter(table: &mut FlowTable, client: [u8; 4], port: u16, backend: u32) {
    let asked = Tuple::new(client, port, [10, 96, 0, 10], 80, 6);
    let endpoint = [[10, 244, 1, 5], [10, 244, 2, 6]][backend as usize - 5];
    let answered = Tuple::new(client, port, endpoint, 8080, 6);
    let flow = Flow {
        action: FlowAction::Stack as u8,
        hooks: Hook::UplinkIngress as u8,
        tcp_state: TcpState::SYN | TcpState::ESTABLISHED,
        direction: FlowDirection::Request as u8,
        to: answered,
        backend,
        generation: 2,
        service: 3,
        last_seen: now(),
        ..Flow::default()
    };
    let reply =
        Flow { hooks: Hook::UplinkEgress as u8, direction: FlowDirection::Reply as u8, to: asked.reversed(), ..flow };
    table.insert(&asked, &flow, 0).expect("written");
    table.insert(&answered.reversed(), &reply, 0).expect("written");
}

fn now() -> u64 {
    lb_agent::jiffies::Jiffies::now().expect("clocks").ago(0)
}

fn lb_agent(sandbox: &Sandbox, line: &str) -> Output {
    let arguments = line.split_whitespace();
    Command::new(AGENT).args(arguments).arg("--bpffs").arg(&sandbox.bpffs).output().expect("the agent")
}

fn text(sandbox: &Sandbox, line: &str) -> String {
    let output = lb_agent(sandbox, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn document(sandbox: &Sandbox, line: &str) -> Value {
    serde_json::from_str(&text(sandbox, &format!("{line} -o json"))).expect("JSON")
}

fn clients(sandbox: &Sandbox, filters: &str) -> Vec<String> {
    let list = document(sandbox, &format!("flow list {filters}"));
    let items = list["items"].as_array().expect("a list").iter();
    let mut clients: Vec<_> = items.map(|flow| flow["client"].as_str().expect("an address").to_owned()).collect();
    clients.sort();
    clients
}

#[test]
fn a_flow_is_listed_once_by_any_of_its_features_and_flushed_alone() {
    sandbox::run("cli::a_flow_is_listed_once_by_any_of_its_features_and_flushed_alone", |sandbox| {
        let pins = pinned(sandbox, 64);
        assert_eq!(document(sandbox, "flow list")["items"], json!([]));
        let mut table = flows(&pins);
        enter(&mut table, [192, 0, 2, 7], 40000, 5);
        enter(&mut table, [192, 0, 2, 8], 40000, 6);

        let list = document(sandbox, "flow list --client 192.0.2.7");
        assert_eq!((&list["apiVersion"], &list["kind"]), (&json!("lb-agent/v1"), &json!("FlowList")));
        let direction = |hook| json!({ "hooks": [hook], "tcp": ["syn", "established"], "idleSeconds": 0 });
        let mut flow = list["items"][0].clone();
        for of in ["/idleSeconds", "/request/idleSeconds", "/reply/idleSeconds"] {
            let seconds = flow.pointer_mut(of).expect("a count").take();
            assert!(seconds.as_u64().is_some_and(|seconds| seconds < 60), "{list}");
            *flow.pointer_mut(of).expect("a count") = json!(0);
        }
        let expected = json!({
            "family": "IPv4", "protocol": "TCP", "client": "192.0.2.7:40000", "frontend": "10.96.0.10:80",
            "backend": "10.244.1.5:8080", "source": "192.0.2.7:40000", "service": "shop/web:http/TCP",
            "backendGone": false, "action": "stack", "idleSeconds": 0,
            "request": direction("uplinkIngress"), "reply": direction("uplinkEgress"),
        });
        assert_eq!((list["items"].as_array().map(Vec::len), flow), (Some(1), expected));

        let (one, other) = ("192.0.2.7:40000".to_owned(), "192.0.2.8:40000".to_owned());
        let both = [one.clone(), other.clone()];
        assert_eq!(clients(sandbox, ""), both);
        assert_eq!(clients(sandbox, "-4 --service shop/web:http --protocol tcp"), both);
        assert_eq!(clients(sandbox, "--backend 10.244.2.0/24"), [other.as_str()]);
        assert_eq!(clients(sandbox, "--service dns").len() + clients(sandbox, "-6").len(), 0);
        let shown = text(sandbox, "flow list --backend 10.244.2.6:8080");
        let header =
            "PROTOCOL   CLIENT            FRONTEND        BACKEND           SERVICE             STATE         IDLE";
        assert_eq!(shown.lines().next(), Some(header));
        assert!(
            shown.contains("192.0.2.8:40000   10.96.0.10:80   10.244.2.6:8080   shop/web:http/TCP   established"),
            "{shown}"
        );

        let nothing = lb_agent(sandbox, "flow flush");
        assert_eq!(nothing.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&nothing.stderr).contains("--all"), "{nothing:?}");
        assert_eq!(text(sandbox, "flow flush --client 192.0.2.7 --dry-run"), "1 flow would be flushed\n");
        assert_eq!(clients(sandbox, ""), both);
        assert_eq!(document(sandbox, "flow flush --client 192.0.2.7")["flows"], 1);
        assert_eq!(clients(sandbox, ""), [other.as_str()]);
        assert_eq!(table.iter().count(), 2, "both entries of the one are gone, and both of the other are there");

        // The request's entry was evicted: what is left is still the flow.
        table.remove(&Tuple::new([192, 0, 2, 8], 40000, [10, 96, 0, 10], 80, 6)).expect("it was there");
        let half = document(sandbox, "flow list --client 192.0.2.8");
        assert_eq!(
            (&half["items"][0]["request"], &half["items"][0]["backend"]),
            (&Value::Null, &json!("10.244.2.6:8080"))
        );
        assert_eq!(text(sandbox, "flow flush --all"), "1 flow flushed\n");
        assert_eq!(table.iter().count(), 0);
    });
}

#[test]
fn a_list_of_many_flows_takes_no_more_memory_than_one_of_few() {
    sandbox::run("cli::a_list_of_many_flows_takes_no_more_memory_than_one_of_few", |sandbox| {
        const FLOWS: u32 = 50_000;
        // The kernel evicts before the table is full.
        let pins = pinned(sandbox, 4 * FLOWS);
        let mut table = flows(&pins);
        enter(&mut table, [192, 0, 2, 7], 40000, 5);
        text(sandbox, "flow list -o json");
        let few = peak_of_children();
        for number in 0..FLOWS {
            enter(&mut table, Ipv4Addr::from(0x0b00_0000 + number).octets(), 40000, 5 + number % 2);
        }
        let mut child = Command::new(AGENT);
        let child = child.args(["flow", "list", "-o", "json", "--bpffs"]).arg(&sandbox.bpffs);
        let mut child = child.stdout(Stdio::piped()).spawn().expect("the agent");
        let mut printed = Vec::new();
        child.stdout.take().expect("piped").read_to_end(&mut printed).expect("read");
        assert!(child.wait().expect("waited").success());
        let many = peak_of_children();
        let list: Value = serde_json::from_slice(&printed).expect("one document");
        assert_eq!(list["items"].as_array().map(Vec::len), Some(FLOWS as usize + 1));
        println!("{few} KiB for one flow, {many} KiB for {FLOWS}: {} KiB printed", printed.len() >> 10);
        assert!(many < few + (8 << 10), "{few} KiB for one flow, {many} KiB for {FLOWS}");
        assert!(printed.len() > 16 << 20, "what would have been held is larger: {}", printed.len());

        // Who has seen enough ends it, without a complaint.
        let line = format!("{AGENT} flow list --bpffs {} | head -n 2", sandbox.bpffs.display());
        let head = Command::new("bash").args(["-c", &line]).output().expect("bash");
        assert!(head.status.success() && head.stderr.is_empty(), "{head:?}");
        assert_eq!(String::from_utf8_lossy(&head.stdout).lines().count(), 2);
        assert_eq!(text(sandbox, "flow flush --service web"), format!("{} flows flushed\n", FLOWS + 1));
        assert_eq!(table.iter().count(), 0);
    });
}

/// Most memory that any child had resident so far, in KiB (getrusage(2)).
fn peak_of_children() -> i64 {
    // SAFETY: integers, of which every bit pattern is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes one `rusage`.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) }, 0);
    usage.ru_maxrss
}

#[test]
fn services_and_backends_are_told_by_name_family_and_protocol() {
    sandbox::run("cli::services_and_backends_are_told_by_name_family_and_protocol", |sandbox| {
        pinned(sandbox, 64);
        let services = |filters: &str| {
            let list = document(sandbox, &format!("service list {filters}"));
            let items = list["items"].as_array().expect("a list").iter();
            items
                .map(|item| format!("{} {}", item["service"].as_str().unwrap(), item["family"].as_str().unwrap()))
                .collect::<Vec<_>>()
        };
        let all = ["dns/dns/UDP IPv4", "dns/dns/UDP IPv6", "shop/web:http/TCP IPv4", "shop/web:http/TCP IPv6"];
        assert_eq!(services(""), all);
        assert_eq!(services("-n shop -6"), [all[3]]);
        assert_eq!(services("--protocol udp -4"), [all[0]]);
        assert_eq!(services("--service web --service dns/dns -4"), [all[0], all[2]]);
        let yaml = text(sandbox, "service list -4 -n shop -o yaml");
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).expect("YAML"), document(sandbox, "service list -4 -n shop"));

        let backends = document(sandbox, "backend list --backend 10.244.0.0/16 --service web");
        let addresses: Vec<_> = backends["items"].as_array().expect("a list").iter().map(|b| &b["address"]).collect();
        assert_eq!(addresses, ["10.244.1.5", "10.244.2.6"]);
        let none = lb_agent(sandbox, "backend list --service dns");
        assert!(none.status.success() && none.stdout.is_empty(), "{none:?}");
        assert_eq!(String::from_utf8_lossy(&none.stderr), "No resources found.\n");

        let shown = text(sandbox, "service show shop/web -4");
        let expected = "Service:  shop/web:http/TCP IPv4\n\
                        Affinity: 60s\n\
                        Traffic:  0 flows, 0 packets, 0 bytes, 0 rejected\n\
                        \n\
                        FRONTEND        KIND        POLICY    CLIENTS\n\
                        10.96.0.10:80   internal    cluster   any\n\
                        *:30080         node port   cluster   any\n\
                        \n\
                        ENDPOINT          ON THIS NODE   SELECTABLE   USED FOR\n\
                        10.244.1.5:8080   true           true         cluster\n\
                        10.244.2.6:8080   false          true         cluster\n";
        assert_eq!(shown, expected);
        assert!(text(sandbox, "service show dns -4").ends_with("\nNo endpoints: traffic is refused.\n"));
        let unknown = lb_agent(sandbox, "service show other");
        assert_eq!(unknown.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&unknown.stderr).contains("no such Service"), "{unknown:?}");
    });
}

#[test]
fn affinities_say_which_of_them_are_in_force() {
    sandbox::run("cli::affinities_say_which_of_them_are_in_force", |sandbox| {
        let pins = pinned(sandbox, 64);
        let mut table: HashMap<MapData, AffinityKey<[u8; 4]>, Affinity> =
            map(&pins, maps::AFFINITY4).try_into().expect("a hash map");
        let list = u32::from(BackendFlags::IN_CLUSTER);
        let key = |client| AffinityKey { namespace: [0; 2], client, service: 3, list };
        let affinity = |backend, generation| Affinity { backend, generation, last_used: now() };
        table.insert(&key([192, 0, 2, 7]), &affinity(5, 2), 0).expect("written");
        table.insert(&key([192, 0, 2, 8]), &affinity(6, 1), 0).expect("written");
        let in_force = |filters: &str| {
            let list = document(sandbox, &format!("affinity list {filters}"));
            let items = list["items"].as_array().expect("a list").iter();
            let mut all: Vec<_> =
                items.map(|item| [&item["client"], &item["backend"], &item["inForce"]].map(Value::to_string)).collect();
            all.sort();
            all
        };
        let one = ["\"192.0.2.7\"", "\"10.244.1.5:8080\"", "true"].map(str::to_owned);
        let other = ["\"192.0.2.8\"", "\"<backend 6?>\"", "false"].map(str::to_owned);
        assert_eq!(in_force("--service web"), [one.clone(), other.clone()]);
        assert_eq!(in_force("--client 192.0.2.8"), [other]);
        assert_eq!(in_force("--backend 10.244.1.5"), [one]);
        assert_eq!(in_force("--service dns").len(), 0);
    });
}

#[test]
fn drops_are_counted_and_followed() {
    sandbox::run("cli::drops_are_counted_and_followed", |sandbox| {
        let pins = pinned(sandbox, 64);
        let mut counters: PerCpuArray<MapData, Counter> = map(&pins, maps::COUNTERS).try_into().expect("an array");
        let mut count = |reason: Reason, count: u64| {
            let cpus = aya::util::nr_cpus().expect("CPUs").get() as usize;
            let mut values = vec![Counter::default(); cpus];
            values[0].count = count;
            counters.set(reason as u32, PerCpuValues::try_from(values).expect("one for each"), 0).expect("written");
        };
        assert_eq!(text(sandbox, "drops"), "Nothing was refused or dropped.\n");
        count(Reason::NoRoute, 3);
        count(Reason::Fragment, 9);
        assert_eq!(text(sandbox, "drops"), "REASON     DISPOSITION   COUNT\nno_route   drop          3\n");
        let expected = json!({
            "apiVersion": "lb-agent/v1", "kind": "Drops",
            "reasons": [{ "reason": "no_route", "disposition": "drop", "count": 3 }], "services": [],
        });
        assert_eq!(document(sandbox, "drops"), expected);
        assert_eq!(document(sandbox, "drops --all")["reasons"].as_array().map(Vec::len), Some(Reason::ALL.len()));

        let mut child = Command::new(AGENT)
            .args(["drops", "--follow", "--interval=10", "--bpffs"])
            .arg(&sandbox.bpffs)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("read"));
        // The line of names is printed after the first look.
        assert_eq!(lines.next().as_deref(), Some("TIME                  ADDED   TOTAL     WHAT"));
        count(Reason::Fragment, 10);
        count(Reason::NoRoute, 5);
        let line = lines.next().expect("a line");
        assert!(line.ends_with("Z  +2      5         drop no_route"), "{line}");
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
        child.wait().expect("it ends");
    });
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let printed = |arguments: &[&str]| {
        let output = Command::new(AGENT).args(arguments).output().expect("the agent");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completion", shell]);
        for word in ["affinity", "flush", "kubeconfig", "no-headers"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let line = format!(
        "source <({AGENT} completion bash); COMP_WORDS=(lb-agent flow fl); COMP_CWORD=2; _lb__agent lb-agent fl flow; \
         echo ${{COMPREPLY[@]}}"
    );
    let completed = Command::new("bash").args(["-c", &line]).output().expect("bash");
    assert_eq!(String::from_utf8_lossy(&completed.stdout), "flush\n", "{completed:?}");

    let page = printed(&["man", "flow", "flush"]);
    assert!(page.contains(".TH lb-agent-flow-flush 1") && page.contains("\\-\\-dry\\-run"), "{page}");
    let dir = tempfile::tempdir().expect("a directory");
    printed(&["man", "--dir", &dir.path().display().to_string()]);
    let mut pages: Vec<_> =
        std::fs::read_dir(dir.path()).expect("listed").map(|e| e.expect("an entry").file_name()).collect();
    pages.sort();
    for page in ["lb-agent.1", "lb-agent-run.1", "lb-agent-service-show.1", "lb-agent-drops.1"] {
        assert!(pages.iter().any(|name| name == page), "{page}: {pages:?}");
    }
    assert!(!pages.iter().any(|name| name.to_string_lossy().contains("help")), "{pages:?}");
    let unknown = Command::new(AGENT).args(["man", "flow", "flash"]).output().expect("the agent");
    assert_eq!(unknown.status.code(), Some(1));
}

const DOCUMENT: &str = include_str!("../../../docs/cli.md");

#[test]
fn every_command_and_every_field_is_in_the_document() {
    sandbox::run("cli::every_command_and_every_field_is_in_the_document", |sandbox| {
        let pins = pinned(sandbox, 64);
        enter(&mut flows(&pins), [192, 0, 2, 7], 40000, 5);
        let mut affinities: HashMap<MapData, AffinityKey<[u8; 4]>, Affinity> =
            map(&pins, maps::AFFINITY4).try_into().expect("a hash map");
        let key = AffinityKey { namespace: [0; 2], client: [192, 0, 2, 7], service: 3, list: 4 };
        affinities.insert(&key, &Affinity { backend: 5, generation: 2, last_used: now() }, 0).expect("written");
        for command in [
            "service list",
            "service show web",
            "backend list",
            "flow list",
            "affinity list",
            "flow flush --dry-run --all",
            "drops --all",
            "status",
            "preflight",
        ] {
            let name =
                command.split_whitespace().take_while(|word| !word.starts_with('-')).collect::<Vec<_>>().join(" ");
            let name = name.replace(" web", "");
            assert!(DOCUMENT.contains(&format!("`lb-agent {name}")), "lb-agent {name} is not in docs/cli.md");
            let output = lb_agent(sandbox, &format!("{command} -o json"));
            let document: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let kind = document["kind"].as_str().expect("a kind");
            let described = format!("\n`{kind}` (`{name}`)");
            assert!(DOCUMENT.contains(&described), "no {described:?} in docs/cli.md");
            let mut fields = Vec::new();
            collect_fields(&document, &mut fields);
            assert!(fields.len() >= 3, "{command}: {document}");
            for field in fields {
                assert!(DOCUMENT.contains(&format!("`{field}`")), "{command}: `{field}` is not in docs/cli.md");
            }
        }
    });
}

/// The names of all fields, but for `apiVersion`, whose value is documented with it.
fn collect_fields(value: &Value, fields: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object.iter().filter(|(name, _)| *name != "apiVersion") {
                fields.push(name.clone());
                collect_fields(value, fields);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect_fields(value, fields)),
        _ => {}
    }
}
