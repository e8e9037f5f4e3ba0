//! One process of a worker, from its start to its reap: `handshake`, liveness and deadlines (`due`), `leaving`, and what
//! `remains`.
//!
//! It decides nothing about the next one; `driver` does.

mod due;
mod handshake;
mod leaving;
mod remains;

use std::io;
use std::time::Duration;

use calotype_protocol::{Down, Frame, FrameError, Hello, LogLevel, Up};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::backoff::Reached;
use super::channel::Channel;
use super::config::WorkerConfig;
use super::deadlines::Deadlines;
use super::event::{ExitCause, WorkerEventKind};
use super::limiter::{Admission, Limiter};
use super::memory_kills::MemoryKills;
use super::process::{Ended, Process, Program};
use super::state::{IllegalMove, Move, State};
pub(super) use due::Intake;
use handshake::{remove_scratch, scratch_of};
use leaving::{Leaving, Stage};

/// How often a worker's beat makes us look at the kernel's counters: a file of a few KiB.
const MEMORY_KILLS_EVERY: Duration = Duration::from_secs(10);
/// `log` lines of a worker that are logged in a second.
const LOGS_PER_SECOND: u32 = 50;

/// A running process and all that we know of it.
#[derive(Debug)]
pub(super) struct Incarnation {
    config: WorkerConfig,
    process: Process,
    channel: Channel,
    ended: oneshot::Receiver<Ended>,
    state: State,
    reached: Reached,
    hello: Option<Box<Hello>>,
    handshake_due: Instant,
    last_heard: Instant,
    deadlines: Deadlines,
    logs: Limiter,
    leaving: Option<Leaving>,
    stdout: Stdout,
    /// The kernel's kills for memory when they were last looked at, and when that was.
    memory_kills: (MemoryKills, Instant),
    /// Its memory at the last beat.
    used_bytes: Option<u64>,
}

#[derive(Debug)]
enum Stdout {
    Open,
    /// At its end; the process should be, too. The reason is there when the end was inside a frame.
    Ended {
        stay_until: Instant,
        reason: Option<String>,
    },
    /// Nothing that comes is read any more.
    Abandoned,
}

/// What happens to a process, as the driver sees it.
pub(super) enum ProcessEvent {
    /// A frame came, or the reason why no more come.
    Frame(Result<Frame<Up>, FrameError>),
    /// It was reaped.
    Ended(Ended),
}

impl Incarnation {
    /// Starts a process.
    pub(super) async fn start(config: WorkerConfig) -> io::Result<Incarnation> {
        let (program, args, env) = (config.program.clone(), config.args.clone(), config.env.clone());
        let scratch = config.scratch.clone();
        let clean_up = move |pid| remove_scratch(&scratch_of(&scratch, pid));
        let memory_kills = (config.memory_kills.read(), Instant::now());
        let (process, ends) = Process::start(Program { program, args, env }, clean_up).await?;
        let (channel, ended) = Channel::open(config.name.clone(), ends)?;
        let now = Instant::now();
        let state = State::Idle.on(Move::Spawned).map_err(io::Error::other)?;
        Ok(Incarnation {
            handshake_due: now + config.timing.hello,
            deadlines: Deadlines::new(config.timing),
            config,
            process,
            channel,
            ended,
            state,
            reached: Reached::Startup,
            hello: None,
            last_heard: now,
            logs: Limiter::new(LOGS_PER_SECOND),
            leaving: None,
            stdout: Stdout::Open,
            memory_kills,
            used_bytes: None,
        })
    }

    /// The process's id.
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits for the next thing from the process. Cancel-safe.
    pub(super) async fn next(&mut self, intake: Intake) -> ProcessEvent {
        let listen = intake == Intake::Open && matches!(self.stdout, Stdout::Open);
        let ended = async { (&mut self.ended).await };
        tokio::select! {
            biased;
            ended = ended => ProcessEvent::Ended(ended.unwrap_or_default()),
            Some(frame) = self.channel.frames.recv(), if listen => ProcessEvent::Frame(frame),
        }
    }

    /// Sends a frame of the dispatcher's.
    pub(super) fn send(&mut self, frame: Frame<Down>, now: Instant) {
        match self.state {
            State::Ready | State::Stopping => {
                self.deadlines.sent(&frame.message, now.into_std());
                self.channel.send(frame);
            }
            State::Idle | State::Starting | State::Handshaking | State::Gone => {
                warn!(worker = %self.config.name, state = %self.state, "Dropped a frame for a worker that is not ready");
            }
        }
    }

