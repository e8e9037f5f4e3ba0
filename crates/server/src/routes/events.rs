//! Streams of events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event as Line, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use calotype_engine::{Error, LoggedEvent, Opened, Subscription};
use calotype_protocol::JobId;
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::watch;

use crate::query::values;
use crate::App;
use crate::error::Refused;
use crate::segment::Segment;

/// A comment goes out after so long a silence: what stands between knows that the stream lives, and a client that is
/// gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// nginx holds answers back unless it is told not to.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    after: Option<u64>,
}

/// 204 tells a browser's EventSource not to come back: the job has ended, and the client knows.
pub(super) async fn of_job(
    State(app): State<App>,
    Segment(id): Segment,
    from: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let after = after(values(from)?, &headers)?;
    let mut events = app.engine.events(Some(JobId(id)), after);
    Ok(match events.open().await? {
        Opened::Following => streamed(events, app.stopping),
        Opened::Ended => StatusCode::NO_CONTENT.into_response(),
    })
}

pub(super) async fn of_all(
    State(app): State<App>,
    from: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let after = after(values(from)?, &headers)?;
    Ok(streamed(app.engine.events(None, after), app.stopping))
}

fn after(from: From, headers: &HeaderMap) -> Result<Option<u64>, Refused> {
    let Some(last) = headers.get("last-event-id") else {
        return Ok(from.after);
    };
    match last.to_str().ok().and_then(|last| last.parse().ok()) {
        Some(last) => Ok(Some(last)),
        None => Err(Refused(Error::invalid(
            "Last-Event-ID",
            "it must be the number of an event",
        ))),
    }
}

fn streamed(events: Subscription, stopping: watch::Receiver<()>) -> Response {
    let mut response = Sse::new(lines(events, stopping))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// The stream ends with its subscription, or with the server: a client goes on by `Last-Event-ID` once there is one again.
/// An event is taken from the log only when the connection has room for it, so a client that does not read holds one
/// event at most, and is told of a gap when it reads again.
fn lines(
    events: Subscription,
    stopping: watch::Receiver<()>,
) -> impl Stream<Item = Result<Line, Infallible>> + Send {
    unfold((events, stopping), async |(mut events, mut stopping)| {
        let event = tokio::select! {
            event = events.next() => event?,
            _ = stopping.changed() => return None,
        };
        Some((Ok(line(&event)), (events, stopping)))
    })
}

fn line(event: &LoggedEvent) -> Line {
    Line::default()
        .id(event.id.to_string())
        .event(event.kind.name())
        .data(event.json())
}
