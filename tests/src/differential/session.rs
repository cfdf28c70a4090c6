//! A session: the twins and their API server, in which scenarios are run one after the other.
//!
//! One API server serves all twins, so that all proxies get the same objects in the same order, and one start of it
//! (3 s) does for many scenarios.
//!
//! Whether a proxy has taken in everything is asked of the dataplane itself: the last thing that is written is a change
//! of the `sentinel` Service and of its slices. kube-proxy and `lb-agent` get Services by one watch and slices by
//! another, each in order, so where the sentinel answers at its new port from its new endpoint, all that was written
//! before is in force, too. The Node has a watch of its own, and its zone decides which endpoints are in use: so the
//! sentinel has an endpoint in that zone and one elsewhere, and only the first may answer.
//!
//! Where proxies seem to differ in a way that the table does not explain, it is looked at again, with more patience: what
//! counts is what is there the second time.

mod exchanges;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use super::{
    affinity::Choices,
    api::{self, ApiHost},
    arm::{self, Arm, Implementation},
    cell::{AnswerCell, Cell, Place},
    http::Request,
    lapse::Stays,
    observation::Observation,
    patience::{MORE_PATIENCE, PATIENCE},
    probe::{ClientKind, ask_all},
    relay,
    report::Report,
    scenario::{Named, Scenario, Step},
    target::{FrontendKind, Target, targets},
};
use crate::lab::{
    Family,
    client::{Ask, Outcome, Transport},
    lone_host,
    sandbox::Sandbox,
    server::ECHO_PORT,
};

/// Where the API server listens, on its own host; and the relays, on the nodes.
const API_SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);
/// The Service that tells whether a proxy has taken in everything, and where it is.
const SENTINEL: &str = "sentinel";
const SENTINEL_ADDRESSES: [&str; 2] = ["10.96.255.254", "fd00:10:96::fffe"];
/// The port of the sentinel at the first step of a session; it counts up.
const FIRST_SENTINEL_PORT: u16 = 10000;
/// How long `lb-agent` may take to start, or to take a change in, on a loaded machine.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(30);
/// And kube-proxy, whose client may wait 30 s before it asks the API server again (`NewReflector`'s backoff in client-go).
const KUBE_PROXY_WITHIN: Duration = Duration::from_secs(60);
/// How many times in a row the sentinel's endpoint in the node's zone must answer. A proxy that does not know the zone
/// chooses between two each time.
const ANSWERS: usize = 10;
/// The label of a Node that says its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// How many times proxies are started before a scenario is given up.
const STARTS: usize = 3;
/// Between one look at the sentinel and the next.
const POLL: Duration = Duration::from_millis(20);
/// How long servers of proxies may take to hear of a change: the Node has a watch of its own.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// For what is not ordered with the sentinel: the rest of the Node, and what one synchronization writes is not in force
/// all at once.
const SETTLE: Duration = Duration::from_millis(100);

/// The twins and their API server.
pub struct Session {
    arms: [Arm; 3],
    api: ApiHost,
    /// What the proxies that run were started with.
    proxy: Option<(Map<String, Value>, bool)>,
    sentinel_port: u16,
    /// The zone that the node of the proxies was last said to be in.
    zone: Option<String>,
}

impl Session {
    /// Builds the twins and starts the API server; the proxies are started by the first scenario.
    pub fn start(sandbox: Sandbox) -> Self {
        let arms = arm::build(sandbox);
        let api = ApiHost::start(lone_host("api"), API_SERVER, &arms[0].lab.nodes);
        relay::start(api.host(), API_SERVER, arms.iter().map(|arm| &arm.lab.nodes[0].host));
        let zone =
            zone_of(&api::node_object(1, arms[0].lab.nodes[0].host.name(), arms[0].lab.nodes[0].host.addresses()));
        Self { arms, api, proxy: None, sentinel_port: FIRST_SENTINEL_PORT, zone }
    }

