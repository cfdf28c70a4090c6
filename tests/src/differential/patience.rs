//! How long clients wait: in time that they had, not in time that went by.
//!
//! On a machine with more to do than it can, a client's thread may not run for seconds. All that it awaits has come then,
//! and all its timers have expired, too; a plain timeout would take what a client did not come to for what did not come.

use std::{pin::pin, time::Duration};

use tokio::time::timeout;

/// What is waited for at a time: after a stall of any length, all but this much of the patience is left.
const TURN: Duration = Duration::from_millis(50);

/// How long answers may take at first.
pub const PATIENCE: Duration = Duration::from_millis(400);
/// How long they may take in the second look: the first retransmission of a SYN comes after 1 s (RFC 6298, 2.1), later on a
/// machine whose softirqs are behind.
pub const MORE_PATIENCE: Duration = Duration::from_millis(2500);

/// What `work` comes to within `patience`.
pub(super) async fn within<T>(patience: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    for _ in 0..patience.as_millis().div_ceil(TURN.as_millis()) {
        if let Ok(result) = timeout(TURN, &mut work).await {
            return Some(result);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test]
    async fn a_thread_that_did_not_run_has_not_waited() {
        let stalled = async {
            thread::sleep(2 * PATIENCE);
            // Several turns of the runtime more, as an exchange of messages takes.
            for _ in 0..5 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        assert_eq!(within(PATIENCE, stalled).await, Some(()));
    }

    #[tokio::test]
    async fn patience_ends() {
        let start = Instant::now();
        assert_eq!(within(PATIENCE, std::future::pending::<()>()).await, None);
        assert!(start.elapsed() >= PATIENCE);
    }
}
