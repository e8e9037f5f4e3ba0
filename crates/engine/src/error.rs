//! The closed list of error codes, and the one error that leaves the engine. No HTTP status here: `server/error.rs`
//! gives each code one.

use std::fmt;

use calotype_protocol::JobId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $wire:literal, $domain:ident, $retryable:literal;)+) => {
        /// Why something was refused or failed. Stable: clients branch on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Code { $($(#[$doc])* #[serde(rename = $wire)] $name),+ }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$name),+];
            /// The code on the wire.
            pub fn wire(self) -> &'static str { match self { $(Code::$name => $wire),+ } }
            /// The domain that says it.
            pub fn domain(self) -> Domain { match self { $(Code::$name => Domain::$domain),+ } }
            /// Whether the same request may succeed later.
            pub fn retryable(self) -> bool { match self { $(Code::$name => $retryable),+ } }
        }
    };
}

codes! {
    /// A field has a value that cannot be served.
    InvalidInput = "INVALID_INPUT", Inference, false;
    /// The body is not the JSON that the route takes.
    MalformedBody = "MALFORMED_BODY", Server, false;
    /// The body is larger than the limit.
    TooLarge = "TOO_LARGE", Server, false;
    /// An image cannot be decoded or breaks a limit.
    ImageRefused = "IMAGE_REFUSED", Inference, false;
    /// No such model or LoRA.
    UnknownModel = "UNKNOWN_MODEL", Model, false;
    /// The model's files are missing, corrupt or of a kind that nothing here can load.
    ModelUnusable = "MODEL_UNUSABLE", Model, false;
    /// Nothing here can do that; the message says what could.
    NotSupported = "NOT_SUPPORTED", Inference, false;
    /// No such job, artifact or route.
    NotFound = "NOT_FOUND", Server, false;
    /// The route does not take that method.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", Server, false;
    /// The job's state does not allow that.
    Conflict = "CONFLICT", Processing, false;
    /// The idempotency key was used with another request.
    KeyReused = "IDEMPOTENCY_KEY_REUSED", Processing, false;
    /// The queue holds as much as it may.
    QueueFull = "QUEUE_FULL", Processing, true;
    /// The work can never fit into the device's budget.
    DoesNotFit = "DOES_NOT_FIT", Memory, false;
    /// Memory ran out while working, also after room was made.
    OutOfMemory = "OUT_OF_MEMORY", Memory, true;
    /// The job was cancelled.
    Cancelled = "CANCELLED", Processing, false;
    /// The job's deadline passed.
    DeadlineMissed = "DEADLINE_MISSED", Processing, true;
    /// The worker reported a failure.
    WorkerFailed = "WORKER_FAILED", Inference, true;
    /// The job killed two workers and is not tried again.
    Quarantined = "QUARANTINED", Processing, false;
    /// No worker could be started.
    NoWorker = "NO_WORKER", Device, true;
    /// The API key is missing or wrong.
    Unauthorized = "UNAUTHORIZED", Server, false;
    /// The server is going down.
    ShuttingDown = "SHUTTING_DOWN", Server, true;
    /// The disk or the database failed; nothing new can be accepted until it is mended.
    StoreFailed = "STORE_FAILED", Processing, true;
    /// The disk of the data directory is full; deleting jobs makes room.
    StoreFull = "STORE_FULL", Processing, true;
    /// A mistake of ours.
    Internal = "INTERNAL", Server, false;
}

/// Which domain speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the design")]
pub enum Domain {
    Device,
    Memory,
    Model,
    Processing,
    Inference,
    Postprocessing,
    Server,
}

/// What went wrong, for a program (code, field) and for a person (message, advice).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Error {
    /// Stable code.
    pub code: Code,
    /// One sentence.
    pub message: String,
    /// The field of the request, for instance `width` or `loras[0].name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The job concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Error {
    /// An error with a code and a sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
            advice: None,
            job: None,
            retry_after_ms: None,
        }
    }

    /// A field's value cannot be served.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidInput, message).field(field)
    }

    /// Names the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Names the job.
    #[must_use]
    pub fn job(mut self, job: JobId) -> Self {
        self.job = Some(job);
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after_ms(mut self, retry_after_ms: u64) -> Self {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(field) = &self.field {
            write!(f, " (field `{field}`)")?;
        }
        if let Some(advice) = &self.advice {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
