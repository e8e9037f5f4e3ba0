//! Lets a number of lines through each second and counts the others. Pure: the time is handed in.

use std::time::{Duration, Instant};

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Say it, and that `dropped` lines were left out before it.
    Logged {
        /// Lines left out since the last one said.
        dropped: u64,
    },
    /// Leave it out.
    Dropped,
}

/// Counts lines by the second.
#[derive(Debug)]
pub(super) struct Limiter {
    per_second: u32,
    since: Option<Instant>,
    used: u32,
    dropped: u64,
}

impl Limiter {
    /// Lets `per_second` lines through in each second.
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            since: None,
            used: 0,
            dropped: 0,
        }
    }

    /// A line at `now`.
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        if self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1))
        {
            self.since = Some(now);
            self.used = 0;
        }
        if self.used == self.per_second {
            self.dropped += 1;
            return Admission::Dropped;
        }
        self.used += 1;
        Admission::Logged {
            dropped: std::mem::take(&mut self.dropped),
        }
    }

    /// Lines left out and not yet told.
    pub(super) fn untold(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_the_cut_is_told_with_the_next_line() {
        let mut limiter = Limiter::new(2);
        let now = Instant::now();
        let said: Vec<Admission> = (0..5).map(|_| limiter.admit(now)).collect();
        assert_eq!(said[..2], [Admission::Logged { dropped: 0 }; 2]);
        assert_eq!(said[2..], [Admission::Dropped; 3]);
        assert_eq!(limiter.untold(), 3);
        assert_eq!(
            limiter.admit(now + Duration::from_secs(1)),
            Admission::Logged { dropped: 3 }
        );
        assert_eq!(limiter.untold(), 0);
    }
}
