//! One process of a worker, from its start to its reap: handshake, liveness, deadlines, leave-taking.
//!
//! It decides nothing about the next one; `driver` does.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use calotype_protocol::{
    Down, Frame, FrameError, FrameLimits, Heartbeat, Hello, Limits, LogLevel, PROTOCOL, Up, Welcome,
};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, info, warn};

use super::backoff::Reached;
use super::channel::{Channel, PIPES_END};
use super::config::WorkerConfig;
use super::deadlines::{Deadlines, Overdue};
use super::event::{ExitCause, WorkerEventKind};
use super::limiter::{Admission, Limiter};
use super::memory_kills::MemoryKills;
use super::process::{Ended, Process, Program};
use super::state::{IllegalMove, Move, State};

const SIGKILL: i32 = rustix::process::Signal::KILL.as_raw();
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

/// Why it leaves, and how far we have gone to make it.
#[derive(Debug)]
struct Leaving {
    cause: ExitCause,
    stage: Stage,
    /// When to insist more; none after SIGKILL.
    next: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// May finish its work.
    Draining,
    /// Was told to leave, or said that it does.
    Exiting,
    /// SIGTERM was sent.
    Terminated,
    /// SIGKILL was sent.
    Killed,
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

/// What is left of an incarnation.
pub(super) struct Remains {
    pub(super) cause: ExitCause,
    pub(super) status: String,
    pub(super) stderr_tail: String,
    pub(super) pid: u32,
    pub(super) reached: Reached,
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

    /// Lets work finish within `grace`, then makes the process leave.
    pub(super) fn stop(&mut self, grace: Duration, now: Instant) {
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
    pub(super) fn terminate(&mut self, cause: ExitCause, now: Instant) {
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

    /// When `on_time` wants to be called.
    pub(super) fn wake_at(&self, intake: Intake) -> Option<Instant> {
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
    pub(super) fn on_time(&mut self, intake: Intake, now: Instant) {
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

    /// After the reap: takes the last words out of the pipes and says how it ended.
    pub(super) async fn finish(mut self, mut ended: Ended) -> (Vec<WorkerEventKind>, Remains) {
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

    /// Remembers what is said should the kernel kill it. The counters are looked at now and then, so that a kill of long
    /// ago is not taken for this process's.
    fn note_memory(&mut self, used_bytes: u64, now: Instant) {
        self.used_bytes = Some(used_bytes);
        if now.saturating_duration_since(self.memory_kills.1) >= MEMORY_KILLS_EVERY {
            self.memory_kills = (self.config.memory_kills.read(), now);
        }
    }

    fn greet(&mut self, hello: Hello, now: Instant) -> Result<(), IllegalMove> {
        self.state = self.state.on(Move::Hello)?;
        if self.state != State::Handshaking {
            return Ok(());
        }
        if hello.protocol.major != PROTOCOL.major {
            let worker = hello.protocol;
            let reason = format!(
                "this orchestrator speaks protocol {}.{}, the worker {}.{}",
                PROTOCOL.major, PROTOCOL.minor, worker.major, worker.minor
            );
            self.channel.send(Down::Bye { reason }.into());
            let cause = ExitCause::WrongVersion {
                worker,
                ours: PROTOCOL,
            };
            self.leave(cause, Stage::Exiting, now + self.config.timing.term_grace);
            return Ok(());
        }
        self.hello = Some(Box::new(hello));
        self.handshake_due = now + self.config.timing.ready;
        self.channel.send(Down::Welcome(self.welcome()).into());
        Ok(())
    }

    fn welcome(&self) -> Welcome {
        let FrameLimits {
            line_bytes,
            blob_bytes,
            blobs: _,
            total_bytes: _,
        } = FrameLimits::default();
        let scratch = scratch_of(&self.config.scratch, self.pid());
        if let Err(error) = std::fs::create_dir_all(&scratch) {
            warn!(worker = %self.config.name, %error, "A worker's scratch folder could not be made");
        }
        let every_ms = u64::try_from(self.config.timing.heartbeat_every.as_millis()).unwrap_or(u64::MAX);
        Welcome {
            protocol: PROTOCOL,
            device: self.config.device.clone(),
            limits: Limits {
                frame_bytes: line_bytes as u64,
                blob_bytes: blob_bytes as u64,
            },
            heartbeat: Heartbeat { every_ms },
            scratch: scratch.to_string_lossy().into_owned(),
            threads: self.config.threads,
            deterministic: false,
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

    fn leave(&mut self, cause: ExitCause, stage: Stage, next: Instant) {
        // Always legal: an incarnation that is not gone can be asked to leave.
        self.state = self.state.on(Move::Leave).unwrap_or(State::Stopping);
        self.leaving = Some(Leaving {
            cause,
            stage,
            next: Some(next),
        });
    }

    /// Goes one stage further.
    fn insist(&mut self, now: Instant) {
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

/// Whether the driver has room for more events of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intake {
    /// Frames are read.
    Open,
    /// The dispatcher has not taken what came before: frames wait in the pipe.
    Full,
}

fn scratch_of(scratch: &Path, pid: u32) -> PathBuf {
    scratch.join(format!("worker-{pid}"))
}

fn remove_scratch(scratch: &Path) {
    match std::fs::remove_dir_all(scratch) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!(%error, scratch = %scratch.display(), "A scratch folder could not be removed"),
    }
}
