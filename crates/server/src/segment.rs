//! A part of the path, as text.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use calotype_engine::{Code, Error};

use crate::error::Refused;

/// The one variable part of a route's path. What is no UTF-8 names nothing that there is.
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(rejection) => Err(Refused(
                Error::new(
                    Code::NotFound,
                    format!("nothing has this name: {}", rejection.body_text()),
                )
                .advice("percent-encode the name as UTF-8"),
            )),
        }
    }
}
