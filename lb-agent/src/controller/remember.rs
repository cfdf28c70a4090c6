//! From maps back to objects: what a former agent served, as far as the maps say it.
//!
//! The objects lead to the same maps again, so that an agent that must keep some of them writes nothing. What maps do
//! not say is filled in so: conditions of an endpoint are those that put it where it is, hints are none, and the age of a
//! Service is the least, so that an address that a known Service claims is that one's. Of two that are remembered, and
//! that both want an external address, the first by name gets it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::abi::FrontendFlags;

use crate::{
    dataplane::{AdoptedEndpoint, AdoptedPort, Reconciler},
    model::{
        Balance, Cidr, Endpoint, EndpointSlice, Family, ObjectKey, Protocol, Service, ServicePort, ServiceType,
        SlicePort, TrafficPolicy,
    },
};

/// What the maps hold.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) services: Vec<(ObjectKey, Service)>,
    /// Each of one port, and of one number of that port.
    pub(super) slices: Vec<EndpointSlice>,
}

/// The objects that lead to what both families' maps hold on the node of this name.
pub(super) fn objects(v4: &Reconciler<[u8; 4]>, v6: &Reconciler<[u8; 16]>, node_name: &Arc<str>) -> Objects {
    let mut services = BTreeMap::new();
    let mut slices = Vec::new();
    for port in v4.adopted() {
        add(&mut services, &mut slices, port, node_name);
    }
    for port in v6.adopted() {
        add(&mut services, &mut slices, port, node_name);
    }
    let services = services.into_iter().map(|(key, parts)| (key, parts.service())).collect();
    Objects { services, slices }
}

/// The numbers of one port of a Service.
#[derive(Default)]
struct Numbers {
    port: Option<u16>,
    node_port: Option<u16>,
}

/// What the frontends of a Service say about it.
#[derive(Default)]
struct Parts {
    cluster_ips: BTreeSet<IpAddr>,
    external_ips: BTreeSet<IpAddr>,
    /// Those that only some clients may use.
    restricted_ips: BTreeSet<IpAddr>,
    source_ranges: BTreeSet<IpNet>,
    internal_is_local: bool,
    external_is_local: bool,
    affinity_seconds: u32,
    balance: Option<Balance>,
    ports: BTreeMap<(Arc<str>, Protocol), Numbers>,
}

impl Parts {
    fn service(self) -> Service {
        let Self {
            cluster_ips,
            external_ips,
            restricted_ips,
            source_ranges,
            internal_is_local,
            external_is_local,
            affinity_seconds,
            balance,
            ports,
        } = self;
        let policy = |is_local| if is_local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let has_node_port = ports.values().any(|numbers| numbers.node_port.is_some());
        let port = |((name, protocol), Numbers { port, node_port })| {
            // One that has lost all its frontends to others, or all but a node port, is not served.
            Some(ServicePort { name, protocol, port: port?, node_port })
        };
        Service {
            service_type: match () {
                () if !restricted_ips.is_empty() => ServiceType::LoadBalancer,
                () if has_node_port => ServiceType::NodePort,
                () => ServiceType::ClusterIp,
            },
            cluster_ips: cluster_ips.into_iter().collect(),
            // Those of a load balancer that anyone may use are treated the same.
            external_ips: external_ips.into_iter().collect(),
            load_balancer_ips: restricted_ips.into_iter().collect(),
            source_ranges: source_ranges.into_iter().collect(),
            ports: ports.into_iter().filter_map(port).collect(),
            internal_policy: policy(internal_is_local),
            external_policy: policy(external_is_local),
            affinity_seconds: Some(affinity_seconds).filter(|seconds| *seconds != 0),
            created: i64::MAX,
            balance,
            health_check_node_port: None,
            uid: None,
        }
    }
}

fn add<A: Family>(
    services: &mut BTreeMap<ObjectKey, Parts>,
    slices: &mut Vec<EndpointSlice>,
    adopted: AdoptedPort<A>,
    node_name: &Arc<str>,
) {
    let AdoptedPort { name, frontends, clients, affinity_seconds, balance, endpoints } = adopted;
    let parts = services.entry(name.service.clone()).or_default();
    parts.affinity_seconds = affinity_seconds;
    parts.balance = balance.or(parts.balance);
    parts.source_ranges.extend(clients.into_iter().filter_map(Cidr::to_net));
    let Numbers { port, node_port } = parts.ports.entry((Arc::clone(&name.port), name.protocol)).or_default();
    for (key, flags) in frontends {
        let is_local = flags & FrontendFlags::LOCAL != 0;
        if flags & FrontendFlags::CLUSTER_IP != 0 {
            // It follows from the cluster IP, which the frontends below tell.
            continue;
        }
        if flags & FrontendFlags::NODE_PORT != 0 {
            *node_port = Some(key.port);
            parts.external_is_local = is_local;
            continue;
        }
        *port = Some(key.port);
        if flags & FrontendFlags::EXTERNAL != 0 {
            let restricted = flags & FrontendFlags::SOURCE_RANGES != 0;
            let ips = if restricted { &mut parts.restricted_ips } else { &mut parts.external_ips };
            ips.insert(key.address.to_ip());
            parts.external_is_local = is_local;
        } else {
            parts.cluster_ips.insert(key.address.to_ip());
            parts.internal_is_local = is_local;
        }
    }

    let mut by_port: BTreeMap<u16, Vec<Endpoint>> = BTreeMap::new();
    for AdoptedEndpoint { address, port, is_local, is_listed } in endpoints {
        by_port.entry(port).or_default().push(Endpoint {
            address: address.to_ip(),
            ready: is_listed,
            // One that is in no list is there for the flows that it has: of UDP only while it serves.
            serving: true,
            terminating: false,
            node_name: is_local.then(|| Arc::clone(node_name)),
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        });
    }
    slices.extend(by_port.into_iter().map(|(port, endpoints)| EndpointSlice {
        service: name.service.clone(),
        ports: vec![SlicePort { name: Arc::clone(&name.port), protocol: name.protocol, port }],
        endpoints,
        trigger: None,
    }));
}
