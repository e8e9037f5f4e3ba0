//! `/api/memory`.

use axum::Json;
use axum::extract::State;
use calotype_engine::MemoryView;

use crate::App;

pub(super) async fn list(State(app): State<App>) -> Json<Vec<MemoryView>> {
    Json(app.engine.memory().await)
}
