//! The exchanges that a scenario keeps, in a session.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{SETTLE, Session};
use crate::{
    differential::{
        arm::Arm,
        cell::Place,
        history::{History, Snapshot},
        kept::Kept,
        patience::{MORE_PATIENCE, PATIENCE},
        probe::ClientKind,
        report::Report,
        scenario::Scenario,
        target::Target,
    },
    lab::{Family, Lab},
};

/// How long a UDP flow may take to move: kube-proxy reads the table of all flows, and removes entries one by one.
const MOVED_WITHIN: Duration = Duration::from_secs(10);

/// The exchanges of all clients, of each twin.
pub(super) struct KeptCells {
    cells: Vec<(ClientKind, Vec<Target>)>,
    of_arms: [Vec<Kept>; 3],
    /// Of each target of each client.
    histories: Vec<Vec<History>>,
}

impl KeptCells {
    /// Takes in what there is after one more step.
    fn follow(&mut self, now: &Snapshot) {
        let targets = self.cells.iter().flat_map(|(_, targets)| targets);
        for (history, target) in self.histories.iter_mut().flatten().zip(targets) {
            history.follow(target, now);
        }
    }
}

impl Session {
    /// Opens the exchanges that a scenario keeps.
    pub(super) fn keep(&self, scenario: &Scenario) -> KeptCells {
        let targets = self.targets(scenario).into_iter();
        let cells: Vec<(ClientKind, Vec<Target>)> =
            targets.map(|(client, targets)| (client, targets.iter().flat_map(Target::to_keep).collect())).collect();
        let open = |arm: &Arm| {
            let clients = cells.iter().map(|(client, targets)| {
                Kept::open(&arm.lab, *client, arm.ports[*client as usize].clone(), targets.clone())
            });
            clients.collect()
        };
        let histories = cells.iter().map(|(_, targets)| vec![History::default(); targets.len()]).collect();
        KeptCells { of_arms: self.arms.each_ref().map(open), cells, histories }
    }

    /// Has the exchanges that are kept speak, and enters into the report in what the proxies differ.
    pub(super) fn compare_kept(&self, kept: &mut KeptCells, place: Place<'_>, report: &mut Report) {
        kept.follow(&self.snapshot());
        let kept = &*kept;
        let speak = |patience| {
            let replies =
                kept.of_arms.each_ref().map(|clients| clients.iter().map(|client| client.speak(patience)).collect());
            let observed = replies.map(|replies: Vec<_>| {
                replies.into_iter().flat_map(|reply| reply.recv().expect("clients do not panic")).collect()
            });
            let mut cells = self.cells(&kept.cells, observed);
            for (cell, history) in cells.iter_mut().zip(kept.histories.iter().flatten()) {
                cell.history = Some(history.clone());
            }
            cells
        };
        let mut cells = speak(PATIENCE);
        report.cells += cells.len();
        // kube-proxy forgets UDP flows some time after it has written its rules. All are asked again: what an exchange
        // is that moved in between is what counts.
        let deadline = Instant::now() + MOVED_WITHIN;
        while !cells.iter().all(|cell| cell.is_announced(place)) && Instant::now() < deadline {
            thread::sleep(SETTLE);
            cells = speak(MORE_PATIENCE);
        }
        for cell in cells {
            cell.judge(place, report);
        }
    }

    /// What exchanges that are kept may have been opened with.
    fn snapshot(&self) -> Snapshot {
        let [services, slices] = self.objects();
        let Lab { nodes, .. } = &self.arms[0].lab;
        let hosts = nodes.iter().flat_map(|node| node.pods.iter().chain([&node.vm, &node.host]));
        let named = hosts.flat_map(|host| Family::BOTH.map(|family| (host.address(family), host.name().to_owned())));
        Snapshot::new(&services, &slices, nodes[0].host.addresses(), &named.collect())
    }
}
