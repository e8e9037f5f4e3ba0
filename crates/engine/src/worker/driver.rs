//! The one task of a worker: it owns the process, and turns commands, frames, exits and time into events.

use std::collections::VecDeque;
use std::future::pending;
use std::time::Duration;

use calotype_protocol::{Down, Frame, FrameError, Up};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::backoff::{Backoff, Reached};
use super::config::WorkerConfig;
use super::event::{ExitCause, ExitReport, WorkerEvent, WorkerEventKind};
use super::incarnation::{Incarnation, Intake, ProcessEvent};
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
    /// End the worker for good.
    Stop {
        /// For running work.
        grace: Duration,
        /// Told after the reap.
        stopped: oneshot::Sender<()>,
    },
}

/// Runs a worker's processes until it is stopped.
pub(super) async fn drive(
    config: WorkerConfig,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<WorkerEvent>,
) {
    let timing = config.timing;
    let mut driver = Driver {
        config,
        lifetime: Lifetime::Waiting {
            until: Instant::now(),
        },
        incarnation: 0,
        backoff: Backoff::new(timing.backoff_first, timing.backoff_most, timing.backoff_window),
        outbox: VecDeque::new(),
        listener: Listener::There,
        lifecycle: Lifecycle::Restart,
        stopped: Vec::new(),
    };
    let mut handles = true;
    loop {
        if matches!(driver.lifetime, Lifetime::Over) && driver.outbox.is_empty() {
            return;
        }
        let intake = driver.intake();
        let wake_at = driver.wake_at(intake);
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
            event = next(&mut driver.lifetime, intake) => match event {
                ProcessEvent::Frame(frame) => driver.hear(frame),
                ProcessEvent::Ended(ended) => driver.bury(ended).await,
            },
            () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                driver.on_time(intake).await;
            }
        }
    }
}

struct Driver {
    config: WorkerConfig,
    lifetime: Lifetime,
    /// Number of the current or last incarnation.
    incarnation: u64,
    backoff: Backoff,
    /// Events that the dispatcher has not taken yet: a slow dispatcher must not keep us from killing and reaping.
    outbox: VecDeque<WorkerEvent>,
    listener: Listener,
    lifecycle: Lifecycle,
    stopped: Vec<oneshot::Sender<()>>,
}

/// What a worker has at the moment: a process, a wait for the next one, or neither any more.
enum Lifetime {
    Running(Box<Incarnation>),
    /// Between two processes.
    Waiting {
        until: Instant,
    },
    /// No process will follow.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Listener {
    There,
    Left,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lifecycle {
    /// A process that ended is followed by another.
    Restart,
    /// The process that runs is the last one.
    Stop,
}

async fn next(lifetime: &mut Lifetime, intake: Intake) -> ProcessEvent {
    match lifetime {
        Lifetime::Running(incarnation) => incarnation.next(intake).await,
        Lifetime::Waiting { .. } | Lifetime::Over => pending().await,
    }
}

impl Driver {
    fn intake(&self) -> Intake {
        if self.outbox.len() < MOST_WAITING {
            Intake::Open
        } else {
            Intake::Full
        }
    }

    fn wake_at(&self, intake: Intake) -> Option<Instant> {
        match &self.lifetime {
            Lifetime::Running(incarnation) => incarnation.wake_at(intake),
            Lifetime::Waiting { until } => Some(*until),
            Lifetime::Over => None,
        }
    }

    async fn on_time(&mut self, intake: Intake) {
        match &mut self.lifetime {
            Lifetime::Running(incarnation) => incarnation.on_time(intake, Instant::now()),
            Lifetime::Waiting { .. } => self.begin().await,
            Lifetime::Over => {}
        }
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Send { to, frame } => match &mut self.lifetime {
                Lifetime::Running(incarnation) if to.is_none_or(|to| to == self.incarnation) => {
                    incarnation.send(frame, now);
                }
                Lifetime::Running(_) | Lifetime::Waiting { .. } | Lifetime::Over => {
                    warn!(worker = %self.config.name, "Dropped a frame for a process that is gone");
                }
            },
            Command::Recycle { reason } => match &mut self.lifetime {
                Lifetime::Running(incarnation) => incarnation.terminate(ExitCause::Recycled { reason }, now),
                Lifetime::Waiting { until } => *until = now,
                Lifetime::Over => {}
            },
            Command::Stop { grace, stopped } => {
                self.stopped.push(stopped);
                self.stop(grace);
            }
        }
    }

    fn stop(&mut self, grace: Duration) {
        self.lifecycle = Lifecycle::Stop;
        match &mut self.lifetime {
            Lifetime::Running(incarnation) => incarnation.stop(grace, Instant::now()),
            Lifetime::Waiting { .. } | Lifetime::Over => self.end(),
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
                self.lifetime = Lifetime::Running(Box::new(incarnation));
            }
            Err(error) => {
                let status = format!("failed to start `{}`: {error}", self.config.program.display());
                warn!(worker = %self.config.name, "{status}");
                let restart_in = self.rest(&ExitCause::FailedToStart, Reached::Startup);
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
        if let Lifetime::Running(incarnation) = &mut self.lifetime
            && let Some(kind) = incarnation.hear(frame, Instant::now())
        {
            self.tell(kind);
        }
    }

    /// After the reap: everything that it still said, then `Gone`, then nothing.
    async fn bury(&mut self, ended: Ended) {
        let Lifetime::Running(incarnation) = std::mem::replace(&mut self.lifetime, Lifetime::Over) else {
            return;
        };
        let (last_words, remains) = incarnation.finish(ended).await;
        for kind in last_words {
            self.tell(kind);
        }
        let restart_in = self.rest(&remains.cause, remains.reached);
        self.tell(WorkerEventKind::Gone(ExitReport {
            cause: remains.cause,
            status: remains.status,
            stderr_tail: remains.stderr_tail,
            restart_in,
            pid: remains.pid,
        }));
    }

    /// Chooses what follows an incarnation.
    fn rest(&mut self, cause: &ExitCause, reached: Reached) -> Option<Duration> {
        if self.lifecycle == Lifecycle::Stop {
            self.end();
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
            | ExitCause::Exited => self.backoff.failed(reached, now.into_std()),
        };
        self.lifetime = Lifetime::Waiting { until: now + wait };
        Some(wait)
    }

    fn end(&mut self) {
        self.lifetime = Lifetime::Over;
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
