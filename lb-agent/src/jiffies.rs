//! The kernel's ticks, in which the programs stamp flows.

use std::io;

use nix::time::{ClockId, clock_getres, clock_gettime};

/// The kernel's tick count, as `bpf_jiffies64` gives it.
#[derive(Clone, Copy, Debug)]
pub struct Jiffies {
    now: u64,
    /// `CONFIG_HZ`.
    pub per_second: u64,
}

impl Jiffies {
    /// The count begins at `INITIAL_JIFFIES` (`include/linux/jiffies.h`), five minutes before 2^32, and goes with the
    /// monotonic clock. The resolution of the coarse clocks is one tick.
    pub fn now() -> io::Result<Self> {
        const NANOSECONDS: u64 = 1_000_000_000;
        let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?;
        let up = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let tick = unsigned(tick.tv_nsec()).max(1);
        let per_second = (NANOSECONDS + tick / 2) / tick;
        let up = unsigned(up.tv_sec()) * per_second + unsigned(up.tv_nsec()) / tick;
        Ok(Self { now: (1 << 32) - 300 * per_second + up, per_second })
    }

    /// The count that many seconds ago.
    pub fn ago(self, seconds: u64) -> u64 {
        self.now.saturating_sub(seconds * self.per_second)
    }

    /// The count that many seconds from now.
    pub fn after(self, seconds: u64) -> u64 {
        self.now.saturating_add(seconds * self.per_second)
    }

    /// Seconds from then until now, whole.
    pub fn seconds_since(self, then: u64) -> u64 {
        self.now.saturating_sub(then) / self.per_second
    }
}

/// Clocks do not go below zero.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tick_count_is_the_kernels() {
        let ours = Jiffies::now().expect("clocks");
        assert!([100, 250, 300, 1000].contains(&ours.per_second), "{ours:?}");
        // Readable by root only.
        let Ok(list) = std::fs::read_to_string("/proc/timer_list") else { return };
        let theirs = list.lines().find_map(|line| line.strip_prefix("jiffies: ")).expect("a count");
        let theirs: u64 = theirs.parse().expect("a number");
        assert!(theirs.abs_diff(ours.now) < 2 * ours.per_second, "{theirs} {ours:?}");
    }
}
