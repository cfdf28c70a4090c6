//! Real files and real inotify.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

use super::{ManifestsError, spawn};
use crate::{
    model::{Change, SourceEvent},
    source::{CHANNEL_CAPACITY, SourceMessage, Watch},
};

/// How long a message may take; several times what a busy machine needs.
const SOON: Duration = Duration::from_secs(20);
/// How long silence must last to count as such: several times the wait for quiet.
const SILENCE: Duration = Duration::from_millis(400);

fn service(name: &str, port: u32) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  - port: {port}\n"
    )
}

/// A directory that is followed.
struct Followed {
    /// Holds the directory that is followed, `manifests`.
    root: TempDir,
    messages: mpsc::Receiver<SourceMessage>,
}

impl Followed {
    fn start(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("manifests");
        fs::create_dir(&directory).expect("created");
        for (name, text) in files {
            fs::write(directory.join(name), text).expect("written");
        }
        let (sender, messages) = mpsc::channel(CHANNEL_CAPACITY);
        spawn(&directory, "node-a", sender).expect("followed");
        Self { root, messages }
    }

    fn directory(&self) -> PathBuf {
        self.root.path().join("manifests")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    /// The next message, as a line.
    async fn next(&mut self) -> String {
        let message = timeout(SOON, self.messages.recv()).await.expect("a message in time").expect("the source runs");
        self.describe(&message)
    }

    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next().await, *expected);
        }
    }

    async fn expect_silence(&mut self) {
        if let Ok(message) = timeout(SILENCE, self.messages.recv()).await {
            panic!("not silent: {:?}", message.map(|message| self.describe(&message)));
        }
    }

    fn describe(&self, message: &SourceMessage) -> String {
        let name = |path: &Path| path.strip_prefix(self.root.path()).expect("below the root").display().to_string();
        match message {
            SourceMessage::Event(SourceEvent::Replaced { kind, objects, rejected }) => {
                let objects: Vec<_> = objects.iter().map(describe).collect();
                let rejected: Vec<_> = rejected.iter().map(ToString::to_string).collect();
                format!("all {}: {} rejected: {}", kind.name(), objects.join(" "), rejected.join(" "))
            }
            SourceMessage::Event(SourceEvent::Changed(change)) => describe(change),
            SourceMessage::Event(SourceEvent::Unread(unread)) => format!("unread: {unread}"),
            SourceMessage::Rejected(rejection) => rejection.to_string(),
            SourceMessage::State(state) => {
                let of = match &state.watch {
                    Watch::Directory(path) | Watch::File(path) => name(path),
                    watch @ Watch::Api(_) => panic!("not of a directory: {watch}"),
                };
                format!("{of}: {}", state.problem.as_deref().unwrap_or("works"))
            }
        }
    }

    /// Takes the messages of the first read, which hold these Services.
    async fn first(&mut self, services: &str) {
        self.expect(&[
            "manifests: works",
            &format!("all Service: {services} rejected: "),
            "all EndpointSlice:  rejected: ",
            "all Node:  rejected: ",
            "all ServiceCIDR:  rejected: ",
        ])
        .await;
    }
}

fn describe(change: &Change) -> String {
    match change {
        Change::Service(key, Some(service)) => {
            let ports: Vec<_> = service.ports.iter().map(|port| port.port.to_string()).collect();
            format!("{key}:{}", ports.join(","))
        }
        Change::EndpointSlice(key, Some(slice)) => format!("{key} of {} has {}", slice.service, slice.endpoints.len()),
        Change::Node(Some(node)) => format!("node in {}", node.zone.as_deref().unwrap_or("no zone")),
        Change::ServiceCidr(key, Some(cidrs)) => format!("{key} of {} networks", cidrs.len()),
        Change::Service(key, None) | Change::EndpointSlice(key, None) | Change::ServiceCidr(key, None) => {
            format!("{key} gone")
        }
        Change::Node(None) => "node gone".to_owned(),
    }
}

