//! The servers of `healthCheckNodePort`, by `pkg/proxy/healthcheck/service_health.go` of Kubernetes: one for each
//! Service of type `LoadBalancer` with `externalTrafficPolicy: Local`. A load balancer asks each node whether it has
//! endpoints of the Service.
//!
//! Unlike kube-proxy's, a server answers in both families whatever the Service's own: a load balancer asks by the family
//! of the node. And a port that could not be had is tried again by itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    future::ready,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper::{
    StatusCode,
    header::{HeaderName, HeaderValue},
    http::request::Parts,
};
use lb_agent::model::{HealthCheck, Node, NodePortAddresses, ObjectKey, Policy};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep_until, timeout},
};

use super::ProxyHealth;
use crate::serve::{Answer, Handler, json, listen, serve};

/// Pause before a port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time that a server is waited for that was told to end. It ends at once unless the machine stands still.
const END: Duration = Duration::from_secs(1);
/// How many local endpoints there are, for load balancers that weigh nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The servers that are to be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Addresses to listen on: `nodePortAddresses`. The unspecified one stands for all.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// By Service.
    pub(crate) checks: Arc<BTreeMap<ObjectKey, HealthCheck>>,
}

/// The addresses that servers of node ports listen on. `own` are those of the node.
pub(crate) fn addresses(
    policy: &Policy,
    own: impl IntoIterator<Item = IpAddr>,
    node: Option<&Node>,
) -> BTreeSet<IpAddr> {
    match &policy.node_port_addresses {
        NodePortAddresses::All => BTreeSet::from([Ipv4Addr::UNSPECIFIED.into()]),
        NodePortAddresses::Primary => {
            let v4 = policy.primary::<[u8; 4]>(node).map(IpAddr::from);
            let v6 = policy.primary::<[u8; 16]>(node).map(IpAddr::from);
            v4.into_iter().chain(v6).collect()
        }
        NodePortAddresses::Within(networks) => {
            own.into_iter().filter(|address| networks.iter().any(|network| network.contains(address))).collect()
        }
    }
}

/// A server that is not there although it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) service: ObjectKey,
    pub(crate) uid: Option<Arc<str>>,
    pub(crate) address: SocketAddr,
    pub(crate) error: String,
}

/// Opens and closes servers until nobody wants any more. `failed` is told each port that cannot be had, once until it
/// can.
pub(crate) async fn run(
    mut wanted: watch::Receiver<Wanted>,
    health: Arc<ProxyHealth>,
    failed: impl Fn(&Failed) + Send,
) {
    let mut servers = Servers { health, open: BTreeMap::new(), answers: HashMap::new(), failing: BTreeSet::new() };
    loop {
        let now = wanted.borrow_and_update().clone();
        servers.close_others(&now).await;
        servers.open(&now, &failed);
        let retry = Instant::now() + RETRY;
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep_until(retry.into()), if !servers.failing.is_empty() => {}
        }
    }
}

/// One server: a Service, and where it is asked.
type Place = (ObjectKey, SocketAddr);

struct Servers {
    health: Arc<ProxyHealth>,
    open: BTreeMap<Place, JoinHandle<()>>,
    /// What the servers of each Service answer.
    answers: HashMap<ObjectKey, Arc<Mutex<HealthCheck>>>,
    /// Those that were told to be missing.
    failing: BTreeSet<Place>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.open.values().for_each(JoinHandle::abort);
    }
}

fn places(wanted: &Wanted) -> BTreeSet<Place> {
    let Wanted { addresses, checks } = wanted;
    let of = |(key, check): (&ObjectKey, &HealthCheck)| {
        let (key, port) = (key.clone(), check.port);
        addresses.iter().map(move |address| (key.clone(), SocketAddr::new(*address, port)))
    };
    checks.iter().flat_map(of).collect()
}

impl Servers {
    /// Ends what is not wanted, and waits for it: another Service may want its port.
    async fn close_others(&mut self, wanted: &Wanted) {
        let places = places(wanted);
        for (place, server) in self.open.extract_if(.., |place, _| !places.contains(place)) {
            tracing::info!(service = %place.0, address = %place.1, "health check closed");
            server.abort();
            let _ = timeout(END, server).await;
        }
        self.failing.retain(|place| places.contains(place));
        self.answers.retain(|service, _| wanted.checks.contains_key(service));
    }

