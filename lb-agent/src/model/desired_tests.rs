use std::{collections::BTreeSet, sync::Arc};

use super::{
    testing::{endpoint, key, port, service, slice},
    *,
};

/// Inputs and the desired state that follows them.
struct World {
    inputs: Inputs,
    state: DesiredState,
}

impl World {
    fn new() -> Self {
        Self { inputs: Inputs::new([]), state: DesiredState::new("here") }
    }

    /// Takes in a change; returns the Services to recompute and the conflicts.
    fn change(&mut self, change: Change) -> (BTreeSet<ObjectKey>, Vec<String>) {
        let mut changed = self.inputs.apply(SourceEvent::Changed(change));
        let conflicts = self.state.claim(&self.inputs, &Policy::default(), &mut changed);
        (changed, conflicts.iter().map(ToString::to_string).collect())
    }

    fn service(&mut self, name: &str, service: Service) -> (BTreeSet<ObjectKey>, Vec<String>) {
        self.change(Change::Service(key(name), Some(service)))
    }

    fn slice(&mut self, name: &str, slice: EndpointSlice) {
        self.change(Change::EndpointSlice(key(name), Some(slice)));
    }

    fn v4(&self, name: &str) -> Vec<String> {
        self.state.ports4(&self.inputs, &Policy::default(), &key(name)).iter().map(describe).collect()
    }

    fn v6(&self, name: &str) -> Vec<String> {
        self.state.ports6(&self.inputs, &Policy::default(), &key(name)).iter().map(describe).collect()
    }
}

/// A port on one line: name, frontends with their flags (`L`ocal, `E`xternal, `N`ode port), cluster and local list,
/// the backends that are in neither, and whether there is any endpoint.
fn describe<A: Family>(port: &DesiredPort<A>) -> String {
    let flags = |flags: u8| [(1, 'L'), (2, 'E'), (4, 'N')].iter().filter(|f| flags & f.0 != 0).map(|f| f.1).collect();
    let frontends: Vec<String> = port
        .frontends
        .iter()
        .filter(|(key, _)| key.port != 0)
        .map(|(key, bits)| format!("{}#{}{}", key.address.to_ip(), key.port, with(&flags(*bits))))
        .collect();
    let backend = |backend: &DesiredBackend<A>| format!("{}#{}", backend.address.to_ip(), backend.port);
    let list = |positions: &[u32]| {
        let names: Vec<String> = positions.iter().map(|p| backend(&port.backends[*p as usize])).collect();
        names.join(" ")
    };
    let rest: Vec<String> = port.backends.iter().filter(|b| b.flags & 2 == 0).map(backend).collect();
    let any = if port.has_endpoints { "" } else { " none" };
    let affinity = if port.affinity_seconds == 0 { String::new() } else { format!(" {} s", port.affinity_seconds) };
    format!(
        "{} [{}] -> [{}] local [{}] rest [{}]{any}{affinity}",
        port.name,
        frontends.join(" "),
        list(&port.cluster),
        list(&port.local),
        rest.join(" ")
    )
}

fn with(flags: &String) -> String {
    if flags.is_empty() { String::new() } else { format!("+{flags}") }
}

fn ips(text: &[&str]) -> Vec<std::net::IpAddr> {
    text.iter().map(|ip| ip.parse().expect("an address")).collect()
}

fn full_service(service_type: ServiceType) -> Service {
    Service {
        service_type,
        external_ips: ips(&["192.0.2.1", "2001:db8::1", "0.0.0.0"]),
        load_balancer_ips: ips(&["192.0.2.9", "192.0.2.1"]),
        ports: vec![ServicePort { node_port: Some(30_080), ..port("http", 80) }],
        ..service("10.96.0.1")
    }
}

#[test]
fn the_type_of_a_service_decides_its_frontends() {
    let cases = [
        (ServiceType::ClusterIp, "10.96.0.1#80 192.0.2.1#80+E"),
        (ServiceType::NodePort, "0.0.0.0#30080+EN 10.96.0.1#80 192.0.2.1#80+E"),
        (ServiceType::LoadBalancer, "0.0.0.0#30080+EN 10.96.0.1#80 192.0.2.1#80+E 192.0.2.9#80+E"),
    ];
    for (service_type, frontends) in cases {
        let mut world = World::new();
        world.service("web", full_service(service_type));
        assert_eq!(
            world.v4("web"),
            [format!("default/web:http/TCP [{frontends}] -> [] local [] rest [] none")],
            "{service_type:?}"
        );
        assert_eq!(world.v6("web"), [""; 0], "no IPv6 cluster IP, no IPv6 frontends");
    }
    let mut world = World::new();
    world.service("web", full_service(ServiceType::ExternalName));
    assert_eq!(world.v4("web"), [""; 0]);
}

