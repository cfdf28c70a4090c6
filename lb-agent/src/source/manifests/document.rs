//! A file of manifests to reduced objects.
//!
//! Documents are separated before anything is parsed, by the lines that only a separator can be, so that a document
//! that is not YAML costs only itself. JSON objects need nothing between them, as with kubectl. Kubernetes objects are JSON in YAML's clothes: each document becomes a JSON
//! value first, gets the defaults that an API server would have given it, and is then reduced as one that came from an
//! API server.

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::{Deserializer, Value};
use serde_saphyr::Budget;
use tracing::info;

use super::{
    defaults::{Missing, give_defaults},
    kinds::{Kind, classify},
    refuse::contradiction,
    slips::slip,
};
use crate::{
    model::ObjectKind,
    source::reduce::{Reduce, Reduced, cut, quote, reduce_json},
};

/// How many documents without an object are described in one file's problem.
const MAX_PROBLEMS: usize = 4;

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The objects of kinds that are used, in the order of the file; each has a name.
    pub(super) objects: Vec<(ObjectKind, Reduced)>,
    /// Documents of which it cannot be said which object they are.
    pub(super) problems: Vec<String>,
}

/// Reads the text of a file. `file` is its name in messages, `node` the name of this node: other nodes are ignored.
pub(super) fn read(file: &str, text: &str, node: &str) -> Contents {
    let mut reader = Reader { file, node, contents: Contents::default(), unnamed: 0 };
    for document in split(text) {
        reader.document(&document);
    }
    if reader.unnamed > MAX_PROBLEMS {
        reader.contents.problems.push(format!("and {} more documents", reader.unnamed - MAX_PROBLEMS));
    }
    reader.contents
}

/// A document of a file.
struct Document<'a> {
    /// Its number in the file, from 1. Empty documents do not count.
    number: usize,
    /// The line of the file that its text begins with, from 1.
    start: usize,
    /// The line of the file that its content begins with.
    line: usize,
    text: &'a str,
}

/// The documents that hold more than comments and directives. A line that begins with `---` begins a document, and one
/// that begins with `...` ends one, wherever it stands, even in a block scalar (YAML 1.2.2, 9.1.2), if a space or the
/// line's end follows.
fn split(text: &str) -> Vec<Document<'_>> {
    // Where each part begins: offset and line.
    let mut starts = vec![(0, 1)];
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line, BEGIN) && offset != 0 {
            starts.push((offset, index + 1));
        }
        offset += line.len();
        if is_marker(line, END) {
            starts.push((offset, index + 2));
        }
    }
    let ends = starts.iter().skip(1).map(|(offset, _)| *offset).chain([text.len()]);
    let parts = starts.iter().zip(ends).filter_map(|(&(from, start), to)| Some((start, text.get(from..to)?)));
    let with_content = parts.flat_map(|(start, part)| objects(start, part)).filter_map(|(start, text)| {
        let has_content =
            |line: &str| !is_marker(line, END) && !matches!(line.trim_start().bytes().next(), None | Some(b'#' | b'%'));
        Some((start, start + content(text).lines().position(has_content)?, text))
    });
    let numbered = with_content.enumerate();
    numbered.map(|(index, (start, line, text))| Document { number: index + 1, start, line, text }).collect()
}

/// What a document begins with.
const BEGIN: &str = "---";
/// What it ends with, if anything.
const END: &str = "...";

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// What stands behind the marker, which may be on its line.
fn content(part: &str) -> &str {
    part.strip_prefix(BEGIN).filter(|_| is_marker(part, BEGIN)).unwrap_or(part)
}

