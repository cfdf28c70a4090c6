//! Traffic that goes on while something else happens.

use std::{
    collections::BTreeMap,
    mem,
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use super::{
    Host,
    client::{Ask, Outcome, Transport},
};

/// What came of the exchanges so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How often each host answered.
    pub answers: BTreeMap<String, u64>,
    /// Exchanges that reached nobody, with what came instead.
    pub failures: Vec<Outcome>,
}

/// One exchange after the other, from one host to one address.
pub struct Traffic {
    tally: Arc<Mutex<Tally>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Starts, with this long a pause between one exchange and the next.
    pub fn start(from: &Host, transport: Transport, to: SocketAddr, pause: Duration) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (stop, stopped) = mpsc::channel();
        let shared = Arc::clone(&tally);
        let thread = from.spawn(move || {
            let ask = Ask::new(transport, to);
            while stopped.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
                let outcome = ask.here();
                let mut tally = shared.lock().expect("no thread panics with the lock");
                match outcome {
                    Outcome::Reached(answer) => *tally.answers.entry(answer.backend).or_default() += 1,
                    failure => tally.failures.push(failure),
                }
            }
        });
        Self { tally, stop: Some(stop), thread: Some(thread) }
    }

    /// What came of it so far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().expect("no thread panics with the lock").clone()
    }

    /// What came of it so far, which is then forgotten.
    pub fn take(&self) -> Tally {
        mem::take(&mut *self.tally.lock().expect("no thread panics with the lock"))
    }

    /// Forgets who answered so far, but no failure.
    pub fn forget_answers(&self) {
        self.tally.lock().expect("no thread panics with the lock").answers.clear();
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
