//! Streams of events.

use std::convert::Infallible;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event as Line, KeepAlive, Sse};
use calotype_engine::{Error, Subscription};
use calotype_protocol::JobId;
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::watch;

use crate::App;
use crate::error::Refused;
use crate::query::values;
use crate::segment::Segment;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    after: Option<u64>,
}

type Lines = Sse<
    axum::response::sse::KeepAliveStream<
        std::pin::Pin<Box<dyn Stream<Item = Result<Line, Infallible>> + Send>>,
    >,
>;

pub(super) async fn of_job(
    State(app): State<App>,
    Segment(id): Segment,
    from: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Lines, Refused> {
    let job = JobId(id);
    app.engine.job(&job).await?;
    let after = after(values(from)?, &headers)?;
    Ok(lines(app.engine.events(Some(job), after), app.stopping))
}

pub(super) async fn of_all(
    State(app): State<App>,
    from: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Lines, Refused> {
    let after = after(values(from)?, &headers)?;
    Ok(lines(app.engine.events(None, after), app.stopping))
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

/// The stream ends with its subscription, or with the server: a client goes on by `Last-Event-ID` once there is one again.
fn lines(subscription: Subscription, stopping: watch::Receiver<()>) -> Lines {
    let stream = unfold(
        (subscription, stopping),
        async |(mut subscription, mut stopping)| {
            let event = tokio::select! {
                event = subscription.next() => event?,
                _ = stopping.changed() => return None,
            };
            let data = serde_json::to_string(&event).unwrap_or_default();
            let line = Line::default()
                .id(event.id.to_string())
                .event(event.kind.name())
                .data(data);
            Some((Ok(line), (subscription, stopping)))
        },
    );
    let boxed: std::pin::Pin<Box<dyn Stream<Item = Result<Line, Infallible>> + Send>> = Box::pin(stream);
    Sse::new(boxed).keep_alive(KeepAlive::default())
}
