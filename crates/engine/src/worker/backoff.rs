//! How long to wait before the next start. Pure: the time is handed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// More failures than this change nothing.
const MOST_FAILURES: usize = 32;

/// Counts the failures of a sliding window; old ones are forgotten, so a stable worker begins anew.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    window: Duration,
    failures: VecDeque<Instant>,
}

/// How far a process got before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// It never took work: most likely the next one fails in the same way.
    Startup,
    /// It had worked.
    Ready,
}

impl Backoff {
    /// `first` after one failure, doubling up to `most`.
    pub(super) fn new(first: Duration, most: Duration, window: Duration) -> Self {
        Self {
            first,
            most,
            window,
            failures: VecDeque::new(),
        }
    }

    /// Counts a failure at `now` and says how long to wait. The first failure of a worker that had worked costs no
    /// wait at all: a replacement is wanted within 250 ms.
    pub(super) fn failed(&mut self, reached: Reached, now: Instant) -> Duration {
        while self
            .failures
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) > self.window)
        {
            self.failures.pop_front();
        }
        if self.failures.len() == MOST_FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        if self.failures.len() == 1 && reached == Reached::Ready {
            return Duration::ZERO;
        }
        let doublings = u32::try_from(self.failures.len() - 1).unwrap_or(u32::MAX);
        self.first
            .saturating_mul(2u32.saturating_pow(doublings))
            .min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: Duration = Duration::from_millis(500);
    const MOST: Duration = Duration::from_secs(30);
    const WINDOW: Duration = Duration::from_secs(300);

    #[test]
    fn the_wait_doubles_up_to_the_most() {
        let mut backoff = Backoff::new(FIRST, MOST, WINDOW);
        let now = Instant::now();
        let waits: Vec<u128> = (0..9)
            .map(|_| backoff.failed(Reached::Startup, now).as_millis())
            .collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
    }

    #[test]
    fn a_worker_that_had_worked_is_replaced_at_once_the_first_time() {
        let mut backoff = Backoff::new(FIRST, MOST, WINDOW);
        let now = Instant::now();
        assert_eq!(backoff.failed(Reached::Ready, now), Duration::ZERO);
        assert_eq!(backoff.failed(Reached::Ready, now), Duration::from_secs(1));
        assert_eq!(backoff.failed(Reached::Ready, now + WINDOW * 2), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn a_wait_is_bounded_and_a_quiet_window_forgets(gaps_ms in prop::collection::vec(0u64..600_000, 1..60)) {
            let mut backoff = Backoff::new(FIRST, MOST, WINDOW);
            let mut now = Instant::now();
            let mut last = Duration::ZERO;
            for gap_ms in gaps_ms {
                now += Duration::from_millis(gap_ms);
                let wait = backoff.failed(Reached::Startup, now);
                prop_assert!(wait >= FIRST && wait <= MOST);
                if Duration::from_millis(gap_ms) > WINDOW {
                    prop_assert_eq!(wait, FIRST);
                }
                if gap_ms == 0 {
                    prop_assert!(wait >= last);
                }
                last = wait;
            }
        }
    }
}