#[test]
fn policies_apply_to_their_own_frontends() {
    let mut world = World::new();
    let external_local = Service { external_policy: TrafficPolicy::Local, ..full_service(ServiceType::LoadBalancer) };
    world.service("a", external_local);
    let frontends = "0.0.0.0#30080+LEN 10.96.0.1#80 192.0.2.1#80+LE 192.0.2.9#80+LE";
    assert_eq!(world.v4("a"), [format!("default/a:http/TCP [{frontends}] -> [] local [] rest [] none")]);

    let internal_local = Service {
        internal_policy: TrafficPolicy::Local,
        affinity_seconds: Some(600),
        cluster_ips: ips(&["10.96.0.2", "fd00::2"]),
        ..full_service(ServiceType::ClusterIp)
    };
    world.service("a", internal_local);
    let line = |frontends| format!("default/a:http/TCP [{frontends}] -> [] local [] rest [] none 600 s");
    assert_eq!(world.v4("a"), [line("10.96.0.2#80+L 192.0.2.1#80+E")]);
    assert_eq!(world.v6("a"), [line("2001:db8::1#80+E fd00::2#80+L")]);
}

#[test]
fn endpoints_come_from_all_slices_by_name_and_protocol_of_the_port() {
    let mut world = World::new();
    let mut web = service("10.96.0.1");
    web.ports = vec![port("http", 80), ServicePort { protocol: Protocol::Udp, ..port("http", 80) }, port("", 81)];
    world.service("web", web);
    // A named target port that differs between pods comes as one slice for each number.
    let mut first = slice("web", &[endpoint("10.0.0.2"), endpoint("10.0.0.1")]);
    first.ports.push(SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 9000 });
    let mut second = slice("web", &[endpoint("10.0.0.3"), endpoint("fd00::3")]);
    second.ports = vec![
        SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8081 },
        SlicePort { name: "http".into(), protocol: Protocol::Udp, port: 53 },
        SlicePort { name: "other".into(), protocol: Protocol::Tcp, port: 1 },
    ];
    world.slice("web-1", first);
    world.slice("web-2", second);
    assert_eq!(
        world.v4("web"),
        [
            "default/web/TCP [10.96.0.1#81] -> [10.0.0.1#9000 10.0.0.2#9000] local [] rest []",
            "default/web:http/TCP [10.96.0.1#80] -> [10.0.0.1#8080 10.0.0.2#8080 10.0.0.3#8081] local [] rest []",
            "default/web:http/UDP [10.96.0.1#80] -> [10.0.0.3#53] local [] rest []",
        ]
    );
}

#[test]
fn of_a_duplicated_endpoint_the_one_that_does_not_terminate_counts() {
    for order in [["web-1", "web-2"], ["web-2", "web-1"]] {
        let mut world = World::new();
        world.service("web", service("10.96.0.1"));
        let ending = Endpoint { ready: false, terminating: true, ..endpoint("10.0.0.1") };
        world.slice(order[0], slice("web", &[ending]));
        let here = Endpoint { node_name: Some("here".into()), ..endpoint("10.0.0.1") };
        world.slice(order[1], slice("web", &[here]));
        let line = "default/web:http/TCP [10.96.0.1#80] -> [10.0.0.1#8080] local [10.0.0.1#8080] rest []";
        assert_eq!(world.v4("web"), [line]);
    }
}

#[test]
fn endpoints_that_get_no_new_flows_keep_their_backend_and_unserving_ones_only_for_tcp() {
    let mut world = World::new();
    let mut web = service("10.96.0.1");
    web.ports.push(ServicePort { protocol: Protocol::Udp, ..port("http", 80) });
    world.service("web", web);
    let ending = Endpoint { ready: false, terminating: true, ..endpoint("10.0.0.2") };
    let failing = Endpoint { ready: false, serving: false, ..endpoint("10.0.0.3") };
    let mut both = slice("web", &[failing, ending, endpoint("10.0.0.4")]);
    both.ports.push(SlicePort { name: "http".into(), protocol: Protocol::Udp, port: 8080 });
    world.slice("web-1", both);
    assert_eq!(
        world.v4("web"),
        [
            "default/web:http/TCP [10.96.0.1#80] -> [10.0.0.4#8080] local [] rest [10.0.0.2#8080 10.0.0.3#8080]",
            "default/web:http/UDP [10.96.0.1#80] -> [10.0.0.4#8080] local [] rest [10.0.0.2#8080]",
        ]
    );
}

