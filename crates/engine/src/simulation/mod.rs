//! The dispatcher's core in a virtual world: virtual devices, clients, journal and clock, so that hours of a fleet of
//! 1 024 devices pass in seconds and every figure is repeatable.
//!
//! ```text
//!            arrivals (scenario)                   what clients do after an end (scenario)
//!                   │                                            ▲
//!                   ▼            inputs                          │
//!   world: heap of events by virtual time ─────▶ Core (the real one) ─────▶ effects
//!                   ▲                                            │
//!                   ├── journal commits, work is prepared, outputs are stored: after a delay
//!                   └── worker: loads at a rate, runs share the processor, pauses at a step ◀── lines down
//! ```
//! `bound` computes what no scheduler could beat, each `scenario` compares the core with it, `cost` measures the core's own
//! time, and `report` and `plot` write the figures down. Only `cost` looks at the clock of the wall.
//!
//! Compiled for tests and with the feature `simulation`, for `cargo xtask simulate`: no other program carries it.

mod bound;
mod cost;
mod event;
mod plot;
mod report;
mod scenario;
#[cfg(test)]
mod tests;
mod worker;
mod workload;
mod world;

pub use report::Report;

/// How much is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What a test has time for.
    Quick,
    /// Up to 1 024 devices and a million jobs, and the core's own time.
    Full,
}

/// Runs every scenario whose name contains `only`.
pub fn run(extent: Extent, only: &str) -> Report {
    let mut report = Report::default();
    for (name, scenario) in scenario::ALL {
        if name.contains(only) {
            scenario(extent, &mut report);
        }
    }
    if extent == Extent::Full && "cost".contains(only) {
        cost::measure(&mut report);
    }
    report
}
