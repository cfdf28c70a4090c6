use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use lb_common::{
    abi::{BackendFlags, FrontendFlags, FrontendKey},
    hash,
    maglev::{self, Preference},
};

use super::{
    Balance, Cidr, Conflict, Family, Inputs, Policy,
    claims::{Claimant, Claims},
    objects::{Endpoint, ObjectKey, Protocol, Service, ServicePort, ServiceType, TrafficPolicy},
    topology::{Candidate, Place, categorize},
};

/// What identifies a service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectKey,
    /// Name of the port; empty where it has none.
    pub port: Arc<str>,
    /// The port's protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.port.is_empty() { "" } else { ":" };
        write!(f, "{}{separator}{}/{}", self.service, self.port, self.protocol.name())
    }
}

/// An endpoint that needs an entry in `BACKENDS*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DesiredBackend<A> {
    /// Its address.
    pub address: A,
    /// Its port.
    pub port: u16,
    /// Bits of [`BackendFlags`], as far as this service port is concerned.
    pub flags: u16,
}

/// What one service port should be in one IP family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPort<A> {
    /// Whose port it is.
    pub name: ServicePortName,
    /// Its frontends with their [`FrontendFlags`], ascending. Those that an older Service holds are not among them.
    pub frontends: Vec<(FrontendKey<A>, u8)>,
    /// All its endpoints, ascending by address and port. Those in neither list get no new flows but may have old ones:
    /// any endpoint that exists for TCP; for UDP only one that serves, since kube-proxy cuts the flows of others.
    pub backends: Vec<DesiredBackend<A>>,
    /// Positions in `backends` of those that traffic to the whole cluster uses: each once, or a Maglev table.
    pub cluster: Vec<u32>,
    /// Positions in `backends` of those that traffic to this node uses, likewise.
    pub local: Vec<u32>,
    /// Some usable endpoint exists, in the lists or elsewhere.
    pub has_endpoints: bool,
    /// How new flows select among the positions of the lists.
    pub balance: Balance,
    /// Session affinity timeout in seconds; 0 = none.
    pub affinity_seconds: u32,
    /// Networks of the clients that may use its frontends with [`FrontendFlags::SOURCE_RANGES`], ascending. Empty where
    /// it has none of these.
    pub source_ranges: Vec<Cidr<A>>,
}

/// What every service port should be, computed from [`Inputs`] one Service at a time.
///
/// The only state is who claims which frontend, since that is where Services touch each other.
#[derive(Debug)]
pub struct DesiredState {
    node_name: Arc<str>,
    claims4: Claims<[u8; 4]>,
    claims6: Claims<[u8; 16]>,
}

impl DesiredState {
    /// The desired state of the node of this name.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self { node_name: node_name.into(), claims4: Claims::new(), claims6: Claims::new() }
    }

    /// Name of the node that this is the state of.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Takes note of what the `changed` Services claim now. Adds to `changed` those that lose or get a frontend by
    /// it, and returns the conflicts that are new.
    pub fn claim(&mut self, inputs: &Inputs, policy: &Policy, changed: &mut BTreeSet<ObjectKey>) -> Vec<Conflict> {
        for key in &*changed {
            let service = inputs.service(key);
            self.claims4.replace(key, service.map(|service| wanted(key, service, policy)).unwrap_or_default());
            self.claims6.replace(key, service.map(|service| wanted(key, service, policy)).unwrap_or_default());
        }
        let mut conflicts = Vec::new();
        self.claims4.settle(changed, &mut conflicts);
        self.claims6.settle(changed, &mut conflicts);
        conflicts
    }

    /// The IPv4 ports of a Service, ascending by name; none if it is gone.
    pub fn ports4(&self, inputs: &Inputs, policy: &Policy, service: &ObjectKey) -> Vec<DesiredPort<[u8; 4]>> {
        self.ports(&self.claims4, inputs, policy, service)
    }

    /// The IPv6 ports of a Service.
    pub fn ports6(&self, inputs: &Inputs, policy: &Policy, service: &ObjectKey) -> Vec<DesiredPort<[u8; 16]>> {
        self.ports(&self.claims6, inputs, policy, service)
    }

    fn ports<A: Family>(
        &self,
        claims: &Claims<A>,
        inputs: &Inputs,
        policy: &Policy,
        key: &ObjectKey,
    ) -> Vec<DesiredPort<A>> {
        let Some(service) = inputs.service(key) else { return Vec::new() };
        let zone = inputs.node().and_then(|node| node.zone.as_deref());
        let place = Place { node: &self.node_name, zone };
        let ranges = source_ranges(service, policy.primary(inputs.node()));
        served_ports::<A>(key, service)
            .into_iter()
            .enumerate()
            .map(|(position, (name, port))| {
                let mut frontends = frontends(service, policy, port, position == 0);
                frontends.retain(|(frontend, _)| claims.holds(frontend, &name));
                let candidates = candidates(inputs, &name, place);
                let restricted = frontends.iter().any(|(_, flags)| flags & FrontendFlags::SOURCE_RANGES != 0);
                let mut desired = desired_port(name, frontends, &candidates, place);
                desired.balance = service.balance.unwrap_or(policy.balance);
                if desired.balance == Balance::Maglev {
                    desired.cluster = maglev(&desired.backends, &desired.cluster);
                    desired.local = maglev(&desired.backends, &desired.local);
                }
                DesiredPort {
                    affinity_seconds: service.affinity_seconds.unwrap_or(0),
                    source_ranges: if restricted { ranges.clone() } else { Vec::new() },
                    ..desired
                }
            })
            .collect()
    }
}

