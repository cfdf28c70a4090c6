//! Lines of one sort that may come by the thousand: the first are logged, the others counted.

use std::time::{Duration, Instant};

/// How many lines of one sort are logged in one [`WINDOW`].
const LOGGED: usize = 64;
/// The time after which lines are logged again.
const WINDOW: Duration = Duration::from_secs(10);

/// One sort of lines.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    /// When the first line of now came; `None` where there was none for a while.
    began: Option<Instant>,
    logged: usize,
    hidden: usize,
}

impl Burst {
    /// Whether one more line is to be logged. To be asked after [`Self::end`].
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        self.began.get_or_insert(now);
        let admitted = self.logged < LOGGED;
        if admitted {
            self.logged += 1;
        } else {
            self.hidden += 1;
        }
        admitted
    }

    /// How many lines were not logged, once and when it is over.
    pub(crate) fn end(&mut self, now: Instant) -> Option<usize> {
        let over = self.began.is_some_and(|began| now >= began + WINDOW);
        let hidden = over.then(|| std::mem::take(self).hidden)?;
        (hidden > 0).then_some(hidden)
    }

    /// When to call [`Self::end`], if lines were hidden.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.began.filter(|_| self.hidden > 0).map(|began| began + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_thousand_lines_at_once_are_64_and_one() {
        let start = Instant::now();
        let mut burst = Burst::default();
        let logged = (0..5000).filter(|line| burst.admits(start + Duration::from_micros(*line))).count();
        assert_eq!((logged, burst.end(start + Duration::from_secs(9))), (64, None));
        assert_eq!(burst.deadline(), Some(start + WINDOW));
        assert_eq!(burst.end(start + WINDOW), Some(4936));
        assert_eq!((burst.deadline(), burst.end(start + 2 * WINDOW)), (None, None));
        assert!(burst.admits(start + WINDOW));
    }

    #[test]
    fn few_lines_are_all_logged_and_nothing_is_to_be_done_later() {
        let start = Instant::now();
        let mut burst = Burst::default();
        for second in 0..1000 {
            let now = start + Duration::from_secs(second);
            assert_eq!(burst.end(now), None);
            assert!(burst.admits(now) && burst.admits(now));
            assert_eq!(burst.deadline(), None);
        }
    }
}
