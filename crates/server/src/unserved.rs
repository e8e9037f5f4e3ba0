//! Requests for planned operations: 501 with the reason, where other unknown paths and methods are 404 and 405. A served route
//! goes first, so that a row of the table of planned ones cannot take anything from a route that works.

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::ALLOW;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::body::discard;
use crate::error::{Refusal, Refused};
use crate::routes::{PLANNED, Planned, answered_as, served};
use crate::{App, no_method};

pub(crate) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    if served(&request).is_some() {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let response = next.run(request).await;
        if response.status() != StatusCode::NOT_FOUND {
            return response;
        }
        // `/api/models/{id}` takes every word, also `cache`: only where no model has that name, the planned route answers.
        return match of_method(&of_path(uri.path()), &method) {
            Some(planned) => refused(planned, &method),
            None => response,
        };
    }
    let rows = of_path(request.uri().path());
    if let Some(planned) = of_method(&rows, request.method()) {
        let method = request.method().clone();
        discard(request, app.config.max_body_bytes).await;
        return refused(planned, &method);
    }
    if rows.is_empty() || request.extensions().get::<MatchedPath>().is_some() {
        return next.run(request).await;
    }
    let mut response = Refused(no_method()).into_response();
    if let Ok(allow) = HeaderValue::from_str(&allowed(&rows)) {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

fn refused(planned: &Planned, method: &Method) -> Response {
    let error = planned.error(method.as_str());
    Refusal::not_served(planned.domain, error).into_response()
}

/// The rows whose path matches a request's. Where two paths match, the one with fewer `{…}` is meant, as in the router.
fn of_path(path: &str) -> Vec<&'static Planned> {
    let matching = || PLANNED.iter().filter(move |planned| matches(planned.path, path));
    let Some(meant) = matching().min_by_key(|planned| planned.path.matches('{').count()) else {
        return Vec::new();
    };
    matching().filter(|planned| planned.path == meant.path).collect()
}

/// The row of these that has the method.
fn of_method(rows: &[&'static Planned], method: &Method) -> Option<&'static Planned> {
    let method = answered_as(method);
    rows.iter().copied().find(|planned| {
        let mut methods = planned.methods.iter();
        methods.any(|own| own.eq_ignore_ascii_case(method))
    })
}

/// Whether a path of the table matches a request's: `{…}` stands for one part that is not empty.
fn matches(planned: &str, path: &str) -> bool {
    let mut parts = path.split('/');
    let same = planned.split('/').all(|wanted| match parts.next() {
        Some(part) if wanted.starts_with('{') => !part.is_empty(),
        Some(part) => part == wanted,
        None => false,
    });
    same && parts.next().is_none()
}

/// The methods of these rows, as an `Allow` header has them.
fn allowed(rows: &[&Planned]) -> String {
    let mut methods = Vec::new();
    for method in rows.iter().flat_map(|planned| planned.methods) {
        methods.push(method.to_ascii_uppercase());
        if *method == "get" {
            methods.push("HEAD".to_owned());
        }
    }
    methods.join(",")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use calotype_engine::{Code, Domain};

    use super::*;
    use crate::routes::{TABLE, domain_of};

    #[test]
    fn no_planned_route_is_served() {
        for planned in PLANNED {
            for method in planned.methods {
                let is_served = TABLE
                    .iter()
                    .any(|route| route.path == planned.path && route.method == *method);
                assert!(!is_served, "{method} {}", planned.path);
            }
        }
    }

    #[test]
    fn no_planned_route_is_twice_in_the_table() {
        let mut seen = BTreeSet::new();
        for planned in PLANNED {
            for method in planned.methods {
                assert!(seen.insert((planned.path, *method)), "{method} {}", planned.path);
            }
        }
    }

    #[test]
    fn a_part_in_braces_has_one_name_in_both_tables() {
        let mut by_shape = BTreeMap::new();
        let served = TABLE.iter().map(|route| route.path);
        for path in PLANNED.iter().map(|planned| planned.path).chain(served) {
            let shape: Vec<&str> = path
                .split('/')
                .map(|part| if part.starts_with('{') { "{}" } else { part })
                .collect();
            let first = *by_shape.entry(shape).or_insert(path);
            assert_eq!(first, path);
        }
    }

    #[test]
    fn every_planned_route_has_the_domain_of_its_path_and_says_why_it_is_not_served() {
        for planned in PLANNED {
            assert_eq!(planned.domain, domain_of(planned.path), "{}", planned.path);
            let Planned { summary, reason, .. } = planned;
            let error = planned.error("POST");
            assert_eq!(error.code, Code::NotSupported);
            assert!(error.message.contains(summary) && error.message.contains(reason));
            assert!(
                error.advice.is_some_and(|advice| !advice.is_empty()),
                "{}",
                planned.path
            );
            for text in [summary, reason] {
                assert!(!text.is_empty() && !text.ends_with('.'), "{text}");
            }
        }
        assert_eq!(domain_of("/health"), Domain::Server);
    }

    #[test]
    fn operations_have_numbers_of_the_list() {
        let served = TABLE.iter().flat_map(|route| route.operations);
        let planned = PLANNED.iter().flat_map(|planned| planned.operations);
        for number in served.chain(planned) {
            let (letter, index) = number.split_at(1);
            let last: u32 = match letter {
                "D" => 21,
                "M" => 24,
                "O" => 26,
                "P" => 20,
                "I" => 18,
                "X" => 27,
                _ => 0,
            };
            let index: u32 = index.parse().unwrap();
            assert!((1..=last).contains(&index), "{number}");
        }
    }

    #[test]
    fn a_part_in_braces_takes_one_part_that_is_not_empty() {
        for (planned, path, expected) in [
            ("/api/queue", "/api/queue", true),
            ("/api/queue", "/api/queue/", false),
            ("/api/queue", "/api", false),
            ("/api/devices/{id}/reset", "/api/devices/cpu0/reset", true),
            ("/api/devices/{id}/reset", "/api/devices/%ff/reset", true),
            ("/api/devices/{id}/reset", "/api/devices//reset", false),
            ("/api/devices/{id}/reset", "/api/devices/cpu0/reset/now", false),
        ] {
            assert_eq!(matches(planned, path), expected, "{planned} {path}");
        }
    }

    #[test]
    fn a_path_without_braces_goes_before_one_with_them() {
        let found = |method: Method, path| of_method(&of_path(path), &method).map(|planned| planned.path);
        let leases = "/api/memory/leases";
        assert_eq!(found(Method::GET, leases), Some(leases));
        assert_eq!(found(Method::HEAD, leases), Some(leases));
        assert_eq!(found(Method::POST, leases), Some(leases));
        assert_eq!(found(Method::PUT, leases), None);
        assert_eq!(
            found(Method::GET, "/api/memory/cpu0"),
            Some("/api/memory/{device}")
        );
        assert_eq!(found(Method::GET, "/api/workflows/validate"), None);
        assert_eq!(found(Method::GET, "/api/nothing"), None);
        assert_eq!(allowed(&of_path(leases)), "GET,HEAD,POST");
    }
}
