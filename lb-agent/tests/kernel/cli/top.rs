use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use lb_common::abi::{ServiceStats, maps};
use serde_json::Value;

use super::{AGENT, documented::assert_documented, map, pinned};
use crate::sandbox;

#[test]
fn rates_are_of_what_services_do_meanwhile() {
    sandbox::run("cli::top::rates_are_of_what_services_do_meanwhile", |sandbox| {
        let pins = pinned(sandbox, 64);
        let mut stats: PerCpuArray<MapData, ServiceStats> =
            map(&pins, maps::SERVICE_STATS4).try_into().expect("an array");
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            // 10 flows of 2 packets of 100 bytes at a time, all for service 3.
            scope.spawn(|| {
                let cpus = aya::util::nr_cpus().expect("CPUs").get() as usize;
                for round in 1.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let count =
                        ServiceStats { flows: 10 * round, packets: 20 * round, bytes: 2000 * round, rejected: 0 };
                    let values = PerCpuValues::try_from(vec![count; cpus]).expect("one for each");
                    stats.set(3, values, 0).expect("written");
                    thread::sleep(Duration::from_millis(5));
                }
            });
            let mut child = Command::new(AGENT)
                .args(["top", "-o", "json", "--interval=200", "--count=2", "--bpffs"])
                .arg(&sandbox.bpffs)
                .stdout(Stdio::piped())
                .spawn()
                .expect("the agent");
            let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
            let documents: Vec<Value> =
                lines.map(|line| serde_json::from_str(&line.expect("read")).expect("JSON in each line")).collect();
            assert!(child.wait().expect("it ends").success());
            over.store(true, Ordering::Relaxed);
            assert_eq!(documents.len(), 2, "{documents:?}");
            for document in documents {
                assert_documented("top", &document);
                assert_eq!(document["services"].as_array().map(Vec::len), Some(1), "{document}");
                let service = &document["services"][0];
                assert_eq!(service["service"], "shop/web:http/TCP");
                let rate = |of: &str| service[of].as_f64().expect("a number");
                let flows = rate("flowsPerSecond");
                assert!(flows > 100.0, "{document}");
                let seconds = document["seconds"].as_f64().expect("a number");
                assert!((0.2..5.0).contains(&seconds), "{document}");
                // Of one element, which is written at once.
                assert!((rate("packetsPerSecond") - 2.0 * flows).abs() < 1e-6 * flows, "{document}");
                assert!((rate("bytesPerSecond") - 200.0 * flows).abs() < 1e-6 * flows, "{document}");
            }
        });
    });
}

#[test]
fn a_terminal_shows_a_screen_until_it_is_left() {
    sandbox::run("cli::top::a_terminal_shows_a_screen_until_it_is_left", |sandbox| {
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