    /// Runs a scenario, and removes what it made.
    pub fn run(&mut self, scenario: &Scenario) -> Report {
        let mut report = Report::default();
        let start = Instant::now();
        self.arms.iter().for_each(|arm| arm.node_addresses("add", &scenario.header.node_addresses));
        let choices = scenario.without_affinity().map(|free| self.pass(&free, None, &mut report));
        // What could not be run to its end without affinity cannot be with it.
        match choices {
            None => drop(self.pass(scenario, None, &mut report)),
            Some(Some(choices)) => drop(self.pass(scenario, Some(&choices), &mut report)),
            Some(None) => {}
        }
        self.arms.iter().for_each(|arm| arm.node_addresses("del", &scenario.header.node_addresses));
        report.seconds = start.elapsed().as_secs_f64();
        report
    }

    /// Runs all steps, and removes what they made. Gives what was seen, unless something went wrong.
    fn pass(&mut self, scenario: &Scenario, choices: Option<&Choices>, report: &mut Report) -> Option<Choices> {
        let mut touched = BTreeSet::new();
        let mut seen = Choices::default();
        let before = report.failures.len();
        let steps = self.steps(scenario, choices, &mut touched, &mut seen, report);
        let removed = self.remove(touched);
        report.is_last |= removed.is_err();
        report.failures.extend([steps, removed].into_iter().filter_map(Result::err));
        (report.failures.len() == before).then_some(seen)
    }

    fn steps(
        &mut self,
        scenario: &Scenario,
        choices: Option<&Choices>,
        touched: &mut BTreeSet<Named>,
        seen: &mut Choices,
        report: &mut Report,
    ) -> Result<(), String> {
        let proxy = (scenario.header.proxy.clone(), scenario.header.kubeadm);
        if self.proxy.as_ref() != Some(&proxy) {
            self.start_proxies(proxy)?;
        }
        let (mut kept, mut stays) = (None, Stays::default());
        for (number, step) in scenario.steps.iter().enumerate() {
            self.change(step, touched)?;
            self.await_sentinel()?;
            thread::sleep(step.wait);
            let place = Place { scenario, step, number, choices };
            if scenario.header.keep {
                let kept = kept.get_or_insert_with(|| self.keep(scenario));
                self.compare_kept(kept, place, report);
            }
            let start = Instant::now();
            let cells = self.compare(place, report);
            report.failures.extend(stays.follow(place, &cells, [start, Instant::now()]));
            for Cell { client, target, seen: of_cell, .. } in cells {
                seen.add(number, client, &target, of_cell);
            }
            self.compare_answers(place, report);
        }
        Ok(())
    }

    /// Starts the proxies, again where one of them does not learn its node's zone: kube-proxy in nftables mode has been seen
    /// not to, of some hundred starts on a loaded machine one, and then went by no hints until it was started again.
    fn start_proxies(&mut self, proxy: (Map<String, Value>, bool)) -> Result<(), String> {
        let kubeconfig = self.api.kubeconfig();
        let mut result = Ok(());
        for _ in 0..STARTS {
            self.arms.iter_mut().for_each(|arm| arm.start_proxy(&kubeconfig, &proxy.0, proxy.1));
            result = self.await_sentinel();
            match &result {
                Ok(()) => {
                    self.proxy = Some(proxy);
                    break;
                }
                // We have no such excuse.
                Err(NotReady { late: Some(Implementation::Lb), .. }) => break,
                Err(_) => {}
            }
        }
        Ok(result?)
    }

    fn change(&mut self, step: &Step, touched: &mut BTreeSet<Named>) -> Result<(), String> {
        for named in &step.delete {
            touched.insert(named.clone());
            self.api.delete(named)?;
        }
        for object in &step.apply {
            let named = Named::of(object)?;
            touched.insert(named.clone());
            if named.kind == "Node" {
                self.apply_node(&named, object)?;
            } else {
                self.api.apply(object)?;
            }
        }
        Ok(())
    }