#[tokio::test]
async fn the_first_read_tells_every_kind_whole() {
    let slice = "{\"apiVersion\": \"discovery.k8s.io/v1\", \"kind\": \"EndpointSlice\", \"addressType\": \"IPv6\",\n\
        \"metadata\": {\"name\": \"web-1\", \"labels\": {\"kubernetes.io/service-name\": \"web\"}},\n\
        \"ports\": [{\"port\": 80}], \"endpoints\": [{\"addresses\": [\"fd00::1\"]}]}";
    let node = |name: &str, zone: &str| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{topology.kubernetes.io/zone: {zone}}}\n"
        )
    };
    let mut followed = Followed::start(&[
        ("services.yml", &format!("# two\n{}{}", service("web", 80), service("db", 5432))),
        ("slices.json", slice),
        ("nodes.yaml", &(node("node-b", "far") + &node("node-a", "near"))),
        ("other.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"),
        ("bad.yaml", &service("bad", 70000)),
        ("README.md", "not: [yaml"),
        (".hidden.yaml", "not: [yaml"),
        ("empty.yaml", "# nothing\n---\n---\n"),
    ]);
    followed
        .expect(&[
            "manifests: works",
            "Service default/bad in bad.yaml:2 (document 1): spec.ports[0].port: is 70000, expected 1 to 65535",
            "all Service: default/db:5432 default/web:80 rejected: default/bad",
            "all EndpointSlice: default/web-1 of default/web has 1 rejected: ",
            "all Node: node in near rejected: ",
            "all ServiceCIDR:  rejected: ",
        ])
        .await;
    followed.expect_silence().await;
}

#[tokio::test]
async fn lists_are_their_items() {
    let indented = |text: String| text.replace("---\n", "").replace('\n', "\n  ");
    let text = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}\n- {}\n",
        indented(service("a", 1)).trim_end(),
        indented(service("b", 70000)).trim_end()
    );
    let mut followed = Followed::start(&[("list.yaml", &text)]);
    followed
        .expect(&[
            "manifests: works",
            "Service default/b in list.yaml:1 (document 1 item 1): spec.ports[0].port: is 70000, expected 1 to 65535",
            "all Service: default/a:1 rejected: default/b",
        ])
        .await;
}

#[tokio::test]
async fn one_edit_costs_one_change() {
    let mut followed =
        Followed::start(&[("a.yaml", &(service("a", 1) + &service("b", 2))), ("c.yaml", &service("c", 3))]);
    followed.first("default/a:1 default/b:2 default/c:3").await;
    followed.write("a.yaml", &(service("a", 1) + &service("b", 22)));
    followed.expect(&["default/b:22"]).await;
    followed.write("a.yaml", &service("b", 22));
    followed.expect(&["default/a gone"]).await;
    followed.write("d.yaml", &service("d", 4));
    followed.expect(&["default/d:4"]).await;
    fs::remove_file(followed.path("c.yaml")).expect("removed");
    followed.expect(&["default/c gone"]).await;
    // The same again, and comments, are no change.
    followed.write("d.yaml", &(service("d", 4) + "# the same\n"));
    followed.expect_silence().await;
}

#[tokio::test]
async fn editors_that_rename_and_objects_that_move_cause_no_gap() {
    let mut followed = Followed::start(&[("b.yaml", &service("web", 80))]);
    followed.first("default/web:80").await;
    followed.write(".b.yaml.swp", &service("web", 81));
    fs::rename(followed.path(".b.yaml.swp"), followed.path("b.yaml")).expect("renamed");
    followed.expect(&["default/web:81"]).await;
    // To a file that sorts before and to one that sorts behind.
    for (from, to) in [("b.yaml", "a.yaml"), ("a.yaml", "c.yaml")] {
        fs::rename(followed.path(from), followed.path(to)).expect("renamed");
        followed.expect_silence().await;
    }
    followed.write("c.yaml", &service("web", 82));
    followed.expect(&["default/web:82"]).await;
}

