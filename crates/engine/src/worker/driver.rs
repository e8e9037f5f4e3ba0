//! The one task of a slot: it owns the process, and turns commands, frames, exits and time into events.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use calotype_protocol::{Down, Frame, FrameError, Up};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::backoff::{Backoff, Came};
use super::config::WorkerConfig;
use super::event::{ExitCause, ExitReport, WorkerEvent, WorkerEventKind};
use super::incarnation::{Heard, Hearing, Incarnation};
use super::process::Ended;

/// With so many events that the dispatcher has not taken, the worker is not listened to any more.
const MOST_WAITING: usize = 256;

/// What a handle asks for.
#[derive(Debug)]
pub(super) enum Command {
    /// Pass a frame on.
    Send {
        /// Only to this incarnation.
        to: Option<u64>,
        /// The frame.
        frame: Frame<Down>,
    },
    /// Replace the process.
    Recycle {
        /// Why.
        reason: String,
    },
    /// End the slot.
    Stop {
        /// For running work.
        grace: Duration,
        /// Told after the reap.
        stopped: oneshot::Sender<()>,
    },
}

/// Runs a slot to its end.
pub(super) async fn drive(
    config: WorkerConfig,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<WorkerEvent>,
) {
    let timing = config.timing;
    let mut driver = Driver {
        config,
        slot: Slot::Waiting {
            until: Instant::now(),
        },
        incarnation: 0,
        backoff: Backoff::new(timing.backoff_first, timing.backoff_most, timing.backoff_window),
        outbox: VecDeque::new(),
        listener: Listener::There,
        plan: Plan::Run,
        stopped: Vec::new(),
    };
    let mut handles = true;
    loop {
        if matches!(driver.slot, Slot::Empty) && driver.outbox.is_empty() {
            return;
        }
        let hearing = driver.hearing();
        let wake_at = driver.wake_at(hearing);
        tokio::select! {
            biased;
            command = commands.recv(), if handles => match command {
                Some(command) => driver.obey(command),
                None => {
                    handles = false;
                    driver.stop(Duration::ZERO);
                }
            },
            permit = events.reserve(), if !driver.outbox.is_empty() => match permit {
                Ok(permit) => {
                    if let Some(event) = driver.outbox.pop_front() {
                        permit.send(event);
                    }
                }
                Err(_) => driver.lose_listener(),
            },
            () = events.closed(), if driver.listener == Listener::There => driver.lose_listener(),
            heard = next(&mut driver.slot, hearing) => match heard {
                Heard::Frame(frame) => driver.hear(frame),
                Heard::Ended(ended) => driver.bury(ended).await,
            },
            () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                driver.on_time(hearing).await;
            }
        }
    }
}

struct Driver {
    config: WorkerConfig,
    slot: Slot,
    /// Number of the current or last incarnation.
    incarnation: u64,
    backoff: Backoff,
    /// Events that the dispatcher has not taken yet: a slow dispatcher must not keep us from killing and reaping.
    outbox: VecDeque<WorkerEvent>,
    listener: Listener,
    plan: Plan,
    stopped: Vec<oneshot::Sender<()>>,
}

enum Slot {
    Running(Box<Incarnation>),
    /// Between two processes.
    Waiting {
        until: Instant,
    },
    /// For good.
    Empty,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Listener {
    There,
    Left,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    Run,
    Stop,
}

async fn next(slot: &mut Slot, hearing: Hearing) -> Heard {
    match slot {
        Slot::Running(incarnation) => incarnation.next(hearing).await,
        Slot::Waiting { .. } | Slot::Empty => pending().await,
    }
}

impl Driver {
    fn hearing(&self) -> Hearing {
        if self.outbox.len() < MOST_WAITING {
            Hearing::Listens
        } else {
            Hearing::IsBusy
        }
    }

    fn wake_at(&self, hearing: Hearing) -> Option<Instant> {
        match &self.slot {
            Slot::Running(incarnation) => incarnation.wake_at(hearing),
            Slot::Waiting { until } => Some(*until),
            Slot::Empty => None,
        }
    }