/// The objects of a part that is JSON, with their lines, each with what stands before it. A part that does not begin with
/// a JSON object is one by itself.
fn objects(start: usize, part: &str) -> Vec<(usize, &str)> {
    let content = content(part);
    if !content.trim_start().starts_with('{') {
        return vec![(start, part)];
    }
    let mut objects = Deserializer::from_str(content).into_iter::<IgnoredAny>();
    let (mut found, mut from, mut line) = (Vec::new(), 0, start);
    let mut take = |to: usize| {
        let text = part.get(from..to).unwrap_or_default();
        found.push((line, text));
        line += text.matches('\n').count();
        from = to;
    };
    while let Some(Ok(_)) = objects.next() {
        take(part.len() - content.len() + objects.byte_offset());
    }
    // What is no JSON, or nothing.
    take(part.len());
    found
}

struct Reader<'a> {
    file: &'a str,
    node: &'a str,
    contents: Contents,
    /// How many documents have no object.
    unnamed: usize,
}

impl Reader<'_> {
    fn document(&mut self, document: &Document<'_>) {
        match parse::<Value>(document.text) {
            Ok(Value::Null) => {}
            Ok(object) => self.object(document, object, None),
            Err(error) => {
                let line = line_of(document, &error);
                self.problem(document, line, &said(&error));
            }
        }
    }

    /// Takes one object. `listed` is the index and the kind that the list gives it, where it is an item of a list.
    fn object(&mut self, document: &Document<'_>, mut object: Value, listed: Option<(usize, &str)>) {
        let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
        let (version, mut kind) = (text(&object, "apiVersion"), text(&object, "kind"));
        if let Some((_, of_list)) = listed.filter(|_| kind.is_empty()) {
            of_list.clone_into(&mut kind);
        }
        if kind.is_empty() {
            return self.problem(document, document.line, "kind is missing");
        }
        if let (Some(of_list @ ("" | "Service" | "EndpointSlice" | "Node" | "ServiceCIDR")), None) =
            (kind.strip_suffix("List"), listed)
        {
            let Value::Array(items) = object["items"].take() else {
                return self.problem(document, document.line, "items is missing");
            };
            for (index, item) in items.into_iter().enumerate() {
                self.object(document, item, Some((index, of_list)));
            }
            return;
        }
        let index = listed.map(|(index, _)| index);
        match classify(&version, &kind) {
            Kind::Used(ObjectKind::Service) => self.take::<Service>(document, object, index),
            Kind::Used(ObjectKind::EndpointSlice) => self.take::<EndpointSlice>(document, object, index),
            Kind::Used(ObjectKind::ServiceCidr) => self.take::<ServiceCIDR>(document, object, index),
            Kind::Used(ObjectKind::Node) if text(&object["metadata"], "name") == self.node => {
                self.take::<Node>(document, object, index);
            }
            Kind::Mistaken(problem) => {
                let item = index.map(|index| format!("item {index}: ")).unwrap_or_default();
                self.problem(document, document.line, &format!("{item}{problem}"));
            }
            Kind::Used(ObjectKind::Node) | Kind::Other => {
                info!(file = self.file, document = document.number, version, kind, "not a kind that is used");
            }
        }
    }

    fn take<K: Reduce + Serialize>(&mut self, document: &Document<'_>, mut object: Value, item: Option<usize>) {
        let missing = give_defaults(K::KIND, &mut object);
        let mut reduced = reduce_json::<K>(&object);
        if reduced.change.is_some()
            && let Err(problem) = slip::<K>(&object).and_then(|()| contradiction(K::KIND, &object))
        {
            reduced.change = None;
            reduced.rejections = vec![problem.rejection(K::KIND, reduced.key.clone())];
        }
        let mut line = document.line;
        if reduced.change.is_none() && item.is_none() {
            // Where the shape is wrong the parser knows the line: it is asked again only then.
            line = parse::<K>(document.text).err().map_or(line, |error| line_of(document, &error));
        }
        for missing in missing {
            let Missing { problem, fatal } = missing;
            if fatal && reduced.change.take().is_some() || !fatal && reduced.change.is_some() {
                reduced.rejections.push(problem.rejection(K::KIND, reduced.key.clone()));
            }
        }
        let item = item.map(|index| format!(" item {index}")).unwrap_or_default();
        let origin = format!("{}:{line} (document {}{item})", self.file, document.number);
        for rejection in &mut reduced.rejections {
            rejection.origin = Some(origin.clone());
        }
        if reduced.key.name.is_empty() {
            let kind = K::KIND.name();
            return match &object["metadata"]["name"] {
                Value::Null | Value::String(_) => {
                    self.problem(document, line, &format!("{kind} without metadata.name"));
                }
                name => {
                    let found = cut(&name.to_string());
                    let problem = format!("metadata.name of {kind} is {found}, expected a text: put it in quotes");
                    self.problem(document, line, &problem);
                }
            };
        }
        self.contents.objects.push((K::KIND, reduced));
    }

    fn problem(&mut self, document: &Document<'_>, line: usize, problem: &str) {
        self.unnamed += 1;
        if self.unnamed <= MAX_PROBLEMS {
            self.contents.problems.push(format!("line {line} (document {}): {}", document.number, cut(problem)));
        }
    }
}