#[tokio::test]
async fn a_file_that_is_half_written_drops_nothing() {
    let mut followed = Followed::start(&[("a.yaml", &(service("a", 1) + &service("b", 2)))]);
    followed.first("default/a:1 default/b:2").await;
    // Truncates, and writes a document that is whole before it pauses.
    let mut file = fs::File::create(followed.path("a.yaml")).expect("opened");
    file.write_all(service("a", 11).as_bytes()).expect("written");
    followed.expect_silence().await;
    // Another file that changes meanwhile does not make it be read.
    followed.write("c.yaml", &service("c", 3));
    followed.expect(&["default/c:3"]).await;
    file.write_all(service("b", 2).as_bytes()).expect("written");
    drop(file);
    followed.expect(&["default/a:11"]).await;
}

#[tokio::test]
async fn a_broken_object_keeps_its_last_good_state_and_others_go_on() {
    let mut followed = Followed::start(&[("a.yaml", &(service("a", 1) + &service("b", 2)))]);
    followed.first("default/a:1 default/b:2").await;
    followed.write("a.yaml", &(service("a", 70000) + &service("b", 22)));
    let bad_port = "Service default/a in a.yaml:2 (document 1): spec.ports[0].port: is 70000, expected 1 to 65535";
    followed.expect(&[bad_port, "default/b:22"]).await;
    // The line is the parser's where the shape is wrong.
    followed.write("a.yaml", &(service("a", 1).replace("port: 1", "port: one") + &service("b", 22)));
    let shape =
        "Service default/a in a.yaml:9 (document 1): spec.ports[0].port: invalid type: string \"one\", expected i32";
    followed.expect(&[shape]).await;
    followed.write("a.yaml", &(service("a", 11) + &service("b", 22)));
    followed.expect(&["default/a:11"]).await;
}

#[tokio::test]
async fn a_document_that_is_not_yaml_costs_no_object() {
    let mut followed = Followed::start(&[("a.yaml", &(service("a", 1) + &service("b", 2)))]);
    followed.first("default/a:1 default/b:2").await;
    followed.write("a.yaml", &(service("a", 1).replace("port: 1", "port: [1") + &service("b", 22)));
    let problem = followed.next().await;
    assert!(problem.starts_with("manifests/a.yaml: line 9 (document 1): "), "{problem}");
    followed.expect(&["default/b:22"]).await;
    // What is missing may be in the document that cannot be read.
    followed.write("a.yaml", &(service("a", 1).replace("kind: Service\n", "")));
    followed.expect(&["manifests/a.yaml: line 2 (document 1): kind is missing"]).await;
    followed.write("a.yaml", "\0\0\0");
    assert!(followed.next().await.starts_with("manifests/a.yaml: line 1 (document 1): "));
    fs::write(followed.path("a.yaml"), [0xff, 0xfe, b'x']).expect("written");
    assert!(followed.next().await.starts_with("manifests/a.yaml: is not UTF-8: "));
    followed.expect_silence().await;
    followed.write("a.yaml", &service("a", 1));
    followed.expect(&["manifests/a.yaml: works", "default/b gone"]).await;
}

#[tokio::test]
async fn what_could_not_be_read_at_the_start_is_told_until_it_can_be() {
    let broken = service("a", 1).replace("port: 1", "port: [1");
    let mut followed = Followed::start(&[("a.yaml", &broken), ("b.yaml", &service("b", 2))]);
    assert!(followed.next().await.starts_with("manifests/a.yaml: line 9 (document 1): "));
    followed
        .expect(&[
            "manifests: works",
            "unread: true",
            "all Service: default/b:2 rejected: ",
            "all EndpointSlice:  rejected: ",
            "all Node:  rejected: ",
        ])
        .await;
    // Moved, and broken in another way.
    fs::rename(followed.path("a.yaml"), followed.path("c.yaml")).expect("renamed");
    let mut last = String::new();
    while !last.starts_with("manifests/c.yaml: line 9") {
        last = followed.next().await;
        assert!(!last.starts_with("unread"), "{last}");
    }
    if last.starts_with("manifests/c.yaml") {
        followed.write("c.yaml", &(service("a", 70000) + &broken));
    }
    while !last.starts_with("Service default/a in c.yaml:2") {
        last = followed.next().await;
        assert!(!last.starts_with("unread"), "{last}");
    }
    followed.write("c.yaml", &service("a", 1));
    while last != "default/a:1" {
        last = followed.next().await;
        assert!(!last.starts_with("unread"), "{last}");
    }
    followed.expect(&["unread: false"]).await;
    // From now on the source knows what was in each file.
    followed.write("c.yaml", &broken);
    assert!(followed.next().await.starts_with("manifests/c.yaml: line 9 (document 1): "));
    followed.expect_silence().await;
}

