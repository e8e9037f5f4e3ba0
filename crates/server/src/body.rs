//! A JSON body, within its limits, with the field named where it is wrong.

use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use calotype_engine::{Code, Error};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use crate::App;
use crate::error::Refused;

/// The longest that a body may take to arrive.
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);

/// A parsed body.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refused> {
        let limit = app.config.max_body_bytes;
        let too_large = || {
            Refused(Error::new(
                Code::TooLarge,
                format!("the body is larger than {limit} bytes"),
            ))
        };
        // A page of another site can send text to a loopback server without asking, JSON it cannot.
        let media = request
            .headers()
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if !media
            .split(';')
            .next()
            .is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
        {
            let error = Error::new(Code::MalformedBody, "the body must come as application/json");
            return Err(Refused(
                error
                    .field("Content-Type")
                    .advice("send `Content-Type: application/json`"),
            ));
        }
        if is_announced_larger(request.headers(), limit) {
            return Err(too_large());
        }
        let bytes = tokio::time::timeout(ARRIVES_WITHIN, to_bytes(request.into_body(), limit))
            .await
            .map_err(|_| {
                Refused(Error::new(
                    Code::MalformedBody,
                    "the body did not arrive within 30 s",
                ))
            })?
            .map_err(|_| too_large())?;
        parse(&bytes).map(Self).map_err(Refused)
    }
}

/// Whether the headers say that the body is larger than `limit` bytes.
fn is_announced_larger(headers: &HeaderMap, limit: usize) -> bool {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    announced.is_some_and(|bytes| bytes > limit as u64)
}

/// Reads a body of at most `limit` bytes without keeping any of it. A connection that is closed before its request was read
/// may be reset, and its client then never sees the answer. A client that waits for `100 Continue` is not asked to send.
pub(crate) async fn discard(request: Request, limit: usize) {
    let headers = request.headers();
    if headers.contains_key(EXPECT) || is_announced_larger(headers, limit) {
        return;
    }
    let mut pieces = request.into_body().into_data_stream();
    let reading = async {
        let mut read_bytes = 0;
        while let Some(Ok(piece)) = pieces.next().await {
            read_bytes += piece.len();
            if read_bytes > limit {
                break;
            }
        }
    };
    // The answer is the same for a body that did not arrive in time.
    let _ = tokio::time::timeout(ARRIVES_WITHIN, reading).await;
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let words = inner.to_string();
        let at_top = path == "." || path == "?";
        let named = |prefix| words.strip_prefix(prefix).and_then(|rest| rest.split('`').next());
        let field = match (named("unknown field `"), named("missing field `")) {
            // The path already ends in an unknown field, and only leads to where one is missing.
            (Some(name), _) | (_, Some(name)) if at_top => Some(name.to_owned()),
            (_, Some(name)) => Some(format!("{path}.{name}")),
            _ => (!at_top).then_some(path),
        };
        // A field of the wrong kind is the request's fault, not the syntax's.
        let code = if inner.is_data() && field.is_some() {
            Code::InvalidInput
        } else {
            Code::MalformedBody
        };
        let refused = Error::new(code, format!("the body is not what this route takes: {inner}"))
            .advice("GET /openapi.json describes every field");
        match field {
            Some(field) => refused.field(field),
            None => refused,
        }
    })?;
    json.end().map_err(|error| {
        Error::new(
            Code::MalformedBody,
            format!("the body goes on behind its JSON: {error}"),
        )
    })?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use calotype_engine::inference::GenerateRequest;

    use super::*;

    fn refused(body: &str) -> (Code, Option<String>) {
        let error = parse::<GenerateRequest>(body.as_bytes()).unwrap_err();
        (error.code, error.field)
    }

    #[test]
    fn a_wrong_field_is_named() {
        assert_eq!(
            refused(r#"{"prompt":"a","colour":1}"#),
            (Code::InvalidInput, Some("colour".into()))
        );
        assert_eq!(
            refused(r#"{"prompt":"a","width":-5}"#),
            (Code::InvalidInput, Some("width".into()))
        );
        assert_eq!(
            refused(r#"{"prompt":"a","loras":[{"name":1}]}"#),
            (Code::InvalidInput, Some("loras[0].name".into()))
        );
    }

    #[test]
    fn a_missing_field_is_named() {
        assert_eq!(refused("{}"), (Code::InvalidInput, Some("prompt".into())));
        assert_eq!(
            refused(r#"{"prompt":"a","loras":[{}]}"#),
            (Code::InvalidInput, Some("loras[0].name".into()))
        );
    }

    #[test]
    fn what_is_no_json_is_malformed() {
        for body in ["", "{", "[]", "7", r#"{"prompt":"a"} x"#, "\u{0}"] {
            assert_eq!(refused(body).0, Code::MalformedBody, "{body}");
        }
    }
}