    /// Removes objects, slices last as the garbage collector does; Nodes become what they were.
    fn remove(&mut self, touched: BTreeSet<Named>) -> Result<(), String> {
        let (slices, others): (Vec<_>, Vec<_>) = touched.into_iter().partition(|named| named.kind == "EndpointSlice");
        for named in others.into_iter().chain(slices) {
            if named.kind == "Node" {
                self.apply_node(&named, &Value::Null)?;
            } else {
                self.api.delete(&named)?;
            }
        }
        Ok(())
    }

    fn apply_node(&mut self, named: &Named, given: &Value) -> Result<(), String> {
        let node = self.node(named, given)?;
        self.api.apply(&node)?;
        if named.name == self.arms[0].lab.nodes[0].host.name() {
            self.zone = zone_of(&node);
        }
        Ok(())
    }

    /// A Node as it was registered, with other labels, taints or finalizers: the rest of it cannot be changed, or a
    /// scenario has no use for it.
    fn node(&self, named: &Named, given: &Value) -> Result<Value, String> {
        let nodes = &self.arms[0].lab.nodes;
        let found = (1..).zip(nodes).find(|(_, node)| node.host.name() == named.name);
        let (number, node) = found.ok_or_else(|| format!("there is no {named}"))?;
        let mut object = api::node_object(number, &named.name, node.host.addresses());
        for (part, field) in [("metadata", "labels"), ("metadata", "finalizers"), ("spec", "taints")] {
            let wanted = &given[part][field];
            if !wanted.is_null() {
                object[part][field] = wanted.clone();
            }
        }
        Ok(object)
    }

    /// Changes the sentinel, and waits until every proxy serves it as it is now.
    fn await_sentinel(&mut self) -> Result<(), NotReady> {
        self.sentinel_port += 1;
        let port = self.sentinel_port;
        // Its endpoint changes with every step.
        let endpoint = usize::from(port % 2);
        self.write_sentinel(port, endpoint)?;
        let start = Instant::now();
        for arm in &mut self.arms {
            let deadline =
                start + if arm.implementation == Implementation::Lb { IN_FORCE_WITHIN } else { KUBE_PROXY_WITHIN };
            let [node1, node2] = &arm.lab.nodes;
            let wanted = node2.pods[endpoint].name();
            for address in SENTINEL_ADDRESSES {
                let to = SocketAddr::new(address.parse().expect("an address"), port);
                let mut answers = 0;
                while answers < ANSWERS {
                    let outcome = Ask::new(Transport::Tcp, to).from(&node1.host);
                    if matches!(&outcome, Outcome::Reached(answer) if answer.backend == wanted) {
                        answers += 1;
                        continue;
                    }
                    if Instant::now() > deadline {
                        let late = arm.implementation;
                        let why = format!(
                            "{} has not taken the change in: sentinel at {to}: {outcome:?}\nits log ends with:\n{}",
                            late.name(),
                            arm.last_log_lines(),
                        );
                        return Err(NotReady { late: Some(late), why });
                    }
                    answers = 0;
                    thread::sleep(POLL);
                }
            }
            arm.assert_alive();
        }
        thread::sleep(SETTLE);
        Ok(())
    }

