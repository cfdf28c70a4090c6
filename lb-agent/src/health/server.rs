//! `/healthz` and `/livez` on the port where kube-proxy has them: the one says whether the node is to have traffic, the
//! other whether the agent gets on with its work. An API server that is away is no reason to restart it.

use std::{
    future::ready,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hyper::{StatusCode, http::request::Parts};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::{Families, Now, ProxyHealth, proxy::Report};
use crate::serve::{Answer, Handler, json, not_found};

/// Go's zero time, for what never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// How often each status was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) ok: u64,
    pub(crate) unavailable: u64,
}

#[derive(Debug, Default)]
struct Counts {
    ok: AtomicU64,
    unavailable: AtomicU64,
}

impl Counts {
    fn read(&self) -> Answered {
        Answered { ok: self.ok.load(Ordering::Relaxed), unavailable: self.unavailable.load(Ordering::Relaxed) }
    }

    fn count(&self, status: StatusCode) {
        let counter = if status == StatusCode::OK { &self.ok } else { &self.unavailable };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers probes.
#[derive(Clone, Debug)]
pub(crate) struct HealthServer {
    health: Arc<ProxyHealth>,
    healthz: Arc<Counts>,
    livez: Arc<Counts>,
}

impl HealthServer {
    pub(crate) fn new(health: Arc<ProxyHealth>) -> Self {
        Self { health, healthz: Arc::default(), livez: Arc::default() }
    }

    /// What `/healthz` and `/livez` answered so far.
    pub(crate) fn answered(&self) -> [Answered; 2] {
        [self.healthz.read(), self.livez.read()]
    }

    fn healthz(&self, now: Now) -> Answer {
        let report = self.health.report(now.monotonic);
        // kube-proxy says that it is healthy before it has synchronized for the first time, and for ever if it never
        // does (issue 134648): the node would be sent traffic that it cannot serve.
        let healthy = report.is_in_time() && report.is_synchronized();
        let status = status(healthy && report.eligible);
        self.healthz.count(status);
        json(status, [], body(&report, healthy, status, Some(report.eligible), now.wall))
    }

    fn livez(&self, now: Now) -> Answer {
        let report = self.health.report(now.monotonic);
        let status = status(report.is_in_time());
        self.livez.count(status);
        json(status, [], body(&report, report.is_in_time(), status, None, now.wall))
    }
}

impl Handler for HealthServer {
    fn answer(&self, request: Parts, _: IpAddr) -> impl Future<Output = Answer> + Send {
        ready(match request.uri.path() {
            "/healthz" => self.healthz(Now::read()),
            "/livez" => self.livez(Now::read()),
            _ => not_found(),
        })
    }
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// `ProxyHealth`, as Go's `encoding/json` writes it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<FamiliesBody>,
}

/// A map that Go orders by its keys.
#[derive(Serialize)]
struct FamiliesBody {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyBody>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

fn body(report: &Report, healthy: bool, status: StatusCode, node_eligible: Option<bool>, now: Timestamp) -> String {
    let time = |time: Option<Timestamp>| time.map_or_else(|| NEVER.to_owned(), |time| time.to_string());
    let family = |(updated, healthy): (Option<Timestamp>, bool)| {
        updated.map(|updated| FamilyBody { last_updated: updated.to_string(), healthy })
    };
    let Families { v4, v6 } = report.families;
    let (v4, v6) = (family(v4), family(v6));
    let body = Body {
        // Who reads this takes an old time for a proxy that hangs, as it was when every synchronization set it.
        last_updated: time(if status == StatusCode::OK { Some(now) } else { report.last_updated() }),
        current_time: time(Some(now)),
        node_eligible,
        healthy,
        status: (v4.is_some() || v6.is_some()).then_some(FamiliesBody { v4, v6 }),
    };
    serde_json::to_string(&body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use http_body_util::BodyExt as _;
    use lb_agent::model::Node;

    use super::*;
    use crate::health::proxy::TO_BE_DELETED;
    use crate::serve::testing::{get, start};

    /// A server, and a clock that begins at 08:00:00.000000001.
    struct World {
        server: HealthServer,
        start: Now,
    }

    impl World {
        fn new(in_cluster: bool) -> Self {
            let wall = "2026-02-03T08:00:00.000000001Z".parse().expect("a time");
            let server = HealthServer::new(Arc::new(ProxyHealth::new(in_cluster, Duration::from_secs(30))));
            Self { server, start: Now { monotonic: Instant::now(), wall } }
        }

        fn at(&self, seconds: u64) -> Now {
            let passed = Duration::from_secs(seconds);
            Now { monotonic: self.start.monotonic + passed, wall: self.start.wall + passed }
        }

        fn begun(&self, seconds: u64) {
            self.server.health.begun(self.at(seconds).monotonic);
        }

        fn synchronized(&self, seconds: u64, v4: bool, v6: bool) -> bool {
            self.server.health.synchronized(Families { v4, v6 }, self.at(seconds).wall)
        }

        async fn healthz(&self, seconds: u64) -> (u16, String) {
            read(self.server.healthz(self.at(seconds))).await
        }

        async fn livez(&self, seconds: u64) -> (u16, String) {
            read(self.server.livez(self.at(seconds))).await
        }
    }

    async fn read(answer: Answer) -> (u16, String) {
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8(bytes.into()).expect("text"))
    }

    #[tokio::test]
    async fn the_json_is_that_of_kube_proxy() {
        let world = World::new(true);
        world.server.health.set_node(Some(&Node::default()));
        world.begun(0);
        assert!(world.synchronized(1, true, true));
        assert!(!world.synchronized(2, true, true), "once only");
        let status = r#""status":{"IPv4":{"lastUpdated":"2026-02-03T08:00:02.000000001Z","healthy":true},"IPv6":{"lastUpdated":"2026-02-03T08:00:02.000000001Z","healthy":true}}}"#;
        assert_eq!(
            world.healthz(3).await,
            (200, r#"{"lastUpdated":"2026-02-03T08:00:03.000000001Z","currentTime":"2026-02-03T08:00:03.000000001Z","nodeEligible":true,"healthy":true,"#.to_owned() + status)
        );
        assert_eq!(
            world.livez(3).await,
            (200, r#"{"lastUpdated":"2026-02-03T08:00:03.000000001Z","currentTime":"2026-02-03T08:00:03.000000001Z","healthy":true,"#.to_owned() + status)
        );
    }

    #[tokio::test]
    async fn a_family_that_is_late_is_unhealthy_until_it_is_updated() {
        let world = World::new(false);
        world.begun(0);
        world.synchronized(0, true, true);
        world.begun(10);
        world.synchronized(10, true, false);
        // Further changes do not make the oldest younger.
        world.begun(30);
        world.synchronized(30, true, false);
        assert_eq!(world.healthz(69).await.0, 200);
        let expected = r#"{"lastUpdated":"2026-02-03T08:00:30.000000001Z","currentTime":"2026-02-03T08:01:10.000000001Z","nodeEligible":true,"healthy":false,"status":{"IPv4":{"lastUpdated":"2026-02-03T08:00:30.000000001Z","healthy":true},"IPv6":{"lastUpdated":"2026-02-03T08:00:00.000000001Z","healthy":false}}}"#;
        assert_eq!(world.healthz(70).await, (503, expected.to_owned()));
        assert_eq!(world.livez(70).await, (503, expected.replace(r#""nodeEligible":true,"#, "")));
        world.synchronized(71, true, true);
        assert_eq!(world.healthz(1000).await.0, 200, "idle is healthy");
    }

    #[test]
    fn a_change_may_wait_for_twice_the_sync_period() {
        let (health, start) = (ProxyHealth::new(false, Duration::from_secs(5)), Instant::now());
        health.begun(start);
        let in_time = |seconds| health.report(start + Duration::from_secs(seconds)).is_in_time();
        assert_eq!((in_time(9), in_time(10)), (true, false));
    }

    #[tokio::test]
    async fn before_the_first_synchronization_the_agent_lives_and_the_node_is_not_healthy() {
        let world = World::new(false);
        let now = r#""currentTime":"2026-02-03T08:00:00.000000001Z""#;
        let never = format!(r#"{{"lastUpdated":"0001-01-01T00:00:00Z",{now},"nodeEligible":true,"healthy":false}}"#);
        assert_eq!(world.healthz(0).await, (503, never));
        let lives = format!(r#"{{"lastUpdated":"2026-02-03T08:00:00.000000001Z",{now},"healthy":true}}"#);
        assert_eq!(world.livez(0).await, (200, lives));
        // Messages come, but not all lists.
        world.begun(1);
        world.server.health.waiting();
        assert_eq!((world.healthz(100).await.0, world.livez(100).await.0), (503, 200));
        // A first synchronization that does not come to an end.
        world.begun(100);
        assert_eq!((world.livez(159).await.0, world.livez(160).await.0), (200, 503));
        world.synchronized(161, true, false);
        assert_eq!((world.healthz(161).await.0, world.livez(161).await.0), (503, 503));
        world.synchronized(162, false, true);
        assert_eq!((world.healthz(162).await.0, world.livez(162).await.0), (200, 200));
    }

    #[tokio::test]
    async fn a_node_that_is_to_go_is_not_eligible_and_its_agent_lives() {
        let world = World::new(true);
        world.synchronized(0, true, true);
        let tainted = |key: &str| Node { taints: vec![key.into()], ..Node::default() };
        let deleted = Node { deleting: true, ..Node::default() };
        for (node, code) in [
            (None, 503),
            (Some(Node::default()), 200),
            (Some(tainted("node.kubernetes.io/unreachable")), 200),
            (Some(tainted(TO_BE_DELETED)), 503),
            (Some(deleted), 503),
        ] {
            world.server.health.set_node(node.as_ref());
            let (status, body) = world.healthz(1).await;
            let eligible = format!(r#""nodeEligible":{},"healthy":true"#, code == 200);
            assert!(status == code && body.contains(&eligible), "{node:?}: {status} {body}");
            assert_eq!(world.livez(1).await.0, 200, "{node:?}");
        }
        // Without a cluster nobody need describe the node.
        let alone = World::new(false);
        alone.synchronized(0, true, true);
        alone.server.health.set_node(None);
        assert_eq!(alone.healthz(1).await.0, 200);
        let answered = |ok, unavailable| Answered { ok, unavailable };
        assert_eq!(world.server.answered(), [answered(2, 3), answered(5, 0)]);
    }

    #[tokio::test]
    async fn the_servers_bytes_are_those_of_kube_proxy() {
        let world = World::new(false);
        let address = start(Arc::new(world.server.clone()));
        let text = get(address, "/healthz").await;
        let head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
                    X-Content-Type-Options: nosniff\r\nContent-Length: 114\r\nConnection: close\r\n\r\n{\"lastUpdated\":\"0001";
        let length = text.split_once("\r\n\r\n").expect("a body").1.len();
        assert!(text.starts_with(&head.replace("114", &length.to_string())), "{text}");
        assert!(get(address, "/livez?verbose").await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(get(address, "/").await.starts_with("HTTP/1.1 404 Not Found\r\n"));
    }
}
