//! Making a process leave: drain, `exit`, SIGTERM, SIGKILL, each after the grace of the one before.

use std::time::Duration;

use calotype_protocol::Down;
use tokio::time::Instant;
use tracing::warn;

use super::Incarnation;
use crate::worker::event::ExitCause;
use crate::worker::state::{Move, State};

/// Why it leaves, and how far we have gone to make it.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) cause: ExitCause,
    pub(super) stage: Stage,
    /// When to insist more; none after SIGKILL.
    pub(super) next: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The worker may finish its work.
    Draining,
    /// `exit` was sent, or the worker announced that it leaves.
    Exiting,
    /// SIGTERM was sent.
    Terminated,
    /// SIGKILL was sent.
    Killed,
}

impl Incarnation {
    /// Lets work finish within `grace`, then makes the process leave.
    pub(in crate::worker) fn stop(&mut self, grace: Duration, now: Instant) {
        match &mut self.leaving {
            Some(Leaving {
                cause: _,
                stage: Stage::Draining,
                next: Some(next),
            }) => *next = (*next).min(now + grace),
            Some(_) => {}
            None if self.state == State::Ready => {
                self.leave(ExitCause::Stopped, Stage::Draining, now + grace);
                if grace.is_zero() {
                    self.insist(now);
                } else {
                    self.channel.send(Down::Drain {}.into());
                }
            }
            None => self.terminate(ExitCause::Stopped, now),
        }
    }

    /// Makes the process leave, beginning with SIGTERM. The first cause stays.
    pub(in crate::worker) fn terminate(&mut self, cause: ExitCause, now: Instant) {
        let next = now + self.config.timing.term_grace;
        match &mut self.leaving {
            Some(leaving) if leaving.stage >= Stage::Terminated => return,
            Some(leaving) => {
                leaving.stage = Stage::Terminated;
                leaving.next = Some(next);
            }
            None => {
                warn!(worker = %self.config.name, pid = self.pid(), ?cause, "A worker is made to leave");
                self.leave(cause, Stage::Terminated, next);
            }
        }
        self.process.terminate();
    }

    pub(super) fn leave(&mut self, cause: ExitCause, stage: Stage, next: Instant) {
        // Always legal: an incarnation that is not gone can be asked to leave.
        self.state = self.state.on(Move::Leave).unwrap_or(State::Stopping);
        self.leaving = Some(Leaving {
            cause,
            stage,
            next: Some(next),
        });
    }

    /// Goes one stage further.
    pub(super) fn insist(&mut self, now: Instant) {
        let Some(leaving) = &mut self.leaving else { return };
        leaving.next = Some(now + self.config.timing.term_grace);
        match leaving.stage {
            Stage::Draining => {
                leaving.stage = Stage::Exiting;
                self.channel.send(Down::Exit {}.into());
            }
            Stage::Exiting => {
                leaving.stage = Stage::Terminated;
                self.process.terminate();
            }
            Stage::Terminated | Stage::Killed => {
                leaving.stage = Stage::Killed;
                leaving.next = None;
                self.process.kill();
            }
        }
    }
}
