//! How long session affinity lasts: where a client is kept after a step, and where it was before.
//!
//! A step may wait, and then say whether clients still are where they were ([`Lapse`]). That must be so with every proxy. A
//! client that is kept no more is given any endpoint, by chance also the one that it had: so what has expired is told by all
//! Service ports of one client and protocol together, at one of which at least it must be elsewhere.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use serde::Deserialize;

use super::{
    arm::Implementation,
    cell::{Cell, Place},
    observation::Endpoint,
    probe::ClientKind,
    target::FrontendKind,
};

/// The timeout of a Service that says none (`DefaultClientIPServiceAffinitySeconds` in `pkg/apis/core/types.go`).
const DEFAULT_SECONDS: u64 = 10_800;

/// What becomes of session affinity in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lapse {
    /// Clients stay.
    Lasts,
    /// They are given endpoints anew.
    Expires,
}

/// Where clients were kept at the last step.
#[derive(Default)]
pub struct Stays {
    at: BTreeMap<Key, [Option<Endpoint>; 3]>,
    /// When clients began to ask, and had asked.
    asked: Option<[Instant; 2]>,
}

type Key = (ClientKind, String, String, FrontendKind, IpAddr);

impl Stays {
    /// Takes in where clients are after one more step, which was found out in this time, and gives what is not as the step
    /// says.
    pub fn follow(&mut self, place: Place<'_>, cells: &[Cell], asked: [Instant; 2]) -> Vec<String> {
        let at = cells.iter().filter(|cell| cell.target.has_affinity).map(|cell| {
            let target = &cell.target;
            let key =
                (cell.client, target.transport.to_string(), target.service.clone(), target.kind, target.address.ip());
            (key, cell.seen.each_ref().map(only))
        });
        let before = std::mem::replace(self, Self { at: at.collect(), asked: Some(asked) });
        let Some(lapse) = place.step.affinity else { return Vec::new() };
        let head = format!("{}, {}", place.scenario.name, place.step.about);
        if let Some(problem) = before.asked.and_then(|before| too_slow(lapse, timeout(place), before, asked)) {
            return vec![format!("{head}: {problem}\n")];
        }
        let moved = self.moved(&before);
        if moved.is_empty() {
            return vec![format!("{head}: no client is kept anywhere\n")];
        }
        let wrong = moved.into_iter().flat_map(|((client, transport), moved)| {
            Implementation::ALL.into_iter().zip(moved).filter_map(move |(who, [moved, all])| {
                let is_right = match lapse {
                    Lapse::Lasts => moved == 0,
                    Lapse::Expires => moved > 0,
                };
                let who = who.name();
                (!is_right).then(|| format!("{client:?} by {transport}: {who} moves it at {moved} of {all} frontends"))
            })
        });
        wrong.map(|text| format!("{head}: affinity {lapse:?}, but {text}\n")).collect()
    }

    /// At how many frontends each proxy has moved a client by a protocol, and at how many it might have.
    fn moved(&self, before: &Self) -> BTreeMap<(ClientKind, String), [[usize; 2]; 3]> {
        let mut moved = BTreeMap::<_, [[usize; 2]; 3]>::new();
        for (key, now) in &self.at {
            let Some(before) = before.at.get(key) else { continue };
            let counts = moved.entry((key.0, key.1.clone())).or_default();
            for ((now, before), [moved, all]) in now.iter().zip(before).zip(counts) {
                *moved += usize::from(now != before);
                *all += 1;
            }
        }
        moved
    }
}

/// The one endpoint that answered.
fn only(seen: &super::observation::Observation) -> Option<Endpoint> {
    let mut reached = seen.reached.keys();
    reached.next().filter(|_| reached.next().is_none()).cloned()
}

/// The shortest timeout of Services that keep clients.
fn timeout(place: Place<'_>) -> Duration {
    let services =
        place.scenario.objects_after(place.number).filter(|object| object["spec"]["sessionAffinity"] == "ClientIP");
    let seconds = services.map(|service| {
        service["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_SECONDS)
    });
    Duration::from_secs(seconds.min().unwrap_or(DEFAULT_SECONDS))
}

/// Why nothing can be said of how long affinity lasts: too much time has passed since clients asked, or too little.
fn too_slow(lapse: Lapse, timeout: Duration, before: [Instant; 2], now: [Instant; 2]) -> Option<String> {
    let (most, least) = (now[1] - before[0], now[0] - before[1]);
    match lapse {
        Lapse::Lasts if most >= timeout => Some(format!("clients were silent for up to {most:?}, too long to tell")),
        Lapse::Expires if least <= timeout => Some(format!("clients were silent for {least:?} only")),
        Lapse::Lasts | Lapse::Expires => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_too_late_or_too_early_says_nothing() {
        let start = Instant::now();
        let asked = |from, to| [from, to].map(|seconds| start + Duration::from_secs(seconds));
        let is_told = |lapse, now| too_slow(lapse, Duration::from_secs(40), asked(0, 5), now).is_none();
        assert!(is_told(Lapse::Lasts, asked(26, 31)));
        assert!(!is_told(Lapse::Lasts, asked(26, 40)));
        assert!(is_told(Lapse::Expires, asked(46, 51)));
        assert!(!is_told(Lapse::Expires, asked(45, 90)));
    }

    #[test]
    fn a_client_is_moved_where_another_endpoint_answers_than_before() {
        let key = |service: &str| {
            let service = service.to_owned();
            (ClientKind::Pod, "TCP".to_owned(), service, FrontendKind::ClusterIp, IpAddr::from([10, 96, 0, 1]))
        };
        let at = |hosts: [&str; 3]| hosts.map(|host| Some(Endpoint { host: host.to_owned(), port: 9000 }));
        let stays = |first, second| Stays { at: [(key("a"), at(first)), (key("b"), at(second))].into(), asked: None };
        let before = stays(["x", "x", "x"], ["x", "y", "z"]);
        let now = stays(["x", "y", "x"], ["y", "x", "z"]);
        let moved: Vec<_> = now.moved(&before).into_values().collect();
        assert_eq!(moved, [[[1, 2], [2, 2], [0, 2]]]);
    }
}
