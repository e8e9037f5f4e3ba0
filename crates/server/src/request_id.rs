//! Every answer has an `X-Request-Id`: the client's own where it is a sane one, else a new one. Errors get their envelope
//! here, because it holds the id.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::HeaderValue;
use axum::http::header::ALLOW;
use axum::middleware::Next;
use axum::response::Response;

use crate::error::{Refusal, envelope};

const HEADER: &str = "x-request-id";
const LONGEST: usize = 128;

pub(crate) async fn give(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let own = request
        .headers()
        .get(HEADER)
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            !id.is_empty()
                && id.len() <= LONGEST
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        });
    let id = own.map_or_else(|| format!("req_{}", uuid::Uuid::now_v7().simple()), str::to_owned);
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none".to_owned(), |path| path.as_str().to_owned());
    let mut response = next.run(request).await;
    if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
        tracing::debug!(request.id = %id, "Refused: {}", refusal.error);
        // The methods of a path are a header of the answer, not a part of the error.
        let allow = response.headers_mut().remove(ALLOW);
        response = envelope(&refusal, &id);
        if let Some(allow) = allow {
            response.headers_mut().insert(ALLOW, allow);
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, value);
    }
    let status = response.status().as_u16().to_string();
    metrics::counter!("calotype_http_requests_total", "route" => route.clone(), "status" => status)
        .increment(1);
    metrics::histogram!("calotype_http_request_seconds", "route" => route)
        .record(began.elapsed().as_secs_f64());
    response
}
