use std::{
    io::Read as _,
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use lb_common::abi::Tuple;
use nix::libc;
use serde_json::{Value, json};

use super::{AGENT, document, enter, flows, lb_agent, pinned, text};
use crate::sandbox::{self, Sandbox};

fn clients(sandbox: &Sandbox, filters: &str) -> Vec<String> {
    let list = document(sandbox, &format!("flow list {filters}"));
    let items = list["items"].as_array().expect("a list").iter();
    let mut clients: Vec<_> = items.map(|flow| flow["client"].as_str().expect("an address").to_owned()).collect();
    clients.sort();
    clients
}

pub(crate) fn a_flow_is_listed_once_by_any_of_its_features_and_flushed_alone() {
    sandbox::run(|sandbox| {
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

pub(crate) fn a_list_of_many_flows_takes_no_more_memory_than_one_of_few() {
    sandbox::run(|sandbox| {
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
