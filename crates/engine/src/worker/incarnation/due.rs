//! What is due and when: handshake, silence, deadlines of jobs and loads, and the next stage of leaving.

use calotype_protocol::Down;
use tokio::time::Instant;
use tracing::warn;

use super::leaving::Stage;
use super::{Incarnation, Stdout};
use crate::worker::backoff::Reached;
use crate::worker::deadlines::Overdue;
use crate::worker::event::ExitCause;
use crate::worker::state::State;

/// Whether the driver has room for more events of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Intake {
    /// Frames are read.
    Open,
    /// The dispatcher has not taken what came before: frames wait in the pipe.
    Full,
}

impl Incarnation {
    /// When `on_time` wants to be called.
    pub(in crate::worker) fn wake_at(&self, intake: Intake) -> Option<Instant> {
        if let Some(leaving) = &self.leaving
            && leaving.stage != Stage::Draining
        {
            return leaving.next;
        }
        let draining = self.leaving.as_ref().and_then(|leaving| leaving.next);
        [
            draining,
            self.handshake_at(),
            self.stay_until(),
            self.silent_at(intake),
            self.overdue_at(intake),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Acts on what is due.
    pub(in crate::worker) fn on_time(&mut self, intake: Intake, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if let Some(leaving) = &self.leaving {
            let stage = leaving.stage;
            if due(leaving.next) {
                self.insist(now);
            }
            if stage != Stage::Draining {
                return;
            }
        }
        if due(self.handshake_at()) {
            let waits_for_hello = self.state == State::Starting;
            self.terminate(
                if waits_for_hello {
                    ExitCause::HelloTimeout
                } else {
                    ExitCause::ReadyTimeout
                },
                now,
            );
        } else if due(self.stay_until()) {
            let reason = "it closed its stdout and stayed".to_owned();
            self.terminate(ExitCause::ProtocolError { reason }, now);
        } else if due(self.silent_at(intake)) {
            self.terminate(ExitCause::Silent, now);
        } else if due(self.overdue_at(intake)) {
            for overdue in self.deadlines.overdue(now.into_std()) {
                match overdue {
                    Overdue::Step { job, attempt } => {
                        warn!(worker = %self.config.name, job.id = %job, "Job {job} made no progress; it is cancelled");
                        self.channel.send(Down::Cancel { job, attempt }.into());
                    }
                    Overdue::Cancel { job } => self.terminate(ExitCause::StepDeadline { job }, now),
                    Overdue::Load { load } => {
                        warn!(worker = %self.config.name, %load, "A load made no progress");
                        self.terminate(ExitCause::LoadDeadline, now);
                    }
                }
            }
        }
    }

    fn handshake_at(&self) -> Option<Instant> {
        matches!(self.state, State::Starting | State::Handshaking).then_some(self.handshake_due)
    }

    fn stay_until(&self) -> Option<Instant> {
        match &self.stdout {
            Stdout::Ended {
                stay_until,
                reason: _,
            } => Some(*stay_until),
            Stdout::Open | Stdout::Abandoned => None,
        }
    }

    /// Silence and missed deadlines are the worker's only while we listen.
    fn silent_at(&self, intake: Intake) -> Option<Instant> {
        let speaks = self.reached == Reached::Ready && matches!(self.stdout, Stdout::Open);
        (speaks && intake == Intake::Open).then(|| self.last_heard + self.config.timing.silence)
    }

    fn overdue_at(&self, intake: Intake) -> Option<Instant> {
        if intake == Intake::Full {
            return None;
        }
        self.deadlines.next().map(Instant::from_std)
    }
}
