//! What is left of a process after its reap: its last words, and why it ended.

use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::{Incarnation, Stdout};
use crate::worker::backoff::Reached;
use crate::worker::channel::PIPES_END;
use crate::worker::event::{ExitCause, WorkerEventKind};
use crate::worker::process::Ended;
use crate::worker::state::{Move, State};

const SIGKILL: i32 = rustix::process::Signal::KILL.as_raw();

/// What is left of an incarnation.
pub(in crate::worker) struct Remains {
    pub(in crate::worker) cause: ExitCause,
    pub(in crate::worker) status: String,
    pub(in crate::worker) stderr_tail: String,
    pub(in crate::worker) pid: u32,
    pub(in crate::worker) reached: Reached,
}

impl Incarnation {
    /// After the reap: takes the last words out of the pipes and says how it ended.
    pub(in crate::worker) async fn finish(mut self, mut ended: Ended) -> (Vec<WorkerEventKind>, Remains) {
        let by = Instant::now() + PIPES_END;
        let mut events = Vec::new();
        while matches!(self.stdout, Stdout::Open)
            && let Ok(Some(frame)) = timeout_at(by, self.channel.frames.recv()).await
        {
            events.extend(self.hear(frame, Instant::now()));
        }
        let stderr_tail = self.channel.stderr_tail(by).await;
        ended.rest_of_group(by).await;
        let cause = self.cause(&ended);
        // Always legal: nothing is gone before its reap.
        self.state = self.state.on(Move::Reaped).unwrap_or(State::Gone);
        let status = ended.describe();
        info!(worker = %self.config.name, pid = self.pid(), state = %self.state, ?cause, status, "A worker is gone");
        (
            events,
            Remains {
                cause,
                status,
                stderr_tail,
                pid: self.pid(),
                reached: self.reached,
            },
        )
    }

    fn cause(&mut self, ended: &Ended) -> ExitCause {
        if let Some(leaving) = self.leaving.take() {
            return leaving.cause;
        }
        let cut_off = match std::mem::replace(&mut self.stdout, Stdout::Abandoned) {
            Stdout::Ended {
                stay_until: _,
                reason,
            } => reason,
            Stdout::Open | Stdout::Abandoned => None,
        };
        match (ended.signal(), cut_off) {
            (Some(SIGKILL), _) if self.config.memory_kills.read().rose_since(&self.memory_kills.0) => {
                ExitCause::OutOfMemoryKill {
                    used_bytes: self.used_bytes,
                }
            }
            // Being killed inside a frame is no fault of the writer.
            (None, Some(reason)) => ExitCause::ProtocolError { reason },
            (_, _) if self.reached == Reached::Startup => ExitCause::ExitedBeforeReady,
            (Some(signal), _) => ExitCause::Killed { signal },
            (None, None) => ExitCause::Exited,
        }
    }
}
