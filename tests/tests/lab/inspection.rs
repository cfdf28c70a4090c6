//! What an operator sees with the tools that are there anyway.

use std::{
    fs,
    io::{BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

use lb_tests::lab::{
    Lab, ReversePathFilter,
    client::{Conversation, DatagramSocket, Outcome, Transport},
    cluster::Cluster,
    manifest::Service,
    path::paths,
    sandbox::Sandbox,
};
use serde::Deserialize;
use serde_json::Value;

/// Maps whose keys or values are bare numbers or bytes still. The test fails when one of them is mended, too: take it
/// out of the list then.
const BARE: [&str; 13] = [
    "COUNTERS value",
    "NODEPORT_ADDRS4 key",
    "NODEPORT_ADDRS4 value",
    "NODEPORT_ADDRS6 key",
    "NODEPORT_ADDRS6 value",
    "NODE_ADDRESSES4 key",
    "NODE_ADDRESSES4 value",
    "NODE_ADDRESSES6 key",
    "NODE_ADDRESSES6 value",
    "SERVICE_NAMES4 key",
    "SERVICE_NAMES6 key",
    "SLOTS4 value",
    "SLOTS6 value",
];

/// Maps that nothing can list: the values belong to sockets.
const OF_SOCKETS: [&str; 1] = ["SOCKETS"];

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

    let directory = cluster.nodes()[0].bpffs().join("lb/v1/maps");
    let mut bare = Vec::new();
    let mut seen = 0;
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let shown = show(&path);
        assert!(shown["btf_id"].as_u64().is_some_and(|id| id > 0), "{name} has no type information: {shown}");
        if OF_SOCKETS.contains(&&*name) {
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
    bare.sort();
    assert_eq!(bare, BARE, "maps whose keys or values bpftool shows without the names of fields");
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
