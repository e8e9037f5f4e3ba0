//! The one place where an error becomes an HTTP answer.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use calotype_engine::{Code, Domain, Error};
use calotype_protocol::JobId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An error on its way out, as handlers return it.
#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) Error);

/// An error with its status and domain, which `request_id` turns into the envelope.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    status: StatusCode,
    domain: Domain,
    pub(crate) error: Error,
}

/// The status of a planned operation. Its code, `NOT_SUPPORTED`, has another one where a value of a request is refused.
pub(crate) const NOT_SERVED: StatusCode = StatusCode::NOT_IMPLEMENTED;

impl Refusal {
    /// The refusal of a planned operation, which belongs to the domain of its route.
    pub(crate) fn not_served(domain: Domain, error: Error) -> Self {
        Self {
            status: NOT_SERVED,
            domain,
            error,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            status: status(error.code),
            domain: error.code.domain(),
            error,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        Refusal::from(self.0).into_response()
    }
}

/// What a client gets instead of an answer.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Envelope {
    /// The error.
    pub(crate) error: Body,
}

/// An error for a client.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Body {
    /// Stable code.
    pub(crate) code: Code,
    /// One sentence.
    pub(crate) message: String,
    /// The domain that says it.
    pub(crate) domain: Domain,
    /// The field concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// Whether the same request may succeed later.
    pub(crate) retryable: bool,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
    /// The job concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<JobId>,
    /// The request, for the logs.
    pub(crate) request_id: String,
}

/// The answer of an error.
pub(crate) fn envelope(refusal: &Refusal, request_id: &str) -> Response {
    let Refusal {
        status,
        domain,
        error,
    } = refusal;
    let body = Body {
        code: error.code,
        message: error.message.clone(),
        domain: *domain,
        field: error.field.clone(),
        retryable: error.code.retryable(),
        advice: error.advice.clone(),
        job: error.job.clone(),
        request_id: request_id.to_owned(),
    };
    let mut response = (*status, Json(Envelope { error: body })).into_response();
    if let Some(after_ms) = error.retry_after_ms {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(after_ms.div_ceil(1000).max(1)));
    }
    response
}

/// The HTTP status of each code.
pub(crate) fn status(code: Code) -> StatusCode {
    match code {
        Code::MalformedBody => StatusCode::BAD_REQUEST,
        Code::Unauthorized => StatusCode::UNAUTHORIZED,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::Conflict | Code::KeyReused | Code::Cancelled => StatusCode::CONFLICT,
        Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::InvalidInput
        | Code::ImageRefused
        | Code::UnknownModel
        | Code::ModelUnusable
        | Code::NotSupported
        | Code::DoesNotFit => StatusCode::UNPROCESSABLE_ENTITY,
        Code::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        Code::WorkerFailed | Code::Quarantined | Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Code::NoWorker | Code::ShuttingDown | Code::StoreFailed => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineMissed => StatusCode::GATEWAY_TIMEOUT,
        Code::OutOfMemory | Code::StoreFull => StatusCode::INSUFFICIENT_STORAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_an_error_on_the_wire_and_its_name_is_its_own() {
        let mut names = std::collections::BTreeSet::new();
        for code in Code::ALL {
            let status = status(*code);
            assert!(status.is_client_error() || status.is_server_error(), "{code:?}");
            assert!(names.insert(code.wire()), "{code:?}");
            assert_eq!(serde_json::to_value(code).unwrap(), code.wire());
        }
    }

    #[test]
    fn a_disk_at_fault_is_a_server_that_may_serve_again_later() {
        for (code, expected) in [(Code::StoreFull, 507), (Code::StoreFailed, 503)] {
            assert_eq!(status(code).as_u16(), expected);
            assert!(code.retryable(), "{code:?}");
        }
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let error = Error::new(Code::QueueFull, "full").retry_after_ms(1500);
        let response = envelope(&Refusal::from(error), "req_1");
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
    }
}
