//! Names of directories that tell whose they are, so that the next program can tell which were left behind.

use std::{fs, process};

/// The calling process: `<pid>-<start time>`. The id alone is another process's some day.
pub(crate) fn name() -> String {
    let pid = process::id();
    let started = start_time(pid).expect("/proc lists the process itself");
    format!("{pid}-{started}")
}

/// Whether the process of this name is gone: none has its id, or one that started at another time.
pub(crate) fn is_gone(name: &str) -> bool {
    let Some((pid, started)) = name.split_once('-') else { return false };
    let Ok(pid) = pid.parse() else { return false };
    start_time(pid).is_none_or(|time| time != started)
}

/// When a process started, in the kernel's ticks since boot: field 22 of `/proc/PID/stat` (`proc_pid_stat(5)`).
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name in parentheses, may itself hold spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(22 - 3).map(str::to_owned)
}
