//! Where a step's time goes: every moment between its acceptance and its end belongs to one phase, so that the phases sum
//! to the wall time. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// What a step's time is spent on, as far as the orchestrator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Spent {
    /// Waiting in its lane.
    Queued,
    /// Waiting while a model is loaded for it.
    Load,
    /// From the claim to the line that goes down: journaling, reading inputs.
    Dispatch,
    /// In its worker.
    Run,
    /// Paused by a client or by the scheduler.
    Paused,
    /// Encoding and storing its outputs.
    Finish,
    /// Attempts that came to nothing.
    EarlierAttempts,
}

/// The time that a step has spent so far.
#[derive(Debug, Clone)]
pub(crate) struct Timeline {
    spent_on: Spent,
    since: Duration,
    spent: BTreeMap<Spent, Duration>,
}

impl Timeline {
    /// Of a step that waits since `before` earlier than `now`.
    pub(crate) fn new(now: Duration, before: Duration) -> Self {
        Self {
            spent_on: Spent::Queued,
            since: now,
            spent: BTreeMap::from([(Spent::Queued, before)]),
        }
    }

    /// From now on its time is spent on this.
    pub(crate) fn switch(&mut self, to: Spent, now: Duration) {
        let passed = now.saturating_sub(self.since);
        *self.spent.entry(self.spent_on).or_default() += passed;
        self.since = now;
        self.spent_on = to;
    }

    /// The present attempt came to nothing; it waits again.
    pub(crate) fn start_over(&mut self, now: Duration) {
        self.switch(Spent::Queued, now);
        for wasted in [Spent::Dispatch, Spent::Run, Spent::Finish] {
            if let Some(spent) = self.spent.remove(&wasted) {
                *self.spent.entry(Spent::EarlierAttempts).or_default() += spent;
            }
        }
    }

    /// Milliseconds by phase. The time in the worker is split into the phases that the worker measured and `shared`,
    /// the rest: turns that other runs in the same worker had.
    pub(crate) fn phases_ms(&self, in_worker_ms: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
        let in_ms = |time: &Duration| time.as_secs_f64() * 1e3;
        let run_ms = self.spent.get(&Spent::Run).map_or(0.0, in_ms);
        let measured_ms: f64 = in_worker_ms.values().sum();
        // Clocks of two processes: a worker may count a little more than we saw.
        let scale = if measured_ms > run_ms {
            run_ms / measured_ms
        } else {
            1.0
        };
        let scaled = in_worker_ms.iter().map(|(phase, ms)| (phase.clone(), ms * scale));
        let mut phases: BTreeMap<String, f64> = scaled.collect();
        for (spent, time) in &self.spent {
            let (name, ms) = match spent {
                Spent::Queued => ("queued", in_ms(time)),
                Spent::Load => ("load", in_ms(time)),
                Spent::Dispatch => ("dispatch", in_ms(time)),
                Spent::Paused => ("paused", in_ms(time)),
                Spent::Finish => ("finish", in_ms(time)),
                Spent::EarlierAttempts => ("earlier_attempts", in_ms(time)),
                Spent::Run => ("shared", (run_ms - measured_ms).max(0.0)),
            };
            phases.insert(name.into(), ms);
        }
        phases
    }

    /// All of it.
    pub(crate) fn total(&self) -> Duration {
        self.spent.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn phases_sum_to_the_wall_time_whatever_happened() {
        let mut timeline = Timeline::new(10 * MS, 5 * MS);
        let steps = [
            (Spent::Load, 20),
            (Spent::Queued, 50),
            (Spent::Dispatch, 51),
            (Spent::Run, 53),
        ];
        for (to, at_ms) in steps {
            timeline.switch(to, at_ms * MS);
        }
        timeline.start_over(100 * MS);
        for (to, at_ms) in [
            (Spent::Dispatch, 110),
            (Spent::Run, 112),
            (Spent::Paused, 130),
            (Spent::Run, 140),
        ] {
            timeline.switch(to, at_ms * MS);
        }
        timeline.switch(Spent::Finish, 200 * MS);
        timeline.switch(Spent::Finish, 230 * MS);
        for measured_ms in [60.0, 500.0] {
            let worker = BTreeMap::from([("denoise".to_owned(), measured_ms)]);
            let sum: f64 = timeline.phases_ms(&worker).values().sum();
            assert!((sum - 225.0).abs() < 1e-6, "{sum}");
        }
        assert_eq!(timeline.total(), 225 * MS);
    }
}