#[test]
fn an_endpoint_takes_new_flows_only_by_a_list_that_a_frontend_uses() {
    let mut world = World::new();
    let ending = Endpoint { ready: false, terminating: true, node_name: Some("here".into()), ..endpoint("10.0.0.1") };
    let ready = Endpoint { node_name: Some("there".into()), ..endpoint("10.0.0.2") };
    world.slice("web-1", slice("web", &[ending, ready]));
    // The local list falls back to the endpoint that terminates, but nobody reads it.
    let rest = |world: &World| world.v4("web").iter().map(|line| line.contains("rest [10.0.0.1#")).collect::<Vec<_>>();
    world.service("web", full_service(ServiceType::NodePort));
    assert!(rest(&world).iter().all(|ending| *ending), "{:?}", world.v4("web"));
    world.service("web", Service { external_policy: TrafficPolicy::Local, ..full_service(ServiceType::NodePort) });
    assert!(rest(&world).iter().all(|ending| !*ending), "{:?}", world.v4("web"));
}

#[test]
fn hints_of_the_zone_follow_the_node() {
    let mut world = World::new();
    world.service("web", service("10.96.0.1"));
    let in_zone = |address, zone: &str| Endpoint { zone_hints: vec![zone.into()], ..endpoint(address) };
    world.slice("web-1", slice("web", &[in_zone("10.0.0.1", "a"), in_zone("10.0.0.2", "b")]));
    let expect = |list: &str, rest: &str| {
        vec![format!("default/web:http/TCP [10.96.0.1#80] -> [{list}] local [] rest [{rest}]")]
    };
    assert_eq!(world.v4("web"), expect("10.0.0.1#8080 10.0.0.2#8080", ""));
    let zone: Arc<str> = "b".into();
    let (changed, _) = world.change(Change::Node(Some(Node { zone: Some(zone), ..Node::default() })));
    assert_eq!(changed, BTreeSet::from([key("web")]));
    assert_eq!(world.v4("web"), expect("10.0.0.2#8080", "10.0.0.1#8080"));
}

#[test]
fn the_older_service_keeps_a_frontend_and_the_younger_inherits_it() {
    let at = |created, ip: &str| Service { created, external_ips: ips(&["192.0.2.1"]), ..service(ip) };
    let shared = |world: &World, name: &str| world.v4(name)[0].contains("192.0.2.1#80");
    let conflict = |claimant: &str, holder: &str| {
        vec![format!("192.0.2.1:80/TCP of default/{claimant}:http/TCP belongs to default/{holder}:http/TCP")]
    };
    let mut world = World::new();
    assert_eq!(world.service("young", at(30, "10.96.0.3")).1, [""; 0]);
    assert!(shared(&world, "young"));

    // An older Service appears: it takes over, and both are recomputed.
    let (changed, conflicts) = world.service("old", at(10, "10.96.0.1"));
    assert_eq!(changed, BTreeSet::from([key("old"), key("young")]));
    assert_eq!(conflicts, conflict("young", "old"));
    assert!(shared(&world, "old") && !shared(&world, "young"));

    // The loser changes in another respect: the conflict is known.
    assert_eq!(world.service("young", Service { affinity_seconds: Some(1), ..at(30, "10.96.0.3") }).1, [""; 0]);
    // Of the same age: the name decides.
    assert_eq!(world.service("aged", at(10, "10.96.0.2")).1, conflict("old", "aged"));

    world.change(Change::Service(key("aged"), None));
    assert!(shared(&world, "old"));
    let (changed, conflicts) = world.change(Change::Service(key("old"), None));
    assert_eq!((changed, conflicts), (BTreeSet::from([key("old"), key("young")]), Vec::new()));
    assert!(shared(&world, "young"));
}

#[test]
fn a_cluster_ip_is_not_lost_to_an_older_external_ip() {
    let mut world = World::new();
    world.service("squatter", Service { created: 1, external_ips: ips(&["10.96.0.9"]), ..service("10.96.0.1") });
    assert!(world.v4("squatter")[0].contains("10.96.0.9#80"), "nobody else wants it yet");
    let (_, conflicts) = world.service("owner", Service { created: 2, ..service("10.96.0.9") });
    assert!(world.v4("owner")[0].contains("10.96.0.9#80"));
    assert!(!world.v4("squatter")[0].contains("10.96.0.9#80"));
    assert_eq!(conflicts, ["10.96.0.9:80/TCP of default/squatter:http/TCP belongs to default/owner:http/TCP"]);
}

#[test]
fn two_ports_of_one_service_do_not_share_a_node_port() {
    let mut world = World::new();
    let node_port = |name, number| ServicePort { node_port: Some(30_080), ..port(name, number) };
    let ports = vec![node_port("b", 80), node_port("a", 81)];
    let (_, conflicts) =
        world.service("web", Service { service_type: ServiceType::NodePort, ports, ..service("10.96.0.1") });
    assert_eq!(conflicts, ["node port 30080/TCP of default/web:b/TCP belongs to default/web:a/TCP"]);
    assert_eq!(
        world.v4("web"),
        [
            "default/web:a/TCP [0.0.0.0#30080+EN 10.96.0.1#81] -> [] local [] rest [] none",
            "default/web:b/TCP [10.96.0.1#80] -> [] local [] rest [] none",
        ]
    );
}
