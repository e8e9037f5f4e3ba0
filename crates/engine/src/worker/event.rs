//! What a worker tells the dispatcher.

use std::fmt;
use std::time::Duration;

use calotype_protocol::{Frame, Hello, JobId, Ready, Up, Version};

use super::config::WorkerName;

/// One fact about one process of one worker.
#[derive(Debug)]
pub struct WorkerEvent {
    /// The worker.
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
    /// When the next incarnation starts; none when the worker was stopped.
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
        /// The id of the job.
        job: JobId,
    },
    /// A load made no progress.
    LoadDeadline,
    /// It said so itself: its device is lost.
    Fatal {
        /// Its words.
        reason: String,
    },
    /// A signal that was not ours ended it.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// SIGKILL that was not ours ended it, and the kernel's out-of-memory killer ran at that time.
    OutOfMemoryKill {
        /// Memory of the process at its last beat; none where it never beat.
        used_bytes: Option<u64>,
    },
    /// It left without being asked.
    Exited,
    /// We recycled it.
    Recycled {
        /// Why.
        reason: String,
    },
    /// We stopped the worker.
    Stopped,
}

impl ExitCause {
    /// Whether a run of this job that was in the process may have brought its end about. A run is never blamed for a
    /// load that hung, for another run's deadline, or for what we asked for.
    pub fn may_be_of(&self, job: &JobId) -> bool {
        match self {
            ExitCause::Recycled { .. } | ExitCause::Stopped | ExitCause::LoadDeadline => false,
            ExitCause::StepDeadline { job: late } => late == job,
            ExitCause::FailedToStart
            | ExitCause::ExitedBeforeReady
            | ExitCause::WrongVersion { .. }
            | ExitCause::ProtocolError { .. }
            | ExitCause::HelloTimeout
            | ExitCause::ReadyTimeout
            | ExitCause::Silent
            | ExitCause::Fatal { .. }
            | ExitCause::Killed { .. }
            | ExitCause::OutOfMemoryKill { .. }
            | ExitCause::Exited => true,
        }
    }
}

/// For a person, as the end of "the worker is gone: ...".
impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitCause::FailedToStart => f.write_str("its program could not be started"),
            ExitCause::ExitedBeforeReady => f.write_str("it left before it was ready"),
            ExitCause::WrongVersion { worker, ours } => write!(
                f,
                "it speaks protocol {}.{}, this server {}.{}",
                worker.major, worker.minor, ours.major, ours.minor
            ),
            ExitCause::ProtocolError { reason } => write!(f, "it broke the protocol: {reason}"),
            ExitCause::HelloTimeout => f.write_str("it said no `hello` in time"),
            ExitCause::ReadyTimeout => f.write_str("it was not ready in time"),
            ExitCause::Silent => f.write_str("it fell silent: not even a beat came"),
            ExitCause::StepDeadline { job } => {
                write!(f, "job {job} made no progress and could not be cancelled")
            }
            ExitCause::LoadDeadline => f.write_str("a load made no progress"),
            ExitCause::Fatal { reason } => write!(f, "its device is lost: {reason}"),
            ExitCause::Killed { signal } => write!(f, "signal {signal}, not from this server, ended it"),
            ExitCause::OutOfMemoryKill { used_bytes } => {
                f.write_str(
                    "the kernel killed it for memory (out of memory): the kernel's out-of-memory killer ran at that time",
                )?;
                match used_bytes {
                    Some(bytes) => write!(f, ", and the worker had used {bytes} bytes at its last beat"),
                    None => Ok(()),
                }
            }
            ExitCause::Exited => f.write_str("it left without being asked"),
            ExitCause::Recycled { reason } => write!(f, "this server recycled it: {reason}"),
            ExitCause::Stopped => f.write_str("this server stopped it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_hung_is_no_runs_fault_and_a_late_step_only_its_own() {
        let (late, other) = (JobId::from("late"), JobId::from("other"));
        assert!(!ExitCause::LoadDeadline.may_be_of(&late));
        let cause = ExitCause::StepDeadline { job: late.clone() };
        assert!(cause.may_be_of(&late) && !cause.may_be_of(&other));
        assert!(ExitCause::OutOfMemoryKill { used_bytes: None }.may_be_of(&other));
    }

    #[test]
    fn a_kill_for_memory_is_told_as_what_is_known_of_it() {
        let known = ExitCause::OutOfMemoryKill {
            used_bytes: Some(4096),
        };
        assert_eq!(
            known.to_string(),
            "the kernel killed it for memory (out of memory): the kernel's out-of-memory killer ran at that time, \
             and the worker had used 4096 bytes at its last beat"
        );
        assert_eq!(
            ExitCause::Killed { signal: 9 }.to_string(),
            "signal 9, not from this server, ended it"
        );
    }
}