    fn write_sentinel(&self, port: u16, endpoint: usize) -> Result<(), String> {
        self.api.apply(&json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": SENTINEL, "namespace": "lb-differential" },
            "spec": {
                "clusterIP": SENTINEL_ADDRESSES[0],
                "clusterIPs": SENTINEL_ADDRESSES,
                "ipFamilyPolicy": "RequireDualStack",
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{ "port": port, "protocol": "TCP", "targetPort": ECHO_PORT }],
            },
        }))?;
        let pods = &self.arms[0].lab.nodes[1].pods;
        for family in Family::BOTH {
            self.api.apply(&json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{SENTINEL}-{}", family.to_string().to_lowercase()),
                    "namespace": "lb-differential",
                    "labels": { "kubernetes.io/service-name": SENTINEL },
                },
                "addressType": family.to_string(),
                "ports": [{ "port": ECHO_PORT, "protocol": "TCP" }],
                "endpoints": match &self.zone {
                    // Hints mean nothing to a node without a zone.
                    None => json!([{ "addresses": [pods[endpoint].address(family)], "nodeName": "node2" }]),
                    Some(zone) => [(endpoint, zone.as_str()), (1 - endpoint, "elsewhere")].map(|(pod, zone)| json!({
                        "addresses": [pods[pod].address(family)],
                        "nodeName": "node2",
                        "hints": { "forZones": [{ "name": zone }] },
                    })).into(),
                },
            }))?;
        }
        Ok(())
    }

    /// The Services and slices that scenarios have made.
    fn objects(&self) -> [Vec<Value>; 2] {
        ["Service", "EndpointSlice"].map(|kind| {
            let is_ours = |object: &Value| {
                let metadata = &object["metadata"];
                metadata["namespace"] != "lb-differential" && !(kind == "Service" && metadata["name"] == "kubernetes")
            };
            self.api.list(kind).into_iter().filter(is_ours).collect()
        })
    }

    /// What there is to ask, by client.
    fn targets(&self, scenario: &Scenario) -> Vec<(ClientKind, Vec<Target>)> {
        let [services, slices] = self.objects();
        let targets = targets(&services, &slices, &scenario.header.also, self.arms[0].lab.nodes[0].host.addresses());
        let cells = scenario.clients().into_iter().map(|client| {
            (client, targets.iter().filter(|target| target.concerns(client)).cloned().collect::<Vec<_>>())
        });
        cells.collect()
    }

    /// Asks everywhere, and enters into the report in what the proxies differ. Gives all that counted.
    fn compare(&self, place: Place<'_>, report: &mut Report) -> Vec<Cell> {
        if !place.scenario.header.probe {
            return Vec::new();
        }
        let cells = self.targets(place.scenario);
        report.cells += cells.iter().map(|(_, targets)| targets.len()).sum::<usize>();

        let first = self.observe(&cells, PATIENCE);
        // Where clients stay is one choice for all frontends of a Service port, which asking at one of them alone would not
        // put to the test again.
        let has_doubts = |client| first.iter().any(|cell| cell.client == client && !cell.is_plain(place));
        let wavering: Vec<ClientKind> = ClientKind::ALL.into_iter().filter(|client| has_doubts(*client)).collect();
        // What is compared with another place is asked again together with that.
        let doubted = first.iter().filter(|cell| cell.elsewhere.is_some() && !cell.is_plain(place));
        let compared: Vec<Target> = doubted.map(|cell| cell.target.clone()).collect();
        let is_asked_again = |cell: &Cell| {
            !cell.is_plain(place)
                || cell.target.has_affinity && wavering.contains(&cell.client)
                || cell.client == ClientKind::Node && compared.iter().any(|target| cell.target.is_like(target))
        };
        let (again, mut counted): (Vec<_>, Vec<_>) = first.into_iter().partition(is_asked_again);
        if !again.is_empty() {
            let again = ClientKind::ALL.map(|client| {
                let of_client = again.iter().filter(|cell| cell.client == client);
                (client, of_client.map(|cell| cell.target.clone()).collect::<Vec<_>>())
            });
            counted.extend(self.observe(&again, MORE_PATIENCE));
        }
        for cell in &counted {
            cell.judge(place, report);
        }
        counted
    }

    /// Has all clients of all twins ask at once.
    fn observe(&self, cells: &[(ClientKind, Vec<Target>)], patience: Duration) -> Vec<Cell> {
        let start = |arm: &Arm| {
            let threads = cells.iter().filter(|(_, targets)| !targets.is_empty()).map(|(client, targets)| {
                let ports = arm.ports[*client as usize].clone();
                ask_all(&arm.lab, *client, ports, targets.clone(), patience)
            });
            threads.collect::<Vec<_>>()
        };
        let threads = self.arms.each_ref().map(start);
        let observed = threads.map(|threads| {
            threads.into_iter().flat_map(|thread| thread.join().expect("clients do not panic")).collect::<Vec<_>>()
        });
        self.cells(cells, observed)
    }

    /// Puts together what each twin's clients saw.
    fn cells(&self, cells: &[(ClientKind, Vec<Target>)], observed: [Vec<Observation>; 3]) -> Vec<Cell> {
        let mut observed = observed.map(Vec::into_iter);
        let all = cells.iter().flat_map(|(client, targets)| targets.iter().map(move |target| (*client, target)));
        let cells = all.map(|(client, target)| {
            let seen = observed.each_mut().map(|observations| observations.next().expect("one for each target"));
            let host = client.host(&self.arms[0].lab).name().to_owned();
            Cell { client, host, target: target.clone(), history: None, elsewhere: None, seen }
        });
        with_elsewhere(cells.collect())
    }

    /// Asks the proxies' own servers, until they agree or it is clear that they will not.
    fn compare_answers(&self, place: Place<'_>, report: &mut Report) {
        let deadline = Instant::now() + ANSWERS_WITHIN;
        let mut requests: Vec<&Request> = place.scenario.header.requests.iter().collect();
        report.cells += requests.len();
        while !requests.is_empty() {
            let answers = self.answers(&requests);
            let is_late = Instant::now() > deadline;
            let mut open = Vec::new();
            for (request, seen) in requests.into_iter().zip(answers) {
                let cell = AnswerCell { target: request.target(), seen };
                if is_late || cell.is_plain(place) { cell.judge(place, report) } else { open.push(request) }
            }
            requests = open;
            thread::sleep(POLL);
        }
    }

    /// What each twin answers to each request; the twins are asked at once.
    fn answers(&self, requests: &[&Request]) -> Vec<[String; 3]> {
        let threads = self.arms.each_ref().map(|arm| {
            let requests: Vec<Request> = requests.iter().map(|request| (*request).clone()).collect();
            arm.lab.nodes[0].host.spawn(move || requests.iter().map(Request::ask).collect::<Vec<_>>())
        });
        let mut answers = threads.map(|thread| thread.join().expect("who asks does not panic").into_iter());
        let all = requests.iter().map(|_| answers.each_mut().map(|texts| texts.next().expect("one for each request")));
        all.collect()
    }
}

