//! What Services ask for is explained: affinity, source ranges, a balance; and how Services are named.

use std::net::SocketAddr;

use lb_tests::lab::{
    Family, Host, Lab, ReversePathFilter, agent,
    client::{Ask, Transport},
    cluster::{Cluster, eventually},
    manifest::Service,
    sandbox::Sandbox,
};
use serde_json::json;

use super::{assert_met, deciding, endpoint, endpoints, explain, without_a_trace};

/// A Service with affinity, whose load-balancer addresses only node1's VM may use.
const RESTRICTED: &str = "
apiVersion: v1
kind: Service
metadata: {name: kept, namespace: lab}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.70, 'fd00:10:96::46']
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: [10.1.1.3/32, 'fd00:10:1:1::3/128']
  ports: [{port: 7, protocol: TCP}]
status:
  loadBalancer: {ingress: [{ip: 192.0.2.77}, {ip: 'fd00:192::77'}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kept-4, namespace: lab, labels: {kubernetes.io/service-name: kept}}
addressType: IPv4
ports: [{port: 9000, protocol: TCP}]
endpoints: [{addresses: [10.1.1.1], nodeName: node1}, {addresses: [10.1.2.1], nodeName: node2}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kept-6, namespace: lab, labels: {kubernetes.io/service-name: kept}}
addressType: IPv6
ports: [{port: 9000, protocol: TCP}]
endpoints: [{addresses: ['fd00:10:1:1::1'], nodeName: node1}, {addresses: ['fd00:10:1:2::1'], nodeName: node2}]
";

pub(crate) fn affinity_and_source_ranges_are_explained_as_they_are_applied(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let cluster = Cluster::start(lab, []);
    let (lab, node) = (&cluster.lab, cluster.nodes()[0]);
    cluster.manifests.write("kept.yaml", RESTRICTED);
    eventually("the Service is there", || agent::list_services(node).len(), |count| *count == 2);
    let addresses = |family| {
        let addresses = match family {
            Family::V4 => ["10.96.0.70:7", "192.0.2.77:7"],
            Family::V6 => ["[fd00:10:96::46]:7", "[fd00:192::77]:7"],
        };
        addresses.map(|address| address.parse::<SocketAddr>().expect("an address"))
    };
    let explain = |client: &Host, family, to: SocketAddr| {
        let is_node = client.name() == node.host.name();
        let source = if is_node { "node".to_owned() } else { client.address(family).to_string() };
        explain(node, &source, &to.to_string(), &[])
    };

    // Who may ask: judged at the socket for the node, at the packet for the others.
    let cases = [
        (&node.vm, "packet", None),
        (&node.pods[0], "packet", Some("source_not_allowed")),
        (&node.host, "socket", Some("source_not_allowed")),
    ];
    let cases = || Family::BOTH.into_iter().flat_map(move |family| cases.map(|case| (family, case)));
    let explanations: Vec<_> = without_a_trace(node, || {
        cases().map(|(family, (client, ..))| explain(client, family, addresses(family)[1])).collect()
    });
    for ((family, (client, asker, reason)), explanation) in cases().zip(explanations) {
        let [_, balancer] = addresses(family);
        let context = format!("{} to {balancer}", client.name());
        let way = deciding(&explanation, node, client);
        assert_eq!((&way["asker"], &way["reason"]), (&json!(asker), &json!(reason)), "{context}: {explanation}");
        let vm = format!("{}/{}", node.vm.address(family), if family == Family::V4 { 32 } else { 128 });
        assert_eq!(explanation["sourceRanges"], json!([vm]), "{context}");
        assert_eq!(explanation["frontend"]["restricted"], true, "{context}");
        assert_met(lab, way, &Ask::new(Transport::Tcp, balancer).from(client), family, &context);
    }

    // Whom affinity holds to what: nobody until it has asked, then each to its endpoint, by any frontend.
    let cases = || Family::BOTH.into_iter().flat_map(|family| [&node.vm, &node.host].map(|client| (family, client)));
    let explanations = || -> Vec<_> {
        without_a_trace(node, || {
            cases().map(|(family, client)| explain(client, family, addresses(family)[0])).collect()
        })
    };
    let asked_before = |client: &Host| client.name() == node.vm.name();
    for ((family, client), explanation) in cases().zip(explanations()) {
        let context = format!("{} in {family}", client.name());
        let way = deciding(&explanation, node, client);
        assert_eq!(explanation["affinitySeconds"], 10800, "{context}");
        assert_eq!(way["affinity"].is_string(), asked_before(client), "{context}: {way}");
        let expected: &[f64] = if asked_before(client) { &[1.0] } else { &[0.5, 0.5] };
        let probabilities: Vec<_> = endpoints(way).into_iter().map(|(_, probability)| probability).collect();
        assert_eq!(probabilities, expected, "{context}: {way}");
    }
    let ask = |family, client: &Host| {
        let to = addresses(family)[0];
        endpoint(
            lab,
            &Ask::new(Transport::Tcp, to).from(client).answer(format_args!("{} to {to}", client.name())),
            family,
        )
    };
    let answered: Vec<_> = cases().map(|(family, client)| ask(family, client)).collect();
    for (((family, client), explanation), expected) in cases().zip(explanations()).zip(answered) {
        let context = format!("{} in {family}", client.name());
        let way = deciding(&explanation, node, client);
        assert_eq!(way["affinity"], json!(expected), "{context}: {way}");
        assert_eq!(endpoints(way), [(expected, 1.0)], "{context}: {way}");
        for _ in 0..4 {
            assert_eq!(ask(family, client), expected, "{context}");
        }
    }
}

pub(crate) fn a_service_is_explained_by_its_name_with_no_more_privileges_than_the_agent_has(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints([&lab.nodes[1].pods[0]]);
    let cluster = Cluster::start(lab, [&service]);
    let node = cluster.nodes()[0];
    // A pod asks the cluster IP, somebody outside the node port; a port may be told by its name or its number.
    for (source, destination, asked) in [
        ("10.1.1.1", "lab/web:http", "10.96.0.1:80"),
        ("10.1.1.1", "web:80", "10.96.0.1:80"),
        ("198.51.100.2", "web:http", "192.168.100.1:30101"),
        ("198.51.100.2", "web:80", "10.96.0.1:80"),
        ("2001:db8::2", "lab/web:http", "[fd00:192:168:100::1]:30101"),
    ] {
        let explanation = explain(node, source, destination, &["-p", "tcp"]);
        assert_eq!(explanation["destination"], asked, "{source} {destination}");
        assert_eq!(explanation["service"], "lab/web:http/TCP", "{source} {destination}");
    }
    let bpffs = node.bpffs();
    let command = |arguments: &[&str]| {
        agent::command(node, &[&["explain", "--bpffs", bpffs.to_str().expect("UTF-8")], arguments].concat())
    };
    let printed = command(&["198.51.100.2:40000", "lab/web:echo-udp", "-4"]);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let text = String::from_utf8(printed.stdout).expect("UTF-8");
    for line in [
        "From:     outside 198.51.100.2:40000\n",
        "To:       192.168.100.1:30001/UDP\n",
        "Service:  lab/web:echo-udp/UDP\n",
        "Frontend: *:30001 node port, policy cluster, clients any\n",
        "Picking:  by hash, no affinity\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let endpoint = ["packet", "10.1.2.1:9000", "false", "100.0%", "this", "packet's"];
    assert!(rows.iter().any(|row| *row == endpoint), "{text}");
    assert!(rows.iter().any(|row| row.starts_with(&["packet", "uplinkIngress"]) && row.contains(&"yes")), "{text}");

    let printed = command(&["10.1.1.1", "10.96.0.1:9"]);
    let text = String::from_utf8(printed.stdout).expect("UTF-8");
    assert!(
        text.contains("Frontend: 10.96.0.1, a cluster IP without this port\n") && !text.contains("Picking:"),
        "{text}"
    );

    for (arguments, code, message) in [
        (&["198.51.100.2", "lab/other"][..], 1, "no such Service"),
        (&["198.51.100.2", "10.96.0.1"], 64, "an address needs a port"),
        (
            &["198.51.100.2", "web", "--device", "lo"],
            1,
            "--device lo: no uplink_ingress or bare_ingress is attached there",
        ),
        (&["node", "web", "--from", "pod"], 1, "`node` is no address"),
    ] {
        let failed = command(arguments);
        let error = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}

pub(crate) fn shares_of_a_maglev_table_are_those_of_its_slots(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints(lab.nodes[0].all_pods());
    let cluster = Cluster::start(lab, []);
    let node = cluster.nodes()[0];
    let manifest = service.to_string();
    let named = "name: web}";
    assert!(manifest.contains(named), "{manifest}");
    let annotated = manifest.replacen(named, "name: web, annotations: {lb-agent/balance: maglev}}", 1);
    cluster.manifests.write("web.yaml", &annotated);
    eventually("the Service is there", || agent::list_services(node).len(), |count| *count == 6);
    let explanation = explain(node, "node", "lab/web:http", &["-4"]);
    let shares = endpoints(&explanation["ways"][0]);
    assert_eq!((shares.len(), &explanation["balance"]), (3, &json!("hash")), "{explanation}");
    let sum: f64 = shares.iter().map(|(_, share)| share).sum();
    assert!((sum - 1.0).abs() < 1e-9, "{explanation}");
    // Tables are of prime sizes, which three endpoints cannot share evenly; by 0.5 % at most (docs/architecture.md).
    assert!(shares.iter().all(|(_, share)| (share * 3.0 - 1.0).abs() <= 0.005), "{explanation}");
    assert!(shares.iter().any(|(_, share)| (share * 3.0 - 1.0).abs() > 1e-6), "{explanation}");
}
