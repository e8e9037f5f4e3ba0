//! `/api/models`.

use axum::Json;
use axum::extract::State;
use calotype_engine::model::ModelRecord;

use crate::App;
use crate::error::Refused;
use crate::segment::Segment;

pub(super) async fn list(State(app): State<App>) -> Json<Vec<ModelRecord>> {
    Json(app.engine.models().await)
}

pub(super) async fn show(State(app): State<App>, Segment(id): Segment) -> Result<Json<ModelRecord>, Refused> {
    Ok(Json(app.engine.model(&id).await?))
}
