//! What became of what [kept](super::kept) exchanges were opened with: a frontend, its Service port, and its endpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

use super::{
    observation::Endpoint,
    target::{FrontendKind, Target, address, list, port_label, targets, text},
};
use crate::lab::{Addresses, client::Transport};

/// Labels of Services that proxies leave alone.
const NOT_OURS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// What became of an exchange's frontend, its Service port and its endpoints since it began, as the API server tells.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Whether the Service port has the frontend now.
    pub is_there: bool,
    /// Whether the Service port was gone after some step, was made again by one, or has lost a frontend.
    pub was_interrupted: bool,
    /// The endpoints that serve at the frontend now, whichever Service port has it.
    pub serving: BTreeSet<Endpoint>,
    /// Endpoints that had served there, and after some step did not.
    pub left: BTreeSet<Endpoint>,
    known: BTreeSet<Endpoint>,
    before: Option<(String, Frontends)>,
}

/// Kinds, addresses and ports.
type Frontends = BTreeSet<(FrontendKind, SocketAddr)>;

/// A Service port in one family.
#[derive(Clone, Debug)]
struct Port {
    /// That of the Service object: another one when it was deleted and made again.
    uid: String,
    frontends: Frontends,
    serving: BTreeSet<Endpoint>,
}

/// What there is after a step.
pub struct Snapshot(BTreeMap<Key, Port>);

/// `namespace/name:port`, whether it is of IPv4, and whether it is of UDP.
type Key = (String, bool, bool);

fn key(target: &Target) -> Key {
    let is_udp = matches!(target.transport, Transport::Udp | Transport::UdpConnected);
    (target.service.clone(), target.address.is_ipv4(), is_udp)
}

impl Snapshot {
    /// Of these objects. `node` has the node ports, and `hosts` are the names of those that addresses belong to.
    pub fn new(services: &[Value], slices: &[Value], node: Addresses, hosts: &BTreeMap<IpAddr, String>) -> Self {
        let mut ports = BTreeMap::<Key, Port>::new();
        for service in services.iter().filter(|service| is_balanced(service)) {
            let has_family = |is_v4: bool| {
                let ips = list(&service["spec"]["clusterIPs"]).iter().filter_map(|ip| address(text(ip)));
                ips.into_iter().any(|ip| ip.is_ipv4() == is_v4)
            };
            let of_service = targets(std::slice::from_ref(service), &[], &[], node);
            for target in of_service.iter().filter(|target| has_family(target.address.is_ipv4())) {
                let port = ports.entry(key(target)).or_insert_with(|| Port {
                    uid: text(&service["metadata"]["uid"]).to_owned(),
                    frontends: Frontends::new(),
                    serving: serving(service, target, slices, hosts),
                });
                port.frontends.insert((target.kind, target.address));
            }
        }
        Self(ports)
    }

    /// The endpoints that serve at a target, whichever Service port has it.
    fn serving(&self, target: &Target) -> BTreeSet<Endpoint> {
        let (_, is_v4, is_udp) = key(target);
        let has_it = |(of, port): &(&Key, &Port)| {
            (of.1, of.2) == (is_v4, is_udp) && port.frontends.contains(&(target.kind, target.address))
        };
        self.0.iter().filter(has_it).flat_map(|(_, port)| port.serving.iter().cloned()).collect()
    }
}

impl History {
    /// Takes in what there is after one more step.
    pub fn follow(&mut self, target: &Target, now: &Snapshot) {
        let port = now.0.get(&key(target));
        self.is_there = port.is_some_and(|port| port.frontends.contains(&(target.kind, target.address)));
        self.was_interrupted |= match (&self.before, port) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some((uid, frontends)), Some(port)) => *uid != port.uid || !frontends.is_subset(&port.frontends),
        };
        // One that was gone has been interrupted once and for all.
        self.before = port.map(|port| (port.uid.clone(), port.frontends.clone())).or(self.before.take());
        self.serving = now.serving(target);
        self.left.extend(self.known.difference(&self.serving).cloned());
        self.known.extend(self.serving.iter().cloned());
    }
}

/// Whether a proxy serves a Service at all.
fn is_balanced(service: &Value) -> bool {
    let spec = &service["spec"];
    let labels = &service["metadata"]["labels"];
    spec["type"] != "ExternalName"
        && spec["clusterIP"] != "None"
        && NOT_OURS.iter().all(|label| labels[label].is_null())
}

/// The endpoints of a target's Service port that serve, by its slices.
fn serving(service: &Value, target: &Target, slices: &[Value], hosts: &BTreeMap<IpAddr, String>) -> BTreeSet<Endpoint> {
    let metadata = &service["metadata"];
    let (_, is_v4, is_udp) = key(target);
    let is_it = |port: &&Value| {
        let is_of_transport = (port["protocol"] == "UDP") == is_udp;
        is_of_transport && target.service.rsplit_once(':').is_some_and(|(_, label)| label == port_label(port))
    };
    let Some(service_port) = list(&service["spec"]["ports"]).iter().find(is_it) else { return BTreeSet::new() };
    let of_service = slices.iter().filter(|slice| {
        slice["metadata"]["namespace"] == metadata["namespace"]
            && slice["metadata"]["labels"]["kubernetes.io/service-name"] == metadata["name"]
            && slice["addressType"] == if is_v4 { "IPv4" } else { "IPv6" }
    });
    let mut found = BTreeSet::new();
    for slice in of_service {
        for port in list(&slice["ports"]) {
            let is_same = text(&port["name"]) == text(&service_port["name"]);
            if !is_same || (port["protocol"] == "UDP") != is_udp {
                continue;
            }
            let serves = |endpoint: &&Value| {
                let conditions = &endpoint["conditions"];
                conditions["serving"].as_bool().or(conditions["ready"].as_bool()).unwrap_or(true)
            };
            let number = port["port"].as_u64().and_then(|number| u16::try_from(number).ok());
            let of_port = list(&slice["endpoints"]).iter().filter(serves).filter_map(|endpoint| {
                let ip = address(text(list(&endpoint["addresses"]).first()?))?;
                Some(Endpoint { host: hosts.get(&ip)?.clone(), port: number? })
            });
            found.extend(of_port);
        }
    }
    found
}
