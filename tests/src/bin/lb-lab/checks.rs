//! What `--once` checks: one line for each thing that a user wants to see hold.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    time::Instant,
};

use lb_tests::{
    lab::{
        Family, Host,
        client::{Outcome, Transport},
        cluster::Cluster,
        load::Load,
        manifest::Service,
        path::{Path, paths},
    },
    trial,
};

use crate::Services;

/// Runs all checks and tells whether all hold.
pub(crate) fn run(cluster: Cluster, services: &Services) -> bool {
    // A failed check is a line of the report, not a backtrace.
    panic::set_hook(Box::new(|_| {}));
    let mut report = Report { start: Instant::now(), checked: 0, failed: 0 };
    addresses(&cluster, services, &mut report);
    spread(&cluster, &services.web, &mut report);
    refusals(&cluster, &services.empty, &mut report);
    changes(cluster, &services.web, &mut report);
    if report.failed > 0 {
        trial::print_logs();
    }
    println!(
        "{} of {} hold, checked in {:.1?}",
        report.checked - report.failed,
        report.checked,
        report.start.elapsed()
    );
    report.failed == 0
}

struct Report {
    start: Instant,
    checked: u32,
    failed: u32,
}

impl Report {
    /// A check gives what it saw, or panics with it.
    fn check(&mut self, what: &str, body: impl FnOnce() -> String) {
        self.checked += 1;
        match panic::catch_unwind(AssertUnwindSafe(body)) {
            Ok(seen) => println!("ok      {what:<62}  {seen}"),
            Err(cause) => {
                self.failed += 1;
                println!("FAILED  {what:<62}  {}", message(cause.as_ref()));
            }
        }
    }
}

fn message(cause: &(dyn Any + Send)) -> &str {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("failed without a word")
}

/// What a check calls one of the two protocols, and the ways to use it.
const PROTOCOLS: [(&str, [Transport; 2]); 2] =
    [("TCP", [Transport::Tcp, Transport::Http]), ("UDP", [Transport::Udp, Transport::UdpConnected])];

/// Who must answer whom on which path, and whose address the backend must see.
fn addresses(cluster: &Cluster, services: &Services, report: &mut Report) {
    let ([node1, node2], outside) = (cluster.nodes(), &cluster.lab.client);
    let (pod, vm, near, far) = (&node1.pods[0], &node1.vm, &node1.pods[1], &node2.pods[1]);
    let node_port_of = Some(&node1.host);
    let expected: [(&str, &Host, Option<&Host>, &Host, &Host); 10] = [
        ("pod to Service, backend on its node", pod, None, near, pod),
        ("pod to Service, backend on the other node", pod, None, far, pod),
        ("pod in a VM to Service, backend on its node", vm, None, near, vm),
        ("pod in a VM to Service, backend on the other node", vm, None, far, vm),
        ("node to Service, backend on it", &node1.host, None, near, &node1.host),
        ("node to Service, backend on the other node", &node1.host, None, far, &node1.host),
        ("outside to node port, backend on the node", outside, node_port_of, near, outside),
        ("outside to node port, backend on the other node", outside, node_port_of, far, &node1.host),
        ("pod in a VM to node port, backend on the other node", vm, node_port_of, far, vm),
        ("pod in a VM to itself through its Service", vm, None, vm, &node1.host),
    ];
    for (what, client, node_port_of, backend, seen) in expected {
        for family in Family::BOTH {
            for (protocol, transports) in PROTOCOLS {
                report.check(&format!("{what}, {family} {protocol}"), || {
                    for transport in transports {
                        let path = Path { client, node_port_of, family, transport };
                        let service = services.of(backend);
                        let answer = path.ask(service).answer(transport);
                        assert_eq!(answer.backend, backend.name(), "{transport}: who answered");
                        assert_eq!(answer.peer, path.address(service), "{transport}: whom the client sees");
                        assert_eq!(answer.client_seen.ip(), seen.address(family), "{transport}: whom the backend sees");
                    }
                    format!("{} saw {}", backend.name(), seen.name())
                });
            }
        }
    }
}

/// Each of 6 backends answers at least once in this many exchanges, but for a chance of 6 × (5/6)^150 = 8e-12.
const EXCHANGES: usize = 150;

fn spread(cluster: &Cluster, web: &Service, report: &mut Report) {
    for path in paths(&cluster.lab).filter(|path| matches!(path.transport, Transport::Tcp | Transport::Udp)) {
        report.check(&format!("spread: {path}"), || {
            let mut answers = BTreeMap::new();
            for _ in 0..EXCHANGES {
                *answers.entry(path.ask(web).answer(path).backend).or_insert(0_usize) += 1;
            }
            let counts: Vec<String> = answers.values().map(ToString::to_string).collect();
            assert_eq!(answers.len(), cluster.lab.all_pods().count(), "backends that answered: {answers:?}");
            format!("{} by backend", counts.join(" "))
        });
    }
}

fn refusals(cluster: &Cluster, empty: &Service, report: &mut Report) {
    for path in paths(&cluster.lab).filter(|path| matches!(path.transport, Transport::Tcp | Transport::Udp)) {
        report.check(&format!("no endpoints: {path}"), || {
            let start = Instant::now();
            assert_eq!(path.ask(empty), Outcome::Refused);
            format!("refused after {:.1?}", start.elapsed())
        });
    }
}

/// Changes under load: new exchanges on every path all the time, and connections that stay open.
fn changes(mut cluster: Cluster, web: &Service, report: &mut Report) {
    let mut started = None;
    report.check("traffic and open connections on all paths", || {
        let load = started.insert(Load::start(&cluster, web));
        harmless(load, "at the start")
    });
    let Some(mut load) = started else { return };
    let [node1, node2] = cluster.nodes();
    let (few, all) = (vec![&node1.pods[1], &node2.pods[0]], cluster.lab.all_pods().collect::<Vec<_>>());
    for (what, endpoints) in
        [("four endpoints removed under traffic", few), ("four endpoints added under traffic", all)]
    {
        report.check(what, || {
            let start = Instant::now();
            cluster.manifests.apply(&web.clone().with_endpoints(endpoints.iter().copied()));
            load.wait_until_answered_by(&endpoints);
            let took = start.elapsed();
            format!("in force within {took:.1?}; {}", harmless(&mut load, what))
        });
    }
    report.check("agents killed under traffic", || {
        cluster.kill_agents();
        harmless(&mut load, "while the agents are dead")
    });
    report.check("agents started again under traffic", || {
        let start = Instant::now();
        cluster.restart_agents();
        let took = start.elapsed();
        format!("ready after {took:.1?}; {}", harmless(&mut load, "after the agents came back"))
    });
}

fn harmless(load: &mut Load, during: &str) -> String {
    format!("{} exchanges and all open connections unharmed", load.assert_unharmed(during))
}
