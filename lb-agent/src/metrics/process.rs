//! The `process_*` metrics that every Prometheus client shows, from `/proc/self` (proc(5)).

use std::{fmt, fs, time::Duration};

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::collected::gauge;

/// What `/proc/self` says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Process {
    cpu: Duration,
    start: f64,
    virtual_bytes: i64,
    resident_bytes: i64,
    open_descriptors: i64,
    most_descriptors: i64,
}

/// Writes them; nothing where `/proc` cannot be read.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Some(process) = read() else { return Ok(()) };
    let Process { cpu, start, virtual_bytes, resident_bytes, open_descriptors, most_descriptors } = process;
    let help = "User and system time";
    let cpu = ConstCounter::new(cpu.as_secs_f64());
    cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?)?;
    let help = "When the process started, in seconds since the epoch";
    let start = ConstGauge::new(start);
    start.encode(encoder.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?)?;
    gauge(encoder, "process_virtual_memory_bytes", "Size of the address space", virtual_bytes)?;
    gauge(encoder, "process_resident_memory_bytes", "Memory in use", resident_bytes)?;
    gauge(encoder, "process_open_fds", "Open descriptors", open_descriptors)?;
    gauge(encoder, "process_max_fds", "Most descriptors that may be open", most_descriptors)
}

fn read() -> Option<Process> {
    let number = |variable| sysconf(variable).ok().flatten();
    let ticks = number(SysconfVar::CLK_TCK)?;
    let page = number(SysconfVar::PAGE_SIZE)?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    Some(Process {
        open_descriptors: fs::read_dir("/proc/self/fd").ok()?.count().try_into().ok()?,
        most_descriptors: limit.split_whitespace().next()?.parse().unwrap_or(i64::MAX),
        ..stat(&fs::read_to_string("/proc/self/stat").ok()?, boot, ticks, page)?
    })
}

/// Reads `/proc/self/stat`. The name of the program, in parentheses, may hold anything.
fn stat(text: &str, boot: f64, ticks: i64, page: i64) -> Option<Process> {
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_whitespace().collect();
    // The first of these is field 3 of proc_pid_stat(5).
    let field = |number: usize| fields.get(number - 3)?.parse::<i64>().ok();
    #[expect(clippy::cast_precision_loss, reason = "ticks of a process, far from 2^52")]
    let seconds = |count: i64| count as f64 / ticks as f64;
    Some(Process {
        cpu: Duration::try_from_secs_f64(seconds(field(14)? + field(15)?)).ok()?,
        start: boot + seconds(field(22)?),
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page,
        open_descriptors: 0,
        most_descriptors: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_stat_are_found_whatever_the_program_is_called() {
        let text =
            "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 4 0 3000 1048576 25 18446744073709551615 1";
        let expected = Process {
            cpu: Duration::from_secs(2),
            start: 1030.0,
            virtual_bytes: 1_048_576,
            resident_bytes: 102_400,
            open_descriptors: 0,
            most_descriptors: 0,
        };
        assert_eq!(stat(text, 1000.0, 100, 4096), Some(expected));
        assert_eq!(stat("42 (a) S 1", 1000.0, 100, 4096), None);
    }

    #[test]
    fn this_process_has_numbers() {
        let Process { virtual_bytes, resident_bytes, open_descriptors, most_descriptors, start, cpu: _ } =
            read().expect("/proc is there");
        assert!(resident_bytes > 0 && resident_bytes <= virtual_bytes, "{resident_bytes} of {virtual_bytes}");
        assert!(open_descriptors > 2 && open_descriptors <= most_descriptors);
        let now = k8s_openapi::jiff::Timestamp::now().as_duration().as_secs_f64();
        assert!(start <= now + 1.0 && now - start < 3600.0, "{start} at {now}");
    }
}
