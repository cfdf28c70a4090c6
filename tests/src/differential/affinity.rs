//! Session affinity: a client stays at one endpoint, and each proxy chooses it by chance. So a scenario with Services that
//! want it is also run without it, which shows what each proxy may choose from at each place. With affinity a client must
//! then be at one of these, and no more can be said where some of them leave it without an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{
    observation::{Aspect, Kind, Observation, Verdict, differences},
    probe::ClientKind,
    scenario::Scenario,
    target::{FrontendKind, Target},
};

/// What clients of each proxy saw in a scenario without session affinity.
#[derive(Default)]
pub struct Choices(BTreeMap<Key, [Observation; 3]>);

/// A place in a scenario. A port is known by its name: the number of a node port may be another one each time.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    step: usize,
    client: ClientKind,
    service: String,
    kind: FrontendKind,
    address: IpAddr,
}

impl Key {
    fn of(step: usize, client: ClientKind, target: &Target) -> Self {
        let Target { service, kind, address, .. } = target;
        Self { step, client, service: service.clone(), kind: *kind, address: address.ip() }
    }
}

impl Choices {
    /// Takes note of what was seen.
    pub fn add(&mut self, step: usize, client: ClientKind, target: &Target, seen: [Observation; 3]) {
        self.0.insert(Key::of(step, client, target), seen);
    }

    /// What was seen at a place.
    pub fn at(&self, step: usize, client: ClientKind, target: &Target) -> &[Observation; 3] {
        let seen = self.0.get(&Key::of(step, client, target));
        seen.unwrap_or_else(|| panic!("{client:?} has not asked at {target} without session affinity"))
    }
}

impl Scenario {
    /// The same without session affinity, if Services want it where new connections are made.
    pub fn without_affinity(&self) -> Option<Self> {
        let mut free = self.clone();
        let mut is_other = false;
        for object in free.steps.iter_mut().flat_map(|step| &mut step.apply) {
            if object["kind"] == "Service" && object["spec"]["sessionAffinity"] == "ClientIP" {
                let spec = object["spec"].as_object_mut().expect("it has a field");
                spec.insert("sessionAffinity".to_owned(), "None".into());
                spec.remove("sessionAffinityConfig");
                is_other = true;
            }
        }
        for step in &mut free.steps {
            (step.wait, step.affinity) = (Duration::ZERO, None);
        }
        free.name += " without affinity";
        (free.header.keep, free.header.requests) = (false, Vec::new());
        (is_other && self.header.probe).then_some(free)
    }
}

/// In what two observations differ where clients are kept at an endpoint. `free` is what the same two proxies did without.
pub fn sticky_differences(seen: [&Observation; 2], free: [&Observation; 2]) -> Vec<Aspect> {
    let [first, second] = seen;
    let kinds = free.map(Observation::kinds);
    // Of endpoints that answer and others that do not, each proxy has one.
    let is_chance = kinds[0] != kinds[1] || kinds[0].len() > 1;
    let mut found = if is_chance {
        // Few tries that are all left unanswered do not say that all would be.
        let unseen = kinds[1].contains(&Kind::Dropped).then_some(Kind::Reached);
        let is_possible = second.kinds().iter().all(|kind| kinds[1].contains(kind) || unseen == Some(*kind));
        let verdict = (!is_possible).then(|| Aspect::Verdict(kinds[1].clone(), second.kinds()));
        let chosen = second.reached.len() + second.others.len();
        verdict.into_iter().chain((chosen > 1).then_some(Aspect::Stickiness(1, chosen))).collect()
    } else {
        let (count, other) = (first.reached.len(), second.reached.len());
        let mut found = differences(first, second);
        found.retain(|aspect| !matches!(aspect, Aspect::Endpoints(..)));
        let is_comparable = first.kinds() == second.kinds() && !first.others.contains(&Verdict::Dropped);
        found.extend((is_comparable && count != other).then_some(Aspect::Stickiness(count, other)));
        found
    };
    // Where tries were left unanswered, not all that may be chosen was seen.
    if !kinds[1].contains(&Kind::Dropped) {
        let stray = second.reached.keys().filter(|endpoint| !free[1].reached.contains_key(endpoint));
        let stray: BTreeSet<_> = stray.cloned().collect();
        found.extend((!stray.is_empty()).then_some(Aspect::Stray(stray)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::observation::{Endpoint, Source};

    fn endpoint(host: &str) -> Endpoint {
        Endpoint { host: host.to_owned(), port: 9000 }
    }

    /// What came of tries that reached these hosts, and of others.
    fn seen(hosts: &[&str], others: &[Verdict]) -> Observation {
        let mut observation = Observation::default();
        for host in hosts {
            observation.add(Verdict::Reached(endpoint(host), Source::Own));
        }
        for other in others {
            observation.add(other.clone());
        }
        observation
    }

    #[test]
    fn each_proxy_may_choose_another_endpoint_of_the_same_set() {
        let free = seen(&["a", "b"], &[]);
        assert_eq!(sticky_differences([&seen(&["a"], &[]), &seen(&["b"], &[])], [&free, &free]), []);
    }

    #[test]
    fn an_endpoint_outside_the_set_is_a_stray() {
        let free = seen(&["a", "b"], &[]);
        let found = sticky_differences([&seen(&["a"], &[]), &seen(&["c"], &[])], [&free, &free]);
        assert_eq!(found, [Aspect::Stray([endpoint("c")].into())]);
    }

    #[test]
    fn two_endpoints_for_one_client_are_told() {
        let free = seen(&["a", "b"], &[]);
        let found = sticky_differences([&seen(&["a"], &[]), &free], [&free, &free]);
        assert_eq!(found, [Aspect::Stickiness(1, 2)]);
    }

    #[test]
    fn an_endpoint_that_does_not_answer_is_a_choice_like_others() {
        let (theirs, ours) = (seen(&["a"], &[Verdict::Dropped]), seen(&["a", "b"], &[]));
        let (dropped, a) = (seen(&[], &[Verdict::Dropped]), seen(&["a"], &[]));
        assert_eq!(sticky_differences([&dropped, &a], [&theirs, &ours]), []);
        let found = sticky_differences([&a, &dropped], [&theirs, &ours]);
        assert_eq!(found, [Aspect::Verdict([Kind::Reached].into(), [Kind::Dropped].into())]);
    }

    #[test]
    fn nobody_is_reached_where_all_is_dropped() {
        let (dropped, a) = (seen(&[], &[Verdict::Dropped]), seen(&["a"], &[]));
        let found = sticky_differences([&dropped, &a], [&dropped, &dropped]);
        assert_eq!(found, [Aspect::Verdict([Kind::Dropped].into(), [Kind::Reached].into())]);
    }
}
