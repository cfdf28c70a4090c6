//! When the flows of backends are counted anew, for `least-conn`.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use lb_agent::dataplane::{RecountError, Recounter};

/// From one count to the next: for about as long a flow that has ended keeps others off its backend.
const PERIOD: Duration = Duration::from_secs(5);
/// The least ratio of the pause after a count to the CPU time that it took: 2 % of a CPU at most, however many flows there are.
const IDLE: u32 = 49;

/// Starts the thread. It is no part of the one that serves changes, which full flow tables would hold up for tens of
/// milliseconds; and it writes nothing that that one reads.
pub(super) fn spawn(mut recounter: Recounter) -> Result<()> {
    let count_on = move || {
        let mut failure = None;
        loop {
            let failed = recounter.recount().err().map(|error| match error {
                RecountError::Map(_) | RecountError::Clock(_) => {
                    format!("the flows of backends could not be counted, and least-conn goes by old counts: {error}")
                }
                RecountError::Program(_) | RecountError::Sockets(_) => {
                    format!("least-conn forgets little by little what sockets are connected to: {error}")
                }
            });
            if let Some(told) = &failed
                && failed != failure
            {
                tracing::warn!("{told}");
            }
            failure = failed;
            thread::sleep(PERIOD.max(recounter.took() * IDLE));
        }
    };
    thread::Builder::new().name("recount".to_owned()).spawn(count_on).context("recount thread")?;
    Ok(())
}
