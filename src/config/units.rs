//! Sizes in redis.conf's units, durations with a unit, counts: from text and back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Bytes, written as in redis.conf: `1k` is 1000, `1kb` is 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) struct Size(pub u64);

/// A duration, written `100ms`, `1s`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) struct Period(pub Duration);

/// How many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) struct Count(pub usize);

/// How many threads; `auto` is one a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Threads {
    /// The default.
    Auto,
    /// This number of threads.
    Exactly(Count),
}

/// Bytes, or a part of `max_memory`: `25%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SizeOrPercent {
    /// A number of bytes.
    Bytes(Size),
    /// A share of `max_memory`.
    Percent(u64),
}

const SIZE_UNITS: [(&str, u64); 8] = [
    ("", 1),
    ("b", 1),
    ("k", 1000),
    ("kb", 1 << 10),
    ("m", 1_000_000),
    ("mb", 1 << 20),
    ("g", 1_000_000_000),
    ("gb", 1 << 30),
];

const PERIOD_UNITS: [(&str, u64); 5] =
    [("us", 1), ("ms", 1000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];

/// `"100ms"` is 100 and `"ms"`. The unit in lower case.
fn number_and_unit(text: &str) -> Option<(u64, String)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim().to_ascii_lowercase()))
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*scale)
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        scaled(text, &SIZE_UNITS).map(Size).ok_or_else(|| {
            format!(
                "`{text}` is no size; write a whole number of bytes, or one with b, k, kb, m, mb, g or gb: \"256mb\""
            )
        })
    }
}

impl FromStr for SizeOrPercent {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().strip_suffix('%') {
            None => text.parse().map(SizeOrPercent::Bytes),
            Some(percent) => percent.trim().parse().map(SizeOrPercent::Percent).map_err(|_| {
                format!("`{text}` is no share of max_memory; write a whole number and a %: \"25%\", or a size")
            }),
        }
    }
}

impl SizeOrPercent {
    /// In bytes, where the whole has so many.
    pub(super) fn in_bytes(self, whole: u64) -> Size {
        match self {
            SizeOrPercent::Bytes(size) => size,
            SizeOrPercent::Percent(percent) => {
                Size(u64::try_from(u128::from(whole) * u128::from(percent) / 100).unwrap_or(u64::MAX))
            }
        }
    }
}

impl FromStr for Period {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "0" {
            return Ok(Period(Duration::ZERO));
        }
        scaled(text, &PERIOD_UNITS)
            .map(|micros| Period(Duration::from_micros(micros)))
            .ok_or_else(|| format!("`{text}` is no duration; write a whole number and us, ms, s, m or h: \"100ms\""))
    }
}

impl FromStr for Count {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.trim().parse().map(Count).map_err(|_| format!("`{text}` is no count; write a whole number"))
    }
}

impl FromStr for Threads {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Threads::Auto);
        }
        Count::from_str(text)
            .map(Threads::Exactly)
            .map_err(|_| format!("`{text}` is no count of threads; write \"auto\" or a number from 1 to 256"))
    }
}

/// The largest unit that divides `amount`.
fn in_largest_unit(f: &mut fmt::Formatter<'_>, amount: u64, units: &[(&str, u64)]) -> fmt::Result {
    let fits = |(_, scale): &&(&str, u64)| amount >= *scale && amount.is_multiple_of(*scale);
    match units.iter().filter(fits).max_by_key(|(_, scale)| *scale) {
        Some((name, scale)) => write!(f, "{}{name}", amount / scale),
        None => write!(f, "0"),
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        in_largest_unit(f, self.0, &[("b", 1), ("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30)])
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        in_largest_unit(f, u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX), &PERIOD_UNITS)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_redis_confs() {
        let cases =
            [("1k", 1000), ("1kb", 1024), ("2MB", 2 << 20), ("3m", 3_000_000), ("1gb", 1 << 30), ("7", 7), ("7b", 7)];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "mb", "-1", "1.5mb", "1tb", "99999999999gb", "1 k b"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_need_a_unit_unless_they_are_zero() {
        for (text, millis) in [("100ms", 100), ("1s", 1000), ("5m", 300_000), ("1h", 3_600_000), ("0", 0), ("0s", 0)] {
            assert_eq!(text.parse(), Ok(Period(Duration::from_millis(millis))), "{text}");
        }
        for bad in ["5", "", "1.5s", "-1s", "1d", "99999999999999h"] {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_are_shown_as_one_would_write_them() {
        assert_eq!(Size(256 << 20).to_string(), "256mb");
        assert_eq!(Size(1000).to_string(), "1000b");
        assert_eq!(Period(Duration::from_millis(100)).to_string(), "100ms");
        assert_eq!(Period(Duration::from_secs(120)).to_string(), "2m");
        assert_eq!(Period(Duration::ZERO).to_string(), "0");
    }
}
