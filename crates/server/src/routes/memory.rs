//! `/api/memory`.

use axum::Json;
use axum::extract::State;
use calotype_engine::MemoryView;

use crate::App;
use crate::error::Refused;

pub(super) async fn list(State(app): State<App>) -> Result<Json<Vec<MemoryView>>, Refused> {
    Ok(Json(app.engine.memory().await?))
}
