//! Events on the objects that an operator must look at: what could not be served, and why.
//!
//! Every node sees the same Services, so all agents would say the same. The name of an Event is made of what it says:
//! the first agent writes it, and the API server tells the others that it is there. What only one node can say has the
//! node in its name. kube's own recorder names each Event by the time, and counts what differs in its text alone as
//! repetitions of the first.
//!
//! Nobody waits for an Event: they are dropped where too many come at once, and the log has them all.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, Error, api::PostParams};
use lb_agent::{
    dataplane::{Failure, SyncReport},
    model::{Conflict, Inputs, ObjectKey, ObjectKind, Rejection},
};
use tokio::{sync::mpsc, time::sleep};

use crate::health::service_checks::Failed;

/// Who writes them.
const CONTROLLER: &str = "lb-agent";
/// Events that wait to be written.
const WAITING: usize = 256;
/// Pause after each Event, so that a cluster full of errors does not become an API server full of Events.
const PAUSE: Duration = Duration::from_secs(1);
/// How many are written without a pause, once.
const BURST: u32 = 32;
/// How long one is not written again. The API server keeps Events as long by default (`--event-ttl`).
const REPEATED: Duration = Duration::from_secs(3600);
/// How many are remembered for that.
const REMEMBERED: usize = 4096;
/// How often one is tried, and the pause before the next time.
const ATTEMPTS: u32 = 3;
const RETRY: Duration = Duration::from_secs(5);
/// Longest note that the API server takes, in bytes (`NoteLengthLimit`).
const MAX_NOTE: usize = 1024;
/// Longest name of an object that goes into the name of an Event, which has 253 bytes: a dot and 16 digits follow.
const MAX_NAME: usize = 236;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Notice {
    kind: ObjectKind,
    object: ObjectKey,
    uid: Option<Arc<str>>,
    reason: &'static str,
    action: &'static str,
    note: String,
    /// Whether it is about this node, and not the same for all.
    of_node: bool,
}

impl Notice {
    pub(crate) fn rejected(rejection: &Rejection) -> Self {
        let Rejection { kind, object, uid, origin: _, field, problem } = rejection;
        Self {
            kind: *kind,
            object: object.clone(),
            uid: uid.clone(),
            reason: "FieldRejected",
            action: "Read",
            note: format!("{field}: {problem}"),
            of_node: false,
        }
    }

    fn conflict(conflict: &Conflict, inputs: &Inputs) -> Self {
        let service = &conflict.claimant.service;
        Self::of_service(service, inputs, "FrontendConflict", conflict.to_string(), false)
    }

    /// Only that there is no room: another failure is tried again, and is gone before anybody reads of it.
    fn no_room(failure: &Failure, inputs: &Inputs, node: &str) -> Option<Self> {
        let port = failure.service_port.as_ref().filter(|_| failure.error.is_full())?;
        let stays = if failure.error.concerns_clients_only() {
            "who may use its addresses stays as it was"
        } else {
            "the former state stays in force"
        };
        let text = format!("node {node}: {failure}; {stays}");
        Some(Self::of_service(&port.service, inputs, "TableFull", text, true))
    }

    fn of_service(key: &ObjectKey, inputs: &Inputs, reason: &'static str, note: String, of_node: bool) -> Self {
        let uid = inputs.service(key).and_then(|service| service.uid.clone());
        Self { kind: ObjectKind::Service, object: key.clone(), uid, reason, action: "Synchronize", note, of_node }
    }

    /// As kube-proxy tells it.
    pub(crate) fn health_check(failed: &Failed, node: &str) -> Self {
        let Failed { service, uid, address, error } = failed;
        let port = address.port();
        let text = if address.ip().is_unspecified() {
            format!("node {node} failed to start healthcheck {:?} on port {port}: {error}", service.to_string())
        } else {
            format!("node {node} failed to start healthcheck {:?} on {address}: {error}", service.to_string())
        };
        Self {
            kind: ObjectKind::Service,
            object: service.clone(),
            uid: uid.clone(),
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: text,
            of_node: true,
        }
    }