#[tokio::test]
async fn a_file_that_could_never_be_read_and_an_object_that_was_never_good_are_told_to_be_gone() {
    let mut followed = Followed::start(&[("a.yaml", "kind: ["), ("b.yaml", &service("b", 70000))]);
    symlink("nowhere", followed.path("c.yaml")).expect("linked");
    let mut last = String::new();
    while !last.starts_with("manifests/c.yaml: No such file") {
        last = followed.next().await;
    }
    while let Ok(Some(_)) = timeout(SILENCE, followed.messages.recv()).await {}
    fs::remove_file(followed.path("b.yaml")).expect("removed");
    followed.expect(&["default/b gone"]).await;
    fs::remove_file(followed.path("a.yaml")).expect("removed");
    followed.expect(&["manifests/a.yaml: works"]).await;
    fs::remove_file(followed.path("c.yaml")).expect("removed");
    followed.expect(&["manifests/c.yaml: works", "unread: false"]).await;
}

#[tokio::test]
async fn an_object_in_two_files_is_the_first_ones() {
    let mut followed = Followed::start(&[("b.yaml", &service("web", 80)), ("c.yaml", &service("web", 81))]);
    followed
        .expect(&[
            "manifests: works",
            "Service default/web in c.yaml: metadata.name: the object is also in b.yaml, which wins",
            "all Service: default/web:80 rejected: ",
            "all EndpointSlice:  rejected: ",
            "all Node:  rejected: ",
            "all ServiceCIDR:  rejected: ",
        ])
        .await;
    // A file that takes it over with a broken document takes its last good state over.
    followed.write("a.yaml", &service("web", 0));
    followed
        .expect(&[
            "Service default/web in a.yaml:2 (document 1): spec.ports[0].port: is 0, expected 1 to 65535",
            "Service default/web in b.yaml: metadata.name: the object is also in a.yaml, which wins",
            "Service default/web in c.yaml: metadata.name: the object is also in a.yaml, which wins",
        ])
        .await;
    followed.expect_silence().await;
    for name in ["a.yaml", "b.yaml"] {
        fs::remove_file(followed.path(name)).expect("removed");
    }
    let mut last = String::new();
    while last != "default/web:81" {
        last = followed.next().await;
    }
    followed.write("c.yaml", &(service("web", 81) + &service("web", 82)));
    let twice = "Service default/web in c.yaml: metadata.name: the object is also in an earlier document of this file, which wins";
    followed.expect(&[twice]).await;
    followed.expect_silence().await;
}

#[tokio::test]
async fn what_an_api_server_would_have_given_is_a_default_or_a_clear_error() {
    let with = |name: &str, spec: &str| service(name, 80).replace("clusterIP: 10.96.0.1", spec);
    let text = with("none-given", "type: ClusterIP")
        + &with("headless", "clusterIP: None")
        + &with("name", "{type: ExternalName").replace("{type", "type")
        + &with("listed", "clusterIPs: [10.96.0.2]")
        + &with("node-port", "clusterIP: 10.96.0.3\n  type: NodePort");
    let mut followed = Followed::start(&[("a.yaml", &text)]);
    followed
        .expect(&[
            "manifests: works",
            "Service default/none-given in a.yaml:2 (document 1): spec.clusterIP: is missing, and no API server is there to \
             allocate one: give an address, or None",
            "Service default/node-port in a.yaml:38 (document 5): spec.ports[0].nodePort: is missing, and no API server is \
             there to allocate one: the port is served without it",
            "all Service: default/listed:80 default/node-port:80 rejected: default/none-given",
        ])
        .await;
}

