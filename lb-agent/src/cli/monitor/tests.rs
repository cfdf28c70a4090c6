use clap::Parser;
use lb_common::abi::{EventPlace, FlowDirection, Reason};

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    arguments: MonitorArguments,
}

fn filter(line: &str) -> EventFilter {
    let words = std::iter::once("monitor").chain(line.split_whitespace());
    Command::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).arguments.filter
}

fn wide(last: u8) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, last]
}

fn event() -> Event {
    Event {
        time: 4_000_000_000,
        client: wide(7),
        frontend: wide(10),
        backend: wide(5),
        client_port: 40_000,
        frontend_port: 80,
        backend_port: 8080,
        protocol: 6,
        kind: EventKind::NewFlow as u8,
        service: 3,
        reason: Event::NOTHING,
        // Loopback, in every network namespace.
        interface: 1,
        process: 0,
        family: 4,
        place: EventPlace::Tc as u8,
        direction: FlowDirection::Request as u8,
        pad: [0; 5],
    }
}

fn name() -> ServiceName {
    ServiceName::new("shop", "web", "http", 6).expect("short")
}

/// Half a second after the event.
fn clock() -> Clock {
    Clock { monotonic: 4_500_000_000, real: "2026-02-03T08:00:02.75Z".parse().expect("a time") }
}

#[test]
fn a_new_flow_is_shown_with_its_time_and_ends() {
    let shown = Shown::new(&event(), Some(&name()), clock());
    let expected = serde_json::json!({
        "time": "2026-02-03T08:00:02.250000Z", "type": "newFlow", "reason": null, "place": "tc",
        "device": "lo", "process": null, "direction": "request", "family": "IPv4", "protocol": "TCP",
        "client": "192.0.2.7:40000", "frontend": "192.0.2.10:80", "backend": "192.0.2.5:8080",
        "service": "shop/web:http/TCP",
    });
    assert_eq!(serde_json::to_value(&shown).expect("JSON"), expected);
    let expected = "2026-02-03T08:00:02.250000Z new flow                   TCP      192.0.2.7:40000        192.0.2.10:80          \
                    192.0.2.5:8080         shop/web:http/TCP              lo tc";
    assert_eq!(shown.line(), expected);
}

#[test]
fn what_is_not_known_is_not_shown() {
    // A refused call of a socket that is not bound, of a Service that is gone by now.
    let call = Event {
        client: wide(0).map(|_| 0),
        client_port: 0,
        backend: [0; 16],
        backend_port: 0,
        kind: EventKind::Refusal as u8,
        reason: Reason::NoEndpoints as u32,
        interface: 0,
        process: 77,
        place: EventPlace::Socket as u8,
        ..event()
    };
    let shown = Shown::new(&call, None, clock());
    let value = serde_json::to_value(&shown).expect("JSON");
    assert_eq!(
        (&value["client"], &value["backend"], &value["device"]),
        (&None::<()>.into(), &None::<()>.into(), &None::<()>.into())
    );
    assert_eq!((&value["service"], &value["process"]), (&"<service 3?>".into(), &77.into()));
    assert!(shown.line().contains("refuse no_endpoints"), "{}", shown.line());
    assert!(shown.line().ends_with("process 77"), "{}", shown.line());

    let nothing = Event {
        time: 1,
        kind: EventKind::Drop as u8,
        reason: Reason::HelperFailed as u32,
        service: Event::NOTHING,
        place: EventPlace::Xdp as u8,
        ..Event::default()
    };
    let value = serde_json::to_value(Shown::new(&nothing, None, clock())).expect("JSON");
    let nulls =
        value.as_object().expect("fields").iter().filter(|(_, value)| value.is_null()).map(|(name, _)| name.as_str());
    let nulls: Vec<_> = nulls.collect();
    assert_eq!(nulls, ["backend", "client", "device", "family", "frontend", "process", "protocol", "service"]);
}

#[test]
fn events_are_found_by_what_they_are() {
    let (event, name) = (event(), name());
    for (line, named, unnamed) in [
        ("", true, true),
        ("-s shop/web:http", true, false),
        ("-s other", false, false),
        ("-n shop", true, false),
        ("-p tcp", true, true),
        ("-p udp", false, false),
        ("-4", true, true),
        ("-6", false, false),
        ("-c 192.0.2.0/29", true, true),
        ("-c 192.0.2.7:40001", false, false),
        ("-f 192.0.2.10:80", true, true),
        ("-f 192.0.2.11", false, false),
        ("-b 192.0.2.5", true, true),
        ("-b 192.0.2.6", false, false),
        ("-n shop -b 192.0.2.6", false, false),
    ] {
        let filter = filter(line);
        assert_eq!(filter.includes(&event, Some(&name)), named, "{line}");
        assert_eq!(filter.includes(&event, None), unnamed, "{line}");
    }
    // What has no address is at none.
    assert!(!filter("-b 0.0.0.0/0").includes(&Event { backend: [0; 16], ..event }, Some(&name)));
    assert_eq!(filter("").kinds(), 7);
    assert_eq!(filter("-t drop -t new-flow").kinds(), 5);
}

#[test]
fn a_loss_says_why() {
    let loss = Loss::new(lb_agent::watch::Lost { over_rate: 3, no_room: 4 });
    assert_eq!(loss.lost, 7);
    let expected = "7 events lost: 3 beyond --rate, 4 because they were not read in time";
    assert!(loss.line().ends_with(expected), "{}", loss.line());
}
