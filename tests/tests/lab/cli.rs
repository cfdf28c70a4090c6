//! What the command line says of real traffic.

use std::net::SocketAddr;

use lb_tests::lab::{
    Family, Lab, ReversePathFilter, agent,
    client::{DatagramSocket, Transport},
    cluster::Cluster,
    manifest::Service,
    path::Path,
    sandbox::Sandbox,
};
use serde_json::{Value, json};

fn items(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    let printed = agent::ask(cluster.nodes()[0], &[arguments, &["-o", "json"]].concat());
    let list: Value = serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
    list["items"].as_array().unwrap_or_else(|| panic!("no list: {printed}")).clone()
}

pub(crate) fn a_flow_is_shown_as_client_and_backend_saw_it_and_ends_when_it_is_flushed(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    // On the other node, so that what comes from outside is masqueraded.
    let service = Service::new("web", 1).with_endpoints([&lab.nodes[1].pods[1]]);
    let mut cluster = Cluster::start(lab, [&service]);
    assert_eq!(items(&cluster, &["flow", "list"]), [] as [Value; 0]);
    for family in Family::BOTH {
        let name = "lab/web:echo-udp/UDP";
        let flag = if family == Family::V4 { "-4" } else { "-6" };
        let flows_begun = || {
            let services = items(&cluster, &["service", "list", flag, "--service", name]);
            assert_eq!(services.len(), 1, "{services:?}");
            services[0]["flows"].as_u64().expect("a count")
        };
        let list = |more: &[&str]| items(&cluster, &[&["flow", "list", flag], more].concat());
        let [node1, node2] = cluster.nodes();
        let transport = Transport::Udp;
        // Through the pod interface's program, and through the uplink's.
        for (client, node_port_of) in [(&node1.vm, None), (&cluster.lab.client, Some(&node1.host))] {
            let path = Path { client, node_port_of, family, transport };
            let asked = path.address(&service);
            let begun = flows_begun();
            let socket = DatagramSocket::open(client, transport, asked);
            let answer = socket.ask().answer(path);
            let from = SocketAddr::new(client.address(family), answer.local.port());

            let flows = list(&[]);
            assert_eq!(flows.len(), 1, "{path}: {flows:?}");
            let [shown] = &flows[..] else { unreachable!() };
            assert_eq!(shown["client"], json!(from), "{path}: {shown}");
            assert_eq!(shown["frontend"], json!(asked), "{path}: {shown}");
            assert_eq!(shown["source"], json!(answer.client_seen), "{path}: {shown}");
            let backend: SocketAddr = serde_json::from_value(shown["backend"].clone()).expect("an address");
            assert_eq!(backend.ip(), node2.pods[1].address(family), "{path}: {shown}");
            assert_eq!((&shown["service"], &shown["protocol"]), (&json!(name), &json!("UDP")), "{path}");
            let forwarded = node_port_of.is_some();
            assert_eq!(shown["action"], if forwarded { "forward" } else { "stack" }, "{path}: {shown}");
            // A backend's answers may come from a pod of this node as well.
            let [request, reply] = if forwarded {
                [json!(["uplinkIngress"]), json!(["podIngress", "uplinkIngress"])]
            } else {
                [json!(["podIngress"]), json!(["podEgress"])]
            };
            assert_eq!((&shown["request"]["hooks"], &shown["reply"]["hooks"]), (&request, &reply), "{path}: {shown}");
            assert_eq!(flows_begun(), begun + 1, "{path}");

            // It is found by what it is, and by nothing else.
            let (client, backend) = (from.to_string(), backend.to_string());
            for (filter, found) in [
                (["--client", &client], 1),
                (["--backend", &backend], 1),
                (["--service", name], 1),
                (["--protocol", "udp"], 1),
                (["--protocol", "tcp"], 0),
                (["--service", "other"], 0),
                (["--client", &backend], 0),
            ] {
                assert_eq!(list(&filter).len(), found, "{path}: {filter:?}");
            }

            // More of the same exchange begins nothing; once it is flushed, the next datagram does.
            socket.ask().answer(path);
            assert_eq!(flows_begun(), begun + 1, "{path}");
            let flush = agent::ask(node1, &["flow", "flush", "--client", &client]);
            assert_eq!(flush, "1 flow flushed\n", "{path}");
            assert_eq!(list(&[]).len(), 0, "{path}");
            assert_eq!(socket.ask().answer(path).backend, node2.pods[1].name(), "{path}");
            assert_eq!((flows_begun(), list(&[]).len()), (begun + 2, 1), "{path}");
            agent::ask(node1, &["flow", "flush", "--all"]);
        }
    }
    // All of it is read from the maps: with no agent it is the same.
    let listed = items(&cluster, &["service", "list"]);
    cluster.kill_agents();
    assert_eq!(items(&cluster, &["service", "list"]), listed);
}
