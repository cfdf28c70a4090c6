//! What the pods are.

use std::{collections::BTreeSet, env, process::Command};

use serde_json::{Value, json};

use crate::{
    render::{container, kustomize, of_kind},
    variants::{self, usual},
};

/// What `lb-agent preflight` and the loader ask for; the lab's agents are kept to these as well.
const CAPABILITIES: [&str; 3] = ["BPF", "NET_ADMIN", "PERFMON"];

fn pod(objects: &[Value]) -> &Value {
    &of_kind(objects, "DaemonSet")["spec"]["template"]["spec"]
}

pub(crate) fn the_agent_has_three_capabilities_and_nothing_else_of_root() {
    for variant in variants::all() {
        let objects = kustomize(&variant);
        let (pod, context) = (pod(&objects), &container(&objects)["securityContext"]);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod.get("hostPID").or(pod.get("hostIPC")), None);
        let capabilities = &context["capabilities"];
        let mut expected: Vec<&str> = CAPABILITIES.to_vec();
        match variant.file_name().and_then(|name| name.to_str()) {
            Some("privileged") => {
                assert_eq!((&context["privileged"], capabilities), (&json!(true), &Value::Null));
                continue;
            }
            Some("sys-admin") => expected.push("SYS_ADMIN"),
            _ => assert_eq!(context["allowPrivilegeEscalation"], false),
        }
        assert_eq!(context["privileged"], false);
        assert_eq!(*capabilities, json!({ "add": expected, "drop": ["ALL"] }), "{}", variant.display());
        // The node's files: three directories, of which one is to be written to.
        let volumes = pod["volumes"].as_array().expect("volumes");
        let paths: BTreeSet<_> = volumes.iter().filter_map(|volume| volume["hostPath"]["path"].as_str()).collect();
        let unexpected =
            paths.difference(&BTreeSet::from(["/sys/fs/bpf", "/sys/fs/cgroup", "/etc/kubernetes/lb.conf"])).count();
        assert_eq!(unexpected, 0, "{paths:?}");
        let mounts = container(&objects)["volumeMounts"].as_array().expect("mounts");
        let written: Vec<_> =
            mounts.iter().filter(|mount| mount["readOnly"] != true).map(|mount| &mount["name"]).collect();
        assert_eq!(written, ["bpf"]);
    }
}

pub(crate) fn the_agent_is_on_every_node_and_its_update_leaves_none_without_data_plane() {
    let objects = kustomize(&usual());
    let pod = pod(&objects);
    assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));
    assert_eq!(pod["nodeSelector"], json!({ "kubernetes.io/os": "linux" }));
    assert_eq!((&pod["hostNetwork"], &pod["priorityClassName"]), (&json!(true), &json!("system-node-critical")));
    let update = &of_kind(&objects, "DaemonSet")["spec"]["updateStrategy"];
    assert_eq!(*update, json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 } }));
    // `cleanup` is what would take the data plane away: nothing calls it.
    let container = container(&objects);
    assert_eq!((&container["lifecycle"], &pod["initContainers"]), (&Value::Null, &Value::Null));
    let probe = |name: &str| container[name]["httpGet"].clone();
    assert_eq!(probe("startupProbe"), json!({ "path": "/livez", "port": 10256 }));
    assert_eq!(probe("livenessProbe"), probe("startupProbe"));
    assert_eq!(probe("readinessProbe"), json!({ "path": "/healthz", "port": 10256 }));
}

pub(crate) fn the_image_is_the_one_that_xtask_makes() {
    let expected = format!("lb-agent:{}", env!("CARGO_PKG_VERSION"));
    for variant in variants::all() {
        assert_eq!(container(&variants::by_helm(&variant))["image"], expected.as_str());
        assert_eq!(container(&kustomize(&variant))["image"], expected.as_str());
    }
}

pub(crate) fn the_configuration_is_one_that_the_agent_takes() {
    let objects = kustomize(&usual());
    let text = of_kind(&objects, "ConfigMap")["data"]["config.conf"].as_str().expect("a configuration");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("config.conf");
    std::fs::write(&file, text).expect("write");
    let Some(agent) = env::var_os("LB_AGENT") else {
        let reason = "LB_AGENT names no program: `cargo xtask test` has it do so".to_owned();
        std::panic::resume_unwind(Box::new(lb_tests::lab::sandbox::CannotRun(reason)))
    };
    let shown = |arguments: &[&str]| {
        let output = Command::new(&agent).args(["run", "--show"]).args(arguments).output().expect("start the agent");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        // The one field that kube-proxy wants and we do not need.
        let warned: Vec<_> = error.lines().filter(|line| line.contains("WARN")).collect();
        assert!(warned.iter().all(|line| line.contains("detectLocal.interfaceNamePrefix")), "{error}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    // It tells pods as the agent does without any file, and not as a file without these fields would.
    let detects = |shown: &str| {
        let line = shown.lines().find(|line| line.trim_start().starts_with("pods:")).map(str::to_owned);
        line.unwrap_or_else(|| panic!("{shown}"))
    };
    let path = file.to_str().expect("UTF-8");
    assert_eq!(detects(&shown(&["--config", path])), detects(&shown(&[])));
}
