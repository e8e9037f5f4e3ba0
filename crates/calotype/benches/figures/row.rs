//! A row of the table, and the arithmetic behind it.

use std::time::Duration;

use serde_json::json;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Figure {
    /// How long something took; less is better.
    Time(Duration),
    /// How often a second; more is better.
    Rate(f64),
    /// Of one core's time, or of something else: 1 is all of it; less is better.
    Share(f64),
    /// Memory; less is better.
    Bytes(f64),
    /// How many; more is better.
    Count(usize),
}

impl From<Duration> for Figure {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl Figure {
    fn value(self) -> f64 {
        match self {
            Self::Time(time) => time.as_secs_f64(),
            Self::Rate(number) | Self::Share(number) | Self::Bytes(number) => number,
            Self::Count(count) => count as f64,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::Time(time) => shown(time),
            Self::Rate(rate) if rate < 10.0 => format!("{rate:.1}/s"),
            Self::Rate(rate) => format!("{rate:.0}/s"),
            Self::Share(share) => format!("{:.1} %", share * 100.0),
            Self::Bytes(bytes) => format!("{:.1} MB", bytes / 1e6),
            Self::Count(count) => count.to_string(),
        }
    }

    /// The sign of a target, and which of two figures is the better one.
    fn wanted(self) -> (&'static str, &'static str) {
        match self {
            Self::Rate(_) | Self::Count(_) => ("≥", "more"),
            Self::Time(_) | Self::Share(_) | Self::Bytes(_) => ("≤", "less"),
        }
    }
}

/// A row with a target.
pub fn held_to(group: &str, what: &str, measured: impl Into<Figure>, target: impl Into<Figure>) {
    let (measured, target) = (measured.into(), target.into());
    let (sign, better) = measured.wanted();
    let met = match better {
        "more" => measured.value() >= target.value(),
        _ => measured.value() <= target.value(),
    };
    let target = format!("{sign} {}", target.shown());
    print(
        group,
        what,
        &measured.shown(),
        &target,
        Some(met),
        Some((measured.value(), better)),
    );
}

/// A row without a target.
pub fn told(group: &str, what: &str, measured: impl Into<Figure>) {
    let measured = measured.into();
    let (_, better) = measured.wanted();
    let figure = Some((measured.value(), better));
    print(group, what, &measured.shown(), "", None, figure);
}

/// A row in words, which is compared with nothing.
pub fn say(group: &str, what: &str, measured: &str) {
    print(group, what, measured, "", None, None);
}

fn print(
    group: &str,
    what: &str,
    measured: &str,
    target: &str,
    met: Option<bool>,
    figure: Option<(f64, &str)>,
) {
    let (value, better) = figure.unzip();
    println!(
        "{}",
        json!({
            "group": group,
            "what": what,
            "measured": measured,
            "target": target,
            "met": met,
            "value": value,
            "better": better,
        })
    );
}

/// Times in the order of their length.
pub struct Times(Vec<Duration>);

impl Times {
    /// Of at least one measurement.
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time that `percent` of all do not exceed (nearest rank); of fewer than a hundred measurements, the 99th
    /// percentile is the longest.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    /// The middle one.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }
}

/// With the unit that suits it.
pub fn shown(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        ..1e3 => format!("{us:.0} µs"),
        ..1e6 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}
