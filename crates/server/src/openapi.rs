//! The OpenAPI 3.1 document, from the same table as the router, so that it cannot leave a route out. Schemas come from
//! schemars: the types of the wire and of HTTP have one derive, where utoipa would need a second one on each.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::error::Envelope;
use crate::routes::TABLE;

pub(crate) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = SchemaGenerator::new(settings);
    let refused = generator.subschema_for::<Envelope>();
    let mut paths: Map<String, Value> = Map::new();
    for route in TABLE {
        let mut operation = json!({
            "summary": route.summary,
            "responses": {
                route.status: answer(route.response.map(|schema| schema(&mut generator)), route.media),
                "default": {
                    "description": "the request was refused",
                    "content": { "application/json": { "schema": refused } },
                },
            },
        });
        for (status, when) in route.others {
            operation["responses"][*status] = json!({ "description": when });
        }
        if let Some(request) = route.request {
            let schema = request(&mut generator);
            operation["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        let in_path = route
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let mut parameters: Vec<Value> = in_path
            .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
            .collect();
        for (place, name, what) in route.parameters {
            parameters.push(
                json!({ "name": name, "in": place, "description": what, "schema": { "type": "string" } }),
            );
        }
        if !parameters.is_empty() {
            operation["parameters"] = Value::from(parameters);
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Calotype",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Pictures from text. Times are milliseconds, sizes bytes; errors have a stable code.",
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn answer(schema: Option<schemars::Schema>, media: &str) -> Value {
    match schema {
        Some(schema) => json!({ "description": "as asked", "content": { media: { "schema": schema } } }),
        None if media.is_empty() => json!({ "description": "as asked" }),
        None => json!({ "description": "as asked", "content": { media: {} } }),
    }
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
}
