//! What was seen of each proxy at one place, and whether the tables of [`divergence`] explain in what it differs.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    affinity::{Choices, sticky_differences},
    arm::Implementation,
    divergence::{self, Difference, Finding, NOT_ANNOUNCED, OURS},
    history::History,
    modes::MODES,
    observation::{Aspect, Observation, Verdict, differences},
    probe::ClientKind,
    report::Report,
    scenario::{Scenario, Step},
    target::{FrontendKind, Target},
};
use crate::lab::client::Transport;

/// Where in a scenario something is seen.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The scenario.
    pub scenario: &'a Scenario,
    /// The last step that was taken.
    pub step: &'a Step,
    /// Its number, from 0.
    pub number: usize,
    /// What was seen without session affinity, if Services of the scenario want it.
    pub choices: Option<&'a Choices>,
}

/// What one client saw at one frontend, of each proxy in the order of [`Implementation::ALL`].
pub struct Cell {
    /// Who asked.
    pub client: ClientKind,
    /// Its host.
    pub host: String,
    /// Where it asked.
    pub target: Target,
    /// What became of what it asked at, if the exchange is one that is kept.
    pub history: Option<History>,
    /// What the client saw of nftables mode elsewhere, if this is a node port on loopback: see [`Finding::elsewhere`].
    pub elsewhere: Option<Observation>,
    /// What came of it.
    pub seen: [Observation; 3],
}

impl Cell {
    /// In what we differ from nftables mode, and iptables mode from it. Where we serve what only iptables mode serves, node
    /// ports on loopback, also in what we differ from that.
    fn findings<'a>(&'a self, place: Place<'a>) -> [Vec<Finding<'a>>; 2] {
        let [nftables, iptables, lb] = &self.seen;
        let Self { client, host, target, history, elsewhere, .. } = self;
        let choices = place.choices.filter(|_| target.has_affinity && !target.kept);
        let free = choices.map(|choices| choices.at(place.number, *client, target));
        let compared = [(0, 2), (0, 1), (1, 2)];
        let [mut ours, mut modes, on_loopback] = compared.map(|(first, second)| {
            let [reference, other] = [&self.seen[first], &self.seen[second]];
            let aspects = match free {
                Some(free) => sticky_differences([reference, other], [&free[first], &free[second]]),
                None => differences(reference, other),
            };
            let (scenario, history) = (place.scenario, history.as_ref());
            let finding = |aspect| Finding {
                scenario,
                step: place.number,
                client: *client,
                host,
                target,
                aspect,
                reference,
                other,
                elsewhere: elsewhere.as_ref(),
                history,
            };
            aspects.into_iter().map(finding).collect::<Vec<_>>()
        });
        // Where both leave tries unanswered, chance says how many.
        if [nftables, iptables].iter().all(|seen| seen.others.contains(&Verdict::Dropped)) {
            modes.clear();
        }
        let serve = [iptables, lb].iter().all(|seen| !seen.reached.is_empty()) && nftables.reached.is_empty();
        if target.kind == FrontendKind::LocalhostNodePort && serve && !target.kept {
            ours.extend(on_loopback);
        }
        [ours, modes]
    }

    /// Whether there is no reason to look again: what differs is explained, kube-proxy's modes agree, and what was not
    /// answered were not SYNs, whose refusal may go unheard the first time, nor a few tries where others were answered,
    /// which may all have been given the same endpoint.
    pub fn is_plain(&self, place: Place<'_>) -> bool {
        let is_silent = |observation: &Observation| observation.others.contains(&Verdict::Dropped);
        let may_be_heard =
            self.target.transport == Transport::Tcp || self.seen.iter().any(|seen| !seen.reached.is_empty());
        let may_be_unheard = may_be_heard && self.seen.iter().any(is_silent);
        let [ours, modes] = self.findings(place);
        !may_be_unheard && modes.is_empty() && ours.iter().all(|finding| is_explained(OURS, finding))
    }

    /// Whether the tables explain all in what the proxies differ.
    pub fn is_announced(&self, place: Place<'_>) -> bool {
        let [ours, modes] = self.findings(place);
        ours.iter().all(|finding| is_explained(OURS, finding))
            && modes.iter().all(|finding| is_explained(&[MODES], finding))
    }

    /// Enters into the report in what the proxies differ.
    pub fn judge(&self, place: Place<'_>, report: &mut Report) {
        let head = head(place, self.client, &self.target, self.seen.each_ref());
        enter(self.findings(place), &head, report);
    }
}

/// What clients saw where there are none.
static NOTHING: Observation = Observation { reached: BTreeMap::new(), others: BTreeSet::new() };

/// What a server of each proxy's own answered.
pub struct AnswerCell {
    /// What was asked.
    pub target: Target,
    /// The answers, without what differs from one moment to the next.
    pub seen: [String; 3],
}

impl AnswerCell {
    fn findings<'a>(&'a self, place: Place<'a>) -> [Vec<Finding<'a>>; 2] {
        let [nftables, iptables, lb] = &self.seen;
        [lb, iptables].map(|other| {
            let aspect = (nftables != other).then(|| Aspect::Answer(nftables.clone(), other.clone()));
            let (scenario, target) = (place.scenario, &self.target);
            let finding = |aspect| Finding {
                scenario,
                step: place.number,
                client: ClientKind::Node,
                host: "node1",
                target,
                aspect,
                reference: &NOTHING,
                other: &NOTHING,
                elsewhere: None,
                history: None,
            };
            aspect.map(finding).into_iter().collect()
        })
    }

    /// Whether there is no reason to ask again.
    pub fn is_plain(&self, place: Place<'_>) -> bool {
        let [ours, modes] = self.findings(place);
        ours.iter().all(|finding| is_explained(OURS, finding))
            && modes.iter().all(|finding| is_explained(&[MODES], finding))
    }

    /// Enters into the report in what the proxies differ.
    pub fn judge(&self, place: Place<'_>, report: &mut Report) {
        let seen = self.seen.each_ref().map(|text| format!("{text:?}"));
        let head = head(place, ClientKind::Node, &self.target, seen.each_ref());
        enter(self.findings(place), &head, report);
    }
}

fn is_explained(table: &[&'static [Difference]], finding: &Finding<'_>) -> bool {
    divergence::explanations(table, finding).len() == 1
}

fn head<T: std::fmt::Display>(place: Place<'_>, client: ClientKind, target: &Target, seen: [&T; 3]) -> String {
    let Place { scenario, step, .. } = place;
    let seen = Implementation::ALL.iter().zip(seen);
    let lines = seen.map(|(who, observation)| format!("    {:<21} {observation}\n", who.name()));
    format!("{}, {}: {client:?} to {target}\n{}", scenario.name, step.about, lines.collect::<String>())
}

fn enter(findings: [Vec<Finding<'_>>; 2], head: &str, report: &mut Report) {
    let [ours, modes] = findings;
    for (table, whose, findings) in [(OURS, "lb-agent differs", ours), (&[MODES], "kube-proxy's modes differ", modes)] {
        for finding in findings {
            match divergence::explanations(table, &finding)[..] {
                [difference] => {
                    report.shown.insert(difference.id.to_owned());
                    report.explained.push(format!("{head}    {whose}, {}: {}\n", difference.id, finding.aspect));
                }
                [] => report.failures.push(format!("{head}    {whose}, {NOT_ANNOUNCED}: {}\n", finding.aspect)),
                ref several => {
                    let ids: Vec<&str> = several.iter().map(|difference| difference.id).collect();
                    report.failures.push(format!("{head}    {whose}, announced more than once: {}\n", ids.join(", ")));
                }
            }
        }
    }
}
