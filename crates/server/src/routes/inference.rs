//! `/api/inference`.

use axum::Json as JsonAnswer;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use calotype_engine::inference::GenerateRequest;
use calotype_engine::processing::{Class, JobState, JobView, Promise};
use calotype_engine::{Code, Engine, Error, SubmitOptions, Submitted, Validation};
use calotype_protocol::JobId;
use serde::Deserialize;

use super::jobs::key;
use crate::accept::{Wanted, wanted};
use crate::auth::Client;
use crate::body::Json;
use crate::error::Refused;
use crate::query::values;
use crate::{App, GRACE};

/// How a job is to be treated, in the query of both ways to submit one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Treatment {
    #[serde(default)]
    pub(super) class: Class,
    #[serde(default)]
    pub(super) priority: i32,
}

/// Cancels a job when the client is gone: a handler whose client leaves is dropped.
struct CancelOnLeave {
    engine: Engine,
    job: Option<JobId>,
}

impl Drop for CancelOnLeave {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            let engine = self.engine.clone();
            tokio::spawn(async move {
                // It may have ended in this very moment.
                let _ = engine.cancel(&job).await;
            });
        }
    }
}

pub(super) async fn generate(
    State(app): State<App>,
    Client(client): Client,
    treatment: Result<Query<Treatment>, QueryRejection>,
    headers: HeaderMap,
    Json(mut request): Json<GenerateRequest>,
) -> Result<Response, Refused> {
    let Treatment { class, priority } = values(treatment)?;
    let key = key(&headers)?;
    let wanted = wanted(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
    match wanted {
        Wanted::Job | Wanted::Picture => {}
        Wanted::PictureAs(format) => request.format = request.format.or(Some(format)),
        Wanted::Nothing => {
            let error = Error::new(Code::NotSupported, "no answer can be made in the types accepted");
            return Err(Refused(error.field("Accept").advice(
                "accept application/json, image/png, image/jpeg, image/webp or image/*",
            )));
        }
    }
    // A key is a promise: the client may ask again.
    let promise = if key.is_some() {
        Promise::Kept
    } else {
        Promise::AtItsEnd
    };
    let options = SubmitOptions {
        client,
        key,
        class,
        priority,
        promise,
    };
    // In a task of its own: a client that leaves in the middle of it must not leave a job behind that nobody knows.
    let engine = app.engine.clone();
    let submitting = tokio::spawn(async move {
        let Submitted { job, existing, .. } = engine.submit(request, options).await?;
        // A job that was there before is not this client's to cancel.
        let guard = CancelOnLeave {
            engine,
            job: (!existing).then(|| job.id.clone()),
        };
        Ok::<_, Error>((job.id, guard))
    });
    let (job, mut guard) = submitting
        .await
        .map_err(|error| Error::new(Code::Internal, error.to_string()))??;
    let view = wait(&app, &job).await?;
    guard.job = None;
    let view = succeeded(view)?;
    if wanted == Wanted::Job {
        return Ok(JsonAnswer(view).into_response());
    }
    let first = view.result.as_ref().and_then(|result| result.images.first());
    let image = first.ok_or_else(|| Error::new(Code::Internal, "the job has no picture").job(job))?;
    let artifact = app.engine.artifact(&image.artifact.0).await?;
    let headers = [
        (CONTENT_TYPE, artifact.media_type.to_owned()),
        (HeaderName::from_static("x-calotype-job"), view.id.to_string()),
        (HeaderName::from_static("x-calotype-seed"), image.seed.to_string()),
    ];
    Ok((headers, artifact.bytes).into_response())
}

/// Waits for the end of a job: as long as one may, or until the server has stopped for a moment.
async fn wait(app: &App, job: &JobId) -> Result<JobView, Refused> {
    let mut stopping = app.stopping.clone();
    let stopped = async {
        let _ = stopping.changed().await;
        // Nearly there, it still comes; the connection is cut a little later.
        tokio::time::sleep(GRACE / 2).await;
    };
    tokio::select! {
        waited = tokio::time::timeout(app.config.sync_timeout, app.engine.wait(job)) => match waited {
            Ok(view) => Ok(view?),
            Err(_) => {
                let seconds = app.config.sync_timeout.as_secs();
                let error = Error::new(Code::DeadlineMissed, format!("the job took longer than {seconds} s"));
                let advice = "it was cancelled, unless it was there before; submit long work with POST /api/jobs";
                Err(Refused(error.advice(advice).job(job.clone())))
            }
        },
        () = stopped => Err(Refused(
            Error::new(Code::ShuttingDown, "the server is going down")
                .advice("send it again once the server is back; work of POST /api/jobs survives a restart")
                .job(job.clone()),
        )),
    }
}

/// A job with its pictures, or why it has none.
fn succeeded(view: JobView) -> Result<JobView, Refused> {
    match (view.state, view.error) {
        (JobState::Succeeded, error) => Ok(JobView { error, ..view }),
        (_, Some(error)) => Err(Refused(error)),
        (_, None) => Err(Refused(
            Error::new(Code::Cancelled, "the job was cancelled").job(view.id),
        )),
    }
}

pub(super) async fn validate(
    State(app): State<App>,
    Json(request): Json<GenerateRequest>,
) -> Result<JsonAnswer<Validation>, Refused> {
    Ok(JsonAnswer(app.engine.validate(request).await?))
}