    fn event(&self, node: &str, now: Timestamp) -> Event {
        let Self { kind, object, uid, reason, action, note, of_node: _ } = self;
        let api_version = match kind {
            ObjectKind::Service | ObjectKind::Node => "v1",
            ObjectKind::EndpointSlice => "discovery.k8s.io/v1",
            ObjectKind::ServiceCidr => "networking.k8s.io/v1",
        };
        let namespace = (!object.namespace.is_empty()).then(|| object.namespace.to_string());
        let mut text = note.clone();
        text.truncate(text.floor_char_boundary(MAX_NOTE));
        Event {
            metadata: ObjectMeta {
                name: Some(self.name(node)),
                namespace: Some(self.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            action: Some((*action).to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(text),
            reason: Some((*reason).to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(api_version.to_owned()),
                kind: Some(kind.name().to_owned()),
                name: Some(object.name.to_string()),
                namespace,
                // `kubectl describe` finds the Events of an object by its uid.
                uid: uid.as_deref().map(str::to_owned),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(format!("{CONTROLLER}-{node}")),
            type_: Some("Warning".to_owned()),
            ..Event::default()
        }
    }

    /// Events of what is in no namespace are in `default`.
    fn namespace(&self) -> &str {
        if self.object.namespace.is_empty() { "default" } else { &self.object.namespace }
    }

    /// The same for what is the same.
    fn name(&self, node: &str) -> String {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        self.of_node.then_some(node).hash(&mut hasher);
        let start = self.object.name.floor_char_boundary(MAX_NAME);
        format!("{}.{:016x}", &self.object.name[..start], hasher.finish())
    }
}

/// Tells Events, where there is an API server to tell them to.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    node: Arc<str>,
    sender: Option<mpsc::Sender<Notice>>,
}

impl Events {
    /// Starts the task that writes them.
    pub(crate) fn start(client: Option<Client>, node: &str) -> Self {
        let node: Arc<str> = node.into();
        let sender = client.map(|client| {
            let (sender, notices) = mpsc::channel(WAITING);
            tokio::spawn(write(client, Arc::clone(&node), notices));
            sender
        });
        Self { node, sender }
    }

    /// Never waits.
    pub(crate) fn tell(&self, notice: Notice) {
        if let Some(sender) = &self.sender
            && let Err(error) = sender.try_send(notice)
        {
            tracing::debug!("an Event was dropped: {error}");
        }
    }

    /// Tells what came of a synchronization.
    pub(crate) fn tell_report(&self, report: &SyncReport, inputs: &Inputs) {
        if self.sender.is_none() {
            return;
        }
        for conflict in &report.conflicts {
            self.tell(Notice::conflict(conflict, inputs));
        }
        for failure in &report.failures {
            if let Some(notice) = Notice::no_room(failure, inputs, &self.node) {
                self.tell(notice);
            }
        }
    }

    /// Tells of a server of a `healthCheckNodePort` that is missing.
    pub(crate) fn tell_health_check(&self, failed: &Failed) {
        self.tell(Notice::health_check(failed, &self.node));
    }
}

/// What was written a while ago.
#[derive(Debug, Default)]
struct Memory(HashMap<Notice, Instant>);

impl Memory {
    /// Whether something is to be written, which is remembered then.
    fn is_new(&mut self, notice: &Notice, now: Instant) -> bool {
        let known = self.0.get(notice).is_some_and(|at| now.duration_since(*at) < REPEATED);
        if !known {
            if self.0.len() >= REMEMBERED {
                self.0.retain(|_, at| now.duration_since(*at) < REPEATED);
            }
            if self.0.len() >= REMEMBERED {
                self.0.clear();
            }
            self.0.insert(notice.clone(), now);
        }
        !known
    }
}

async fn write(client: Client, node: Arc<str>, mut notices: mpsc::Receiver<Notice>) {
    let mut memory = Memory::default();
    let mut burst = BURST;
    let mut told_of_failure = false;
    while let Some(notice) = notices.recv().await {
        if !memory.is_new(&notice, Instant::now()) {
            continue;
        }
        if burst > 0 {
            burst -= 1;
        } else {
            sleep(PAUSE).await;
        }
        if let Err(error) = create(&client, &notice, &node).await {
            if told_of_failure {
                tracing::debug!("an Event was not written: {error}");
            } else {
                tracing::warn!("an Event was not written: {error}; others are dropped without a line");
            }
            told_of_failure = true;
        }
    }
}

async fn create(client: &Client, notice: &Notice, node: &str) -> Result<(), Error> {
    let events = Api::<Event>::namespaced(client.clone(), notice.namespace());
    let event = notice.event(node, Timestamp::now());
    let mut attempt = 1;
    loop {
        match events.create(&PostParams::default(), &event).await {
            Ok(_) => return Ok(()),
            Err(Error::Api(status)) if status.code == 409 => return Ok(()),
            // What is forbidden or not taken stays so.
            Err(error @ Error::Api(_)) => return Err(error),
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => sleep(RETRY).await,
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use lb_agent::{
        dataplane::ApplyError,
        model::{Protocol, ServicePortName},
    };

    use super::*;

    fn rejection(problem: &str) -> Rejection {
        Rejection {
            kind: ObjectKind::Service,
            object: ObjectKey::new("shop", "web"),
            uid: Some("u-1".into()),
            origin: None,
            field: "spec.ports[0].protocol".to_owned(),
            problem: problem.to_owned(),
        }
    }

    #[test]
    fn what_all_nodes_say_is_one_event_and_what_one_says_its_own() {
        let notice = Notice::rejected(&rejection("is \"SCTP\""));
        assert_eq!(notice.name("node-a"), notice.name("node-b"));
        assert_ne!(notice.name("node-a"), Notice::rejected(&rejection("is \"DCCP\"")).name("node-a"));
        let name = notice.name("node-a");
        let (object, digits) = name.split_once('.').expect("two parts");
        assert!(object == "web" && digits.len() == 16, "{name}");
        let of_node = Notice { of_node: true, ..notice };
        assert_ne!(of_node.name("node-a"), of_node.name("node-b"));
        let long = Notice { object: ObjectKey::new("shop", "n".repeat(253)), ..of_node };
        assert_eq!(long.name("node-a").len(), 253);
    }

    #[test]
    fn an_event_names_its_object_as_kubectl_looks_for_it() {
        let event = Notice::rejected(&rejection(&"é".repeat(2000))).event("node-a", Timestamp::UNIX_EPOCH);
        let regarding = event.regarding.expect("an object");
        assert_eq!(regarding.kind.as_deref(), Some("Service"));
        assert_eq!((regarding.namespace.as_deref(), regarding.uid.as_deref()), (Some("shop"), Some("u-1")));
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
        assert!(event.note.expect("a note").len() <= MAX_NOTE);
        let node = Rejection { kind: ObjectKind::Node, object: ObjectKey::new("", "node-a"), ..rejection("is bad") };
        let event = Notice::rejected(&node).event("node-a", Timestamp::UNIX_EPOCH);
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.regarding.expect("an object").namespace, None);
    }

    #[test]
    fn a_missing_health_check_reads_as_that_of_kube_proxy() {
        let failed = Failed {
            service: ObjectKey::new("shop", "web"),
            uid: None,
            address: "0.0.0.0:32000".parse().expect("an address"),
            error: "Address already in use (os error 98)".to_owned(),
        };
        let notice = Notice::health_check(&failed, "node-a");
        assert_eq!((notice.reason, notice.action), ("FailedToStartServiceHealthcheck", "Listen"));
        let expected =
            "node node-a failed to start healthcheck \"shop/web\" on port 32000: Address already in use (os error 98)";
        assert_eq!(notice.note, expected);
    }

    #[test]
    fn a_full_table_is_told_and_other_failures_are_not() {
        let port =
            ServicePortName { service: ObjectKey::new("shop", "web"), port: "http".into(), protocol: Protocol::Tcp };
        let failure = |error| Failure { service_port: Some(port.clone()), error };
        let notice = |failure: &Failure| Notice::no_room(failure, &Inputs::new([]), "node-a");
        let told = notice(&failure(ApplyError::Full { table: "SLOTS4" })).expect("told");
        assert_eq!(told.note, "node node-a: shop/web:http/TCP: table SLOTS4 is full; the former state stays in force");
        let told =
            notice(&failure(ApplyError::NoRoomBeside { table: "SOURCE_RANGES4", clients: 9, room: 7 })).expect("told");
        assert_eq!(
            told.note,
            "node node-a: shop/web:http/TCP: table SOURCE_RANGES4 is full: a new list of 9 networks of clients is entered \
             beside what is in force, and there is room for 7; who may use its addresses stays as it was"
        );
        assert_eq!(notice(&failure(ApplyError::NameTooLong)), None);
    }

    #[test]
    fn the_same_is_written_once_an_hour_and_memory_is_bounded() {
        let mut memory = Memory::default();
        let (now, notice) = (Instant::now(), Notice::rejected(&rejection("is bad")));
        assert!(memory.is_new(&notice, now) && !memory.is_new(&notice, now + REPEATED / 2));
        assert!(memory.is_new(&notice, now + REPEATED));
        for number in 0..2 * REMEMBERED {
            memory.is_new(&Notice::rejected(&rejection(&number.to_string())), now);
        }
        assert!(memory.0.len() <= REMEMBERED);
    }
}
