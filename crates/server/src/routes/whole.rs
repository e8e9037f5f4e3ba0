//! Routes about the server as a whole.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use calotype_engine::{Code, Error, Health};
use serde_json::Value;

use crate::App;
use crate::error::Refused;
use crate::openapi;

pub(super) async fn health(State(app): State<App>) -> (StatusCode, Json<Health>) {
    let health = app.engine.health().await;
    let status = if health.serves() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(health))
}

pub(super) async fn metrics(State(app): State<App>) -> Result<Response, Refused> {
    let handle = app.metrics.ok_or_else(|| {
        Error::new(
            Code::NotSupported,
            "another recorder of metrics is installed in this process",
        )
    })?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], handle.render()).into_response())
}

pub(super) async fn openapi() -> Json<Value> {
    Json(openapi::document())
}
