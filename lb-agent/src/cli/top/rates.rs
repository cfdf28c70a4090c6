use std::{collections::HashMap, time::Duration};

use clap::ValueEnum;
use lb_common::abi::ServiceStats;
use serde::Serialize;

use super::{super::output::table, Look};

/// By what services are sorted, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Order {
    /// New flows.
    #[default]
    Flows,
    Packets,
    Bytes,
    /// Flows refused or dropped.
    Rejected,
}

/// What happened between two looks.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rates {
    /// Between the two looks.
    pub(super) seconds: f64,
    /// Those that did anything.
    pub(super) services: Vec<ServiceRate>,
    /// Those that occurred.
    pub(super) reasons: Vec<ReasonRate>,
}

/// A service port's counts a second.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceRate {
    /// `namespace/name:port/PROTOCOL`.
    pub(super) service: String,
    /// `IPv4` or `IPv6`.
    pub(super) family: &'static str,
    /// Flows that were given an endpoint.
    pub(super) flows_per_second: f64,
    /// Packets translated on the packet path.
    pub(super) packets_per_second: f64,
    /// Bytes of those packets, from the IP header on.
    pub(super) bytes_per_second: f64,
    /// Flows refused or dropped.
    pub(super) rejected_per_second: f64,
}

/// A reason's count a second.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReasonRate {
    pub(super) reason: &'static str,
    /// `pass`, `translate`, `refuse` or `drop`.
    pub(super) disposition: &'static str,
    pub(super) per_second: f64,
}

impl Order {
    fn of(self, rate: &ServiceRate) -> f64 {
        match self {
            Self::Flows => rate.flows_per_second,
            Self::Packets => rate.packets_per_second,
            Self::Bytes => rate.bytes_per_second,
            Self::Rejected => rate.rejected_per_second,
        }
    }
}

impl Rates {
    pub(super) fn between(before: &Look, now: &Look, order: Order) -> Self {
        let time = now.at.saturating_duration_since(before.at);
        let former: HashMap<_, _> = before
            .services
            .iter()
            .map(|service| ((service.name.parts(), service.name.protocol, service.family), service.stats))
            .collect();
        let mut services: Vec<_> = now
            .services
            .iter()
            .filter_map(|service| {
                let key = (service.name.parts(), service.name.protocol, service.family);
                let former = former.get(&key).copied().unwrap_or_default();
                // A count that is lower than it was began anew.
                let rate = |count: fn(&ServiceStats) -> u64| {
                    let (before, now) = (count(&former), count(&service.stats));
                    per_second(now.checked_sub(before).unwrap_or(now), time)
                };
                let rate = ServiceRate {
                    service: service.name.to_string(),
                    family: service.family,
                    flows_per_second: rate(|stats| stats.flows),
                    packets_per_second: rate(|stats| stats.packets),
                    bytes_per_second: rate(|stats| stats.bytes),
                    rejected_per_second: rate(|stats| stats.rejected),
                };
                let all = [Order::Flows, Order::Packets, Order::Bytes, Order::Rejected];
                all.iter().any(|order| order.of(&rate) > 0.0).then_some(rate)
            })
            .collect();
        services.sort_by(|a, b| {
            let names = || (&a.service, a.family).cmp(&(&b.service, b.family));
            order.of(b).total_cmp(&order.of(a)).then_with(names)
        });
        let reasons = now.reasons.iter().filter_map(|(reason, count)| {
            let former = before.reasons.iter().find(|(former, _)| former == reason).map_or(0, |(_, count)| *count);
            let added = count.checked_sub(former).unwrap_or(*count);
            (added > 0).then(|| ReasonRate {
                reason: reason.name(),
                disposition: reason.disposition().name(),
                per_second: per_second(added, time),
            })
        });
        Self { seconds: time.as_secs_f64(), services, reasons: reasons.collect() }
    }

    /// A line of what was refused and dropped.
    pub(super) fn rejections(&self) -> String {
        let rejections = self.reasons.iter().filter(|rate| matches!(rate.disposition, "refuse" | "drop"));
        let rejections: Vec<_> =
            rejections.map(|rate| format!("{} {}/s", rate.reason, short(rate.per_second))).collect();
        if rejections.is_empty() { "nothing refused or dropped".to_owned() } else { rejections.join(", ") }
    }

    pub(super) fn text(&self) -> String {
        format!("{}\n{}\n", self.rejections(), table(&HEADER, self.services.iter().map(ServiceRate::row)))
    }
}

