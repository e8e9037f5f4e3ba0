//! `/api/artifacts`: content never changes under its address.

use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RANGE,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::App;
use crate::error::Refused;
use crate::range::{Asked, asked};
use crate::segment::Segment;

pub(super) async fn fetch(
    State(app): State<App>,
    Segment(hash): Segment,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let artifact = app.engine.artifact(&hash).await?;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = format!("\"{hash}\"");
    let always = [
        (ETAG, etag.clone()),
        (CACHE_CONTROL, "private, max-age=31536000, immutable".to_owned()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (CONTENT_TYPE, artifact.media_type.to_owned()),
    ];
    let known =
        text(IF_NONE_MATCH).is_some_and(|tags| tags == "*" || tags.split(',').any(|tag| tag.trim() == etag));
    if known {
        return Ok((StatusCode::NOT_MODIFIED, always).into_response());
    }
    let length = artifact.bytes.len();
    Ok(match asked(text(RANGE), length) {
        Asked::Whole => (always, artifact.bytes).into_response(),
        Asked::Part(part) => {
            let place = [(
                CONTENT_RANGE,
                format!("bytes {}-{}/{length}", part.start, part.end - 1),
            )];
            let bytes = artifact.bytes.slice(part);
            (StatusCode::PARTIAL_CONTENT, always, place, bytes).into_response()
        }
        Asked::Outside => {
            let place = [(CONTENT_RANGE, format!("bytes */{length}"))];
            (StatusCode::RANGE_NOT_SATISFIABLE, place).into_response()
        }
    })
}
