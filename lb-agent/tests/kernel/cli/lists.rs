use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use aya::maps::{HashMap, MapData, PerCpuArray, PerCpuValues};
use lb_common::abi::{Affinity, AffinityKey, BackendFlags, Counter, Reason, maps};
use nix::libc;
use serde_json::{Value, json};

use super::{AGENT, document, lb_agent, map, now, pinned, text};
use crate::sandbox;

pub(crate) fn services_and_backends_are_told_by_name_family_and_protocol() {
    sandbox::run(|sandbox| {
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

pub(crate) fn affinities_say_which_of_them_are_in_force() {
    sandbox::run(|sandbox| {
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

pub(crate) fn drops_are_counted_and_followed() {
    sandbox::run(|sandbox| {
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
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
        child.wait().expect("it ends");
    });
}
