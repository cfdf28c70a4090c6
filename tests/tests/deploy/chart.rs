//! What only the chart can do.

use serde_json::{Value, json};

use crate::render::{self, chart, container, of_kind};

const HOST: &str = "apiServer.host=192.0.2.10";

fn refusal(arguments: &[&str]) -> String {
    let output = render::helm(arguments);
    assert!(!output.status.success(), "rendered with {arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn environment(objects: &[Value]) -> Vec<&str> {
    container(objects)["env"].as_array().expect("variables").iter().filter_map(|one| one["name"].as_str()).collect()
}

pub(crate) fn it_asks_how_the_api_server_is_reached() {
    let error = refusal(&[]);
    assert!(error.contains("apiServer.host") && error.contains("kubeconfig.hostPath"), "{error}");
}

pub(crate) fn its_schema_refuses_what_cannot_work() {
    chart(&["--set", HOST]);
    for (wrong, named) in [
        ("apiserver.host=192.0.2.10", "apiserver"),
        ("apiServer.host=https://192.0.2.10:6443", "host"),
        ("apiServer.port=65536", "port"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("capabilities.sysAdmin=yes", "sysAdmin"),
        ("privileged=1", "privileged"),
        ("updateStrategy.rollingUpdate.maxSurge=1", "maxSurge"),
        ("cgroup.hostPath=sys/fs/cgroup", "hostPath"),
        ("config.content=mode: nftables", "content"),
        ("nodeSelector.zone=1", "zone"),
    ] {
        let error = refusal(&["--set", HOST, "--set", wrong]);
        assert!(error.contains("schema") && error.contains(named), "{wrong}: {error}");
    }
}

pub(crate) fn the_configuration_of_kubeadm_is_taken_as_it_is() {
    let objects = chart(&["--set", "config.existingConfigMap=kube-proxy"]);
    assert!(objects.iter().all(|object| object["kind"] != "ConfigMap"));
    // It names /var/lib/kube-proxy/kubeconfig.conf, which is in the same ConfigMap: all of it is mounted.
    let volumes = &of_kind(&objects, "DaemonSet")["spec"]["template"]["spec"]["volumes"];
    let config = volumes.as_array().expect("volumes").iter().find(|volume| volume["name"] == "config");
    assert_eq!(config, Some(&json!({ "name": "config", "configMap": { "name": "kube-proxy" } })));
    assert_eq!(environment(&objects), ["NODE_NAME", "LB_BPFFS"]);
}

pub(crate) fn what_kubeconfig_and_configuration_are_given_reaches_the_pod() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.conf");
    let text =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration # ours\nmode: \"nftables\"\n";
    std::fs::write(&file, text).expect("write");
    let content = format!("config.content={}", file.display());
    let objects = chart(&["--set", HOST, "--set-file", &content, "--set", "extraArgs={--balance,maglev}"]);
    assert_eq!(of_kind(&objects, "ConfigMap")["data"]["config.conf"], text);
    let arguments = container(&objects)["args"].as_array().expect("arguments");
    assert_eq!(arguments[arguments.len() - 2..], ["--balance", "maglev"]);

    let objects = chart(&["--set", "kubeconfig.hostPath=/etc/kubernetes/node.conf"]);
    let arguments = container(&objects)["args"].as_array().expect("arguments");
    assert_eq!(arguments[arguments.len() - 2..], ["--kubeconfig", "/etc/lb/kubeconfig"]);
    assert_eq!(environment(&objects), ["NODE_NAME", "LB_BPFFS"]);
}
