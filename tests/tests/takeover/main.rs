//! Taking a node over from the real kube-proxy, and giving it back: what it left is removed, what others made is not
//! touched, and connections go on.

mod node;
mod rules;

use std::process::ExitCode;

use lb_tests::{
    differential::kube_proxy::Mode,
    lab::{client::Ask, sandbox::Sandbox},
    sandboxed, trial,
};
use node::TakenOver;
use rules::Rules;
use serde_json::Value;

fn main() -> ExitCode {
    use crate as takeover;
    trial::main(
        sandboxed!(
            takeover: a_node_is_taken_over_from_nftables_mode_and_given_back,
            a_node_is_taken_over_from_iptables_mode_and_given_back,
            without_what_keeps_them_alive_connections_end,
            what_iptables_legacy_holds_is_found_with_a_command_that_removes_it,
        )
        .to_vec(),
    )
}

fn a_node_is_taken_over_from_nftables_mode_and_given_back(sandbox: Sandbox) {
    there_and_back(sandbox, Mode::Nftables);
}

fn a_node_is_taken_over_from_iptables_mode_and_given_back(sandbox: Sandbox) {
    there_and_back(sandbox, Mode::Iptables);
}

fn there_and_back(sandbox: Sandbox, mode: Mode) {
    let mut node = TakenOver::set_up(sandbox);
    let of_others = Rules::made_by_others(node.host());
    let lab = node.lab;
    node.start_kube_proxy(mode);
    let mut connections = node.open_connections();
    let rules_of_kube_proxy = Rules::list(node.host());
    assert!(rules_of_kube_proxy != of_others, "kube-proxy made no rules");

    node.start_agent();
    connections.go_on("with the agent beside kube-proxy");
    node.assert_new_connections_are_the_agents();
    let warning = node.cleanup_kube_proxy(&["--dry-run"]);
    assert!(warning.error.contains("kube-proxy is running (process "), "{warning:?}");

    node.stop_kube_proxy();
    let before = Rules::list(node.host());
    let dry = node.cleanup_kube_proxy(&["--dry-run", "-o", "json"]);
    assert_eq!((dry.code, dry.error.as_str()), (0, ""));
    assert_eq!(Rules::list(node.host()), before, "a dry run changes nothing");
    let done = node.cleanup_kube_proxy(&["-o", "json"]);
    assert_eq!((done.code, done.error.as_str()), (0, ""), "{done:?}");
    let [dry, done] = [dry, done].map(|run| serde_json::from_str::<Value>(&run.output).expect("JSON"));
    let tables = |report: &Value| -> Vec<Vec<Value>> {
        let fields = ["family", "table", "mode", "chains", "rules", "jumps"];
        let tables = report["tables"].as_array().expect("a list").iter();
        tables.map(|table| fields.map(|field| table[field].clone()).to_vec()).collect()
    };
    assert_eq!(tables(&dry), tables(&done));
    let found = |name: &str| tables(&done).iter().filter(|table| table[1] == name).count();
    match mode {
        Mode::Nftables => assert_eq!(found("kube-proxy"), 2, "{done}"),
        Mode::Iptables => assert_eq!(["nat", "filter", "mangle"].map(found), [2; 3], "{done}"),
    }
    assert_eq!(done["keepalive"], serde_json::json!(["ip lb-nat-keepalive", "ip6 lb-nat-keepalive"]));

    assert_eq!(Rules::list(node.host()).without_keepalive(), of_others);
    connections.go_on("without kube-proxy's rules");
    node.assert_new_connections_are_the_agents();
    let again = node.cleanup_kube_proxy(&[]);
    assert!(again.output.starts_with("nothing of kube-proxy was found\n"), "{again:?}");

    // And back, kube-proxy first.
    node.start_kube_proxy(mode);
    node.stop_agent_and_clean_up();
    connections.go_on("with kube-proxy again");
    assert!(!Rules::list(node.host()).has_keepalive());
    for path in lb_tests::lab::path::paths(lab) {
        Ask::new(path.transport, path.address(&node.service)).from(path.client).answer(path);
    }
}

fn without_what_keeps_them_alive_connections_end(sandbox: Sandbox) {
    let mut node = TakenOver::set_up(sandbox);
    node.start_kube_proxy(Mode::Nftables);
    let mut connections = node.open_connections();
    node.start_agent();
    node.stop_kube_proxy();
    assert_eq!(node.cleanup_kube_proxy(&["--end-connections"]).code, 0);
    // One is enough to show that the table is needed: each waits for its timeout.
    connections.first_ends();
    node.assert_new_connections_are_the_agents();
}

fn what_iptables_legacy_holds_is_found_with_a_command_that_removes_it(sandbox: Sandbox) {
    let node = TakenOver::set_up(sandbox);
    rules::shell(
        node.host(),
        "for i in iptables-legacy ip6tables-legacy; do
            $i -t nat -N KUBE-SERVICES && $i -t nat -N KUBE-SVC-ERIFXISQEP7F7OF4 && $i -t nat -N KUBE-KUBELET-CANARY
            $i -t nat -A KUBE-SERVICES -p tcp -j KUBE-SVC-ERIFXISQEP7F7OF4
            $i -t nat -A OUTPUT -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES
            $i -t nat -A POSTROUTING -p udp -j MASQUERADE
        done",
    );
    let found = node.cleanup_kube_proxy(&["-o", "json"]);
    assert_eq!(found.code, 1, "something is left: {found:?}");
    let report: Value = serde_json::from_str(&found.output).expect("JSON");
    let legacy = report["legacy"].as_array().expect("a list");
    assert_eq!(
        legacy.iter().map(|table| (&table["family"], &table["chains"])).collect::<Vec<_>>(),
        [(&Value::from("ip"), &Value::from(2)), (&Value::from("ip6"), &Value::from(2))]
    );
    for table in legacy {
        rules::shell(node.host(), table["command"].as_str().expect("a command"));
    }
    for save in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        let rules = rules::shell(node.host(), &format!("{save} -t nat | grep -E '^:KUBE|^-A'"));
        assert_eq!(rules, ":KUBE-KUBELET-CANARY - [0:0]\n-A POSTROUTING -p udp -j MASQUERADE\n");
    }
    assert_eq!(node.cleanup_kube_proxy(&[]).code, 0);
}
