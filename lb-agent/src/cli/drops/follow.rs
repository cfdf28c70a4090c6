use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::{Drops, ReasonCount, ServiceCount};

/// What was added to a count between two looks: to that of a reason, or to that of a service port.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Difference {
    /// When it was seen, RFC 3339.
    time: String,
    /// `null` for a service port.
    reason: Option<&'static str>,
    /// `pass`, `translate`, `refuse` or `drop`; `null` for a service port.
    disposition: Option<&'static str>,
    /// `namespace/name:port/PROTOCOL`; `null` for a reason.
    service: Option<String>,
    /// `IPv4` or `IPv6`; `null` for a reason.
    family: Option<&'static str>,
    /// How often since the look before.
    added: u64,
    /// How often since the maps were made.
    total: u64,
}

/// Width of the columns, of which the last one has none. A row does not wait for the next.
const WIDTHS: [usize; 3] = [22, 8, 10];

pub(super) fn header() -> String {
    line(["TIME", "ADDED", "TOTAL", "WHAT"].map(str::to_owned))
}

fn line([a, b, c, what]: [String; 4]) -> String {
    let [time, added, total] = WIDTHS;
    format!("{a:time$}{b:added$}{c:total$}{what}")
}

impl Difference {
    pub(super) fn between(before: &Drops, now: &Drops, all: bool, time: Timestamp) -> Vec<Self> {
        let time = format!("{time:.0}");
        let reasons = now.reasons.iter().filter(|reason| all || reason.is_rejection()).filter_map(|reason| {
            let ReasonCount { reason, disposition, count } = reason;
            let former = before.reasons.iter().find(|former| former.reason == *reason);
            let added = added(former.map_or(0, |former| former.count), *count)?;
            let (reason, disposition) = (Some(*reason), Some(*disposition));
            Some(Self { time: time.clone(), reason, disposition, service: None, family: None, added, total: *count })
        });
        let services = now.services.iter().filter_map(|service| {
            let ServiceCount { service, family, rejected } = service;
            let former = before.services.iter().find(|former| former.service == *service && former.family == *family);
            let added = added(former.map_or(0, |former| former.rejected), *rejected)?;
            let (service, family) = (Some(service.clone()), Some(*family));
            Some(Self { time: time.clone(), reason: None, disposition: None, service, family, added, total: *rejected })
        });
        reasons.chain(services).collect()
    }

    pub(super) fn line(&self) -> String {
        let Self { time, reason, disposition, service, family, added, total } = self;
        let what = match (reason, service) {
            (Some(reason), _) => format!("{} {reason}", disposition.unwrap_or_default()),
            (None, Some(service)) => format!("by {service} {}", family.unwrap_or_default()),
            (None, None) => String::new(),
        };
        line([time.clone(), format!("+{added}"), total.to_string(), what])
    }
}

/// What was added, if anything. A count that is lower than it was began anew.
fn added(before: u64, now: u64) -> Option<u64> {
    Some(now.checked_sub(before).unwrap_or(now)).filter(|added| *added > 0)
}

#[cfg(test)]
mod tests {
    use lb_common::abi::Reason;

    use super::*;

    fn drops(reasons: &[(Reason, u64)], services: &[(&str, u64)]) -> Drops {
        Drops {
            reasons: reasons.iter().copied().map(ReasonCount::new).collect(),
            services: services
                .iter()
                .map(|(service, rejected)| ServiceCount {
                    service: (*service).to_owned(),
                    family: "IPv4",
                    rejected: *rejected,
                })
                .collect(),
        }
    }

    #[test]
    fn only_what_was_added_is_said() {
        let time: Timestamp = "2026-02-03T08:00:02.7Z".parse().expect("a time");
        let before = drops(&[(Reason::NoRoute, 3), (Reason::NoEndpoints, 8), (Reason::Fragment, 1)], &[("a/b/TCP", 2)]);
        let now = drops(
            &[(Reason::NoRoute, 3), (Reason::NoEndpoints, 10), (Reason::Fragment, 2)],
            &[("a/b/TCP", 3), ("a/c/UDP", 1)],
        );
        let lines =
            |all| Difference::between(&before, &now, all, time).iter().map(Difference::line).collect::<Vec<_>>();
        let refused = "2026-02-03T08:00:02Z  +2      10        refuse no_endpoints";
        let services = [
            "2026-02-03T08:00:02Z  +1      3         by a/b/TCP IPv4",
            "2026-02-03T08:00:02Z  +1      1         by a/c/UDP IPv4",
        ];
        assert_eq!(lines(false), [refused, services[0], services[1]]);
        assert_eq!(lines(true).len(), 4);
        assert_eq!(Difference::between(&now, &now, true, time), []);
        assert_eq!(header(), "TIME                  ADDED   TOTAL     WHAT");
    }

    #[test]
    fn a_count_that_began_anew_is_counted_from_there() {
        let time = Timestamp::UNIX_EPOCH;
        let difference = Difference::between(
            &drops(&[(Reason::NoRoute, 30)], &[]),
            &drops(&[(Reason::NoRoute, 2)], &[]),
            false,
            time,
        );
        let expected = serde_json::json!([{
            "time": "1970-01-01T00:00:00Z", "reason": "no_route", "disposition": "drop", "service": null, "family": null,
            "added": 2, "total": 2,
        }]);
        assert_eq!(serde_json::to_value(difference).expect("JSON"), expected);
    }
}
