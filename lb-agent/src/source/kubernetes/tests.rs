//! Against an API server that answers from a script, for what a real one is hard to bring to: refusals, broken
//! answers, silence. Time is virtual.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use kube::Client;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    model::{Change, ObjectKey, ObjectKind, SourceEvent},
    source::{CHANNEL_CAPACITY, SourceMessage, Watch, WatchState},
};

/// Longer than any time in which the source waits for something.
const VIRTUAL_HOUR: Duration = Duration::from_secs(3600);

/// One answer to a request for Services.
enum Answer {
    /// A failure.
    Refuse(StatusCode),
    /// A page of a list.
    Page(Vec<Value>, Option<&'static str>),
    /// Lines of a watch, which stays open.
    Watch(Vec<String>),
    /// Lines of a watch, which then ends.
    WatchThatEnds(Vec<String>),
}

/// Answers for Services by a script; once it is over, and for other kinds, with empty streamed lists.
#[derive(Clone, Default)]
struct FakeApi {
    script: Arc<Mutex<VecDeque<Answer>>>,
    /// Requests for Services.
    requests: Arc<Mutex<Vec<String>>>,
    /// Requests for other kinds.
    others: Arc<Mutex<Vec<String>>>,
    /// How `ServiceCIDR`s are refused, if they are.
    no_cidrs: Arc<Mutex<Option<StatusCode>>>,
}

impl FakeApi {
    fn answer(&self, uri: &Uri) -> Response {
        if let Some(code) = *self.no_cidrs.lock().expect("held")
            && uri.path() == "/apis/networking.k8s.io/v1/servicecidrs"
        {
            return (code, "404 page not found").into_response();
        }
        if uri.path() != "/api/v1/services" {
            self.others.lock().expect("held").push(uri.to_string());
            return watch(vec![end_of_list(1)]).into_response();
        }
        self.requests.lock().expect("held").push(uri.to_string());
        match self.script.lock().expect("held").pop_front() {
            Some(Answer::Refuse(code)) => {
                let status = json!({ "kind": "Status", "status": "Failure", "code": code.as_u16(), "message": "no" });
                (code, status.to_string()).into_response()
            }
            Some(Answer::Page(items, token)) => {
                let metadata = json!({ "resourceVersion": "10", "continue": token });
                json!({ "kind": "ServiceList", "apiVersion": "v1", "metadata": metadata, "items": items })
                    .to_string()
                    .into_response()
            }
            Some(Answer::Watch(lines)) => watch(lines).into_response(),
            Some(Answer::WatchThatEnds(lines)) => lines.concat().into_response(),
            None => watch(vec![]).into_response(),
        }
    }
}

fn watch(lines: Vec<String>) -> Body {
    Body::from_stream(stream::iter(lines.into_iter().map(Ok::<_, Infallible>)).chain(stream::pending()))
}

fn line(kind: &str, object: &Value) -> String {
    json!({ "type": kind, "object": object }).to_string() + "\n"
}

fn end_of_list(version: u64) -> String {
    let annotations = json!({ "k8s.io/initial-events-end": "true" });
    let metadata = json!({ "resourceVersion": version.to_string(), "annotations": annotations });
    line("BOOKMARK", &json!({ "kind": "Service", "apiVersion": "v1", "metadata": metadata }))
}

fn service(name: &str, port: i64) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": name, "resourceVersion": "11" },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": port }] },
    })
}

/// A source that is fed by a script.
struct Run {
    api: FakeApi,
    messages: mpsc::Receiver<SourceMessage>,
}

impl Run {
    fn start(script: impl IntoIterator<Item = Answer>) -> Self {
        let api = FakeApi::default();
        api.script.lock().expect("held").extend(script);
        let answering = api.clone();
        let router = Router::new().fallback(move |uri: Uri| async move { answering.answer(&uri) });
        let (sender, messages) = mpsc::channel(CHANNEL_CAPACITY);
        tokio::spawn(async move { super::run(Client::new(router, "default"), "node-a", sender).await });
        Self { api, messages }
    }

    /// The next message about Services, as a line.
    async fn next(&mut self) -> String {
        loop {
            let message = timeout(VIRTUAL_HOUR, self.messages.recv()).await.expect("a message within an hour");
            let message = message.expect("the source runs");
            let text = match &message {
                SourceMessage::Event(SourceEvent::Replaced { kind: ObjectKind::Service, objects, rejected }) => {
                    let objects: Vec<_> = objects.iter().map(describe).collect();
                    let rejected: Vec<_> = rejected.iter().map(ToString::to_string).collect();
                    format!("all: {} rejected: {}", objects.join(" "), rejected.join(" "))
                }
                SourceMessage::Event(SourceEvent::Changed(change)) => describe(change),
                SourceMessage::Rejected(rejection) => rejection.to_string(),
                SourceMessage::State(WatchState { watch: Watch::Api(ObjectKind::Service), problem }) => match problem {
                    Some(problem) => format!("broken: {problem}"),
                    None => "works".to_owned(),
                },
                _ => continue,
            };
            return text;
        }
    }

