//! What a slot tells the dispatcher.

use std::time::Duration;

use calotype_protocol::{Frame, Hello, JobId, Ready, Up, Version};

use super::config::WorkerName;

/// One fact about one process of one slot.
#[derive(Debug)]
pub struct WorkerEvent {
    /// The slot.
    pub worker: WorkerName,
    /// Which of its processes, from 1.
    pub incarnation: u64,
    /// The fact.
    pub kind: WorkerEventKind,
}

/// Of one incarnation: `Starting`, `Ready`, messages, and exactly one `Gone`, which is the last.
#[derive(Debug)]
pub enum WorkerEventKind {
    /// A process was started.
    Starting {
        /// Its process id, which is also its group's.
        pid: u32,
    },
    /// The handshake is over; work may be sent.
    Ready {
        /// Who it is.
        hello: Box<Hello>,
        /// What it can do.
        ready: Box<Ready>,
    },
    /// A line from it, beats included. The handshake, logs, pongs, `fatal` and `bye` are dealt with inside.
    Message(Frame<Up>),
    /// The process was reaped and everything in its group was killed: what it held may be given away.
    Gone(ExitReport),
}

/// How an incarnation ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ExitReport {
    /// Why.
    pub cause: ExitCause,
    /// For a person: `exit status 3`, `signal 9`, or why it could not be started.
    pub status: String,
    /// The last 4 KiB of its stderr.
    pub stderr_tail: String,
    /// When the next incarnation starts; none when the slot was stopped.
    pub restart_in: Option<Duration>,
    /// Its process id; 0 where there never was a process.
    pub pid: u32,
}

/// Why an incarnation ended, a closed set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitCause {
    /// The program could not be started; the status says why.
    FailedToStart,
    /// It left during the handshake.
    ExitedBeforeReady,
    /// It speaks another major version.
    WrongVersion {
        /// Its version.
        worker: Version,
        /// Ours.
        ours: Version,
    },
    /// It wrote what is no frame, or a frame out of turn.
    ProtocolError {
        /// What was wrong.
        reason: String,
    },
    /// No `hello` in time.
    HelloTimeout,
    /// No `ready` in time.
    ReadyTimeout,
    /// No line at all for too long, beats included.
    Silent,
    /// A job made no progress and did not heed `cancel` either.
    StepDeadline {
        /// Which.
        job: JobId,
    },
    /// A load made no progress.
    LoadDeadline,
    /// It said so itself: its device is lost.
    Fatal {
        /// Its words.
        reason: String,
    },
    /// A signal that was not ours ended it; 9 is most often the kernel's out-of-memory killer.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// It left without being asked.
    Exited,
    /// We recycled it.
    Recycled {
        /// Why.
        reason: String,
    },
    /// We stopped the slot.
    Stopped,
}
