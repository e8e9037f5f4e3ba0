//! What the process answers to its caller, by kind of end. All exit codes stand here.

use calotype_engine::{Code, Error};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// As asked.
    Ok = 0,
    /// A mistake of ours, of the disk or of the machine.
    Internal = 1,
    /// The request was refused; clap says the same for a wrong option.
    Refused = 2,
    /// No such job, model or file.
    NotFound = 3,
    /// No server answered.
    Unreachable = 4,
    /// The job failed.
    Failed = 5,
    /// Full, going down or out of memory: worth another try.
    TryAgain = 6,
    /// The job was cancelled, as after Ctrl-C.
    Cancelled = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The engine or the server says no.
    #[error("{0}")]
    Refused(Box<Error>),
    /// Nobody listens there.
    #[error("no server answers at {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("failed to {what}: {reason}")]
    File {
        /// For instance `write apple.png`.
        what: String,
        /// What the system said.
        reason: String,
    },
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(Box::new(error))
    }
}

impl Failure {
    /// Its exit code.
    pub fn exit_code(&self) -> Exit {
        match self {
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::File { .. } | Self::Other(_) => Exit::Internal,
            Self::Refused(error) => match error.code {
                Code::InvalidInput
                | Code::MalformedBody
                | Code::TooLarge
                | Code::ImageRefused
                | Code::UnknownModel
                | Code::ModelUnusable
                | Code::NotSupported
                | Code::DoesNotFit
                | Code::Conflict
                | Code::KeyReused
                | Code::MethodNotAllowed
                | Code::Unauthorized => Exit::Refused,
                Code::NotFound => Exit::NotFound,
                Code::QueueFull | Code::ShuttingDown | Code::NoWorker | Code::OutOfMemory => Exit::TryAgain,
                Code::DeadlineMissed | Code::WorkerFailed | Code::Quarantined => Exit::Failed,
                Code::Cancelled => Exit::Cancelled,
                Code::StoreFailed | Code::StoreFull | Code::Internal => Exit::Internal,
            },
        }
    }
}
