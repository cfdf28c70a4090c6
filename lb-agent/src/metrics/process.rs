//! The `process_*` metrics that every Prometheus client shows, from `/proc/self` (proc(5)).

use std::{fmt, fs, time::Duration};

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::collected::gauge;

/// What stands for no limit, as in Prometheus' Go client: `RLIM_INFINITY` of getrlimit(2), 2^64 - 1, as a float.
const UNLIMITED: f64 = 18_446_744_073_709_551_615.0;

/// What `/proc/self` says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Process {
    cpu: Duration,
    start: f64,
    virtual_bytes: i64,
    most_virtual_bytes: f64,
    resident_bytes: i64,
    open_descriptors: i64,
    most_descriptors: i64,
    /// Of the network namespace, IPv4 only.
    received_bytes: u64,
    sent_bytes: u64,
}

/// Writes them; nothing where `/proc` cannot be read.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Some(process) = read() else { return Ok(()) };
    let Process {
        cpu,
        start,
        virtual_bytes,
        most_virtual_bytes,
        resident_bytes,
        open_descriptors,
        most_descriptors,
        received_bytes,
        sent_bytes,
    } = process;
    let help = "User and system time";
    let cpu = ConstCounter::new(cpu.as_secs_f64());
    cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?)?;
    let help = "When the process started, in seconds since the epoch";
    let start = ConstGauge::new(start);
    start.encode(encoder.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?)?;
    gauge(encoder, "process_virtual_memory_bytes", "Size of the address space", virtual_bytes)?;
    let most = ConstGauge::new(most_virtual_bytes);
    let help = "Most that the address space may be";
    most.encode(encoder.encode_descriptor("process_virtual_memory_max_bytes", help, None, MetricType::Gauge)?)?;
    for (name, help, bytes) in [
        ("process_network_receive_bytes", "Bytes received in the network namespace by IPv4", received_bytes),
        ("process_network_transmit_bytes", "Bytes sent in the network namespace by IPv4", sent_bytes),
    ] {
        let counter = ConstCounter::new(bytes);
        counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
    }
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
    let limit = |name: &str| {
        let soft = limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
        Some(soft.parse::<i64>().ok())
    };
    let (received_bytes, sent_bytes) = octets(&fs::read_to_string("/proc/self/net/netstat").ok()?)?;
    #[expect(clippy::cast_precision_loss, reason = "no limit is told to the byte")]
    let most_virtual_bytes = limit("Max address space")?.map_or(UNLIMITED, |bytes| bytes as f64);
    Some(Process {
        most_virtual_bytes,
        received_bytes,
        sent_bytes,
        open_descriptors: fs::read_dir("/proc/self/fd").ok()?.count().try_into().ok()?,
        most_descriptors: limit("Max open files")?.unwrap_or(i64::MAX),
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
        most_virtual_bytes: UNLIMITED,
        resident_bytes: field(24)? * page,
        open_descriptors: 0,
        most_descriptors: 0,
        received_bytes: 0,
        sent_bytes: 0,
    })
}

/// `InOctets` and `OutOctets` of `/proc/net/netstat`: a line of names, then one of numbers, both with a title.
fn octets(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let value = |wanted: &str| {
        let position = names.split_whitespace().position(|name| name == wanted)?;
        numbers.split_whitespace().nth(position)?.parse().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
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
            most_virtual_bytes: UNLIMITED,
            resident_bytes: 102_400,
            open_descriptors: 0,
            most_descriptors: 0,
            received_bytes: 0,
            sent_bytes: 0,
        };
        assert_eq!(stat(text, 1000.0, 100, 4096), Some(expected));
        assert_eq!(stat("42 (a) S 1", 1000.0, 100, 4096), None);
    }

    #[test]
    fn octets_are_found_by_their_names() {
        let text = "TcpExt: InOctets Other\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 3 4 5\n";
        assert_eq!(octets(text), Some((4, 5)));
        assert_eq!(octets("TcpExt: InOctets OutOctets\nTcpExt: 1 2\n"), None);
    }

    #[test]
    fn this_process_has_numbers() {
        let process = read().expect("/proc is there");
        let Process { virtual_bytes, resident_bytes, open_descriptors, most_descriptors, start, .. } = process;
        assert!(resident_bytes > 0 && resident_bytes <= virtual_bytes, "{resident_bytes} of {virtual_bytes}");
        assert!(open_descriptors > 2 && open_descriptors <= most_descriptors);
        let now = k8s_openapi::jiff::Timestamp::now().as_duration().as_secs_f64();
        assert!(start <= now + 1.0 && now - start < 3600.0, "{start} at {now}");
    }
}
