//! Many Services.

use std::{
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, api::PostParams};
use lb_tests::{
    lab::{
        Family, Node,
        agent::{self, Agent},
        client::{Ask, Outcome, Transport},
        cluster::{eventually, eventually_within},
        sandbox::Sandbox,
        server::HTTP_PORT,
    },
    trial,
};
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    objects::{self, NAMESPACE, object},
};

const COUNT: usize = 5_000;
/// Requests to the API server that are under way at once.
const CONCURRENCY: usize = 50;

/// From the creation of the last Service until both nodes serve it. Generous: it takes a fraction of a second, but a
/// debug build on a machine that does other things as well is not to fail.
const LAST_WITHIN: Duration = Duration::from_secs(15);
/// From the start of an agent until it is ready, with all Services there.
const START_WITHIN: Duration = Duration::from_secs(15);
/// What an agent may hold in memory, at any time, in KiB.
const MEMORY_KIB: u64 = 128 * 1024;

/// The `number`th Service, with an address: to choose one takes the API server longer than all else.
fn service(number: usize) -> Service {
    object(json!({
        "metadata": { "name": format!("web-{number}") },
        "spec": {
            "clusterIP": format!("10.96.{}.{}", 16 + number / 250, 1 + number % 250),
            "ports": [{ "name": "http", "port": 80, "targetPort": HTTP_PORT }],
        },
    }))
}

/// Its slice: 2 to 4 endpoints of its own, none of which exists.
fn slice(number: usize) -> EndpointSlice {
    let address = |index| format!("10.{}.{}.{}", 128 + number / 250, number % 250, 1 + index);
    let node = |index| if index % 2 == 0 { "node1" } else { "node2" };
    slice_of(number, (0..2 + number % 3).map(|index| json!({ "addresses": [address(index)], "nodeName": node(index) })))
}

fn slice_of(number: usize, endpoints: impl Iterator<Item = Value>) -> EndpointSlice {
    object(json!({
        "metadata": {
            "name": format!("web-{number}"),
            "labels": { "kubernetes.io/service-name": format!("web-{number}") },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": HTTP_PORT }],
        "endpoints": endpoints.collect::<Vec<_>>(),
    }))
}

/// Creates them with their slices; the last one, whose endpoint is a real pod, after all the others.
fn create_all(cluster: &Cluster) -> Service {
    let pod = &cluster.lab.nodes[1].pods[0];
    let last = slice_of(COUNT, [json!({ "addresses": [pod.address(Family::V4)], "nodeName": "node2" })].into_iter());
    cluster.with_client(async move |client| {
        let services = Api::<Service>::namespaced(client.clone(), NAMESPACE);
        let slices = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
        let create = async |service: Service, slice: EndpointSlice| {
            let parameters = PostParams::default();
            let created = services.create(&parameters, &service).await.expect("create a Service");
            slices.create(&parameters, &slice).await.expect("create a slice");
            created
        };
        let create = &create;
        stream::iter(1..COUNT)
            .for_each_concurrent(CONCURRENCY, async |number| drop(create(service(number), slice(number)).await))
            .await;
        create(service(COUNT), last).await
    })
}

pub(crate) fn five_thousand_services_in_one_go(sandbox: Sandbox) {
    let mut cluster = Cluster::start(sandbox);
    let start = Instant::now();
    let last = create_all(&cluster);
    let created = Instant::now();
    trial::measured(format_args!("{COUNT} Services and slices created in {:.1?}", created - start));

    let to = SocketAddr::new(objects::cluster_ip(&last, Family::V4), 80);
    for node in cluster.nodes() {
        let left = LAST_WITHIN.saturating_sub(created.elapsed());
        let look = || Ask::new(Transport::Http, to).from(&node.pods[1]);
        let name = node.host.name();
        eventually_within(left, &format!("the last Service on {name}"), look, |seen| {
            matches!(seen, Outcome::Reached(_))
        });
        trial::measured(format_args!("{name} serves the last of them after {:.1?}", created.elapsed()));
    }
    for (node, agent) in cluster.nodes().into_iter().zip(cluster.agents.iter().flatten()) {
        assert_all_are_served(node);
        assert_memory_is_bounded(node, agent, "after that");
    }
    start_again(&mut cluster, "with the maps of the last one", |_| ());
    start_again(&mut cluster, "with nothing", |node| drop(agent::ask(node, &["cleanup"])));
    let [node1, _] = cluster.nodes();
    Ask::new(Transport::Http, to).from(&node1.pods[0]).answer("the last Service");
}

/// Kills the agent of node1 and starts another one, after something was done.
fn start_again(cluster: &mut Cluster, what: &str, between: fn(&Node)) {
    let [agent, _] = &mut cluster.agents;
    agent.take().expect("it runs").kill();
    let node = &cluster.lab.nodes[0];
    between(node);
    let start = Instant::now();
    let new = agent.insert(Agent::start_with_kubeconfig(node, &cluster.kubeconfigs[0]));
    new.wait_ready(node);
    let elapsed = start.elapsed();
    trial::measured(format_args!("an agent that starts {what} is ready after {elapsed:.1?}"));
    assert!(elapsed < START_WITHIN, "{what}: {elapsed:?}");
    assert_all_are_served(node);
    assert_memory_is_bounded(node, new, what);
}

/// Every Service is in the maps, with a frontend and all its endpoints.
fn assert_all_are_served(node: &Node) {
    let look = || {
        let list = agent::list_services(node);
        let length = |value: &Value| value.as_array().map_or(0, Vec::len);
        let wanted = |service: &Value| {
            let name = service["name"].as_str()?.strip_prefix("web-")?;
            let number: usize = name.parse().expect("a number");
            let endpoints = if number == COUNT { 1 } else { 2 + number % 3 };
            Some(length(&service["endpoints"]) == endpoints && length(&service["frontends"]) == 1)
        };
        list.iter().filter(|service| wanted(service) == Some(true)).count()
    };
    // Slices are told beside Services: the last one may be there before another's endpoints.
    eventually(&format!("all Services are on {}", node.host.name()), look, |served| *served == COUNT);
}

fn assert_memory_is_bounded(node: &Node, agent: &Agent, when: &str) {
    // What was needed for a moment has been given back by then.
    thread::sleep(Duration::from_millis(100));
    let status = fs::read_to_string(format!("/proc/{}/status", agent.id())).expect("the agent runs");
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number of kB")
    };
    let (now, most) = (field("VmRSS:"), field("VmHWM:"));
    let (name, mib) = (node.host.name(), |kib: u64| kib / 1024);
    trial::measured(format_args!("agent of {name}, {when}: {} MiB resident, {} MiB at most", mib(now), mib(most)));
    assert!(most < MEMORY_KIB, "{name}: {most} KiB");
}