/// The ports that are served in a family, by name: none where the Service has no cluster IP. Of two ports of one name
/// the last counts, as in kube-proxy's map.
fn served_ports<'a, A: Family>(key: &ObjectKey, service: &'a Service) -> BTreeMap<ServicePortName, &'a ServicePort> {
    if service.service_type == ServiceType::ExternalName || !service.cluster_ips.iter().any(is_of::<A>) {
        return BTreeMap::new();
    }
    let name = |port: &ServicePort| ServicePortName {
        service: key.clone(),
        port: Arc::clone(&port.name),
        protocol: port.protocol,
    };
    service.ports.iter().map(|port| (name(port), port)).collect()
}

fn is_of<A: Family>(ip: &IpAddr) -> bool {
    A::from_ip(*ip).is_some()
}

/// Every frontend that a Service wants.
fn wanted<A: Family>(key: &ObjectKey, service: &Service, policy: &Policy) -> Vec<(FrontendKey<A>, Claimant)> {
    let created = service.created;
    let ports = served_ports::<A>(key, service);
    ports
        .into_iter()
        .enumerate()
        .flat_map(|(position, (name, port))| {
            let claimant = move |(key, flags)| {
                (key, Claimant { external: flags & FrontendFlags::EXTERNAL != 0, created, name: name.clone() })
            };
            frontends::<A>(service, policy, port, position == 0).into_iter().map(claimant)
        })
        .collect()
}

/// The networks of the clients that may use a Service's load-balancer addresses, ascending; empty where anyone may: no
/// network of the family is listed, or one that holds everybody (`newBaseServiceInfo` of `pkg/proxy/serviceport.go`).
///
/// Where the node itself is among the clients, so are the Service's load-balancer addresses: they are often addresses of
/// the node as well, and then the source of what it sends to them (`allowFromNode` in `pkg/proxy/nftables/proxier.go`).
fn source_ranges<A: Family>(service: &Service, node_ip: Option<A>) -> Vec<Cidr<A>> {
    let mut ranges: Vec<Cidr<A>> = service.source_ranges.iter().filter_map(|net| Cidr::from_net(*net)).collect();
    if ranges.iter().any(|range| range.bits == 0) {
        return Vec::new();
    }
    if node_ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(ip))) {
        let own = service.load_balancer_ips.iter().filter_map(|ip| A::from_ip(*ip));
        ranges.extend(own.map(Cidr::of_address));
    }
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

/// Whether only some clients may use a Service's load-balancer addresses of a family.
fn is_restricted<A: Family>(service: &Service) -> bool {
    let mut ranges = service.source_ranges.iter().filter_map(|net| Cidr::<A>::from_net(*net)).peekable();
    ranges.peek().is_some() && ranges.all(|range| range.bits > 0)
}

/// The frontends of a port with their flags, ascending, each once. The Service's first port has the entry of its cluster
/// IP as well.
fn frontends<A: Family>(
    service: &Service,
    policy: &Policy,
    port: &ServicePort,
    first: bool,
) -> Vec<(FrontendKey<A>, u8)> {
    let local_if = |policy| if policy == TrafficPolicy::Local { FrontendFlags::LOCAL } else { 0 };
    let internal = local_if(service.internal_policy);
    let external = FrontendFlags::EXTERNAL | local_if(service.external_policy);
    let protocol = port.protocol as u8;
    let load_balancer = service.service_type == ServiceType::LoadBalancer;
    let has_node_port = load_balancer || service.service_type == ServiceType::NodePort;

    let mut found = BTreeMap::new();
    let mut add = |ips: &[IpAddr], flags: u8| {
        // The unspecified address stands for node ports: nobody else may enter it.
        for address in ips.iter().filter(|ip| !ip.is_unspecified()).filter_map(|ip| A::from_ip(*ip)) {
            let known = found.entry(FrontendKey::new(address, port.port, protocol)).or_insert(flags);
            // A cluster IP that is listed as an external IP as well stays what it is. An external IP that is a
            // load-balancer address as well is as restricted as this, as in the nftables mode of kube-proxy, whose
            // firewall goes by the address; its iptables mode lets everybody in by the external IP.
            if *known & FrontendFlags::EXTERNAL != 0 {
                *known |= flags;
            }
        }
    };
    add(&service.cluster_ips, internal);
    if policy.external_ips {
        add(&service.external_ips, external);
    }
    if load_balancer {
        let restricted = if is_restricted::<A>(service) { FrontendFlags::SOURCE_RANGES } else { 0 };
        add(&service.load_balancer_ips, external | restricted);
    }
    if first {
        let cluster_ips = service.cluster_ips.iter().filter_map(|ip| A::from_ip(*ip));
        found.extend(cluster_ips.map(|address| (FrontendKey::new(address, 0, 0), FrontendFlags::CLUSTER_IP)));
    }
    if let Some(node_port) = port.node_port.filter(|_| has_node_port) {
        found.insert(FrontendKey::new(A::UNSPECIFIED, node_port, protocol), external | FrontendFlags::NODE_PORT);
    }
    found.into_iter().collect()
}