    fn open(&mut self, wanted: &Wanted, failed: impl Fn(&Failed)) {
        for (service, check) in &*wanted.checks {
            let answer = self.answers.entry(service.clone()).or_insert_with(|| Arc::new(Mutex::new(check.clone())));
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = check.clone();
        }
        for place in places(wanted) {
            let Entry::Vacant(entry) = self.open.entry(place) else { continue };
            let (service, address) = entry.key();
            let Some(check) = self.answers.get(service) else { continue };
            match listen(*address) {
                Ok(listener) => {
                    tracing::info!(%service, %address, "health check open");
                    let health = Arc::clone(&self.health);
                    let server = ServiceCheck { service: service.clone(), check: Arc::clone(check), health };
                    self.failing.remove(entry.key());
                    entry.insert(tokio::spawn(serve(listener, Arc::new(server))));
                }
                Err(error) => {
                    if self.failing.insert(entry.key().clone()) {
                        let uid = check.lock().unwrap_or_else(PoisonError::into_inner).uid.clone();
                        let (service, address) = entry.into_key();
                        failed(&Failed { service, uid, address, error: error.to_string() });
                    }
                }
            }
        }
    }
}

/// Answers for one Service.
struct ServiceCheck {
    service: ObjectKey,
    check: Arc<Mutex<HealthCheck>>,
    health: Arc<ProxyHealth>,
}

