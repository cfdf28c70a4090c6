use std::collections::BTreeMap;

use lb_common::abi::FrontendFlags;

use super::{DesiredPort, Family, objects::ObjectKey};

/// How many service ports have endpoints, but none that their `Local` policy allows here: new flows are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocal {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

impl NoLocal {
    /// The ports of one Service of which this is true.
    pub(crate) fn of<A: Family>(ports: &[DesiredPort<A>]) -> Self {
        let mut count = Self::default();
        for port in ports.iter().filter(|port| port.has_endpoints && port.local.is_empty()) {
            let is_local = |kind| {
                let both = FrontendFlags::EXTERNAL | FrontendFlags::LOCAL;
                port.frontends.iter().any(|(_, flags)| flags & both == kind | FrontendFlags::LOCAL)
            };
            count.internal += usize::from(is_local(0));
            count.external += usize::from(is_local(FrontendFlags::EXTERNAL));
        }
        count
    }
}

/// The sums over all Services, kept up to date one Service at a time.
#[derive(Debug, Default)]
pub(crate) struct NoLocals {
    /// IPv4 and IPv6, for Services that have any.
    of: BTreeMap<ObjectKey, [NoLocal; 2]>,
}

impl NoLocals {
    pub(crate) fn note(&mut self, service: &ObjectKey, counts: [NoLocal; 2]) {
        if counts == <[NoLocal; 2]>::default() {
            self.of.remove(service);
        } else {
            self.of.insert(service.clone(), counts);
        }
    }

    /// IPv4 and IPv6.
    pub(crate) fn sums(&self) -> [NoLocal; 2] {
        self.of.values().fold(Default::default(), |[v4, v6]: [NoLocal; 2], [add4, add6]| {
            let add = |sum: NoLocal, add: &NoLocal| NoLocal {
                internal: sum.internal + add.internal,
                external: sum.external + add.external,
            };
            [add(v4, add4), add(v6, add6)]
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::{
        Change, DesiredState, Endpoint, Inputs, Policy, Service, ServiceType, SourceEvent, TrafficPolicy,
        testing::{endpoint, key, service, slice},
    };

    fn counts(service: Service, endpoints: &[Endpoint]) -> [usize; 2] {
        let mut inputs = Inputs::new([]);
        inputs.apply(SourceEvent::Changed(Change::Service(key("web"), Some(service))));
        inputs.apply(SourceEvent::Changed(Change::EndpointSlice(key("web-1"), Some(slice("web", endpoints)))));
        let mut desired = DesiredState::new("here");
        desired.claim(&inputs, &Policy::default(), &mut BTreeSet::from([key("web")]));
        let NoLocal { internal, external } = NoLocal::of(&desired.ports4(&inputs, &Policy::default(), &key("web")));
        [internal, external]
    }

    #[test]
    fn ports_count_whose_policy_finds_nobody_here() {
        let local = Service {
            service_type: ServiceType::LoadBalancer,
            load_balancer_ips: vec![[192, 0, 2, 1].into()],
            internal_policy: TrafficPolicy::Local,
            external_policy: TrafficPolicy::Local,
            ..service("10.96.0.1")
        };
        let away = endpoint("10.0.0.1");
        let here = Endpoint { node_name: Some("here".into()), ..away.clone() };
        assert_eq!(counts(local.clone(), std::slice::from_ref(&away)), [1, 1]);
        assert_eq!(counts(local.clone(), &[]), [0, 0], "no endpoint anywhere is another thing");
        assert_eq!(counts(local.clone(), &[here]), [0, 0]);
        let away = std::slice::from_ref(&away);
        let internal = Service { external_policy: TrafficPolicy::Cluster, ..local.clone() };
        assert_eq!(counts(internal, away), [1, 0]);
        assert_eq!(counts(Service { internal_policy: TrafficPolicy::Cluster, ..local }, away), [0, 1]);
        assert_eq!(counts(service("10.96.0.1"), away), [0, 0]);
    }

    #[test]
    fn sums_follow_each_service() {
        let mut all = NoLocals::default();
        let one = |internal, external| NoLocal { internal, external };
        all.note(&key("a"), [one(1, 2), one(0, 0)]);
        all.note(&key("b"), [one(1, 0), one(0, 3)]);
        assert_eq!(all.sums(), [one(2, 2), one(0, 3)]);
        all.note(&key("a"), [one(0, 0), one(0, 0)]);
        assert_eq!(all.sums(), [one(1, 0), one(0, 3)]);
    }
}