    async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next().await, *expected);
        }
    }

    fn requests(&self) -> Vec<String> {
        self.api.requests.lock().expect("held").clone()
    }
}

fn describe(change: &Change) -> String {
    match change {
        Change::Service(key, Some(service)) => format!("{key}:{}", service.ports[0].port),
        Change::Service(key, None) => format!("{key} gone"),
        other => panic!("not a Service: {other:?}"),
    }
}

/// What is told of `ServiceCIDR`s where the server answers with `code` until `is_enough` of what it made us say.
async fn told_of_service_cidrs(code: StatusCode, is_enough: &str, expected: &[&str]) {
    let mut run = Run::start([]);
    *run.api.no_cidrs.lock().expect("held") = Some(code);
    let mut told = Vec::new();
    while told.len() < expected.len() {
        let message = timeout(VIRTUAL_HOUR, run.messages.recv()).await.expect("within an hour").expect("it runs");
        let what = match message {
            SourceMessage::State(WatchState { watch: Watch::Api(ObjectKind::ServiceCidr), problem }) => {
                problem.map_or("works", |_| "broken")
            }
            SourceMessage::Event(SourceEvent::Replaced { kind: ObjectKind::ServiceCidr, objects, rejected }) => {
                assert!(objects.is_empty() && rejected.is_empty());
                "nothing"
            }
            _ => continue,
        };
        told.push(what);
        if what == is_enough {
            *run.api.no_cidrs.lock().expect("held") = None;
        }
    }
    assert_eq!(told, expected, "{code}");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_without_service_cidrs_keeps_nobody_waiting_and_may_give_them_later() {
    for code in [StatusCode::NOT_FOUND, StatusCode::FORBIDDEN] {
        told_of_service_cidrs(code, "nothing", &["broken", "nothing", "works", "nothing"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_refuses_service_cidrs_for_a_moment_is_waited_for() {
    told_of_service_cidrs(StatusCode::FORBIDDEN, "broken", &["broken", "works", "nothing"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_streamed_list_is_one_replacement_and_changes_follow() {
    let mut headless = service("headless", 1);
    headless["spec"]["clusterIP"] = json!("None");
    let mut run = Run::start([Answer::Watch(vec![
        line("ADDED", &service("web", 80)),
        line("ADDED", &headless),
        line("ADDED", &service("db", 5432)),
        end_of_list(20),
        line("MODIFIED", &service("web", 81)),
        line("MODIFIED", &headless),
        line("DELETED", &service("db", 5432)),
    ])]);
    run.expect(&["works", "all: shop/web:80 shop/db:5432 rejected: ", "shop/web:81"]).await;
    run.expect(&["shop/headless gone", "shop/db gone"]).await;
}

#[tokio::test(start_paused = true)]
async fn the_selectors_are_those_of_kube_proxy() {
    let mut run = Run::start([Answer::Watch(vec![end_of_list(20)])]);
    run.expect(&["works", "all:  rejected: "]).await;
    let services = run.requests().concat();
    assert!(services.contains("labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"), "{services}");
    assert!(services.contains("fieldSelector=spec.clusterIP%21%3DNone"), "{services}");
    assert!(services.contains("sendInitialEvents=true"), "{services}");
    let others = run.api.others.lock().expect("held").join("\n");
    assert!(others.contains("/apis/discovery.k8s.io/v1/endpointslices?"), "{others}");
    assert!(others.contains("labelSelector=%21service.kubernetes.io%2Fheadless"), "{others}");
    assert!(others.contains("fieldSelector=metadata.name%3Dnode-a"), "{others}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_to_stream_is_listed_by_pages() {
    for code in [StatusCode::UNPROCESSABLE_ENTITY, StatusCode::BAD_REQUEST] {
        let mut run = Run::start([
            Answer::Refuse(code),
            Answer::Page(vec![service("a", 1), service("b", 2)], Some("more")),
            Answer::Page(vec![service("c", 3)], None),
            Answer::Watch(vec![line("ADDED", &service("d", 4))]),
        ]);
        run.expect(&["works", "all: shop/a:1 shop/b:2 shop/c:3 rejected: ", "shop/d:4"]).await;
        let requests = run.requests();
        assert!(requests[1].contains("limit=500"), "{requests:?}");
        assert!(requests[2].contains("continue=more"), "{requests:?}");
        assert!(requests[3].contains("resourceVersion=10") && !requests[3].contains("sendInitial"), "{requests:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ignores_the_wish_to_stream_is_listed_by_pages() {
    let mut run = Run::start([
        // An ordinary watch: what exists is sent, and nothing says that it was all.
        Answer::Watch(vec![line("ADDED", &service("a", 1))]),
        Answer::Page(vec![service("a", 1), service("b", 2)], None),
    ]);
    run.expect(&["works", "all: shop/a:1 shop/b:2 rejected: "]).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_is_never_told() {
    let mut run = Run::start([
        Answer::WatchThatEnds(vec![line("ADDED", &service("old", 1))]),
        Answer::Refuse(StatusCode::SERVICE_UNAVAILABLE),
        Answer::Watch(vec![line("ADDED", &service("new", 2)), end_of_list(20)]),
    ]);
    assert!(run.next().await.starts_with("broken: failed to start watching object"));
    run.expect(&["works", "all: shop/new:2 rejected: "]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_goes_away_leaves_the_last_state_and_is_resumed() {
    let mut run = Run::start([
        Answer::WatchThatEnds(vec![line("ADDED", &service("web", 80)), end_of_list(20)]),
        Answer::Refuse(StatusCode::SERVICE_UNAVAILABLE),
        Answer::Refuse(StatusCode::SERVICE_UNAVAILABLE),
        Answer::Watch(vec![]),
    ]);
    run.expect(&["works", "all: shop/web:80 rejected: "]).await;
    assert!(run.next().await.starts_with("broken: failed to start watching object"));
    // Nothing changed while it was away: that it does not fail any more is all there is to see.
    run.expect(&["works"]).await;
    let requests = run.requests();
    assert!(requests[3].contains("resourceVersion=20"), "{requests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_too_old_starts_over() {
    let gone = json!({ "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "old" });
    let mut run = Run::start([
        Answer::Watch(vec![line("ADDED", &service("a", 1)), end_of_list(20), line("ERROR", &gone)]),
        Answer::Watch(vec![line("ADDED", &service("b", 2)), end_of_list(30)]),
    ]);
    run.expect(&["works", "all: shop/a:1 rejected: "]).await;
    assert!(run.next().await.starts_with("broken: error returned by apiserver during watch"));
    run.expect(&["works", "all: shop/b:2 rejected: "]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_to_resume_is_listed_again() {
    let mut run = Run::start([
        Answer::WatchThatEnds(vec![end_of_list(20)]),
        Answer::Refuse(StatusCode::GONE),
        Answer::Watch(vec![line("ADDED", &service("b", 2)), end_of_list(30)]),
    ]);
    run.expect(&["works", "all:  rejected: "]).await;
    assert!(run.next().await.starts_with("broken: "));
    run.expect(&["works", "all: shop/b:2 rejected: "]).await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_object_is_rejected_and_the_others_arrive() {
    let mut shapeless = service("shapeless", 1);
    shapeless["spec"]["ports"][0]["port"] = json!("eighty");
    let mut run = Run::start([Answer::Watch(vec![
        line("ADDED", &service("far", 70000)),
        line("ADDED", &shapeless),
        line("ADDED", &json!("not even an object")),
        line("ADDED", &service("web", 80)),
        end_of_list(20),
        line("MODIFIED", &service("web", 0)),
        // The same again is not told again.
        line("MODIFIED", &service("web", 0)),
        line("MODIFIED", &service("far", 70000)),
        "{ not JSON\n".to_owned(),
        line("MODIFIED", &service("web", 82)),
    ])]);
    run.expect(&[
        "Service shop/far: spec.ports[0].port: is 70000, expected 1 to 65535",
        "Service shop/shapeless: spec.ports[0].port: invalid type: string \"eighty\", expected i32",
        "Service : .: invalid type: string \"not even an object\", expected Service",
        "works",
        "all: shop/web:80 rejected: shop/far shop/shapeless ",
        // Its last good state stays: no change is told.
        "Service shop/web: spec.ports[0].port: is 0, expected 1 to 65535",
    ])
    .await;
    assert!(run.next().await.starts_with("broken: watch stream failed"));
    run.expect(&["works", "shop/web:82"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_ends_when_nobody_listens() {
    let (sender, messages) = mpsc::channel(1);
    let router = Router::new().fallback(|| async { watch(vec![]) });
    let source = tokio::spawn(async move { super::run(Client::new(router, "default"), "node-a", sender).await });
    drop(messages);
    source.await.expect("ends");
}

#[test]
fn a_key_of_a_rejected_object_is_that_of_its_last_good_state() {
    let reduced = crate::source::reduce_json::<k8s_openapi::api::core::v1::Service>(
        &json!({ "metadata": { "namespace": "shop", "name": "web" }, "spec": 7 }),
    );
    assert_eq!((reduced.key, reduced.change), (ObjectKey::new("shop", "web"), None));
}