#[tokio::test]
async fn links_into_another_directory_are_followed_as_a_config_map_swaps_them() {
    let mut followed = Followed::start(&[]);
    followed.first("").await;
    let swap_in = |directory: &Path, name: &str, port| {
        fs::create_dir(directory.join(name)).expect("created");
        fs::write(directory.join(name).join("web.yaml"), service("web", port)).expect("written");
        symlink(name, directory.join("..data_tmp")).expect("linked");
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("renamed");
    };
    swap_in(&followed.directory(), "..v1", 80);
    symlink("..data/web.yaml", followed.path("web.yaml")).expect("linked");
    followed.expect(&["default/web:80"]).await;
    swap_in(&followed.directory(), "..v2", 81);
    followed.expect(&["default/web:81"]).await;
}

#[tokio::test]
async fn a_file_that_becomes_a_directory_is_named_and_leaves_its_last_state() {
    let mut followed = Followed::start(&[("a.yaml", &service("a", 1))]);
    followed.first("default/a:1").await;
    let directory = followed.root.path().join("directory");
    fs::create_dir(&directory).expect("created");
    fs::rename(followed.path("a.yaml"), followed.root.path().join("former")).expect("moved");
    fs::rename(&directory, followed.path("a.yaml")).expect("moved");
    followed.expect(&["manifests/a.yaml: is a directory"]).await;
    fs::remove_dir(followed.path("a.yaml")).expect("removed");
    let mut last = vec![followed.next().await, followed.next().await];
    last.sort();
    assert_eq!(last, ["default/a gone", "manifests/a.yaml: works"]);
}

#[tokio::test]
async fn a_directory_that_goes_away_leaves_the_last_state_and_is_followed_again() {
    let mut followed = Followed::start(&[("a.yaml", &(service("a", 1) + &service("b", 2)))]);
    followed.first("default/a:1 default/b:2").await;
    fs::remove_dir_all(followed.directory()).expect("removed");
    followed.expect(&["manifests: No such file or directory (os error 2)"]).await;
    fs::create_dir(followed.directory()).expect("created");
    followed.expect(&["manifests: came back without a manifest"]).await;
    followed.write("a.yaml", &service("a", 11));
    followed.expect(&["manifests: works", "default/a:11", "default/b gone"]).await;
    // Another directory in its place.
    let next = followed.root.path().join("next");
    fs::create_dir(&next).expect("created");
    fs::write(next.join("a.yaml"), service("a", 12)).expect("written");
    fs::rename(followed.directory(), followed.root.path().join("old")).expect("moved");
    fs::rename(&next, followed.directory()).expect("moved");
    let mut last = String::new();
    while last != "default/a:12" {
        last = followed.next().await;
        assert!(!last.ends_with("gone"), "{last}");
    }
    followed.write("a.yaml", &service("a", 13));
    let mut last = String::new();
    while last != "default/a:13" {
        last = followed.next().await;
    }
}

#[tokio::test]
async fn a_directory_that_is_none_is_named() {
    let root = tempfile::tempdir().expect("a directory");
    let file = root.path().join("file");
    fs::write(&file, "").expect("written");
    let start = |path: &Path| spawn(path, "node-a", mpsc::channel(1).0).expect_err("an error");
    let missing = start(&root.path().join("none"));
    assert!(missing.to_string().ends_with("/none: No such file or directory (os error 2)"), "{missing}");
    assert!(matches!(start(&file), ManifestsError::NotADirectory { path } if path == file));
}

#[tokio::test]
async fn the_thread_ends_when_nobody_listens() {
    let root = tempfile::tempdir().expect("a directory");
    let (sender, messages) = mpsc::channel(CHANNEL_CAPACITY);
    let thread = spawn(root.path(), "node-a", sender).expect("followed");
    drop(messages);
    let ended = tokio::task::spawn_blocking(move || thread.join());
    timeout(SOON, ended).await.expect("in time").expect("joined").expect("without a panic");
}
