//! `lb-agent run` with kube-proxy's configuration, as a process: what it prints, writes and refuses. Nothing here reaches the
//! kernel's tables.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
    command.arg("run").args(arguments).env_remove("RUST_LOG").env("NODE_NAME", "Node-A");
    command.output().expect("lb-agent runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs, expects success, and returns what was printed and logged.
fn done(arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    (stdout, stderr)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn show_prints_what_is_in_effect() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.conf");
    fs::write(&file, format!("{HEAD}mode: nftables\nclusterCIDR: 10.244.0.0/16\nnftables: {{masqueradeAll: true}}\n"))
        .expect("written");
    let (shown, log) =
        done(&["--config", path(&file), "--metrics-bind-address=0.0.0.0", "--cluster-cidr=fd00::/64", "--show"]);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&shown).expect("two documents");
    let [theirs, ours] = documents.as_slice() else { panic!("two documents: {shown}") };
    assert_eq!(theirs["clusterCIDR"], "fd00::/64");
    assert_eq!(theirs["nodePortAddresses"], serde_json::json!(["primary"]));
    assert_eq!(theirs["conntrack"]["tcpCloseWaitTimeout"], "1h0m0s");
    let ours = &ours["lb-agent"];
    assert_eq!(ours["nodeName"], "node-a");
    assert_eq!(ours["pods"]["by address"][0], "fd00::/64");
    assert_eq!(ours["nodePorts"]["addresses"], "primary");
    assert_eq!(ours["listen"]["metrics"], "0.0.0.0:10249");
    assert!(log.contains("nftables.masqueradeAll has no effect: "), "{log}");
    assert!(log.contains("--cluster-cidr goes before clusterCIDR of the file"), "{log}");
}

#[test]
fn a_written_configuration_is_taken_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let flags =
        ["--cluster-cidr", "10.0.0.0/8", "--conntrack-min=7", "--masquerade-all", "-v", "4", "--oom-score-adj", "-5"];
    done(&[&flags[..], &["--write-config-to", path(&first)]].concat());
    done(&["--config", path(&first), "--write-config-to", path(&second)]);
    let [first, second] = [first, second].map(|file| fs::read_to_string(file).expect("written"));
    assert_eq!(first, second);
    let file: Value = serde_saphyr::from_str(&first).expect("YAML");
    assert_eq!((&file["clusterCIDR"], &file["conntrack"]["min"]), (&"10.0.0.0/8".into(), &7.into()));
    assert_eq!((&file["iptables"]["masqueradeAll"], &file["logging"]["verbosity"]), (&true.into(), &4.into()));
    assert_eq!(file["oomScoreAdj"], -5);
}

/// Only where the tests' kube-proxy is at hand: `cargo xtask k8s` builds it.
#[test]
fn the_real_kube_proxy_takes_what_we_write() {
    let Some(kube_proxy) = std::env::var_os("KUBE_PROXY").map(std::path::PathBuf::from) else {
        eprintln!("skipped: KUBE_PROXY is not set");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, theirs, again) = (dir.path().join("ours"), dir.path().join("theirs"), dir.path().join("again"));
    for mode in ["iptables", "ipvs", "nftables"] {
        done(&[
            "--proxy-mode",
            mode,
            "--cluster-cidr=10.0.0.0/8,fd00::/64",
            "--masquerade-all",
            "--write-config-to",
            path(&ours),
        ]);
        let output =
            Command::new(&kube_proxy).args(["--config", path(&ours), "--write-config-to", path(&theirs)]).output();
        let output = output.expect("kube-proxy runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(!text(&output.stderr).contains("lenient"), "{}", text(&output.stderr));
        done(&["--config", path(&theirs), "--write-config-to", path(&again)]);
        let [ours, theirs, again]: [Value; 3] = [&ours, &theirs, &again]
            .map(|file| serde_saphyr::from_str(&fs::read_to_string(file).expect("written")).expect("YAML"));
        assert_eq!(ours, theirs, "{mode}");
        assert_eq!(again, theirs, "{mode}");
    }
}

#[test]
fn what_is_wrong_ends_with_64_and_names_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.conf");
    fs::write(&file, format!("{HEAD}conntrack: {{max: 1}}\n")).expect("written");
    let named = format!("--config {}: conntrack", path(&file));
    for (arguments, expected) in [
        (&["--config", path(&file)][..], named.as_str()),
        (&["--config", "/nowhere/file"], "--config /nowhere/file: No such file"),
        (&["--write-config-to", "/nowhere/file"], "--write-config-to /nowhere/file: No such file"),
        (&["--nodeport-addresses", "primary,10.0.0.0/8"], "--nodeport-addresses: found \"primary\""),
        (&["--proxy-mode", "userspace"], "--proxy-mode: found \"userspace\", expected iptables"),
        (&["--masquerade-all=perhaps"], "--masquerade-all: found \"perhaps\""),
        (&["--healthz-bind-address", "nowhere"], "--healthz-bind-address: found \"nowhere\""),
        (&["--service-cluster-ip-range", "10.96.0.0"], "--service-cluster-ip-range"),
        (&["--cleanup"], "lb-agent cleanup-kube-proxy"),
        (&["--master", "https://192.0.2.1"], "--master is not supported"),
        (&["--no-such-flag"], "--no-such-flag"),
    ] {
        let output = run(arguments);
        let log = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {log}");
        assert!(log.contains(expected), "{log:?} for {arguments:?}");
    }
}

#[test]
fn init_only_does_nothing_and_exits() {
    // It is as good as done where the agent could not even start.
    let output = run(&["--init-only", "--bpffs", "/nowhere", "--cgroup", "/nowhere"]);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("--init-only: there is nothing to be done"), "{said}");
}
