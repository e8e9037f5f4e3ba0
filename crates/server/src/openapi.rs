//! The OpenAPI 3.1 document, from the same table as the router, so that it cannot leave a route out. Schemas come from
//! schemars: the types of the wire and of HTTP have one derive, where utoipa would need a second one on each.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use calotype_engine::Code;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::error::{Envelope, NOT_SERVED, status};
use crate::routes::{Content, PLANNED, Parameter, Planned, Route, TABLE};

pub(crate) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = SchemaGenerator::new(settings);
    let refused = generator.subschema_for::<Envelope>();
    let mut paths: Map<String, Value> = Map::new();
    for route in TABLE {
        let usual = content(route, &mut generator);
        let mut responses: Map<String, Value> = Map::new();
        responses.insert(route.status.into(), answer("as asked", usual.clone()));
        for also in route.also {
            let content = match also.content {
                Content::AsUsual => usual.clone(),
                Content::Nothing => None,
            };
            responses.insert(also.status.into(), answer(also.meaning, content));
        }
        for (status, codes) in refusals(route) {
            let response = responses.entry(status.as_str().to_owned());
            response.or_insert_with(|| refusal(status, &codes, &refused));
        }
        responses.insert(
            "default".into(),
            refusal(StatusCode::INTERNAL_SERVER_ERROR, &[], &refused),
        );
        let mut operation = json!({ "summary": route.summary, "responses": responses });
        if let Some(request) = route.request {
            let schema = request(&mut generator);
            operation["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        let mut parameters = in_path(route.path);
        for Parameter {
            place,
            name,
            meaning,
            schema,
        } in route.parameters
        {
            let schema = schema(&mut generator);
            parameters.push(json!({ "name": name, "in": place, "description": meaning, "schema": schema }));
        }
        if !parameters.is_empty() {
            operation["parameters"] = Value::from(parameters);
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation;
    }
    for planned in PLANNED {
        let path = paths.entry(planned.path).or_insert_with(|| json!({}));
        for method in planned.methods {
            path[*method] = not_served(planned, &refused);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Calotype",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Pictures from text. Times are milliseconds, sizes bytes; errors have a stable code. Operations \
                            with `x-not-served` are planned: they answer 501 with the reason.",
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

/// A planned operation: its one answer, which says why it is not served.
fn not_served(planned: &Planned, envelope: &Schema) -> Value {
    let mut responses: Map<String, Value> = Map::new();
    responses.insert(
        NOT_SERVED.as_str().into(),
        refusal(NOT_SERVED, &[Code::NotSupported], envelope),
    );
    let mut operation = json!({
        "summary": planned.summary,
        "description": format!("Not served: {}.", planned.reason),
        "x-not-served": true,
        "responses": responses,
    });
    let parameters = in_path(planned.path);
    if !parameters.is_empty() {
        operation["parameters"] = Value::from(parameters);
    }
    operation
}

/// The parameters that a path has in braces.
fn in_path(path: &str) -> Vec<Value> {
    path.split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect()
}

/// What comes with a route's usual answer; `None` for nothing.
fn content(route: &Route, generator: &mut SchemaGenerator) -> Option<Value> {
    let schema = route.response.map(|schema| schema(generator));
    let of = |media: &str| match &schema {
        Some(schema) if media == "application/json" || media == "text/event-stream" => {
            json!({ "schema": schema })
        }
        Some(_) | None => json!({}),
    };
    let content: Map<String, Value> = route
        .media
        .iter()
        .map(|media| ((*media).to_owned(), of(media)))
        .collect();
    (!content.is_empty()).then(|| Value::from(content))
}

fn answer(meaning: &str, content: Option<Value>) -> Value {
    match content {
        Some(content) => json!({ "description": meaning, "content": content }),
        None => json!({ "description": meaning }),
    }
}

/// The codes that a route can answer, by their status.
fn refusals(route: &Route) -> BTreeMap<StatusCode, Vec<Code>> {
    let mut by_status: BTreeMap<StatusCode, Vec<Code>> = BTreeMap::new();
    for code in route.refusals.iter().copied().flatten() {
        by_status.entry(status(*code)).or_default().push(*code);
    }
    by_status
}

fn refusal(status: StatusCode, codes: &[Code], envelope: &Schema) -> Value {
    let codes: Vec<&str> = codes.iter().map(|code| code.wire()).collect();
    let meaning = match codes.as_slice() {
        [] => "the request was refused".to_owned(),
        codes => codes.join(", "),
    };
    let mut response = answer(
        &meaning,
        Some(json!({ "application/json": { "schema": envelope } })),
    );
    if matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    ) {
        response["headers"] = json!({
            "Retry-After": {
                "description": "seconds until the same request may succeed, where that is known",
                "schema": { "type": "integer", "minimum": 1 },
            },
        });
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    match value.as_str() {
                        Some(target) if name == "$ref" => found.push(target),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_route_is_described_and_every_reference_leads_somewhere() {
        let document = document();
        for route in TABLE {
            assert!(
                document["paths"][route.path][route.method].is_object(),
                "{} {}",
                route.method,
                route.path
            );
        }
        let following = &document["paths"]["/api/jobs/{id}/events"]["get"]["responses"];
        assert!(following["200"].is_object() && following["204"]["description"].is_string());
        assert!(
            document["components"]["schemas"]["EventKind"]
                .to_string()
                .contains("missed_from")
                || document["components"]["schemas"]["Event"]
                    .to_string()
                    .contains("missed_from")
        );
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }

    #[test]
    fn a_planned_route_is_described_with_the_one_answer_that_it_gives() {
        let document = document();
        for planned in PLANNED {
            for method in planned.methods {
                let operation = &document["paths"][planned.path][*method];
                assert_eq!(operation["x-not-served"], true, "{method} {}", planned.path);
                let statuses: Vec<&String> = operation["responses"].as_object().unwrap().keys().collect();
                assert_eq!(statuses, ["501"], "{method} {}", planned.path);
            }
        }
        // A route that is served beside it keeps its own description.
        let model = &document["paths"]["/api/models/{id}"];
        assert!(model["get"]["x-not-served"].is_null() && model["get"]["responses"]["200"].is_object());
        assert_eq!(model["patch"]["parameters"], model["get"]["parameters"]);
    }

    #[test]
    fn parameters_have_the_types_that_the_routes_read() {
        let document = document();
        let of = |path: &str, method: &str, name: &str| {
            let parameters = document["paths"][path][method]["parameters"].as_array().unwrap();
            let found = parameters
                .iter()
                .find(|parameter| parameter["name"] == name)
                .unwrap();
            let schema = &found["schema"];
            match schema["$ref"].as_str() {
                Some(target) => document
                    .pointer(target.strip_prefix('#').unwrap())
                    .unwrap()
                    .clone(),
                None => schema.clone(),
            }
        };
        assert_eq!(of("/api/jobs", "get", "limit")["maximum"], 500);
        assert_eq!(of("/api/jobs", "get", "cursor")["type"], "integer");
        assert_eq!(of("/api/jobs", "post", "priority")["type"], "integer");
        assert_eq!(of("/api/events", "get", "after")["type"], "integer");
        assert!(
            of("/api/jobs", "post", "class")
                .to_string()
                .contains("interactive")
        );
        assert!(of("/api/jobs", "get", "state").to_string().contains("queued"));
    }

    #[test]
    fn every_answer_of_a_submit_and_of_the_health_is_described() {
        let document = document();
        let submit = &document["paths"]["/api/jobs"]["post"]["responses"];
        for (status, what) in [
            ("200", "the key came before"),
            ("202", "as asked"),
            ("400", "MALFORMED_BODY"),
            ("401", "UNAUTHORIZED"),
            ("409", "IDEMPOTENCY_KEY_REUSED"),
            ("413", "TOO_LARGE"),
            ("422", "INVALID_INPUT"),
            ("429", "QUEUE_FULL"),
            ("503", "SHUTTING_DOWN"),
        ] {
            let said = submit[status]["description"].as_str().unwrap_or_default();
            assert!(said.contains(what), "{status}: {said}");
        }
        assert!(submit["429"]["headers"]["Retry-After"].is_object());
        assert_eq!(submit["200"]["content"], submit["202"]["content"]);
        let health = &document["paths"]["/health"]["get"]["responses"];
        assert_eq!(health["503"]["content"], health["200"]["content"]);
        let generate = &document["paths"]["/api/inference/generate"]["post"]["responses"];
        assert!(generate["200"]["content"]["image/webp"].is_object());
        assert!(
            generate["507"]["description"]
                .as_str()
                .unwrap()
                .contains("OUT_OF_MEMORY")
        );
    }

    #[test]
    fn every_status_is_one_and_is_given_once() {
        for route in TABLE {
            let also = route.also.iter().map(|also| also.status);
            let mut all: Vec<&str> = also.chain([route.status]).collect();
            all.sort_unstable();
            let count = all.len();
            all.dedup();
            assert_eq!(all.len(), count, "{} {}", route.method, route.path);
        }
    }
}
