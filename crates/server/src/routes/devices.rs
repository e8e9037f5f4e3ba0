//! `/api/devices`.

use axum::Json;
use axum::extract::State;
use calotype_engine::{Code, DeviceView, Error};

use crate::App;
use crate::error::Refused;
use crate::segment::Segment;

pub(super) async fn list(State(app): State<App>) -> Result<Json<Vec<DeviceView>>, Refused> {
    Ok(Json(app.engine.devices().await?))
}

pub(super) async fn show(State(app): State<App>, Segment(id): Segment) -> Result<Json<DeviceView>, Refused> {
    let found = app
        .engine
        .devices()
        .await?
        .into_iter()
        .find(|view| view.device.id == id);
    let missing = || {
        Refused(Error::new(Code::NotFound, "there is no such device").advice("GET /api/devices lists them"))
    };
    found.map(Json).ok_or_else(missing)
}
