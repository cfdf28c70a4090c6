use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Inputs,
    objects::{ObjectKey, Service},
};

/// The health check server of a Service with policy `Local`: by it load balancers know which nodes have endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `metadata.uid` of the Service.
    pub uid: Option<Arc<str>>,
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// How many IPv4 addresses of this node are ready endpoints; `None` where the Service has no cluster IP of the family.
    pub local4: Option<usize>,
    /// As `local4`, IPv6.
    pub local6: Option<usize>,
}

impl HealthCheck {
    /// The server that a Service wants on the node of this name (`HealthCheckNodePorts` and `LocalReadyEndpoints` of
    /// kube-proxy): endpoints count once however many ports they have, and not while they are not ready, even if they
    /// are served because there is no other. So the load balancer turns away before the last one has gone.
    pub fn of(service: &Service, key: &ObjectKey, inputs: &Inputs, node_name: &str) -> Option<Self> {
        let port = service.health_check_node_port.filter(|_| !service.ports.is_empty())?;
        let endpoints = inputs
            .slices_of(key)
            .filter(|slice| !slice.ports.is_empty())
            .flat_map(|slice| &slice.endpoints)
            .filter(|endpoint| endpoint.ready && endpoint.node_name.as_deref() == Some(node_name));
        let local: BTreeSet<IpAddr> = endpoints.map(|endpoint| endpoint.address).collect();
        let count = |family: fn(&IpAddr) -> bool| {
            let has_family = service.cluster_ips.iter().any(family);
            has_family.then(|| local.iter().filter(|address| family(address)).count())
        };
        let (local4, local6) = (count(IpAddr::is_ipv4), count(IpAddr::is_ipv6));
        (local4.is_some() || local6.is_some()).then(|| Self { uid: service.uid.clone(), port, local4, local6 })
    }
}

/// The health checks of all Services, as far as the maps are what they say.
#[derive(Debug, Default)]
pub(crate) struct HealthChecks {
    current: Arc<BTreeMap<ObjectKey, HealthCheck>>,
}

impl HealthChecks {
    /// Takes note of what a Service wants now. Returns whether that is another thing.
    pub(crate) fn note(&mut self, key: &ObjectKey, check: Option<HealthCheck>) -> bool {
        if self.current.get(key) == check.as_ref() {
            return false;
        }
        let current = Arc::make_mut(&mut self.current);
        match check {
            Some(check) => drop(current.insert(key.clone(), check)),
            None => drop(current.remove(key)),
        }
        true
    }

    /// All of them.
    pub(crate) fn current(&self) -> Arc<BTreeMap<ObjectKey, HealthCheck>> {
        Arc::clone(&self.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Change, Endpoint, SourceEvent,
        testing::{endpoint, key, service, slice},
    };

    fn check(service: &Service, slices: &[(&str, Vec<Endpoint>)]) -> Option<HealthCheck> {
        let mut inputs = Inputs::new([]);
        for (name, endpoints) in slices {
            let slice = slice("web", endpoints);
            inputs.apply(SourceEvent::Changed(Change::EndpointSlice(key(name), Some(slice))));
        }
        HealthCheck::of(service, &key("web"), &inputs, "here")
    }

    fn here(address: &str) -> Endpoint {
        Endpoint { node_name: Some("here".into()), ..endpoint(address) }
    }

    #[test]
    fn distinct_local_ready_addresses_count_and_nothing_else() {
        let local = Service { health_check_node_port: Some(32_000), ..service("10.96.0.1") };
        let not_ready = |address| Endpoint { ready: false, terminating: true, ..here(address) };
        let elsewhere = Endpoint { node_name: Some("there".into()), ..endpoint("10.0.0.3") };
        let slices = [
            ("web-1", vec![here("10.0.0.1"), here("10.0.0.2"), elsewhere, endpoint("10.0.0.4")]),
            ("web-2", vec![here("10.0.0.2"), not_ready("10.0.0.5")]),
            ("web-6", vec![here("fd00::1")]),
        ];
        let expected = HealthCheck { uid: None, port: 32_000, local4: Some(2), local6: None };
        assert_eq!(check(&local, &slices), Some(expected.clone()));

        let dual = Service { cluster_ips: vec![[10, 96, 0, 1].into(), "fd00:96::1".parse().expect("IPv6")], ..local };
        assert_eq!(check(&dual, &slices), Some(HealthCheck { local6: Some(1), ..expected.clone() }));
        assert_eq!(check(&dual, &[]), Some(HealthCheck { local4: Some(0), local6: Some(0), ..expected }));
        assert_eq!(check(&Service { ports: Vec::new(), ..dual.clone() }, &slices), None);
        assert_eq!(check(&Service { health_check_node_port: None, ..dual }, &slices), None);
    }
}
