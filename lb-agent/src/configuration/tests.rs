use std::{io::Write as _, net::SocketAddr, path::PathBuf};

use serde_json::Value;
use tempfile::NamedTempFile;

use super::{ConfigurationError, Effective, FIELDS, Flag, Given, KubeProxyConfiguration, fields};
use crate::model::{DetectLocal, NodePortAddresses};

const KUBEADM: &str = include_str!("testdata/kubeadm.yaml");
const KUBE_PROXY: &str = include_str!("testdata/kube-proxy-1.36-default.yaml");
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn flags(given: &[(&str, &str)]) -> Vec<Flag> {
    let name = |wanted: &str| FIELDS.iter().filter_map(|field| field.flag).find(|flag| *flag == wanted);
    let flag = |(flag, value): &(&str, &str)| Flag {
        name: name(flag).unwrap_or_else(|| panic!("no flag {flag}")),
        values: vec![(*value).to_owned()],
    };
    given.iter().map(flag).collect()
}

fn effective(file: Option<&str>, given: &[(&str, &str)]) -> Result<Effective, ConfigurationError> {
    let file = file.map(|text| {
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    });
    let path = file.as_ref().map(|file| file.path().to_owned());
    Effective::new(&Given { file: path, flags: flags(given), ..Given::default() })
}

fn of_file(text: &str) -> Effective {
    effective(Some(text), &[]).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn with_fields(text: &str) -> Effective {
    of_file(&format!("{HEAD}{text}"))
}

fn of_flags(given: &[(&str, &str)]) -> Effective {
    effective(None, given).unwrap_or_else(|error| panic!("{error} with {given:?}"))
}

/// The message, without the name of the temporary file.
fn refused(text: &str) -> String {
    let error = effective(Some(&format!("{HEAD}{text}")), &[]).expect_err(text).to_string();
    error
        .lines()
        .map(|line| {
            let rest = line.strip_prefix("--config ").unwrap_or_else(|| panic!("names no file: {line}"));
            rest.split_once(": ").map_or(rest, |(_, rest)| rest)
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Paths of all values that are no objects.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                leaves(member, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn the_table_has_every_field_of_the_type_and_no_other() {
    let mut found = Vec::new();
    let value = serde_json::to_value(KubeProxyConfiguration::default()).expect("a value");
    leaves(&value, "", &mut found);
    // These are left out of a file where they are empty.
    let left_out = ["featureGates", "logging.format", "logging.vmodule", "windowsRunAsService"];
    let streams = ["logging.options.text.splitStream", "logging.options.json.splitStream"];
    found.extend(left_out.into_iter().chain(streams).map(str::to_owned));
    found.retain(|path| !matches!(path.as_str(), "apiVersion" | "kind"));
    found.sort();
    let mut table: Vec<_> = FIELDS.iter().map(|field| field.path.to_owned()).collect();
    table.sort();
    assert_eq!(found, table);
}

#[test]
fn the_document_holds_the_table() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let document = std::fs::read_to_string(&path).expect("docs/configuration.md");
    let table = fields::markdown();
    if std::env::var_os("LB_WRITE_DOCS").is_some() {
        let (before, rest) = document.split_once("| field | flag |").expect("a table");
        let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
        std::fs::write(&path, format!("{before}{table}\n{after}")).expect("written");
    } else {
        assert!(
            document.contains(&table),
            "docs/configuration.md is not up to date: set LB_WRITE_DOCS=1 and test again"
        );
    }
}

#[test]
fn a_file_of_kubeadm_works_unchanged_and_without_a_warning() {
    let effective = of_file(KUBEADM);
    assert_eq!(effective.warnings, [""; 0]);
    assert_eq!(effective.overridden, [""; 0]);
    assert_eq!(effective.kubeconfig, Some(PathBuf::from("/var/lib/kube-proxy/kubeconfig.conf")));
    assert_eq!(
        effective.policy.detect_local,
        DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().expect("a network")])
    );
    assert_eq!(effective.policy.node_port_addresses, NodePortAddresses::All);
    assert_eq!(
        (effective.healthz, effective.metrics),
        (Some(address("0.0.0.0:10256")), Some(address("127.0.0.1:10249")))
    );
    assert_eq!((effective.node_name.as_deref(), effective.oom_score_adj), (None, Some(-999)));
}

#[test]
fn what_kube_proxy_writes_is_what_we_write() {
    let theirs: Value = serde_saphyr::from_str(KUBE_PROXY).expect("YAML");
    for effective in [of_flags(&[("detect-local-mode", "ClusterCIDR")]), of_file(KUBE_PROXY)] {
        let ours: Value = serde_saphyr::from_str(&effective.to_yaml()).expect("YAML");
        assert_eq!(ours, theirs);
        let configz: Value = serde_json::from_str(&effective.configz()).expect("JSON");
        assert_eq!(configz, serde_json::json!({ "kubeproxy.config.k8s.io": theirs }));
    }
}

#[test]
fn what_is_written_is_read_as_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    for text in [
        "mode: nftables\nnftables: {masqueradeAll: true, syncPeriod: 1m30s}\n",
        "mode: ipvs\nipvs: {syncPeriod: 2m, excludeCIDRs: [10.0.0.0/8]}\nfeatureGates: {AllAlpha: true, AllowServiceExternalIPs: false}\n",
        "clusterCIDR: 10.0.0.0/8,fd00::/64\nhostnameOverride: 'on'\nclientConnection: {qps: 5.1, burst: 7}\n",
        "bindAddress: '::'\nlogging: {format: json, flushFrequency: 1000, verbosity: 5}\nnodePortAddresses: [10.0.0.0/8]\n",
        "showHiddenMetricsForVersion: '1.35'\nlogging: {vmodule: [{filePattern: a, verbosity: 1}]}\noomScoreAdj: 5\n",
    ] {
        let first = with_fields(text);
        let path = dir.path().join("written.yaml");
        assert_eq!(first.write(&path).expect("written"), [""; 0], "{text}");
        let again = Effective::new(&Given { file: Some(path), ..Given::default() }).expect("read");
        let bare = |mut effective: Effective| {
            effective.warnings.clear();
            (effective.to_yaml(), effective.policy, effective.healthz, effective.metrics)
        };
        assert_eq!(bare(again), bare(first), "{text}");
    }
}

#[test]
fn what_a_file_cannot_say_is_said_when_it_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let effective = of_flags(&[("metrics-bind-address", "")]);
    let lost = effective.write(&dir.path().join("file")).expect("written");
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert!(
        lost[0].contains("--detect-local-mode Interface") && lost[1].contains("--metrics-bind-address="),
        "{lost:?}"
    );
}

