//! From the start of a proxy to all Services of a sample answering.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    contender::{Contender, Running},
    ground::{Ground, ask},
};

/// The shortest pause between two looks; later ones are longer, so that looking takes little of the machine.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
/// The part of the time since the start that a pause takes: what times are too long at most.
const PAUSE_SHARE: u32 = 200;

/// Seconds since the start of the process. `None`: not within the cap.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Until every Service of the sample has answered a connection.
    pub answers: Option<f64>,
    /// Until the proxy said of itself that it was ready.
    pub says: Option<f64>,
}

/// Starts a proxy and waits until it has done what it has to.
pub(super) fn measure(
    ground: &Ground,
    contender: Contender,
    kubeconfig: &Path,
    sample: Vec<SocketAddr>,
    cap: Duration,
) -> (Running, Start) {
    let over = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let mut running = contender.start(ground.node(), kubeconfig);
    let watch = |host: &crate::lab::Host, mut holds: Box<dyn FnMut() -> bool + Send>| {
        let over = Arc::clone(&over);
        host.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if holds() {
                    return Some(start.elapsed().as_secs_f64());
                }
                thread::sleep((start.elapsed() / PAUSE_SHARE).max(SHORTEST_PAUSE));
            }
            None
        })
    };
    let mut left = sample;
    // One that has answered goes on to answer, so the first that does not is the one to look at.
    let all_answer = move || {
        while let Some(last) = left.last() {
            if ask(*last).is_err() {
                return false;
            }
            left.pop();
        }
        true
    };
    let answers = watch(ground.client(), Box::new(all_answer));
    let says = watch(&ground.node().host, Box::new(move || contender.says_ready()));
    while !(answers.is_finished() && says.is_finished()) && start.elapsed() < cap {
        running.assert_alive();
        thread::sleep(SHORTEST_PAUSE);
    }
    over.store(true, Ordering::Relaxed);
    let [answers, says] = [answers, says].map(|watch| watch.join().expect("looking does not panic"));
    (running, Start { answers, says })
}
