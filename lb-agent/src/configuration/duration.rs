//! Lengths of time as Go writes them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A `metav1.Duration`: nanoseconds that are written as `1m30s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

/// Units of `time.ParseDuration`, in nanoseconds. The longer of two with a common beginning comes first.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
];

impl GoDuration {
    /// None.
    pub const ZERO: Self = Self(0);

    /// A number of whole seconds.
    pub const fn seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// A number of nanoseconds.
    pub const fn nanoseconds(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    /// The number of nanoseconds.
    pub const fn as_nanoseconds(self) -> i64 {
        self.0
    }

    /// Parses what `time.ParseDuration` of Go parses: numbers, each with its unit, in any order.
    pub fn parse(text: &str) -> Option<Self> {
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if rest == "0" {
            return Some(Self::ZERO);
        }
        if rest.is_empty() {
            return None;
        }
        let mut sum = 0_i64;
        while !rest.is_empty() {
            let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
            let (whole, fraction) = rest[..number].split_once('.').unwrap_or((&rest[..number], ""));
            if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
                return None;
            }
            rest = &rest[number..];
            let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == &rest[..unit_end])?;
            rest = &rest[unit_end..];
            let whole = if whole.is_empty() { 0 } else { whole.parse::<i64>().ok()? };
            sum = sum.checked_add(whole.checked_mul(unit)?)?.checked_add(part(fraction, unit))?;
        }
        Some(Self(if negative { -sum } else { sum }))
    }
}

/// The decimal places `digits` of one `unit`, in nanoseconds, cut off as Go cuts them off.
fn part(digits: &str, unit: i64) -> i64 {
    // More places than the longest unit has in nanoseconds make no difference.
    let (mut sum, mut place) = (0, i128::from(unit) * 1_000_000_000_000_000);
    for digit in digits.bytes().take(15) {
        place /= 10;
        sum += place * i128::from(digit - b'0');
    }
    i64::try_from(sum / 1_000_000_000_000_000).unwrap_or(i64::MAX)
}

impl fmt::Display for GoDuration {
    /// As `Duration.String` of Go: `1h0m0s`, `1.5s`, `1.5ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let decimal = |f: &mut fmt::Formatter<'_>, amount: u64, places: usize, unit: &str| {
            let digits = format!("{amount:0width$}", width = places + 1);
            let (whole, fraction) = digits.split_at(digits.len() - places);
            let fraction = fraction.trim_end_matches('0');
            let point = if fraction.is_empty() { "" } else { "." };
            write!(f, "{whole}{point}{fraction}{unit}")
        };
        match amount {
            0 => f.write_str("0s"),
            1..1_000 => decimal(f, amount, 0, "ns"),
            1_000..1_000_000 => decimal(f, amount, 3, "\u{b5}s"),
            1_000_000..1_000_000_000 => decimal(f, amount, 6, "ms"),
            _ => {
                let (minutes, rest) = (amount / 60_000_000_000, amount % 60_000_000_000);
                let (hours, minutes) = (minutes / 60, minutes % 60);
                if hours > 0 {
                    write!(f, "{hours}h")?;
                }
                if hours > 0 || minutes > 0 {
                    write!(f, "{minutes}m")?;
                }
                decimal(f, rest, 9, "s")
            }
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format_args!("invalid value: string {text:?}, expected a duration such as \"1m30s\""))
        })
    }
}

/// `logging.flushFrequency`: a duration, or, as it was once, a number of nanoseconds. It is written as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a duration such as \"5s\", or a number of nanoseconds")]
pub enum TimeOrDuration {
    /// Nanoseconds.
    Nanoseconds(i64),
    /// A duration in Go's notation.
    Duration(GoDuration),
}

impl TimeOrDuration {
    /// The length, however it is written.
    pub fn duration(self) -> GoDuration {
        match self {
            Self::Nanoseconds(nanoseconds) => GoDuration::nanoseconds(nanoseconds),
            Self::Duration(duration) => duration,
        }
    }
}

impl Default for TimeOrDuration {
    fn default() -> Self {
        Self::Nanoseconds(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, nanoseconds, canonical) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("30s", 30_000_000_000, "30s"),
            ("1m30s", 90_000_000_000, "1m30s"),
            ("90s", 90_000_000_000, "1m30s"),
            ("1h0m0s", 3_600_000_000_000, "1h0m0s"),
            ("24h", 86_400_000_000_000, "24h0m0s"),
            ("15m", 900_000_000_000, "15m0s"),
            ("2h22m", 8_520_000_000_000, "2h22m0s"),
            ("1.5ms", 1_500_000, "1.5ms"),
            ("1h1.5us", 3_600_000_001_500, "1h0m0.0000015s"),
            ("1.5\u{b5}s", 1_500, "1.5\u{b5}s"),
            ("7ns", 7, "7ns"),
            (".5s", 500_000_000, "500ms"),
            ("5.s", 5_000_000_000, "5s"),
            ("-1s", -1_000_000_000, "-1s"),
            ("+1s", 1_000_000_000, "1s"),
            ("1s1h", 3_601_000_000_000, "1h0m1s"),
        ] {
            let duration = GoDuration::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((duration.as_nanoseconds(), duration.to_string().as_str()), (nanoseconds, canonical), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_as_a_duration_is_refused() {
        for text in
            ["", "1", "s", "1d", "1 s", " 1s", "1s ", "-", "+", ".s", "1.2.3s", "--1s", "1S", "9223372037s", "é"]
        {
            assert_eq!(GoDuration::parse(text), None, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_duration_survives_its_text(nanoseconds in -i64::MAX..=i64::MAX) {
            let duration = GoDuration::nanoseconds(nanoseconds);
            proptest::prop_assert_eq!(GoDuration::parse(&duration.to_string()), Some(duration));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = GoDuration::parse(&text);
        }
    }
}