/// Parses a document. The library's limits are made for small files: one that is large may have as many nodes as it has
/// bytes, and two events for each, as every node takes a byte at least. Aliases stay within the limits of small files:
/// they alone make more of a text than it holds.
fn parse<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    let limits = Budget::default();
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: limits.max_nodes.max(text.len()),
            max_events: limits.max_events.max(2 * text.len()),
            max_total_scalar_bytes: limits.max_total_scalar_bytes.max(text.len()),
        },
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// What the parser says, without the text that it is about. What it says of keys is meant for who calls it.
fn said(error: &serde_saphyr::Error) -> String {
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => format!("{} is there twice", quote(key)),
        error => error.to_string(),
    }
}

/// The line of the file that an error of the YAML parser is about.
fn line_of(document: &Document<'_>, error: &serde_saphyr::Error) -> usize {
    let within = error.location().and_then(|location| usize::try_from(location.line()).ok());
    within.map_or(document.line, |line| document.start + line.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_separated_by_lines_that_can_be_nothing_else() {
        for (text, expected) in [
            ("", vec![]),
            ("---\n---\n# nothing\n", vec![]),
            ("%YAML 1.2\n---\na: 1\n", vec![(2, 3)]),
            ("a: 1", vec![(1, 1)]),
            ("\n# first\na: 1\n---\n\nb: 1\n", vec![(1, 3), (4, 6)]),
            ("a: 1\n--- {b: 1}\n---\r\nc: 1\r\n", vec![(1, 1), (2, 2), (3, 4)]),
            ("a: 1\n...\nb: 1\n... # end\n\n---\n...\n%YAML 1.2\n---\nc: 1\n...", vec![(1, 1), (3, 3), (9, 10)]),
            ("{}{\n}\n\n {}\n# nothing\n", vec![(1, 1), (1, 1), (2, 4)]),
            ("--- {a: 1}\n--- {}\n{}\n...\n{}", vec![(1, 1), (2, 2), (2, 3), (5, 5)]),
            ("{\"a\": 1}\n{a: 1}\n{}\n", vec![(1, 1), (1, 2)]),
            // Not separators.
            ("a: |\n  ---\n  b\n---x: 1\n ---\n", vec![(1, 1)]),
            ("a: |\n  ...\n....\n...x: 1\n ...\n", vec![(1, 1)]),
        ] {
            let documents = split(text);
            let found: Vec<_> = documents.iter().map(|document| (document.start, document.line)).collect();
            assert_eq!(found, expected, "{text:?}");
            assert!(documents.iter().map(|document| document.number).eq(1..=expected.len()), "{text:?}");
        }
    }

    #[test]
    fn objects_one_after_the_other_are_read_each_by_itself() {
        let object = |name: &str, spec: &str| {
            let head = format!("\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {{\"name\": \"{name}\"}}");
            format!("{{\n  {head},\n  \"spec\": {spec}\n}}\n")
        };
        let good = r#"{"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}"#;
        let marked =
            |name: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {good}\n...\n");
        for (text, problems) in [
            (object("a", good) + &object("b", r#"{"ports": 1}"#) + &object("c", good), vec![]),
            (marked("a") + &marked("b").replace("80", "70000") + &marked("c"), vec![]),
            (
                object("a", good)
                    + &object("b", &good.replace("80", "70000"))
                    + &object("c", good)
                    + "{\"kind\": 1, \"kind\": 2}",
                vec!["line 13 (document 4): "],
            ),
        ] {
            let Contents { objects, problems: found } = read("a.json", &text, "node-a");
            let names: Vec<_> = objects.iter().map(|(_, reduced)| reduced.key.name.as_ref()).collect();
            assert_eq!(names, ["a", "b", "c"], "{text}");
            assert!(objects[0].1.change.is_some() && objects[2].1.change.is_some(), "{text}");
            assert_eq!(objects[1].1.change, None, "{text}");
            let origin = objects[1].1.rejections[0].origin.clone().expect("from a file");
            assert!(origin.ends_with(" (document 2)"), "{origin}");
            assert_eq!(found.len(), problems.len(), "{found:?}");
            assert!(found.iter().zip(problems).all(|(found, begin)| found.starts_with(begin)), "{found:?}");
        }
        let text = "a: 1\n... b: 1\n";
        let problems = read("a.yaml", text, "node-a").problems;
        assert!(problems.len() == 1 && !problems[0].contains("kind is missing"), "{problems:?}");
    }

    #[test]
    fn many_broken_documents_are_a_short_problem() {
        let contents = read("a.yaml", &"---\na: [\n".repeat(1000), "node-a");
        assert_eq!(contents.problems.len(), MAX_PROBLEMS + 1);
        assert_eq!(contents.problems.last().map(String::as_str), Some("and 996 more documents"));
    }

    #[test]
    fn other_versions_of_a_slice_are_told_and_other_services_are_ignored() {
        let slice = "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}\n";
        let contents = read("a.yaml", slice, "node-a");
        assert_eq!(contents.problems.len(), 1);
        assert!(contents.problems[0].contains("discovery.k8s.io/v1beta1"), "{:?}", contents.problems);
        let typo = "apiVersion: v1\nkind: Servise\nmetadata: {name: a}\n";
        let contents = read("a.yaml", typo, "node-a");
        assert_eq!(contents.problems, ["line 1 (document 1): kind is \"Servise\", expected Service"]);
        let service = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n";
        let contents = read("a.yaml", service, "node-a");
        assert!(contents.problems.is_empty() && contents.objects.is_empty());
    }

    /// A list of Services with a slice of ten endpoints each, as an API server writes them.
    fn large_list(services: usize) -> Value {
        let items = (0..services).flat_map(|index| {
            let name = format!("web-{index}");
            let address = |j: usize| format!("10.{j}.{}.{}", index / 250, index % 250 + 1);
            let endpoint = |j: usize| {
                json!({
                    "addresses": [address(j + 1)],
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "nodeName": format!("node-{j}"),
                    "targetRef": { "kind": "Pod", "name": format!("{name}-{j}"), "namespace": "default", "uid": "y" },
                    "zone": "z",
                })
            };
            let endpoints: Vec<_> = (0..10).map(endpoint).collect();
            let service = json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": name },
                "spec": { "clusterIP": address(96), "ports": [{ "port": 80 }] },
                "status": { "loadBalancer": {} },
            });
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
                "addressType": "IPv4",
                "endpoints": endpoints,
                "ports": [{ "port": 8080, "protocol": "TCP" }],
            });
            [service, slice]
        });
        let items: Vec<_> = items.collect();
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }

    #[test]
    fn a_file_is_read_whole_however_many_objects_it_has() {
        let list = large_list(700);
        let yaml = serde_saphyr::to_string(&list).expect("JSON is YAML");
        for text in [yaml, serde_json::to_string_pretty(&list).expect("JSON")] {
            let contents = read("a.yaml", &text, "node-a");
            assert_eq!(contents.problems, [""; 0]);
            assert_eq!(contents.objects.len(), 1_400);
            assert!(contents.objects.iter().all(|(_, reduced)| reduced.change.is_some()));
        }
        // As dense as a text can be: more than a million events.
        let dense = format!("[{}]", "[],".repeat(510_000));
        assert!(parse::<IgnoredAny>(&dense).is_ok());
    }

    #[test]
    fn what_stands_twice_and_names_that_are_no_text_are_told_in_own_words() {
        for (text, expected) in [
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: 123}\n",
                "line 1 (document 1): metadata.name of Service is 123, expected a text: put it in quotes",
            ),
            ("apiVersion: v1\nkind: Service\nmetadata: {}\n", "line 1 (document 1): Service without metadata.name"),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {}\nspec: {}\n",
                "line 5 (document 1): \"spec\" is there twice",
            ),
        ] {
            assert_eq!(read("a.yaml", text, "node-a").problems, [expected], "{text}");
        }
    }

    #[test]
    fn a_slip_that_would_end_a_service_is_refused_by_file_object_and_field() {
        let service = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: 10.96.0.1\n  \
                       externalTrafficPolicy: Cluster\n  ports:\n  - port: 80\n    protocol: TCP\n";
        let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web\n  labels:\n    \
                     kubernetes.io/service-name: web\naddressType: IPv4\nports:\n- port: 80\n  protocol: TCP\n\
                     endpoints:\n- addresses: [10.0.0.1]\n  conditions: {ready: true}\n";
        let members = &service[service.find("\n  clusterIP").expect("members")..];
        for (text, from, to, expected) in [
            (service, members, &*members.replace("\n  ", "\n"), "clusterIP: is no field of Service"),
            (service, "spec:", "specs:", "specs: is no field of Service"),
            (service, &service[service.find("spec:").expect("spec")..], "", "spec: is missing"),
            (service, "ports:", "port:", "spec.port: is no field of Service"),
            (service, "\n  ports:\n  - port: 80\n    protocol: TCP", "", "spec.ports: is missing"),
            (service, "  - port: 80\n    protocol: TCP\n", "", "spec.ports: is missing"),
            (service, "\n  - port: 80\n    protocol: TCP\n", " []\n", "spec.ports: is empty, expected a port"),
            (service, "TCP", "tcp", r#"spec.ports[0].protocol: is "tcp", expected TCP, UDP or SCTP"#),
            (service, "Policy", "Polcy", "spec.externalTrafficPolcy: is no field of Service"),
            (service, "clusterIP", "clusterIp", "spec.clusterIp: is no field of Service"),
            (service, "name: web", "name: web\n  label: {}", "metadata.label: is no field of Service"),
            (
                service,
                "protocol: TCP",
                "nodePort: 30080",
                "spec.ports[0].nodePort: is 30080, but type is ClusterIP, expected NodePort or LoadBalancer",
            ),
            (
                service,
                "clusterIP: 10.96.0.1",
                "clusterIP: None\n  type: NodePort",
                "spec.clusterIP: is None, but type is NodePort",
            ),
            (slice, "endpoints:", "endpoint:", "endpoint: is no field of EndpointSlice"),
            (slice, &slice[slice.find("endpoints:").expect("endpoints")..], "", "endpoints: is missing"),
            (slice, "[10.0.0.1]", "[]", "endpoints[0].addresses: is empty, expected an address"),
            (slice, "TCP", "tcp", r#"ports[0].protocol: is "tcp", expected TCP, UDP or SCTP"#),
            (slice, "ready", "redy", "endpoints[0].conditions.redy: is no field of EndpointSlice"),
        ] {
            assert!(read("a.yaml", text, "node-a").objects[0].1.rejections.is_empty(), "{text}");
            let text = text.replacen(from, to, 1);
            let contents = read("a.yaml", &text, "node-a");
            let reduced = &contents.objects[0].1;
            assert_eq!(reduced.change, None, "{text}");
            let kind = contents.objects[0].0.name();
            let expected = format!("{kind} default/web in a.yaml:1 (document 1): {expected}");
            let found: Vec<_> = reduced.rejections.iter().map(ToString::to_string).collect();
            assert_eq!(found, [expected], "{text}");
        }
    }

    #[test]
    fn what_an_api_server_writes_is_no_slip() {
        // As `kubectl get -o yaml` shows them, with a field of a status that is not known yet.
        let service = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  uid: x\n  resourceVersion: \"1\"\n  \
                       creationTimestamp: \"2026-01-01T00:00:00Z\"\n  labels: {a: b}\n  managedFields:\n  \
                       - {manager: m, operation: Update, fieldsType: FieldsV1, fieldsV1: {\"f:spec\": {}}}\n\
                       spec:\n  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1]\n  selector: {a: b}\n  type: NodePort\n  \
                       sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}\n  \
                       ports: [{port: 80, targetPort: http, nodePort: 30080}, {name: s, port: 80, protocol: SCTP, nodePort: 30081}]\n\
                       status: {loadBalancer: {}, tomorrow: 1}\n";
        let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web\n  labels: \
                     {kubernetes.io/service-name: web}\naddressType: IPv4\nports: null\nendpoints: null\n";
        let cidr =
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: a}\nspec: {cidrs: [10.0.0.0/8]}\n";
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\nspec: {podCIDR: 10.0.0.0/24, taints: [{key: a, \
                    effect: NoSchedule}]}\nstatus: {capacity: {cpu: \"2\"}, tomorrow: 1}\n";
        let headless = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: None}\n";
        let named =
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: ExternalName, externalName: a.b}\n";
        for text in [service, slice, cidr, node, headless, named] {
            let contents = read("a.yaml", text, "node-a");
            let reduced = &contents.objects[0].1;
            assert!(reduced.change.is_some(), "{text}: {:?}", reduced.rejections);
        }
    }

    #[test]
    fn an_alias_bomb_is_a_problem_and_not_a_bomb() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..40 {
            let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
            text = format!("{text}a{level}: &a{level} [{aliases}]\n");
        }
        assert_eq!(read("a.yaml", &text, "node-a").problems.len(), 1);
        let deep = "[".repeat(100_000);
        assert_eq!(read("a.yaml", &deep, "node-a").problems.len(), 1);
    }

    /// Pieces of manifests, so that random texts reach further than the first byte.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "---\n",
            "...\n",
            "{}",
            "{\"kind\": \"Service\"}",
            "apiVersion: v1\n",
            "apiVersion: discovery.k8s.io/v1\n",
            "kind: Service\n",
            "kind: List\n",
            "kind: EndpointSlice\n",
            "items:\n- ",
            "metadata: {name: a}\n",
            "metadata: [a]\n",
            "spec:\n",
            "spec: 1\n",
            "  clusterIP: 10.0.0.1\n",
            "  clusterIPs: {0: 1}\n",
            "  ports: [{port: 1}]\n",
            "  ports: [1, null, {}]\n",
            "  type: NodePort\n",
            "endpoints: [{addresses: [1]}]\n",
            "  ",
            "\n",
            "&a ",
            "*a",
            "\t",
            "\"",
            "'",
            "|\n",
            "{",
            "]",
            "\u{feff}",
            "\r",
            "é",
            "!!binary ",
            "<<: ",
            "? ",
            ": ",
            "- ",
        ]);
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_text_panics(text in prop_oneof![".{0,64}", pieces()]) {
            read("a.yaml", &text, "node-a");
        }
    }
}
