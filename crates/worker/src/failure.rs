//! Short ways to write the protocol's [`Failure`]. Decides nothing.

use calotype_protocol::{Failure, Outcome};

/// A failure without detail.
pub(crate) fn failure(outcome: Outcome, message: impl Into<String>) -> Failure {
    Failure {
        outcome,
        message: message.into(),
        detail: None,
    }
}

/// A failure with its detail: file, tensor, numbers.
pub(crate) fn detailed(outcome: Outcome, message: impl Into<String>, detail: impl Into<String>) -> Failure {
    Failure {
        outcome,
        message: message.into(),
        detail: Some(detail.into()),
    }
}

/// A request that cannot be served as written.
pub(crate) fn invalid(message: impl Into<String>) -> Failure {
    failure(Outcome::InvalidInput, message)
}

/// Something this worker cannot do; the message says what could.
pub(crate) fn unsupported(message: impl Into<String>) -> Failure {
    failure(Outcome::NotSupported, message)
}

/// Weights or their description are missing or wrong.
pub(crate) fn bad_model(message: impl Into<String>, detail: impl Into<String>) -> Failure {
    detailed(Outcome::ModelLoad, message, detail)
}
