//! The real helm and kubectl, and the objects that they render.

use std::{
    env,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use lb_tests::lab::sandbox::CannotRun;
use serde_json::Value;

/// The repository's directory of manifests.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a directory of the workspace").join("deploy")
}

/// A program that `cargo xtask test` names by a variable.
fn program(variable: &str) -> PathBuf {
    // Not by PATH: what a chart renders differs between releases. Without the message of a panic: the harness prints one
    // line.
    let Some(program) = env::var_os(variable) else {
        let reason = format!("{variable} names no program: `cargo xtask test` has it do so");
        resume_unwind(Box::new(CannotRun(reason)))
    };
    program.into()
}

/// A command of kubectl, which finds no kubeconfig that it was not told of.
pub(crate) fn kubectl() -> Command {
    let mut command = Command::new(program("KUBECTL"));
    command.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command
}

/// Renders a directory with `kubectl kustomize`.
pub(crate) fn kustomize(directory: &Path) -> Vec<Value> {
    let output = kubectl().arg("kustomize").arg(directory).output().expect("start kubectl");
    documents(&succeeded(&output, &directory.display().to_string()))
}

/// Runs `helm template`, for the namespace that the kustomize base is for, with more arguments.
pub(crate) fn helm(arguments: &[&str]) -> Output {
    let mut command = Command::new(program("HELM"));
    command.args(["template", "lb-agent"]).arg(deploy().join("chart")).args(["--namespace", "kube-system"]);
    // It is told what is cached and configured for no user.
    command.env("HOME", "/nonexistent").env_remove("KUBECONFIG");
    command.args(arguments).output().expect("start helm")
}

/// The objects that the chart renders with these more arguments.
pub(crate) fn chart(arguments: &[&str]) -> Vec<Value> {
    documents(&succeeded(&helm(arguments), &format!("helm template {}", arguments.join(" "))))
}

fn succeeded(output: &Output, what: &str) -> String {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("YAML is UTF-8")
}

/// The objects of a stream of YAML documents, in the order of their kinds and names.
fn documents(text: &str) -> Vec<Value> {
    let mut lines: Vec<Vec<&str>> = vec![Vec::new()];
    for line in text.lines() {
        if line == "---" {
            lines.push(Vec::new());
        } else {
            lines.last_mut().expect("never empty").push(line);
        }
    }
    let parsed = lines.into_iter().map(|lines| {
        let text = lines.join("\n") + "\n";
        serde_saphyr::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
    });
    let mut objects: Vec<Value> = parsed.filter(|document| !document.is_null()).collect();
    objects.sort_by_key(name);
    objects
}

/// `Kind/name`.
pub(crate) fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// The object of a kind.
pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    first
}

/// The only container of the `DaemonSet`.
pub(crate) fn container(objects: &[Value]) -> &Value {
    let containers = &of_kind(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().map(Vec::len), Some(1));
    &containers[0]
}
