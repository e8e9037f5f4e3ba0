//! A row of the table, and the arithmetic behind it.

use std::time::Duration;

use serde_json::json;

/// Says a row. `met` is none where the design sets no target.
pub fn say(group: &str, what: &str, measured: &str, target: &str, met: Option<bool>) {
    println!(
        "{}",
        json!({ "group": group, "what": what, "measured": measured, "target": target, "met": met })
    );
}

/// A time that must not be longer than `target`.
pub fn at_most(group: &str, what: &str, measured: Duration, target: Duration) {
    let met = Some(measured <= target);
    say(
        group,
        what,
        &shown(measured),
        &format!("≤ {}", shown(target)),
        met,
    );
}

/// A time without a target.
pub fn told(group: &str, what: &str, measured: Duration) {
    say(group, what, &shown(measured), "", None);
}

/// Times in the order of their length.
pub struct Times(Vec<Duration>);

impl Times {
    /// Of at least one measurement.
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time that `percent` of all do not exceed (nearest rank).
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
