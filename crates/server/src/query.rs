//! The query of a request: a parameter that its route does not take is refused, because it would change nothing where
//! somebody meant it to.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use calotype_engine::{Code, Error};

use crate::error::Refused;
use crate::routes::{answered_as, served};

pub(crate) async fn check(request: Request, next: Next) -> Response {
    match unknown(&request) {
        Some(error) => Refused(error).into_response(),
        None => next.run(request).await,
    }
}

/// The first parameter that the route does not take. A method or path that no route has is refused elsewhere.
fn unknown(request: &Request) -> Option<Error> {
    request.uri().query().filter(|query| !query.is_empty())?;
    let route = served(request)?;
    let (method, path) = (answered_as(request.method()), route.path);
    let allowed: Vec<&str> = route
        .parameters
        .iter()
        .filter(|parameter| parameter.place == "query")
        .map(|parameter| parameter.name)
        .collect();
    // What cannot be split into parameters is told by the route's own reading.
    let Query(given) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).ok()?;
    let (name, _) = given
        .into_iter()
        .find(|(name, _)| !allowed.contains(&name.as_str()))?;
    let name: String = name.chars().take(100).collect();
    let advice = match allowed.as_slice() {
        [] => "the route takes no parameters in its query".to_owned(),
        allowed => format!("it takes: {}", allowed.join(", ")),
    };
    let message = format!("{method} {path} takes no parameter `{name}`");
    Some(Error::invalid(name, message).advice(advice))
}

/// A query's values, or our error with the parameter that is wrong.
pub(crate) fn values<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refused> {
    match query {
        Ok(Query(values)) => Ok(values),
        Err(rejection) => {
            let text = rejection.body_text();
            let text = text
                .strip_prefix("Failed to deserialize query string: ")
                .unwrap_or(&text);
            let (field, message) = match text.split_once(": ") {
                Some((field, message))
                    if field
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte == b'_') =>
                {
                    (field, message)
                }
                _ => ("query", text),
            };
            Err(Refused(
                Error::new(Code::InvalidInput, message)
                    .field(field)
                    .advice("GET /openapi.json describes every parameter"),
            ))
        }
    }
}
