//! How long a step or a load may take. Pure.

use std::time::Duration;

use crate::worker::config::Timing;

/// What a job does next, as far as it tells how long that may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// The first of a phase: nothing that was measured says how long it takes. A step at a large size is not like the
    /// text encoding before it, and decoding is not like a step.
    First,
    /// One like the last.
    Further,
}

pub(super) fn step_allowance(timing: &Timing, recent: Option<Duration>, piece: Piece) -> Duration {
    let least = match piece {
        Piece::First => timing.step_first,
        Piece::Further => timing.step_least,
    };
    recent
        .unwrap_or_default()
        .saturating_mul(timing.step_factor)
        .max(least)
}

pub(super) fn load_allowance(timing: &Timing, bytes: u64) -> Duration {
    timing.load_least + Duration::from_secs(bytes / timing.load_bytes_per_s.max(1))
}
