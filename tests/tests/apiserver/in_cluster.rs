//! `lb-agent run` with nothing but what a pod is given: the environment, and the directory of its service account.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client, Config, api::ListParams};
use lb_tests::lab::{
    agent::{self, Agent},
    client::Outcome,
    cluster::eventually_within,
    path::paths,
    sandbox::{self, Sandbox},
};

use crate::{
    cluster::{Cluster, ask, wait_until_reached},
    objects::{self, ready},
    rights,
};

/// Where every pod has its account. Fixed in all clients of Kubernetes.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long kube uses a token before it reads the file again: a minute, less ten seconds (`TokenFile` of kube-client).
const TOKEN_IS_READ_AGAIN_AFTER: Duration = Duration::from_secs(50);
/// For a new watch after the API server is back.
const WATCHED_AGAIN_WITHIN: Duration = Duration::from_secs(20);

/// Writes the directory, or a new version of it, as kubelet does: a reader sees all of the one or all of the other.
fn write_account(version: &str, token: &str, authority: &[u8]) {
    let directory = Path::new(ACCOUNT);
    let data = directory.join(format!("..{version}"));
    fs::create_dir_all(&data).expect("mkdir below /run");
    for (name, content) in [("token", token.as_bytes()), ("ca.crt", authority), ("namespace", b"kube-system")] {
        fs::write(data.join(name), content).expect("write below /run");
        let link = directory.join(name);
        if !link.is_symlink() {
            symlink(format!("..data/{name}"), link).expect("symlink below /run");
        }
    }
    let new = directory.join("..data_tmp");
    symlink(format!("..{version}"), &new).expect("symlink below /run");
    fs::rename(new, directory.join("..data")).expect("rename below /run");
}

/// The status with which the API server refuses to list Services to the bearer of a token; `None` where it does not.
async fn refusal(token: &str, kubeconfig_of_another: Config) -> Option<u16> {
    let mut config = kubeconfig_of_another;
    config.auth_info.token = Some(token.to_owned().into());
    let client = Client::try_from(config).expect("a client");
    match Api::<Service>::all(client).list(&ListParams::default()).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.code),
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn an_agent_with_what_a_pod_is_given_serves_and_goes_on_when_its_token_is_replaced(sandbox: Sandbox) {
    sandbox::own_var_run();
    let mut cluster = Cluster::start(sandbox);
    let web = cluster.create(objects::web("web"));
    cluster.set_endpoints("web", &ready(&[&cluster.nodes()[1].pods[0]]));
    let (server, authority) = cluster.server();
    let authority = fs::read(authority).expect("the server made it");
    let token = |secret: &'static str| {
        cluster.with_client(async move |client| rights::token_bound_to(&client, secret, "node1").await)
    };
    let [first, second] = ["first", "second"].map(token);
    assert_ne!(first, second);

    cluster.kill_agents();
    let lab = std::sync::Arc::clone(&cluster.lab);
    let node = &lab.nodes[0];
    agent::ask(node, &["cleanup"]);
    fs::remove_file(node.directory().join(lb_tests::lab::LOG)).expect("it has logged");

    write_account("first", &first, &authority);
    let start = Instant::now();
    let mut agent = Agent::start_in_cluster(node, server);
    agent.wait_ready(node);
    let from_node: Vec<_> = paths(&lab).filter(|path| path.client.name() == "node1").collect();
    assert!(!from_node.is_empty());
    for path in &from_node {
        wait_until_reached(path, &web);
    }
    let log = agent::log(node);
    assert_eq!(log.matches("reached by KUBERNETES_SERVICE_HOST").count(), 1, "{log}");
    assert!(log.contains(&format!("https://{server}")) && !log.contains("forbidden"), "{log}");

    // From here on, every new request takes the new token.
    write_account("second", &second, &authority);
    cluster.with_client(async |client| rights::delete_secret(&client, "first").await);
    thread::sleep(TOKEN_IS_READ_AGAIN_AFTER.saturating_sub(start.elapsed()));
    cluster.kill_api_server();
    cluster.resume_api_server();
    let kubeconfig = cluster.kubeconfigs[0].clone();
    let refusals = cluster.with_client(async move |_| {
        let config = lb_tests::apiserver::config(&kubeconfig).await;
        [refusal(&first, config.clone()).await, refusal(&second, config).await]
    });
    assert_eq!(refusals, [Some(401), None]);

    // What only an agent learns that may read: another endpoint.
    cluster.set_endpoints("web", &ready(&[&lab.nodes[1].pods[1]]));
    let moved = |outcome: &Outcome| matches!(outcome, Outcome::Reached(answer) if answer.backend == "node2-pod1");
    for path in &from_node {
        eventually_within(WATCHED_AGAIN_WITHIN, "the other endpoint", || ask(path, &web), moved);
    }
    agent.assert_alive();
    assert!(agent.terminate().success());
}
