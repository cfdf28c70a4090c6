//! The objects in the real API server, which is asked to refuse what it does not know.

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
};

use lb_tests::{
    apiserver::ApiServer,
    lab::{lone_host, sandbox::Sandbox},
};
use serde_json::{Value, json};

use crate::{
    render::{self, kubectl, name, of_kind},
    variants,
};

/// Creates objects with the real kubectl, as strictly as the API server checks. Gives them as it keeps them.
pub(crate) fn create(kubeconfig: &Path, objects: &[Value]) -> Result<Vec<Value>, String> {
    // `fieldValidation=Strict` of the request: it is the server that checks.
    let printed = kubectl_with(&["create", "--validate=strict", "--output=json", "--filename=-"], kubeconfig, objects)?;
    let kept = serde_json::Deserializer::from_str(&printed).into_iter();
    Ok(kept.map(|object| object.expect("kubectl writes JSON")).collect())
}

/// Runs kubectl with these objects at its standard input.
fn kubectl_with(arguments: &[&str], kubeconfig: &Path, objects: &[Value]) -> Result<String, String> {
    // One document each: in a List kubectl checks by itself, against the server's schema.
    let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
    let (stdin, stdout, stderr) = (Stdio::piped(), Stdio::piped(), Stdio::piped());
    let mut command = kubectl();
    command.args(arguments).arg("--kubeconfig").arg(kubeconfig).stdin(stdin).stdout(stdout).stderr(stderr);
    let mut child = command.spawn().expect("start kubectl");
    child.stdin.take().expect("piped").write_all(documents.join("\n---\n").as_bytes()).expect("kubectl reads");
    let output = child.wait_with_output().expect("wait for kubectl");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("kubectl writes UTF-8");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Runs something with the kubeconfig of an API server that runs alone.
fn with_api_server(test: impl FnOnce(&Path) + Send + 'static) {
    lone_host("server").run(move || {
        let directory = PathBuf::from("/run/apiserver");
        fs::create_dir(&directory).expect("mkdir in /run");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 6443);
        let server = runtime.block_on(ApiServer::start_with(
            &directory,
            address,
            vec![
                // As clusters are set up, where kube-proxy itself is privileged.
                "--allow-privileged".to_owned(),
            ],
        ));
        test(&server.kubeconfig());
    });
}

/// Whether `kept` has all that `wanted` has. What the API server adds are fields, never elements of lists.
fn holds(kept: &Value, wanted: &Value) -> bool {
    match (kept, wanted) {
        (Value::Object(kept), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| kept.get(key).is_some_and(|kept| holds(kept, wanted)))
        }
        (Value::Array(kept), Value::Array(wanted)) => {
            kept.len() == wanted.len() && kept.iter().zip(wanted).all(|(kept, wanted)| holds(kept, wanted))
        }
        _ => kept == wanted,
    }
}

pub(crate) fn the_api_server_takes_all_objects_and_knows_all_their_fields(_: Sandbox) {
    with_api_server(|kubeconfig| {
        for variant in variants::all() {
            for objects in [render::kustomize(&variant), variants::by_helm(&variant)] {
                let kept =
                    create(kubeconfig, &objects).unwrap_or_else(|error| panic!("{}: {error}", variant.display()));
                assert_eq!(kept.len(), objects.len());
                for object in &objects {
                    let found = kept.iter().find(|kept| name(kept) == name(object)).expect("created");
                    assert!(holds(found, object), "{}: {object:#} was kept as {found:#}", variant.display());
                }
                kubectl_with(&["delete", "--wait=false", "--filename=-"], kubeconfig, &kept).expect("deleted");
            }
        }
        // The command of docs/install.md, which makes the ConfigMap and all others in one go.
        let mut apply = kubectl();
        apply.args(["apply", "--validate=strict", "--kubeconfig"]).arg(kubeconfig).arg("--kustomize");
        let status = apply.arg(variants::usual()).stdout(Stdio::null()).status().expect("start kubectl");
        assert!(status.success());
    });
}

pub(crate) fn an_unknown_field_is_refused(_: Sandbox) {
    with_api_server(|kubeconfig| {
        let objects = render::kustomize(&variants::usual());
        let mut daemon_set = of_kind(&objects, "DaemonSet").clone();
        daemon_set["spec"]["template"]["spec"]["hostnetwork"] = json!(true);
        let error = create(kubeconfig, &[daemon_set]).expect_err("refused");
        // In the words of the server; kubectl's own are others.
        assert!(error.contains("strict decoding error: unknown field \"spec.template.spec.hostnetwork\""), "{error}");
        // And what the components take away would be refused indeed.
        let sys_admin =
            variants::all().into_iter().find(|variant| variant.ends_with("sys-admin")).expect("there is one");
        let mut daemon_set = of_kind(&render::kustomize(&sys_admin), "DaemonSet").clone();
        daemon_set["spec"]["template"]["spec"]["containers"][0]["securityContext"]["privileged"] = json!(true);
        daemon_set["spec"]["template"]["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] =
            json!(false);
        let error = create(kubeconfig, &[daemon_set]).expect_err("refused");
        assert!(error.contains("allowPrivilegeEscalation"), "{error}");
    });
}
