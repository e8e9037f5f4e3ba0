//! The API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`. `/health` is open.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use calotype_engine::{Code, Error};

use crate::App;
use crate::error::Refused;

/// A secret that every client must send. It is never shown.
#[derive(Clone)]
pub struct ApiKey(String);

impl From<String> for ApiKey {
    fn from(key: String) -> Self {
        Self(key)
    }
}

impl ApiKey {
    /// Whether it would keep nobody out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

pub(crate) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(ApiKey(key)) = &app.config.api_key else {
        return next.run(request).await;
    };
    if request.uri().path() == "/health" {
        return next.run(request).await;
    }
    let headers = request.headers();
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let given = bearer.or_else(|| headers.get("x-api-key")?.to_str().ok());
    if given.is_some_and(|given| same(given.as_bytes(), key.as_bytes())) {
        return next.run(request).await;
    }
    Refused(
        Error::new(Code::Unauthorized, "the API key is missing or wrong")
            .advice("send it as `Authorization: Bearer KEY`"),
    )
    .into_response()
}

/// Compares in a time that does not tell how much of the key was right.
fn same(given: &[u8], key: &[u8]) -> bool {
    let different = given
        .iter()
        .zip(key.iter().cycle())
        .fold(0, |different, (a, b)| different | (a ^ b));
    given.len() == key.len() && different == 0
}

#[cfg(test)]
mod tests {
    use super::{ApiKey, same};

    #[test]
    fn a_key_is_not_shown() {
        assert!(!format!("{:?}", ApiKey::from("secret".to_owned())).contains("secret"));
    }

    #[test]
    fn only_the_whole_key_opens() {
        assert!(same(b"secret", b"secret"));
        for wrong in ["", "secre", "secrets", "Secret", "secretsecret"] {
            assert!(!same(wrong.as_bytes(), b"secret"), "{wrong}");
        }
    }
}
