//! From a change of a slice to the first connection that its new endpoint answers.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    contender::Running,
    ground::{Ground, Side, ask},
    population::Population,
    sample::Random,
};

/// Changes before those that count.
const WARMUP: u32 = 3;
/// The shortest pause between two connections; later ones are longer, so that looking takes little of the machine.
const SHORTEST_PAUSE: Duration = Duration::from_micros(200);
/// The part of the time since the write that a pause takes.
const PAUSE_SHARE: u32 = 100;
/// The client connects for this long before the write is sent.
const RUN_UP: Duration = Duration::from_millis(20);
/// From one change in force to the next: up to this long, at random, so that kube-proxy's pause between
/// synchronizations is met at any of its moments.
pub(super) const LONGEST_GAP_MS: u64 = 1000;

/// When the first connection reached the new endpoint.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Milliseconds after the API server had acknowledged the write: negative where its watch was faster.
    pub after_acknowledgement: f64,
    /// Milliseconds after the write was sent.
    pub after_sending: f64,
}

/// Moves the endpoint of one Service `count` times. Gives up where one change takes longer than `cap`.
pub(super) fn measure(
    ground: &Ground,
    running: &mut Running,
    population: &mut Population<'_>,
    count: u32,
    cap: Duration,
) -> Vec<Change> {
    let mut random = Random::new();
    let mut changes = Vec::new();
    for number in 0..WARMUP + count {
        let side = population.moving_to().other();
        let (reached, first) = mpsc::channel();
        let client = ground.client().spawn(move || {
            // Who waits for it is below.
            let _ = reached.send(first_answer(side, cap));
        });
        thread::sleep(RUN_UP);
        let [sent, acknowledged] = population.move_to(side);
        let answered = first.recv().expect("the client answers");
        client.join().expect("the client does not panic");
        running.assert_alive();
        let Some(answered) = answered else { break };
        if number >= WARMUP {
            let after_acknowledgement = milliseconds(acknowledged, answered);
            changes.push(Change { after_acknowledgement, after_sending: milliseconds(sent, answered) });
        }
        thread::sleep(Duration::from_millis(random.below(LONGEST_GAP_MS)));
    }
    changes
}

/// When a connection was first answered on a side.
fn first_answer(side: Side, cap: Duration) -> Option<Instant> {
    let start = Instant::now();
    while start.elapsed() < cap {
        if ask(Population::moving_frontend()).is_ok_and(|pod| pod == side.pod()) {
            return Some(Instant::now());
        }
        thread::sleep((start.elapsed() / PAUSE_SHARE).max(SHORTEST_PAUSE));
    }
    None
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    let [there, back] = [to.saturating_duration_since(from), from.saturating_duration_since(to)];
    (there.as_secs_f64() - back.as_secs_f64()) * 1e3
}