#[test]
fn unknown_fields_are_named() {
    for (text, path) in [
        ("foo: 1", "foo"),
        ("foo: null", "foo"),
        ("BindAddress: 0.0.0.0", "BindAddress"),
        ("conntrack: {max: 1}", "conntrack"),
        ("logging: {options: {text: {size: 1}}}", "logging.options.text"),
        ("logging: {vmodule: [{pattern: a}]}", "logging.vmodule[0]"),
    ] {
        let message = refused(text);
        let name = text.trim_end_matches(['}', ']']).rsplit(['{', '[']).next().unwrap_or(text);
        let name = name.split(':').next().unwrap_or(name);
        assert!(message.starts_with(path) && message.contains(&format!("unknown field `{name}`")), "{message}");
    }
}

#[test]
fn wrong_types_are_named_with_what_was_found() {
    for (text, expected) in [
        ("bindAddressHardFail: 'true'", "bindAddressHardFail: invalid type: string \"true\", expected a boolean"),
        ("configSyncPeriod: 30", "configSyncPeriod: invalid type: integer `30`, expected a string"),
        ("conntrack: {udpTimeout: 1d}", "conntrack.udpTimeout: invalid value: string \"1d\", expected a duration"),
        ("mode: [iptables]", "mode: invalid type: sequence, expected a string"),
        ("featureGates: {A: 1}", "featureGates.A: invalid type: integer `1`, expected a boolean"),
        ("ipvs: 1", "ipvs: invalid type: integer `1`, expected struct"),
        ("nodePortAddresses: primary", "nodePortAddresses: invalid type: string \"primary\", expected a sequence"),
        ("showHiddenMetricsForVersion: 1.35", "showHiddenMetricsForVersion: invalid type: floating point"),
    ] {
        let message = refused(text);
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn what_kube_proxy_refuses_is_refused() {
    for (text, expected) in [
        ("bindAddress: x", "bindAddress: found \"x\", expected an IP address"),
        ("mode: q", "mode: found \"q\", expected iptables, ipvs, nftables, or nothing"),
        ("mode: kernelspace", "mode: found"),
        ("detectLocalMode: Interface", "detectLocalMode: found \"Interface\""),
        ("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface: found \"\""),
        ("detectLocalMode: InterfaceNamePrefix", "detectLocal.interfaceNamePrefix: found \"\""),
        ("clusterCIDR: '10.0.0.0/8,11.0.0.0/8'", "clusterCIDR: found"),
        ("clusterCIDR: '10.0.0.0/8, fd00::/8'", "clusterCIDR: found"),
        ("clusterCIDR: 10.0.0.0", "clusterCIDR: found \"10.0.0.0\""),
        ("configSyncPeriod: -1s", "configSyncPeriod: found -1s, expected more than 0"),
        ("metricsBindAddress: localhost:80", "metricsBindAddress: found \"localhost:80\""),
        ("metricsBindAddress: '[::1]'", "metricsBindAddress: found"),
        ("healthzBindAddress: 1.2.3.4:0", "healthzBindAddress: found"),
        ("healthzBindAddress: '::1:80:'", "healthzBindAddress: found"),
        ("clientConnection: {burst: -1}", "clientConnection.burst: found -1, expected 0 or more"),
        ("nodePortAddresses: [10.0.0.0]", "nodePortAddresses[0]: found \"10.0.0.0\", expected a network"),
        ("nodePortAddresses: [10.0.0.0/8, primary]", "nodePortAddresses[1]: found \"primary\""),
        ("oomScoreAdj: 1001", "oomScoreAdj: found 1001, expected -1000 to 1000"),
        ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit: found 32, expected 0 to 31"),
        ("mode: nftables\nnftables: {masqueradeBit: -1}", "nftables.masqueradeBit: found -1"),
        ("mode: ipvs\nipvs: {excludeCIDRs: [a]}", "ipvs.excludeCIDRs[0]: found \"a\""),
        ("mode: ipvs\nipvs: {minSyncPeriod: 1m}", "ipvs.minSyncPeriod: found 1m0s, expected no more than syncPeriod"),
        (
            "conntrack: {min: -1, udpTimeout: -1s}",
            "conntrack.min: found -1, expected 0 or more\nconntrack.udpTimeout: found",
        ),
        ("logging: {format: xml}", "logging.format: found \"xml\", expected text or json"),
        ("logging: {flushFrequency: -1}", "logging.flushFrequency: found -1ns, expected more than 0"),
        ("logging: {options: {json: {infoBufferSize: 1Q}}}", "logging.options.json.infoBufferSize: found \"1Q\""),
        ("featureGates: {Nope: true}", "featureGates.Nope: found true, expected a feature gate of kube-proxy 1.36"),
        (
            "featureGates: {AllAlpha: true, MultiCIDRServiceAllocator: false}",
            "featureGates.MultiCIDRServiceAllocator: found false, expected true, to which it is locked",
        ),
        ("hostnameOverride: ' '", "hostnameOverride: found nothing but spaces"),
    ] {
        let message = refused(text);
        assert!(message.starts_with(expected), "{message:?} for {text:?}");
    }
}

#[test]
fn a_file_of_another_kind_is_refused() {
    for (text, expected) in [
        ("kind: ConfigMap\napiVersion: v1\n", "config.conf"),
        ("kind: KubeProxyConfiguration\n", "apiVersion: found nothing"),
        (
            "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1\n",
            "found \"kubeproxy.config.k8s.io/v1\"",
        ),
        ("", "kind: found nothing"),
        ("[", "line 1"),
    ] {
        let message = effective(Some(text), &[]).expect_err("an error").to_string();
        assert!(message.contains(expected), "{message}");
    }
    let missing = Given { file: Some("/nowhere/file".into()), ..Given::default() };
    let message = Effective::new(&missing).expect_err("an error").to_string();
    assert_eq!(message, "--config /nowhere/file: No such file or directory (os error 2)");
}

#[test]
fn a_flag_goes_before_the_file_and_says_so() {
    let text = format!("{HEAD}clusterCIDR: 10.0.0.0/8\niptables: {{localhostNodePorts: true}}\nhostnameOverride: a\n");
    let given = [("cluster-cidr", "fd00::/64"), ("iptables-localhost-nodeports", "false"), ("hostname-override", "B ")];
    let effective = effective(Some(&text), &given).expect("understood");
    assert_eq!(effective.policy.detect_local, DetectLocal::ClusterCidr(vec!["fd00::/64".parse().expect("a network")]));
    assert!(!effective.policy.localhost_node_ports);
    assert_eq!(effective.node_name.as_deref(), Some("b"));
    let mut overridden = effective.overridden;
    overridden.sort();
    let expected = [
        "--cluster-cidr goes before clusterCIDR of the file",
        "--hostname-override goes before hostnameOverride of the file",
        "--iptables-localhost-nodeports goes before iptables.localhostNodePorts of the file",
    ];
    assert_eq!(overridden, expected);
}

#[test]
fn a_wrong_flag_is_named_by_its_name() {
    for (flag, value, expected) in [
        ("masquerade-all", "maybe", "--masquerade-all: found \"maybe\", expected true or false"),
        ("nodeport-addresses", "10.0.0.0", "--nodeport-addresses: found \"10.0.0.0\""),
        ("v", "-1", "-v: invalid value: integer `-1`, expected u32"),
        ("conntrack-udp-timeout", "1", "--conntrack-udp-timeout: invalid value: string \"1\", expected a duration"),
        ("feature-gates", "A", "--feature-gates: found \"A\", expected name=true or name=false"),
        ("feature-gates", "A=true", "--feature-gates: found true, expected a feature gate of kube-proxy 1.36"),
        ("vmodule", "a=b", "--vmodule: found \"a=b\", expected pattern=N"),
        ("healthz-bind-address", "nowhere", "--healthz-bind-address: found \"nowhere\""),
    ] {
        let message = effective(None, &[(flag, value)]).expect_err(flag).to_string();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn the_gate_of_external_ips_is_followed_and_others_are_said_to_have_no_effect() {
    assert!(of_flags(&[]).policy.external_ips);
    for (text, served) in [("false", false), ("true", true)] {
        let effective = with_fields(&format!("featureGates: {{AllowServiceExternalIPs: {text}}}\n"));
        assert_eq!(effective.policy.external_ips, served, "{text}");
        assert!(!effective.warnings.iter().any(|warning| warning.contains("featureGates")), "{:?}", effective.warnings);
    }
    let effective = of_flags(&[("feature-gates", "AllAlpha=false,AllowServiceExternalIPs=false")]);
    assert!(!effective.policy.external_ips);
    assert_eq!(effective.warnings, ["--feature-gates has no effect: it switches code of kube-proxy"]);
    // kube-proxy 1.36.3 says that WindowsGracefulNodeShutdown depends on it.
    let effective = with_fields("featureGates: {GracefulNodeShutdown: false}\nclusterCIDR: 10.0.0.0/8\n");
    assert!(effective.warnings[0].contains("featureGates.GracefulNodeShutdown has no effect"));
}

#[test]
fn settings_of_conntrack_have_no_effect_and_their_defaults_are_not_warned_about() {
    let defaults = "conntrack: {maxPerCore: 32768, min: 131072, tcpEstablishedTimeout: 24h, tcpCloseWaitTimeout: 1h}\n";
    assert_eq!(with_fields(defaults), with_fields(""));
    assert!(!with_fields(defaults).warnings.iter().any(|warning| warning.contains("conntrack")));
    let effective = with_fields("clusterCIDR: 10.0.0.0/8\nconntrack: {maxPerCore: 65536, udpTimeout: 30s}\n");
    assert_eq!(effective.policy, with_fields("clusterCIDR: 10.0.0.0/8\n").policy);
    for (warning, field) in effective.warnings.iter().zip(["conntrack.maxPerCore", "conntrack.udpTimeout"]) {
        assert!(warning.contains(&format!("{field} has no effect: ")), "{warning}");
    }
    assert_eq!(effective.warnings.len(), 2, "{:?}", effective.warnings);
}

#[test]
fn how_pods_are_told_follows_kube_proxy_where_its_words_are_used() {
    let network = |text: &str| text.parse().expect("a network");
    let modes = |text: &str| with_fields(text).policy.detect_local;
    assert_eq!(of_flags(&[]).policy.detect_local, DetectLocal::Interface);
    assert_eq!(
        of_flags(&[("kubeconfig", "/f"), ("proxy-mode", "nftables")]).policy.detect_local,
        DetectLocal::Interface
    );
    assert_eq!(modes(""), DetectLocal::Nothing);
    assert_eq!(modes("clusterCIDR: 010.0.0.1/08"), DetectLocal::ClusterCidr(vec![network("10.0.0.0/8")]));
    let both = DetectLocal::ClusterCidr(vec![network("fd00::/64"), network("10.0.0.0/8")]);
    assert_eq!(modes("clusterCIDR: 'fd00::/64,10.0.0.0/8'"), both);
    assert_eq!(modes("detectLocalMode: NodeCIDR"), DetectLocal::NodeCidr);
    let bridge = "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cbr0}";
    assert_eq!(modes(bridge), DetectLocal::Interface);
    assert_eq!(with_fields(bridge).warnings.len(), 1, "{:?}", with_fields(bridge).warnings);
    let file = format!("{HEAD}clusterCIDR: 10.0.0.0/8\n");
    let ours = effective(Some(&file), &[("detect-local-mode", "Interface")]).expect("understood");
    assert_eq!(ours.policy.detect_local, DetectLocal::Interface);
    assert_eq!(
        of_flags(&[("cluster-cidr", "10.0.0.0/8")]).policy.detect_local,
        DetectLocal::ClusterCidr(vec![network("10.0.0.0/8")])
    );
    assert_eq!(of_flags(&[("detect-local-mode", "ClusterCIDR")]).policy.detect_local, DetectLocal::Nothing);
}

#[test]
fn node_port_addresses_depend_on_the_mode() {
    let addresses = |text: &str| with_fields(text).policy.node_port_addresses;
    assert_eq!(addresses("mode: nftables"), NodePortAddresses::Primary);
    for mode in ["", "mode: iptables", "mode: ipvs"] {
        assert_eq!(addresses(mode), NodePortAddresses::All, "{mode}");
    }
    let within = ["10.0.0.0/8", "::/0"].map(|text| text.parse().expect("a network")).to_vec();
    assert_eq!(addresses("mode: nftables\nnodePortAddresses: [10.1.2.3/08]"), NodePortAddresses::Within(within));
    assert_eq!(addresses("nodePortAddresses: [primary]"), NodePortAddresses::Primary);
    for every in ["['0.0.0.0/0', '::/0']", "['0.0.0.0/0']", "['::/0', 10.0.0.0/8, '0.0.0.0/0']"] {
        assert_eq!(addresses(&format!("nodePortAddresses: {every}")), NodePortAddresses::All, "{every}");
    }
    assert!(with_fields("mode: ipvs").warnings.iter().any(|warning| warning.contains("ipvs is taken for iptables")));
}

#[test]
fn the_sync_period_is_that_of_the_mode() {
    let seconds = |text: &str| with_fields(text).sync_period().as_secs();
    let all = "iptables: {syncPeriod: 5s}\nnftables: {syncPeriod: 6s}\nipvs: {syncPeriod: 7s}\n";
    for (mode, expected) in [("", 5), ("mode: iptables\n", 5), ("mode: nftables\n", 6), ("mode: ipvs\n", 7)] {
        assert_eq!((seconds(mode), seconds(&format!("{mode}{all}"))), (30, expected), "{mode}");
    }
    assert_eq!(of_flags(&[("iptables-sync-period", "1m"), ("proxy-mode", "nftables")]).sync_period().as_secs(), 60);
}

#[test]
fn a_specific_bind_address_is_the_nodes_own() {
    let bound = |text: &str| with_fields(&format!("bindAddress: '{text}'")).policy.bind_address;
    assert_eq!(bound("192.168.100.0101"), "192.168.100.101".parse().ok());
    assert_eq!(bound("fd00::1"), "fd00::1".parse().ok());
    assert_eq!((bound("0.0.0.0"), bound("::"), bound("")), (None, None, None));
    assert_eq!(of_flags(&[("bind-address", "192.0.2.1")]).policy.bind_address, "192.0.2.1".parse().ok());
}

#[test]
fn addresses_of_servers_get_their_ports() {
    let both = |effective: Effective| (effective.healthz, effective.metrics);
    let v6 = with_fields("bindAddress: '::'");
    assert_eq!(both(v6), (Some(address("[::]:10256")), Some(address("[::1]:10249"))));
    let given = with_fields("healthzBindAddress: 127.0.0.1\nmetricsBindAddress: '::1'");
    assert_eq!(both(given), (Some(address("127.0.0.1:10256")), Some(address("[::1]:10249"))));
    let given = of_flags(&[("healthz-bind-address", ""), ("metrics-bind-address", "010.0.0.1:80")]);
    assert_eq!(both(given), (None, Some(address("10.0.0.1:80"))));
    let ports = Given { healthz_port: Some(0), metrics_port: Some(7), ..Given::default() };
    let ports = Given { flags: flags(&[("metrics-bind-address", "10.0.0.1")]), ..ports };
    assert_eq!(both(Effective::new(&ports).expect("understood")), (None, Some(address("10.0.0.1:7"))));
}

#[test]
fn what_has_no_effect_is_warned_about_once() {
    let effective =
        of_flags(&[("masquerade-all", "true"), ("conntrack-min", "0"), ("ipvs-scheduler", "rr"), ("v", "5")]);
    let places: Vec<_> = effective.warnings.iter().filter_map(|warning| warning.split_once(' ')).collect();
    assert_eq!(places.iter().map(|(place, _)| *place).collect::<Vec<_>>(), ["--masquerade-all", "--ipvs-scheduler"]);
    assert!(places.iter().all(|(_, rest)| rest.starts_with("has no effect: ")), "{places:?}");
}

#[test]
fn yaml_of_the_kind_that_go_reads_is_read() {
    let effective = with_fields(
        "iptables: {masqueradeAll: yes, localhostNodePorts: off}\nconntrack: null\nconfigSyncPeriod: null\n\
         logging: {options: {text: {infoBufferSize: 512}}}\n",
    );
    assert!(effective.kube_proxy.iptables.masquerade_all && !effective.policy.localhost_node_ports);
    let json = r#"{"kind": "KubeProxyConfiguration", "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "clusterCIDR": "10.0.0.0/8"}"#;
    assert_eq!(of_file(json).kube_proxy.cluster_cidr, "10.0.0.0/8");
}

/// Templates leave such files.
#[test]
fn empty_documents_around_the_configuration_are_nothing() {
    for (before, after) in
        [("", "---\n"), ("---\n", "---\n---\n"), ("---\n# nothing\n---\n", "...\n"), ("", "---\nnull\n")]
    {
        let text = format!("{before}{HEAD}clusterCIDR: 10.0.0.0/8\n{after}");
        assert_eq!(of_file(&text).kube_proxy.cluster_cidr, "10.0.0.0/8", "{text}");
    }
}

#[test]
fn a_second_document_is_refused() {
    let message = refused(&format!("clusterCIDR: 10.0.0.0/8\n---\n{HEAD}clusterCIDR: 10.1.0.0/16\n"));
    assert_eq!(message, "found 2 documents, expected one");
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in ".{0,64}", value in "[a-z0-9:{}\\[\\] .'/-]{0,24}") {
        let _ = effective(Some(&format!("{HEAD}{text}")), &[]);
        let _ = effective(Some(&format!("{HEAD}clusterCIDR: {value}\nhealthzBindAddress: {value}")), &[]);
    }
}
