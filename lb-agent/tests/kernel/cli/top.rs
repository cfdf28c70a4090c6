use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use lb_common::abi::{ServiceStats, maps};
use serde_json::Value;

use super::{AGENT, documented::assert_documented, map, pinned};
use crate::sandbox;

pub(crate) fn rates_are_of_what_services_do_meanwhile() {
    sandbox::run(|sandbox| {
        let pins = pinned(sandbox, 64);
        let mut stats: PerCpuArray<MapData, ServiceStats> =
            map(&pins, maps::SERVICE_STATS4).try_into().expect("an array");
        let mut child = Command::new(AGENT)
            .args(["top", "-o", "json", "--interval=20", "--bpffs"])
            .arg(&sandbox.bpffs)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut documents =
            lines.map(|line| serde_json::from_str::<Value>(&line.expect("read")).expect("JSON in each line"));
        let first = documents.next().expect("a document");
        assert_eq!(first["services"], serde_json::json!([]));

        let cpus = aya::util::nr_cpus().expect("CPUs").get() as usize;
        let mut values = vec![ServiceStats::default(); cpus];
        values[0] = ServiceStats { flows: 10, packets: 20, bytes: 2000, rejected: 3 };
        stats.set(3, PerCpuValues::try_from(values).expect("one for each"), 0).expect("written");
        // A look while it is written may see a part, and the next one the rest: it is the sum that counts.
        let mut sums = [0.0; 4];
        while sums.iter().zip([10.0, 20.0, 2000.0, 3.0]).any(|(sum, whole)| *sum < whole - 0.1) {
            let document = documents.next().expect("a document");
            let seconds = document["seconds"].as_f64().expect("a number");
            assert!(seconds >= 0.02, "{document}");
            let Some(service) = document["services"].get(0) else { continue };
            assert_documented("top", &document);
            assert_eq!((&service["service"], &service["family"]), (&"shop/web:http/TCP".into(), &"IPv4".into()));
            let rates = ["flowsPerSecond", "packetsPerSecond", "bytesPerSecond", "rejectedPerSecond"];
            for (sum, rate) in sums.iter_mut().zip(rates) {
                *sum += service[rate].as_f64().expect("a number") * seconds;
            }
        }
        assert!(sums.iter().zip([10.0, 20.0, 2000.0, 3.0]).all(|(sum, whole)| *sum < whole + 0.1), "{sums:?}");
        child.kill().expect("it runs");
        child.wait().expect("a child");
    });
}

pub(crate) fn a_terminal_shows_a_screen_until_it_is_left() {
    sandbox::run(|sandbox| {
        pinned(sandbox, 64);
        // script(1) gives it a terminal.
        let line = format!("stty rows 24 cols 100; {AGENT} top --interval 50 --bpffs {}", sandbox.bpffs.display());
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script");
        // It begins to listen at some time.
        let mut keys = child.stdin.take().expect("piped");
        let deadline = Instant::now() + Duration::from_secs(20);
        while child.try_wait().expect("a child").is_none() && Instant::now() < deadline {
            // It may end meanwhile.
            let _: io::Result<()> = keys.write_all(b"q");
            thread::sleep(Duration::from_millis(100));
        }
        drop(child.kill());
        let output = child.wait_with_output().expect("it ends");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{shown}");
        // The alternate screen is entered, drawn on, and left, and the cursor is back.
        for part in ["\x1b[?1049h", "SERVICE", "[f flows]", "\x1b[?1049l\x1b[?25h"] {
            assert!(shown.contains(part), "no {part:?} in {shown:?}");
        }
    });
}
