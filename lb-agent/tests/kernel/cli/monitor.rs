use std::{
    fs,
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, MapData, PerCpuArray},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use lb_agent::{
    jiffies::Jiffies,
    loader::{LoadOptions, Loaded, Pins, TableSizes},
};
use lb_common::abi::{EventCounts, Monitor, maps};
use nix::libc;
use serde_json::{Value, json};

use super::{AGENT, documented::assert_documented, lb_agent, map, now, pinned, text};
use crate::sandbox::{self, Sandbox};

/// All that it needs.
const LEAST: [&str; 5] = ["--bounding-set", "-all,+bpf", "--inh-caps", "-all", AGENT];

struct Watcher {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watcher {
    /// With no more privileges than it needs. It watches when this returns.
    fn start(sandbox: &Sandbox, pins: &Pins, more: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        command.args(LEAST).args(["monitor", "-o", "json", "--bpffs"]).arg(&sandbox.bpffs).args(more);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("setpriv");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let deadline = Instant::now() + Duration::from_secs(20);
        while switch(pins).until <= now() {
            assert!(Instant::now() < deadline, "it does not watch: {:?}", child.try_wait());
            thread::sleep(Duration::from_millis(10));
        }
        Self { child, lines }
    }

    fn next(&mut self) -> Value {
        let line = self.lines.next().expect("it runs").expect("read");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn end(mut self, signal: i32) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        self.child.wait().expect("it ends");
    }
}

fn switch(pins: &Pins) -> Monitor {
    let switch: Array<MapData, Monitor> = map(pins, maps::MONITOR).try_into().expect("an array");
    switch.get(&0, 0).expect("read")
}

/// All that programs have counted of events.
fn counts(pins: &Pins) -> Vec<EventCounts> {
    let counts: PerCpuArray<MapData, EventCounts> = map(pins, maps::EVENT_COUNTS).try_into().expect("an array");
    counts.get(&0, 0).expect("read").to_vec()
}

/// A datagram for `dns/dns`, which has no endpoints, by the loopback device: it is refused.
fn ask_in_vain(pins: &Pins) {
    let program = SchedClassifier::from_pin(pins.program("uplink_ingress")).expect("pinned");
    let ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 7, 10, 96, 0, 10];
    let udp = [0x9c, 0x40, 0, 53, 0, 8, 0, 0];
    // To that device's address, of zeroes: what is for others is left alone.
    let frame = [&[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 8, 0][..], &ip, &udp].concat();
    let context: Vec<u8> = [0_u32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].into_iter().flat_map(u32::to_ne_bytes).collect();
    let mut out = vec![0; 512];
    let options = TestRunOptions {
        data_in: Some(&frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::default()
    };
    let run = program.test_run(options).expect("runs");
    // TC_ACT_REDIRECT: the answer.
    assert_eq!(run.return_value, 7);
}

pub(crate) fn events_are_printed_to_one_watcher_and_end_with_it() {
    sandbox::run(|sandbox| {
        let pins = pinned(sandbox, 64);
        let untouched = counts(&pins);
        ask_in_vain(&pins);
        assert_eq!((switch(&pins), counts(&pins)), (Monitor::default(), untouched));

        let mut watcher = Watcher::start(sandbox, &pins, &["--service", "dns/dns", "--client", "192.0.2.0/24"]);
        ask_in_vain(&pins);
        let mut event = watcher.next();
        assert_documented("monitor", &event);
        let time = event["time"].take();
        assert!(time.as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 27), "{time}");
        let expected = json!({
            "apiVersion": "lb-agent/v1", "kind": "Event", "time": null, "type": "refusal", "reason": "no_endpoints",
            "place": "tc", "device": "lo", "process": null, "direction": "request", "family": "IPv4", "protocol": "UDP",
            "client": "192.0.2.7:40000", "frontend": "10.96.0.10:53", "backend": null, "service": "dns/dns/UDP",
        });
        assert_eq!(event, expected);

        // One at a time.
        let second = lb_agent(sandbox, "monitor");
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        assert_eq!(second.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("another lb-agent monitor (pid {})", watcher.child.id())), "{said}");

        // It tells the programs that it ends.
        let before = counts(&pins);
        watcher.end(libc::SIGTERM);
        assert_eq!(switch(&pins), Monitor::default());
        ask_in_vain(&pins);
        assert_eq!(counts(&pins), before);

        // Where it cannot, they find out.
        let watcher = Watcher::start(sandbox, &pins, &[]);
        watcher.end(libc::SIGKILL);
        let until = switch(&pins).until;
        assert!(until > 0);
        // The kernel's count and ours begin at about the same moment.
        let (clock, slack) = (Jiffies::now().expect("clocks"), 2);
        while now() <= until + slack * clock.per_second {
            thread::sleep(Duration::from_millis(50));
        }
        ask_in_vain(&pins);
        assert_eq!(counts(&pins), before);

        // What the former one left unread is not shown, what this one is asked for is, and the rest is told to be lost.
        let mut watcher = Watcher::start(sandbox, &pins, &["--rate", "1"]);
        (0..5).for_each(|_| ask_in_vain(&pins));
        assert_eq!(watcher.next()["kind"], "Event");
        let loss = loop {
            // A second may have ended, or the CPU be another one: then one more was written.
            (0..5).for_each(|_| ask_in_vain(&pins));
            let document = watcher.next();
            if document["kind"] == "EventLoss" {
                break document;
            }
        };
        assert_documented("monitor", &loss);
        assert!(loss["overRate"].as_u64() > Some(0) && loss["overRate"] == loss["lost"], "{loss}");
        watcher.end(libc::SIGTERM);

        let watcher = Watcher::start(sandbox, &pins, &["--count", "1"]);
        ask_in_vain(&pins);
        let Watcher { mut child, lines } = watcher;
        let printed: Vec<_> = lines.map(|line| line.expect("read")).collect();
        assert_eq!(printed.len(), 1, "{printed:?}");
        assert!(child.wait().expect("it ends").success());
    });
}

pub(crate) fn pins_of_an_agent_from_before_events_are_read_and_adopted() {
    sandbox::run(|sandbox| {
        let pins = pinned(sandbox, 64);
        for map in [maps::MONITOR, maps::EVENTS, maps::EVENT_COUNTS] {
            fs::remove_file(pins.map(map)).expect("removed");
        }
        assert_eq!(text(sandbox, "drops"), "Nothing was refused or dropped.\n");
        let output = lb_agent(sandbox, "monitor");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains("no map EVENTS in"), "{said}");

        let sizes = TableSizes { flows: 64, frontends: 16, services: 8, slots: 64, backends: 16 };
        let options = LoadOptions { pins: Some(pins.clone()), sizes, ..LoadOptions::default() };
        Loaded::load(&options).unwrap_or_else(|error| panic!("{error}"));
        let mut watcher = Watcher::start(sandbox, &pins, &[]);
        ask_in_vain(&pins);
        assert_eq!(watcher.next()["service"], "dns/dns/UDP");

        // A data plane that is made anew is another one.
        lb_agent(sandbox, "cleanup");
        let ended = watcher.child.wait().expect("it ends");
        assert_eq!(ended.code(), Some(1));
    });
}