/// The endpoints of a service port from all slices, ascending by address and port, each once: of duplicates the one
/// that does not terminate, then the one that is in the better state.
fn candidates<'a, A: Family>(inputs: &'a Inputs, name: &ServicePortName, place: Place<'_>) -> Vec<Candidate<'a, A>> {
    let mut candidates = Vec::new();
    for slice in inputs.slices_of(&name.service) {
        for port in slice.ports.iter().filter(|port| port.name == name.port && port.protocol == name.protocol) {
            candidates.extend(slice.endpoints.iter().filter_map(|endpoint| {
                let local = endpoint.node_name.as_deref() == Some(place.node);
                Some(Candidate { address: A::from_ip(endpoint.address)?, port: port.port, local, endpoint })
            }));
        }
    }
    // Stable: what remains equal is ordered by the names of the slices.
    candidates.sort_by_key(|candidate| {
        let Endpoint { ready, serving, terminating, .. } = *candidate.endpoint;
        (candidate.address, candidate.port, terminating, Reverse((ready, serving, candidate.local)))
    });
    candidates.dedup_by_key(|candidate| (candidate.address, candidate.port));
    candidates
}

fn desired_port<A: Family>(
    name: ServicePortName,
    frontends: Vec<(FrontendKey<A>, u8)>,
    candidates: &[Candidate<'_, A>],
    place: Place<'_>,
) -> DesiredPort<A> {
    let chosen = categorize(candidates, place);
    // Both lists are filled, so that a change of policy never meets an empty one; but only an endpoint in a list that
    // some frontend uses takes new flows (`UsesClusterEndpoints` and `UsesLocalEndpoints` of
    // `pkg/proxy/serviceport.go`).
    let mut flags = frontends.iter().map(|(_, flags)| *flags).filter(|flags| flags & FrontendFlags::CLUSTER_IP == 0);
    let uses_local = flags.clone().any(|flags| flags & FrontendFlags::LOCAL != 0);
    let uses_cluster = flags.any(|flags| flags & FrontendFlags::LOCAL == 0 || flags & FrontendFlags::EXTERNAL != 0);
    let used = |uses, list: &[u32]| if uses { list.to_vec() } else { Vec::new() };
    let taking: BTreeSet<u32> =
        used(uses_cluster, &chosen.cluster).into_iter().chain(used(uses_local, &chosen.local)).collect();
    let listed: BTreeSet<u32> = chosen.cluster.iter().chain(&chosen.local).copied().collect();
    let mut backends = Vec::with_capacity(candidates.len());
    // Where each candidate is among the backends.
    let mut positions = Vec::with_capacity(candidates.len());
    for (position, candidate) in (0..).zip(candidates) {
        positions.push(u32::try_from(backends.len()).unwrap_or(u32::MAX));
        if listed.contains(&position) || name.protocol == Protocol::Tcp || candidate.endpoint.serving {
            let flags = [
                (candidate.local, BackendFlags::LOCAL),
                (taking.contains(&position), BackendFlags::SELECTABLE),
                (chosen.cluster.binary_search(&position).is_ok(), BackendFlags::IN_CLUSTER),
                (chosen.local.binary_search(&position).is_ok(), BackendFlags::IN_LOCAL),
            ];
            let flags = flags.into_iter().filter(|(is, _)| *is).map(|(_, flag)| flag).sum();
            backends.push(DesiredBackend { address: candidate.address, port: candidate.port, flags });
        }
    }
    let place_all = |list: Vec<u32>| list.into_iter().map(|position| positions[position as usize]).collect();
    DesiredPort {
        name,
        frontends,
        backends,
        cluster: place_all(chosen.cluster),
        local: place_all(chosen.local),
        has_endpoints: chosen.has_any,
        balance: Balance::default(),
        affinity_seconds: 0,
        source_ranges: Vec::new(),
    }
}

/// The Maglev table of the backends at some positions. Nodes that know the same backends get the same table: they are
/// ascending, and told apart by address and port.
fn maglev<A: Family>(backends: &[DesiredBackend<A>], list: &[u32]) -> Vec<u32> {
    if list.len() < 2 {
        return list.to_vec();
    }
    let size = maglev::size(list.len());
    let preference = |position: &u32| {
        let DesiredBackend { address, port, .. } = backends[*position as usize];
        Preference::new(hash::endpoint(address, port), size)
    };
    let mut preferences: Vec<_> = list.iter().map(preference).collect();
    let mut table = vec![0; size as usize];
    maglev::fill(&mut table, &mut preferences);
    table.into_iter().map(|position| list[position as usize]).collect()
}
