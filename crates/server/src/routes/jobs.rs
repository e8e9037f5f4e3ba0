//! `/api/jobs`.

use axum::Json as JsonAnswer;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use calotype_engine::inference::GenerateRequest;
use calotype_engine::processing::{JobState, JobView, Promise};
use calotype_engine::{Code, Error, JobPage, JobQuery, SubmitOptions};
use calotype_protocol::JobId;
use serde::Deserialize;

use super::inference::Treatment;
use crate::App;
use crate::auth::Client;
use crate::body::Json;
use crate::error::Refused;
use crate::query::values;
use crate::segment::Segment;

/// Longest idempotency key.
const LONGEST_KEY: usize = 255;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    state: Option<JobState>,
    limit: Option<usize>,
    cursor: Option<u64>,
}

type Job = Result<JsonAnswer<JobView>, Refused>;

pub(super) async fn submit(
    State(app): State<App>,
    Client(client): Client,
    treatment: Result<Query<Treatment>, QueryRejection>,
    headers: HeaderMap,
    Json(request): Json<GenerateRequest>,
) -> Result<Response, Refused> {
    let Treatment { class, priority } = values(treatment)?;
    let key = key(&headers)?;
    let engine = app.engine.clone();
    // In a task of its own: see `generate`.
    let submitting = tokio::spawn(async move {
        engine
            .submit(
                request,
                SubmitOptions {
                    client,
                    key,
                    class,
                    priority,
                    promise: Promise::Kept,
                },
            )
            .await
    });
    let submitted = submitting
        .await
        .map_err(|error| Error::new(Code::Internal, error.to_string()))??;
    let status = if submitted.existing {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let location = format!("/api/jobs/{}", submitted.job.id);
    Ok((status, [(LOCATION, location)], JsonAnswer(submitted)).into_response())
}

pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= LONGEST_KEY => Ok(Some(key.to_owned())),
        Ok(_) | Err(_) => Err(Refused(Error::invalid(
            "Idempotency-Key",
            format!("it must have 1 to {LONGEST_KEY} printable characters"),
        ))),
    }
}

pub(super) async fn list(
    State(app): State<App>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<JsonAnswer<JobPage>, Refused> {
    let Listing { state, limit, cursor } = values(listing)?;
    if limit == Some(0) {
        return Err(Refused(Error::invalid(
            "limit",
            "0 is out of range, 1 to 500 are allowed",
        )));
    }
    Ok(JsonAnswer(
        app.engine
            .jobs(JobQuery {
                state,
                cursor,
                limit: limit.unwrap_or(0),
            })
            .await?,
    ))
}

pub(super) async fn show(State(app): State<App>, Segment(id): Segment) -> Job {
    Ok(JsonAnswer(app.engine.job(&JobId(id)).await?))
}

pub(super) async fn forget(State(app): State<App>, Segment(id): Segment) -> Result<StatusCode, Refused> {
    app.engine.delete(&JobId(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn cancel(State(app): State<App>, Segment(id): Segment) -> Job {
    Ok(JsonAnswer(app.engine.cancel(&JobId(id)).await?))
}

pub(super) async fn pause(State(app): State<App>, Segment(id): Segment) -> Job {
    Ok(JsonAnswer(app.engine.pause(&JobId(id)).await?))
}

pub(super) async fn resume(State(app): State<App>, Segment(id): Segment) -> Job {
    Ok(JsonAnswer(app.engine.resume(&JobId(id)).await?))
}