    async fn on_time(&mut self, hearing: Hearing) {
        match &mut self.slot {
            Slot::Running(incarnation) => incarnation.on_time(hearing, Instant::now()),
            Slot::Waiting { .. } => self.begin().await,
            Slot::Empty => {}
        }
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Send { to, frame } => match &mut self.slot {
                Slot::Running(incarnation) if to.is_none_or(|to| to == self.incarnation) => {
                    incarnation.send(frame, now);
                }
                Slot::Running(_) | Slot::Waiting { .. } | Slot::Empty => {
                    warn!(worker = %self.config.name, "Dropped a frame for a process that is gone");
                }
            },
            Command::Recycle { reason } => match &mut self.slot {
                Slot::Running(incarnation) => incarnation.terminate(ExitCause::Recycled { reason }, now),
                Slot::Waiting { until } => *until = now,
                Slot::Empty => {}
            },
            Command::Stop { grace, stopped } => {
                self.stopped.push(stopped);
                self.stop(grace);
            }
        }
    }

    fn stop(&mut self, grace: Duration) {
        self.plan = Plan::Stop;
        match &mut self.slot {
            Slot::Running(incarnation) => incarnation.stop(grace, Instant::now()),
            Slot::Waiting { .. } | Slot::Empty => self.empty(),
        }
    }

    fn lose_listener(&mut self) {
        self.listener = Listener::Left;
        self.outbox.clear();
        self.stop(Duration::ZERO);
    }

    async fn begin(&mut self) {
        self.incarnation += 1;
        match Incarnation::start(self.config.clone()).await {
            Ok(incarnation) => {
                self.tell(WorkerEventKind::Starting {
                    pid: incarnation.pid(),
                });
                self.slot = Slot::Running(Box::new(incarnation));
            }
            Err(error) => {
                let status = format!("failed to start `{}`: {error}", self.config.program.display());
                warn!(worker = %self.config.name, "{status}");
                let restart_in = self.rest(&ExitCause::FailedToStart, Came::NotReady);
                self.tell(WorkerEventKind::Gone(ExitReport {
                    cause: ExitCause::FailedToStart,
                    status,
                    stderr_tail: String::new(),
                    restart_in,
                    pid: 0,
                }));
            }
        }
    }

    fn hear(&mut self, frame: Result<Frame<Up>, FrameError>) {
        if let Slot::Running(incarnation) = &mut self.slot
            && let Some(kind) = incarnation.hear(frame, Instant::now())
        {
            self.tell(kind);
        }
    }

    /// After the reap: everything that it still said, then `Gone`, then nothing.
    async fn bury(&mut self, ended: Ended) {
        let Slot::Running(incarnation) = std::mem::replace(&mut self.slot, Slot::Empty) else {
            return;
        };
        let (last_words, remains) = incarnation.finish(ended).await;
        for kind in last_words {
            self.tell(kind);
        }
        let restart_in = self.rest(&remains.cause, remains.came);
        self.tell(WorkerEventKind::Gone(ExitReport {
            cause: remains.cause,
            status: remains.status,
            stderr_tail: remains.stderr_tail,
            restart_in,
            pid: remains.pid,
        }));
    }

    /// Chooses what follows an incarnation.
    fn rest(&mut self, cause: &ExitCause, came: Came) -> Option<Duration> {
        if self.plan == Plan::Stop {
            self.empty();
            return None;
        }
        let now = Instant::now();
        let wait = match cause {
            ExitCause::Recycled { .. } | ExitCause::Stopped => Duration::ZERO,
            ExitCause::FailedToStart
            | ExitCause::ExitedBeforeReady
            | ExitCause::WrongVersion { .. }
            | ExitCause::ProtocolError { .. }
            | ExitCause::HelloTimeout
            | ExitCause::ReadyTimeout
            | ExitCause::Silent
            | ExitCause::StepDeadline { .. }
            | ExitCause::LoadDeadline
            | ExitCause::Fatal { .. }
            | ExitCause::Killed { .. }
            | ExitCause::OutOfMemoryKill { .. }
            | ExitCause::Exited => self.backoff.failed(came, now.into_std()),
        };
        self.slot = Slot::Waiting { until: now + wait };
        Some(wait)
    }

    fn empty(&mut self) {
        self.slot = Slot::Empty;
        for stopped in self.stopped.drain(..) {
            // Whoever asked may no longer wait.
            let _ = stopped.send(());
        }
    }

    fn tell(&mut self, kind: WorkerEventKind) {
        if self.listener == Listener::There {
            let (worker, incarnation) = (self.config.name.clone(), self.incarnation);
            self.outbox.push_back(WorkerEvent {
                worker,
                incarnation,
                kind,
            });
        }
    }
}
