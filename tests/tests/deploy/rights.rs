//! RBAC: the agent as the rendered account, with the rendered arguments and environment, at an API server that writes down
//! what it was asked. What was asked is what is granted, and each permission that is taken away is missed.

use std::{collections::BTreeSet, fmt, io, time::Duration};

use lb_tests::lab::{agent, cluster::eventually_within, sandbox::Sandbox};
use serde_json::{Value, json};

use crate::{
    installed::{Installed, audit_log_length, with_installed},
    render::of_kind,
};

/// How long an agent may take to say what it may not do: optional kinds are asked for several times, with pauses.
const SAID_WITHIN: Duration = Duration::from_secs(20);

/// A permission: what RBAC grants, and what a request needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Permission {
    pub(crate) group: String,
    pub(crate) resource: String,
    pub(crate) verb: String,
}

impl Permission {
    /// An agent that lacks it goes on with what it has: old API servers have no `ServiceCIDR`s, and Events are for people.
    fn is_optional(&self) -> bool {
        matches!(self.resource.as_str(), "servicecidrs" | "events")
    }
}

impl fmt::Display for Permission {
    /// As the API server words its refusal.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, resource, verb } = self;
        write!(formatter, "cannot {verb} resource \"{resource}\" in API group \"{group}\"")
    }
}

/// What the rules of a role grant, one permission each.
fn granted(rules: &Value) -> BTreeSet<Permission> {
    let texts = |rule: &Value, key: &str| -> Vec<String> {
        let list = rule[key].as_array().unwrap_or_else(|| panic!("{key} of {rule}"));
        list.iter().map(|text| text.as_str().expect("text").to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in rules.as_array().expect("rules") {
        let [groups, resources, verbs] = ["apiGroups", "resources", "verbs"].map(|key| texts(rule, key));
        assert_eq!(rule.as_object().map(serde_json::Map::len), Some(3), "nothing else is understood here: {rule}");
        for (group, resource) in groups.iter().flat_map(|group| resources.iter().map(move |resource| (group, resource)))
        {
            for verb in &verbs {
                assert!([group, resource, verb].iter().all(|text| *text != "*"), "{rule}");
                all.insert(Permission { group: group.clone(), resource: resource.clone(), verb: verb.clone() });
            }
        }
    }
    all
}

/// The rules that grant these and no others.
pub(crate) fn rules(permissions: &BTreeSet<Permission>) -> Value {
    let rule = |Permission { group, resource, verb }: &Permission| json!({ "apiGroups": [group], "resources": [resource], "verbs": [verb] });
    permissions.iter().map(rule).collect()
}

/// Starts an agent that has all it needs, waits until it serves and has told what it has to, and ends it. Gives what it
/// asked for.
fn run_once(installed: &Installed) -> BTreeSet<Permission> {
    let mut agent = installed.start_agent();
    agent.wait_ready(installed.node());
    eventually_within(SAID_WITHIN, "an Event", || installed.events(), |events| *events == 1);
    assert!(agent.terminate().success());
    let log = agent::log(installed.node());
    assert!(log.contains("first synchronization done") && !log.contains("forbidden"), "{log}");
    let asked = installed.asked(0);
    let refused: Vec<_> = asked.iter().filter(|(_, allowed)| !allowed).collect();
    assert!(refused.is_empty(), "{refused:?}");
    asked.into_iter().map(|(permission, _)| permission).collect()
}

pub(crate) fn an_agent_uses_all_of_its_rights_and_misses_each_that_is_taken_away(sandbox: Sandbox) {
    with_installed(sandbox, false, |installed| {
        let granted = granted(&of_kind(&installed.objects, "ClusterRole")["rules"]);
        installed.create_faulty_service();
        assert_eq!(run_once(installed), granted);

        for missing in &granted {
            let mut rest = granted.clone();
            rest.remove(missing);
            installed.grant(&rest, missing);
            let since = audit_log_length();
            let mut agent = installed.start_agent();
            let said = |log: &String| log.contains(&missing.to_string());
            let log = || agent::log(installed.node());
            eventually_within(SAID_WITHIN, &format!("an agent that {missing} says so"), log, said);
            if missing.is_optional() {
                agent.wait_ready(installed.node());
            } else {
                let health = || agent::health(installed.node());
                let answered = |health: &io::Result<u16>| health.is_ok();
                let health = eventually_within(SAID_WITHIN, "an agent with a health check", health, answered);
                assert!(matches!(health, Ok(503)), "without {missing}: {health:?}");
            }
            agent.assert_alive();
            assert!(agent.terminate().success());
            let refused: BTreeSet<_> = installed.asked(since).into_iter().filter(|(_, allowed)| !allowed).collect();
            assert_eq!(refused, BTreeSet::from([(missing.clone(), false)]));
        }
    });
}

pub(crate) fn an_agent_that_is_sent_lists_by_a_watch_does_with_less(sandbox: Sandbox) {
    with_installed(sandbox, true, |installed| {
        let granted = granted(&of_kind(&installed.objects, "ClusterRole")["rules"]);
        installed.create_faulty_service();
        let without_lists = granted.into_iter().filter(|permission| permission.verb != "list");
        assert_eq!(run_once(installed), without_lists.collect());
    });
}