impl Handler for ServiceCheck {
    fn answer(&self, _: Parts, local: IpAddr) -> impl Future<Output = Answer> + Send {
        let HealthCheck { local4, local6, .. } = *self.check.lock().unwrap_or_else(PoisonError::into_inner);
        // That of the family that was asked in, or of the only one that there is.
        let count = if local.is_ipv4() { local4.or(local6) } else { local6.or(local4) }.unwrap_or(0);
        let healthy = self.health.report(Instant::now()).is_in_time();
        let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let ObjectKey { namespace, name } = &self.service;
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\
             \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
        );
        ready(json(status, [(WEIGHT, HeaderValue::from(count))], body))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        health::Families,
        serve::testing::{get, get_whole},
    };

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("shop", name)
    }

    /// A port of the loopback device that nobody has now.
    fn free_port() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.local_addr().expect("bound").port()
    }

    fn check(port: u16, local4: Option<usize>, local6: Option<usize>) -> HealthCheck {
        HealthCheck { uid: Some("u-1".into()), port, local4, local6 }
    }

    /// Servers on the addresses of loopback.
    struct World {
        health: Arc<ProxyHealth>,
        wanted: watch::Sender<Wanted>,
        failed: mpsc::UnboundedReceiver<Failed>,
    }

    impl World {
        fn start(addresses: &[&str]) -> Self {
            let health = Arc::new(ProxyHealth::new(false, Duration::from_secs(30)));
            let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
            let (wanted, receiver) = watch::channel(Wanted { addresses, ..Wanted::default() });
            let (sender, failed) = mpsc::unbounded_channel();
            let tell = move |failed: &Failed| sender.send(failed.clone()).expect("the test listens");
            tokio::spawn(run(receiver, Arc::clone(&health), tell));
            Self { health, wanted, failed }
        }

        fn want<const N: usize>(&self, checks: [(&str, HealthCheck); N]) {
            let checks = checks.map(|(name, check)| (key(name), check));
            self.wanted.send_modify(|wanted| wanted.checks = Arc::new(checks.into()));
        }
    }

    async fn answers(address: &str, port: u16) -> bool {
        tokio::net::TcpStream::connect((address, port)).await.is_ok()
    }

    async fn until(address: &str, port: u16, expected: bool) {
        for _ in 0..500 {
            if answers(address, port).await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{address}:{port} does {}answer", if expected { "not " } else { "" });
    }

    #[tokio::test]
    async fn the_bytes_are_those_of_kube_proxy() {
        let world = World::start(&["0.0.0.0"]);
        let port = free_port();
        world.want([("web", check(port, Some(2), Some(0)))]);
        until("127.0.0.1", port, true).await;
        let good = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
                    X-Load-Balancing-Endpoint-Weight: 2\r\nContent-Length: 114\r\nConnection: close\r\n\r\n\
                    {\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\
                    \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        let length = good.split_once("\r\n\r\n").expect("a body").1.len();
        let good = good.replace("114", &length.to_string());
        let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        assert_eq!(get(v4, "/").await, good);
        assert_eq!(get(v4, "/any/path?at=all").await, good);
        let none = good.replace("200 OK", "503 Service Unavailable").replace("Weight: 2", "Weight: 0");
        let none = none.replace("Endpoints\": 2", "Endpoints\": 0");
        assert_eq!(get(SocketAddr::new("::1".parse().expect("IPv6"), port), "/").await, none);

        // A proxy that is late serves nobody well.
        let long_ago = Instant::now().checked_sub(Duration::from_secs(61)).expect("the machine is up for long");
        world.health.begun(long_ago);
        let late = good.replace("200 OK", "503 Service Unavailable").replace("Healthy\": true", "Healthy\": false");
        let late = late.replace(&format!("Length: {length}"), &format!("Length: {}", length + 1));
        assert_eq!(get(v4, "/").await, late);
        world.health.synchronized(Families { v4: true, v6: true }, k8s_openapi::jiff::Timestamp::now());
        assert_eq!(get(v4, "/").await, good);
    }

    #[tokio::test]
    async fn a_service_of_one_family_is_answered_for_in_both_and_counts_follow() {
        let world = World::start(&["0.0.0.0"]);
        let port = free_port();
        world.want([("web", check(port, None, Some(1)))]);
        until("127.0.0.1", port, true).await;
        for (count, code) in [(1, "200"), (0, "503"), (3, "200")] {
            world.want([("web", check(port, None, Some(count)))]);
            for address in ["127.0.0.1", "::1"] {
                let address = SocketAddr::new(address.parse().expect("an address"), port);
                let expected = format!("X-Load-Balancing-Endpoint-Weight: {count}\r\n");
                let mut text = String::new();
                for _ in 0..500 {
                    text = get_whole(address, "/", "").await;
                    if text.contains(&expected) && text.contains(&format!("HTTP/1.1 {code}")) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                assert!(text.contains(&expected) && text.contains(&format!("HTTP/1.1 {code}")), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn servers_come_and_go_with_their_services_and_addresses() {
        let world = World::start(&["127.0.0.1"]);
        let (first, second) = (free_port(), free_port());
        world.want([("web", check(first, Some(1), None)), ("api", check(second, Some(1), None))]);
        until("127.0.0.1", first, true).await;
        until("127.0.0.1", second, true).await;
        assert!(!answers("127.0.0.2", first).await, "that address is not listened on");
        // web gives its port to api.
        world.want([("web", check(second, Some(1), None)), ("api", check(first, Some(2), None))]);
        let weight = |to, name: &'static str| async move {
            let text = get(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), to), "/").await;
            text.contains(&format!("\"name\": \"{name}\""))
        };
        for _ in 0..500 {
            if answers("127.0.0.1", first).await && weight(first, "api").await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(weight(first, "api").await && weight(second, "web").await);
        world.wanted.send_modify(|wanted| wanted.addresses = BTreeSet::from([Ipv4Addr::new(127, 0, 0, 2).into()]));
        until("127.0.0.1", first, false).await;
        until("127.0.0.2", first, true).await;
        world.want([]);
        until("127.0.0.2", first, false).await;
        until("127.0.0.2", second, false).await;
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_once_and_tried_again() {
        let mut world = World::start(&["127.0.0.1"]);
        let (taken, free) = (TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"), free_port());
        let port = taken.local_addr().expect("bound").port();
        world.want([("web", check(port, Some(1), None)), ("api", check(free, Some(1), None))]);
        let failed = world.failed.recv().await.expect("it is told");
        assert_eq!((failed.service, failed.uid.as_deref()), (key("web"), Some("u-1")));
        assert!(failed.error.contains("in use"), "{}", failed.error);
        until("127.0.0.1", free, true).await;
        // Another change tries again, and finds it taken still.
        world.want([("web", check(port, Some(2), None))]);
        until("127.0.0.1", free, false).await;
        assert!(world.failed.try_recv().is_err(), "told once");
        drop(taken);
        tokio::time::pause();
        tokio::time::advance(RETRY).await;
        tokio::time::resume();
        until("127.0.0.1", port, true).await;
    }

    #[test]
    fn addresses_follow_the_policy() {
        let own = || ["10.0.0.1", "10.1.0.1", "fd00::1"].map(|text| text.parse::<IpAddr>().expect("an address"));
        let node = Node { internal_ips: own()[1..].to_vec(), ..Node::default() };
        let of = |node_port_addresses| {
            let policy = Policy { node_port_addresses, ..Policy::default() };
            let texts = addresses(&policy, own(), Some(&node)).into_iter().map(|address| address.to_string());
            texts.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(NodePortAddresses::All), "0.0.0.0");
        assert_eq!(of(NodePortAddresses::Primary), "10.1.0.1 fd00::1");
        let networks = ["10.0.0.0/16", "fd00::/64"].map(|text| text.parse().expect("a network"));
        assert_eq!(of(NodePortAddresses::Within(networks.into())), "10.0.0.1 fd00::1");
        let bound = Policy {
            bind_address: Some(own()[0]),
            node_port_addresses: NodePortAddresses::Primary,
            ..Policy::default()
        };
        assert_eq!(addresses(&bound, own(), Some(&node)), BTreeSet::from([own()[0], own()[2]]));
    }
}
