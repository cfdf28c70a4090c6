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
    /// What there is at the frontend's place now.
    pub place: Place,
    /// Whether the Service port was gone after some step, was made again by one, or has lost a frontend.
    pub was_interrupted: bool,
    /// The endpoints that serve at the frontend now, whichever Service port has it.
    pub serving: BTreeSet<Endpoint>,
    /// Endpoints that had served there, and after some step did not.
    pub left: BTreeSet<Endpoint>,
    /// All endpoints that have served there.
    pub known: BTreeSet<Endpoint>,
    before: Option<(String, Frontends)>,
}

/// What there is where an exchange was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// A frontend, of whichever Service port.
    Frontend {
        /// Whether its Service keeps such traffic on the node.
        is_local: bool,
    },
    /// A cluster IP that has other ports.
    OtherPorts,
    /// Nothing.
    #[default]
    Nothing,
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
    /// Its policies.
    external_local: bool,
    internal_local: bool,
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
                    external_local: target.external_local,
                    internal_local: target.internal_local,
                });
                port.frontends.insert((target.kind, target.address));
            }
        }
        Self(ports)
    }

    /// The Service ports that have a target as a frontend.
    fn at(&self, target: &Target) -> impl Iterator<Item = &Port> {
        let (_, is_v4, is_udp) = key(target);
        let frontend = (target.kind, target.address);
        let has_it =
            move |(of, port): &(&Key, &Port)| (of.1, of.2) == (is_v4, is_udp) && port.frontends.contains(&frontend);
        self.0.iter().filter(has_it).map(|(_, port)| port)
    }

    /// What there is at a target's place.
    fn place(&self, target: &Target) -> Place {
        let cluster_ip = (FrontendKind::ClusterIp, target.address.ip());
        let has_address = |port: &Port| port.frontends.iter().any(|(kind, at)| (*kind, at.ip()) == cluster_ip);
        let is_local = |port: &Port| {
            if target.kind == FrontendKind::ClusterIp { port.internal_local } else { port.external_local }
        };
        match self.at(target).next() {
            Some(port) => Place::Frontend { is_local: is_local(port) },
            None if self.0.values().any(has_address) => Place::OtherPorts,
            None => Place::Nothing,
        }
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
        self.place = now.place(target);
        self.serving = now.at(target).flat_map(|port| port.serving.iter().cloned()).collect();
        self.left.extend(self.known.difference(&self.serving).cloned());
        self.known.extend(self.serving.iter().cloned());
    }
}