/// Of [`ServiceRate::row`].
pub(super) const HEADER: [&str; 6] = ["SERVICE", "FAMILY", "FLOWS/S", "PACKETS/S", "BYTES/S", "REJECTED/S"];

impl ServiceRate {
    pub(super) fn row(&self) -> Vec<String> {
        let Self { service, family, flows_per_second, packets_per_second, bytes_per_second, rejected_per_second } =
            self;
        let rates = [flows_per_second, packets_per_second, bytes_per_second, rejected_per_second];
        [service.clone(), (*family).to_owned()].into_iter().chain(rates.map(|rate| short(*rate))).collect()
    }
}

fn per_second(count: u64, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "of a rate, the first 15 digits are enough")]
    let count = count as f64;
    count / time.as_secs_f64().max(1e-9)
}

/// Three digits and a letter, for people.
fn short(rate: f64) -> String {
    let letters = [("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)];
    let (letter, unit) = letters.into_iter().rev().find(|(_, unit)| rate >= *unit).unwrap_or(letters[0]);
    let value = rate / unit;
    if value >= 100.0 || rate == 0.0 { format!("{value:.0}{letter}") } else { format!("{value:.1}{letter}") }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Instant;

    use lb_agent::dataplane::ServiceTraffic;
    use lb_common::abi::{Reason, ServiceName};

    use super::*;

    fn look(at: Instant, services: &[(&str, [u64; 4])], no_route: u64) -> Look {
        let traffic = |(name, [flows, packets, bytes, rejected]): &(&str, [u64; 4])| ServiceTraffic {
            name: ServiceName::new("shop", name, "", 6).expect("short"),
            family: "IPv4",
            stats: ServiceStats { flows: *flows, packets: *packets, bytes: *bytes, rejected: *rejected },
        };
        let reasons = vec![(Reason::Fragment, 5 + no_route), (Reason::NoRoute, no_route)];
        Look { at, reasons, services: services.iter().map(traffic).collect() }
    }

    /// Two seconds in which `web` has most flows, `db` most bytes, `idle` nothing, and the counters of `new` began anew.
    pub(in super::super) fn rates(order: Order) -> Rates {
        let start = Instant::now();
        let before = [("web", [10, 0, 0, 0]), ("db", [1, 1, 1, 1]), ("idle", [7; 4]), ("new", [50, 0, 0, 0])];
        let now =
            [("web", [30, 100, 3000, 0]), ("db", [2, 101, 2_000_001, 5]), ("idle", [7; 4]), ("new", [4, 0, 0, 0])];
        let before = look(start, &before, 1);
        Rates::between(&before, &look(start + Duration::from_secs(2), &now, 4), order)
    }

    #[test]
    fn rates_are_of_what_was_added_and_sorted_by_what_is_asked() {
        let by_flows = rates(Order::Flows);
        let names = |rates: &Rates| rates.services.iter().map(|rate| rate.service.clone()).collect::<Vec<_>>();
        assert_eq!(names(&by_flows), ["shop/web/TCP", "shop/new/TCP", "shop/db/TCP"]);
        assert_eq!(names(&rates(Order::Bytes))[0], "shop/db/TCP");
        assert_eq!(names(&rates(Order::Rejected)), ["shop/db/TCP", "shop/new/TCP", "shop/web/TCP"]);
        let expected = serde_json::json!({
            "service": "shop/db/TCP", "family": "IPv4", "flowsPerSecond": 0.5, "packetsPerSecond": 50.0,
            "bytesPerSecond": 1_000_000.0, "rejectedPerSecond": 2.0,
        });
        assert_eq!(serde_json::to_value(&by_flows.services[2]).expect("JSON"), expected);
        assert_eq!(by_flows.services[1].row()[2], "2.0");
        let text = "no_route 1.5/s\n\
                    SERVICE        FAMILY   FLOWS/S   PACKETS/S   BYTES/S   REJECTED/S\n\
                    shop/web/TCP   IPv4     10.0      50.0        1.5k      0\n\
                    shop/new/TCP   IPv4     2.0       0           0         0\n\
                    shop/db/TCP    IPv4     0.5       50.0        1.0M      2.0\n";
        assert_eq!(by_flows.text(), text);
    }

    #[test]
    fn numbers_for_people_have_three_digits() {
        for (rate, expected) in [
            (0.0, "0"),
            (0.04, "0.0"),
            (7.0, "7.0"),
            (99.9, "99.9"),
            (999.0, "999"),
            (1234.0, "1.2k"),
            (2.5e12, "2.5T"),
        ] {
            assert_eq!(short(rate), expected);
        }
    }
}
