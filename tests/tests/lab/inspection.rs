//! What an operator sees with the tools that are there anyway.

use std::{
    fs,
    io::{BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

use lb_common::abi::ABI_VERSION;
use lb_tests::lab::{
    Lab, ReversePathFilter,
    client::{Conversation, DatagramSocket, Outcome, Transport},
    cluster::{Cluster, eventually},
    manifest::Service,
    path::paths,
    sandbox::Sandbox,
};
use serde::Deserialize;
use serde_json::Value;

/// What fills the maps that a plain Service leaves empty.
const EXTRA: &str = "
apiVersion: v1
kind: Service
metadata: {name: extra, namespace: default, annotations: {lb-agent/balance: least-conn}}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.77, 'fd00:10:96::4d']
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: [198.51.100.0/24, '2001:db8::/32']
  ports: [{port: 9000}]
status:
  loadBalancer: {ingress: [{ip: 192.0.2.77}, {ip: 'fd00:192::77'}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: extra-4, namespace: default, labels: {kubernetes.io/service-name: extra}}
addressType: IPv4
ports: [{port: 9000}]
endpoints: [{addresses: [10.1.1.1], nodeName: node1}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: extra-6, namespace: default, labels: {kubernetes.io/service-name: extra}}
addressType: IPv6
ports: [{port: 9000}]
endpoints: [{addresses: ['fd00:10:1:1::1'], nodeName: node1}]
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, 'fd00:10:96::/112']}
";

/// Maps that nothing can list: the values belong to sockets, or are read once.
const UNLISTED: [&str; 2] = ["SOCKETS", EVENTS];
/// The kernel takes no type information for a ring buffer.
const EVENTS: &str = "EVENTS";

pub(crate) fn bpftool_shows_keys_and_values_by_field_names(sandbox: Sandbox) {
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let service = Service::new("web", 1).with_endpoints(lab.all_pods());
    let cluster = Cluster::start(lab, [&service]);
    // So that every map of flows and sockets has something in it.
    let mut open = Vec::new();
    for path in paths(&cluster.lab) {
        let to = path.address(&service);
        match path.transport {
            Transport::Tcp => {
                open.push(Conversation::open(path.client, to).unwrap_or_else(|o| panic!("{path}: {o:?}")));
            }
            Transport::Http => {}
            Transport::Udp | Transport::UdpConnected => {
                let outcome = DatagramSocket::open(path.client, path.transport, to).ask();
                assert!(matches!(outcome, Outcome::Reached(_)), "{path}: {outcome:?}");
            }
        }
    }

    fs::write(cluster.manifests.directory().join("extra.yaml"), EXTRA).expect("write in /run");
    for to in
        ["10.96.0.77:9000", "[fd00:10:96::4d]:9000"].map(|to| to.parse::<std::net::SocketAddr>().expect("an address"))
    {
        let client = &cluster.nodes()[0].host;
        eventually("the Service is served", || Conversation::open(client, to).is_ok(), |served| *served);
        // Flows that have ended are not counted for long.
        open.push(Conversation::open(client, to).unwrap_or_else(|o| panic!("{to}: {o:?}")));
    }

    let directory = cluster.nodes()[0].bpffs().join(format!("lb/v{ABI_VERSION}/maps"));
    let mut bare = Vec::new();
    let mut seen = 0;
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let shown = show(&path);
        assert!(
            name == EVENTS || shown["btf_id"].as_u64().is_some_and(|id| id > 0),
            "{name} has no type information: {shown}"
        );
        if UNLISTED.contains(&&*name) {
            continue;
        }
        let Some(element) = first_element(&path) else { panic!("{name} holds nothing that could be shown") };
        seen += 1;
        let formatted = &element["formatted"];
        assert!(formatted.is_object(), "{name} is shown as bytes: {element}");
        let is_array = shown["type"].as_str().is_some_and(|kind| kind.ends_with("array"));
        if !is_array && !has_fields(&formatted["key"]) {
            bare.push(format!("{name} key"));
        }
        // Per-CPU maps have a value for each CPU.
        let value = formatted.get("value").unwrap_or(&formatted["values"][0]["value"]);
        if !has_fields(value) {
            bare.push(format!("{name} value"));
        }
    }
    assert!(seen >= 20, "only {seen} maps below {}", directory.display());
    assert!(bare.is_empty(), "bpftool shows these without the names of fields: {bare:?}");
}

fn has_fields(shown: &Value) -> bool {
    shown.as_object().is_some_and(|fields| !fields.is_empty())
}

fn bpftool(arguments: &[&str], map: &Path) -> Command {
    let mut command = Command::new("bpftool");
    command.args(["--json", "map"]).args(arguments).arg("pinned").arg(map);
    command
}

/// What a map is.
fn show(map: &Path) -> Value {
    let output = bpftool(&["show"], map).output().expect("bpftool starts");
    assert!(output.status.success(), "{}: {}", map.display(), String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The first element of a map. The others are of the same type, and tables have a million of them.
fn first_element(map: &Path) -> Option<Value> {
    let mut dump = bpftool(&["dump"], map).stdout(Stdio::piped()).spawn().expect("bpftool starts");
    let mut output = BufReader::new(dump.stdout.take().expect("piped"));
    let mut bracket = [0];
    output.read_exact(&mut bracket).expect("a list");
    assert_eq!(bracket, *b"[", "{}", map.display());
    let element = Value::deserialize(&mut serde_json::Deserializer::from_reader(output)).ok();
    // It may still be writing.
    let _ = dump.kill();
    dump.wait().expect("wait for one's own child");
    element
}