/// Whether a proxy serves a Service at all.
pub(super) fn is_balanced(service: &Value) -> bool {
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use serde_json::json;

    use super::*;

    const NODE: Addresses = Addresses { v4: Ipv4Addr::new(192, 0, 2, 1), v6: Ipv6Addr::LOCALHOST };

    fn service(uid: &str, port: &str, external_ips: &[&str]) -> Value {
        json!({
            "metadata": { "namespace": "default", "name": "dns", "uid": uid },
            "spec": {
                "clusterIP": "10.96.0.1",
                "clusterIPs": ["10.96.0.1"],
                "externalIPs": external_ips,
                "ports": [{ "name": port, "protocol": "UDP", "port": 53 }],
            },
        })
    }

    /// After a step that leaves this Service, and these endpoints of its port: whether they serve.
    fn snapshot(service: &Value, port: &str, endpoints: &[(&str, bool)]) -> Snapshot {
        let endpoints = endpoints.iter().map(|(ip, serving)| {
            json!({ "addresses": [ip], "conditions": { "ready": false, "serving": serving, "terminating": true } })
        });
        let slice = json!({
            "metadata": { "namespace": "default", "labels": { "kubernetes.io/service-name": "dns" } },
            "addressType": "IPv4",
            "ports": [{ "name": port, "protocol": "UDP", "port": 9000 }],
            "endpoints": endpoints.collect::<Vec<_>>(),
        });
        let host = |ip: &str| (ip.parse().expect("an address"), format!("pod at {ip}"));
        let hosts = ["10.1.1.1", "10.1.2.1"].map(host).into();
        Snapshot::new(std::slice::from_ref(service), &[slice], NODE, &hosts)
    }

    fn at(ip: &str) -> BTreeSet<Endpoint> {
        [Endpoint { host: format!("pod at {ip}"), port: 9000 }].into()
    }

    /// What became of an exchange with the cluster IP after these steps.
    fn history(steps: &[Snapshot]) -> History {
        let target = targets(&[service("1", "udp", &[])], &[], &[], NODE).remove(0);
        assert_eq!((target.kind, target.transport), (FrontendKind::ClusterIp, Transport::Udp));
        let mut history = History::default();
        for step in steps {
            history.follow(&target, step);
        }
        history
    }

    #[test]
    fn an_endpoint_that_serves_no_more_has_left_also_when_it_is_back() {
        let service = service("1", "udp", &[]);
        let step = |serves| snapshot(&service, "udp", &[("10.1.1.1", serves), ("10.1.2.1", true)]);
        let History { is_there, was_interrupted, serving, left, .. } = history(&[step(true), step(false), step(true)]);
        assert_eq!((is_there, was_interrupted, left, serving.len()), (true, false, at("10.1.1.1"), 2));
    }

    #[test]
    fn a_port_of_another_name_has_the_frontend_and_its_endpoints_serve_there() {
        let endpoints = [("10.1.1.1", true)];
        let first = snapshot(&service("1", "udp", &[]), "udp", &endpoints);
        let renamed = snapshot(&service("1", "dns", &[]), "dns", &endpoints);
        let History { is_there, was_interrupted, serving, left, .. } = history(&[first, renamed]);
        assert_eq!((is_there, was_interrupted, serving, left), (false, true, at("10.1.1.1"), BTreeSet::new()));
    }

    #[test]
    fn what_was_made_again_or_lost_a_frontend_was_interrupted() {
        let endpoints = [("10.1.1.1", true)];
        let with = |uid, external_ips: &[&str]| snapshot(&service(uid, "udp", external_ips), "udp", &endpoints);
        let was_interrupted = |steps: &[Snapshot]| history(steps).was_interrupted;
        assert!(was_interrupted(&[with("1", &[]), with("2", &[])]));
        assert!(was_interrupted(&[with("1", &["198.51.100.1"]), with("1", &[])]));
        assert!(!was_interrupted(&[with("1", &[]), with("1", &["198.51.100.1"])]));
    }

    #[test]
    fn a_place_is_a_frontend_with_its_policy_or_other_ports_or_nothing() {
        let place = |services: &[Value]| {
            let target = targets(&[service("1", "udp", &[])], &[], &[], NODE).remove(0);
            Snapshot::new(services, &[], NODE, &BTreeMap::new()).place(&target)
        };
        let is_local = |is_local| Place::Frontend { is_local };
        let changed = |pointer: &str, value: Value| {
            let mut service = service("1", "udp", &[]);
            service["spec"][pointer] = value;
            service
        };
        assert_eq!(place(&[service("1", "udp", &[])]), is_local(false));
        assert_eq!(place(&[changed("internalTrafficPolicy", "Local".into())]), is_local(true));
        assert_eq!(place(&[changed("externalTrafficPolicy", "Local".into())]), is_local(false));
        let other_port = json!([{ "name": "udp", "protocol": "UDP", "port": 54 }]);
        assert_eq!(place(&[changed("ports", other_port)]), Place::OtherPorts);
        assert_eq!(place(&[]), Place::Nothing);
    }

    #[test]
    fn a_service_of_another_proxy_is_not_there() {
        let mut foreign = service("1", "udp", &[]);
        foreign["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "another" });
        let endpoints = [("10.1.1.1", true)];
        let steps = [snapshot(&service("1", "udp", &[]), "udp", &endpoints), snapshot(&foreign, "udp", &endpoints)];
        let History { is_there, was_interrupted, serving, .. } = history(&steps);
        assert_eq!((is_there, was_interrupted, serving), (false, true, BTreeSet::new()));
    }
}