/// Puts beside node ports on loopback what nftables mode did where a process of the node is given the same endpoints: at the
/// node's own address, or, where it has no node ports, at the cluster IP of a Service whose policies do not tell the two apart.
/// (To node ports, a process of the node comes by all endpoints whatever the external policy is.)
fn with_elsewhere(mut cells: Vec<Cell>) -> Vec<Cell> {
    let is_free = |cell: &&Cell| cell.client == ClientKind::Node && !cell.target.kept && !cell.target.has_affinity;
    let served: Vec<(Target, Observation)> = cells
        .iter()
        .filter(is_free)
        .filter(|Cell { target, seen: [nftables, ..], .. }| match target.kind {
            FrontendKind::NodePort => !nftables.reached.is_empty(),
            FrontendKind::ClusterIp => !nftables.reached.is_empty() && !target.internal_local,
            _ => false,
        })
        .map(|cell| (cell.target.clone(), cell.seen[0].clone()))
        .collect();
    for cell in cells.iter_mut().filter(|cell| cell.target.kind == FrontendKind::LocalhostNodePort) {
        let at = |kind| served.iter().find(|(target, _)| target.kind == kind && target.is_like(&cell.target));
        let found = at(FrontendKind::NodePort).or_else(|| at(FrontendKind::ClusterIp));
        cell.elsewhere = found.map(|(_, seen)| seen.clone());
    }
    cells
}

/// Why the sentinel is not in force.
struct NotReady {
    /// Whose proxy has not taken it in; `None` where it could not be written.
    late: Option<Implementation>,
    why: String,
}

impl From<String> for NotReady {
    fn from(why: String) -> Self {
        Self { late: None, why }
    }
}

impl From<NotReady> for String {
    fn from(NotReady { why, .. }: NotReady) -> Self {
        why
    }
}

/// The zone that a Node says it is in.
fn zone_of(node: &Value) -> Option<String> {
    node["metadata"]["labels"][ZONE].as_str().map(str::to_owned)
}