    /// Takes what `next` gave, and says what the dispatcher should know.
    pub(super) fn hear(
        &mut self,
        frame: Result<Frame<Up>, FrameError>,
        now: Instant,
    ) -> Option<WorkerEventKind> {
        self.last_heard = now;
        match frame {
            Ok(frame) => match self.take(frame, now) {
                Ok(event) => event,
                Err(illegal) => {
                    self.terminate(
                        ExitCause::ProtocolError {
                            reason: illegal.to_string(),
                        },
                        now,
                    );
                    None
                }
            },
            Err(error) => {
                self.lose(&error, now);
                None
            }
        }
    }

    fn take(&mut self, frame: Frame<Up>, now: Instant) -> Result<Option<WorkerEventKind>, IllegalMove> {
        let Frame { message, blobs } = frame;
        match message {
            Up::Hello(hello) => {
                self.greet(hello, now)?;
                Ok(None)
            }
            Up::Ready(ready) => {
                self.state = self.state.on(Move::Ready)?;
                match self.hello.take() {
                    Some(hello) if self.state == State::Ready => {
                        self.reached = Reached::Ready;
                        Ok(Some(WorkerEventKind::Ready { hello, ready }))
                    }
                    Some(_) | None => Ok(None),
                }
            }
            Up::Log {
                level,
                job,
                message,
                dropped,
            } => {
                if let Admission::Logged { dropped: ours } = self.logs.admit(now.into_std()) {
                    let job = job.as_ref().map_or("", |job| job.as_str());
                    self.log(level, job, &message, dropped + ours);
                }
                Ok(None)
            }
            Up::Pong { seq } => {
                debug!(worker = %self.config.name, seq, "pong");
                Ok(None)
            }
            Up::Fatal { reason } => {
                error!(worker = %self.config.name, reason, "A worker's device is lost");
                self.terminate(ExitCause::Fatal { reason }, now);
                Ok(None)
            }
            Up::Bye {} => {
                if self.leaving.is_none() {
                    let ready = self.reached == Reached::Ready;
                    let cause = if ready {
                        ExitCause::Exited
                    } else {
                        ExitCause::ExitedBeforeReady
                    };
                    self.leave(cause, Stage::Exiting, now + self.config.timing.term_grace);
                }
                Ok(None)
            }
            // A pulse may begin before `ready`; nobody knows that worker yet.
            Up::Beat(_) if self.reached == Reached::Startup => Ok(None),
            message => {
                if let Up::Beat(beat) = &message {
                    self.note_memory(beat.used_bytes, now);
                }
                self.state = self.state.on(Move::Message)?;
                self.deadlines.heard(&message, now.into_std());
                Ok(Some(WorkerEventKind::Message(Frame { message, blobs })))
            }
        }
    }

    /// Keeps what the report needs should the kernel kill the process. The counters are read now and then, so that an old
    /// kill is not taken for this process's.
    fn note_memory(&mut self, used_bytes: u64, now: Instant) {
        self.used_bytes = Some(used_bytes);
        if now.saturating_duration_since(self.memory_kills.1) >= MEMORY_KILLS_EVERY {
            self.memory_kills = (self.config.memory_kills.read(), now);
        }
    }

    fn lose(&mut self, error: &FrameError, now: Instant) {
        let stay_until = now + self.config.timing.term_grace;
        match error {
            FrameError::Closed => {
                self.stdout = Stdout::Ended {
                    stay_until,
                    reason: None,
                }
            }
            FrameError::Truncated { .. } | FrameError::Io(_) => {
                self.stdout = Stdout::Ended {
                    stay_until,
                    reason: Some(error.to_string()),
                };
            }
            FrameError::LineTooLong { .. }
            | FrameError::NotAMessage { .. }
            | FrameError::BlobsRefused { .. } => {
                self.stdout = Stdout::Abandoned;
                self.terminate(
                    ExitCause::ProtocolError {
                        reason: error.to_string(),
                    },
                    now,
                );
            }
        }
    }

    fn log(&self, level: LogLevel, job: &str, message: &str, dropped: u64) {
        let worker = &self.config.name;
        match level {
            LogLevel::Debug => debug!(%worker, job.id = job, dropped, "{message}"),
            LogLevel::Info => info!(%worker, job.id = job, dropped, "{message}"),
            LogLevel::Warn => warn!(%worker, job.id = job, dropped, "{message}"),
            LogLevel::Error => error!(%worker, job.id = job, dropped, "{message}"),
        }
    }
}
