//! What a route is, and what the document says of it: parameters, answers, refusals.

use axum::routing::MethodRouter;
use calotype_engine::processing::{Class, JobView};
use calotype_engine::{Code, Domain};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::App;

pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A route and what the document says of it.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) summary: &'static str,
    /// Numbers of the operations that it serves, for instance `D1`; `planned` says of which list.
    pub(crate) operations: &'static [&'static str],
    pub(crate) handler: fn() -> MethodRouter<App>,
    pub(crate) request: Option<SchemaOf>,
    pub(crate) response: Option<SchemaOf>,
    pub(crate) status: &'static str,
    /// Types of the answer; the schema describes JSON and events.
    pub(crate) media: &'static [&'static str],
    pub(crate) parameters: &'static [Parameter],
    /// Other answers that are no errors.
    pub(crate) also: &'static [Also],
    /// Codes of the errors that it can answer.
    pub(crate) refusals: &'static [&'static [Code]],
}

impl Route {
    pub(crate) fn domain(&self) -> Domain {
        domain_of(self.path)
    }

    pub(super) const fn serves(self, operations: &'static [&'static str]) -> Self {
        Self { operations, ..self }
    }
}

/// The domain that a path belongs to by its first word behind `/api`.
pub(crate) fn domain_of(path: &str) -> Domain {
    let word = path.strip_prefix("/api/").and_then(|rest| rest.split('/').next());
    match word {
        Some("devices") => Domain::Device,
        Some("memory") => Domain::Memory,
        Some("models") => Domain::Model,
        Some("jobs" | "events" | "ws" | "artifacts" | "workflows" | "sessions" | "batches" | "queue") => {
            Domain::Processing
        }
        Some("inference") => Domain::Inference,
        Some("postprocessing") => Domain::Postprocessing,
        Some(_) | None => Domain::Server,
    }
}

/// A parameter of a route. Those in the query are the only ones that it takes.
pub(crate) struct Parameter {
    /// `query` or `header`.
    pub(crate) place: &'static str,
    pub(crate) name: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) schema: SchemaOf,
}

/// Another answer that is no error.
pub(crate) struct Also {
    pub(crate) status: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) content: Content,
}

/// What comes with it.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// The same as with the usual answer.
    AsUsual,
    /// Nothing.
    Nothing,
}

pub(super) fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

pub(super) fn limit(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 1, "maximum": 500, "default": 50 })
}

fn key(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 255 })
}

pub(super) const fn in_query(name: &'static str, meaning: &'static str, schema: SchemaOf) -> Parameter {
    Parameter {
        place: "query",
        name,
        meaning,
        schema,
    }
}

pub(super) const fn in_header(name: &'static str, meaning: &'static str, schema: SchemaOf) -> Parameter {
    Parameter {
        place: "header",
        name,
        meaning,
        schema,
    }
}

pub(super) const JSON: &str = "application/json";
pub(super) const EVENTS: &str = "text/event-stream";
pub(super) const PICTURES: [&str; 3] = ["image/png", "image/jpeg", "image/webp"];

pub(super) const CLASS: Parameter = in_query(
    "class",
    "who goes first; `interactive` by default",
    schema::<Class>,
);
pub(super) const PRIORITY: Parameter = in_query(
    "priority",
    "larger goes first within the class; 0 by default",
    schema::<i32>,
);
pub(super) const KEY: Parameter = in_header(
    "Idempotency-Key",
    "the same key with the same request gives the same job",
    key,
);
pub(super) const AFTER: [Parameter; 2] = [
    in_header("Last-Event-ID", "go on behind this event", schema::<u64>),
    in_query(
        "after",
        "go on behind this event, where the header is absent",
        schema::<u64>,
    ),
];

/// Every route that needs a key.
pub(super) const ANY: &[Code] = &[Code::Unauthorized, Code::InvalidInput];
/// Routes that ask the dispatcher or the journal.
pub(super) const ASKS: &[Code] = &[
    Code::StoreFailed,
    Code::StoreFull,
    Code::ShuttingDown,
    Code::Internal,
];
/// Routes with a name in their path.
pub(super) const NAMED: &[Code] = &[Code::NotFound];
/// Routes that change a job.
pub(super) const CHANGES: &[Code] = &[Code::Conflict];
/// Routes that take a request for pictures.
pub(super) const BODY: &[Code] = &[
    Code::MalformedBody,
    Code::TooLarge,
    Code::ImageRefused,
    Code::UnknownModel,
    Code::ModelUnusable,
    Code::NotSupported,
    Code::NotFound,
];
/// Routes that make a job of it.
pub(super) const SUBMITS: &[Code] = &[Code::KeyReused, Code::QueueFull, Code::DoesNotFit];
/// Routes that wait for its end.
pub(super) const WAITS: &[Code] = &[
    Code::Cancelled,
    Code::DeadlineMissed,
    Code::NoWorker,
    Code::OutOfMemory,
    Code::Quarantined,
    Code::WorkerFailed,
];

pub(super) const fn shown(
    path: &'static str,
    summary: &'static str,
    handler: fn() -> MethodRouter<App>,
    response: SchemaOf,
) -> Route {
    Route {
        method: "get",
        path,
        summary,
        operations: &[],
        handler,
        request: None,
        response: Some(response),
        status: "200",
        media: &[JSON],
        parameters: &[],
        also: &[],
        refusals: &[ANY, ASKS],
    }
}

/// One thing by the name in its path.
pub(super) const fn one(
    path: &'static str,
    summary: &'static str,
    handler: fn() -> MethodRouter<App>,
    response: SchemaOf,
) -> Route {
    Route {
        refusals: &[ANY, ASKS, NAMED],
        ..shown(path, summary, handler, response)
    }
}

pub(super) const fn deed(
    path: &'static str,
    summary: &'static str,
    handler: fn() -> MethodRouter<App>,
) -> Route {
    Route {
        method: "post",
        refusals: &[ANY, ASKS, NAMED, CHANGES],
        ..shown(path, summary, handler, schema::<JobView>)
    }
}
