//! One file a domain; the table of all routes, from which both the router and `/openapi.json` are made.

mod artifacts;
mod devices;
mod events;
mod inference;
mod jobs;
mod memory;
mod models;
mod whole;

use axum::routing::{MethodRouter, delete, get, post};
use calotype_engine::inference::GenerateRequest;
use calotype_engine::model::ModelRecord;
use calotype_engine::processing::JobView;
use calotype_engine::{DeviceView, Event, Health, JobPage, MemoryView, Submitted, Validation};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::App;

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// A route and what the document says of it.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) handler: fn() -> MethodRouter<App>,
    pub(crate) request: Option<SchemaOf>,
    pub(crate) response: Option<SchemaOf>,
    pub(crate) status: &'static str,
    pub(crate) media: &'static str,
    /// Further statuses without a body, and when they come.
    pub(crate) others: &'static [(&'static str, &'static str)],
    /// Place (`query`, `header`), name, meaning.
    pub(crate) parameters: &'static [(&'static str, &'static str, &'static str)],
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const JSON: &str = "application/json";
const CLASS: (&str, &str, &str) = ("query", "class", "critical, interactive, batch or background");
const KEY: (&str, &str, &str) = (
    "header",
    "Idempotency-Key",
    "the same key and request give the same job",
);
/// Where a stream of events goes on.
const RESUME: &[(&str, &str, &str)] = &[
    (
        "header",
        "Last-Event-ID",
        "the `id` of the last event seen; the stream goes on behind it",
    ),
    (
        "query",
        "after",
        "the same for clients that cannot set the header, which wins over it",
    ),
];
const PRIORITY: (&str, &str, &str) = ("query", "priority", "larger goes first within the class");

const fn shown(
    path: &'static str,
    summary: &'static str,
    handler: fn() -> MethodRouter<App>,
    response: SchemaOf,
) -> Route {
    Route {
        method: "get",
        path,
        summary,
        handler,
        request: None,
        response: Some(response),
        status: "200",
        media: JSON,
        others: &[],
        parameters: &[],
    }
}

const fn deed(path: &'static str, summary: &'static str, handler: fn() -> MethodRouter<App>) -> Route {
    Route {
        method: "post",
        ..shown(path, summary, handler, schema::<JobView>)
    }
}

pub(crate) const TABLE: &[Route] = &[
    Route {
        request: Some(schema::<GenerateRequest>),
        parameters: &[
            CLASS,
            PRIORITY,
            KEY,
            (
                "header",
                "Accept",
                "image/png, image/jpeg, image/webp or image/* for the bytes of the first picture, else the job as JSON",
            ),
        ],
        ..deed(
            "/api/inference/generate",
            "make pictures and wait; a client that leaves cancels the job",
            || post(inference::generate),
        )
    },
    Route {
        request: Some(schema::<GenerateRequest>),
        response: Some(schema::<Validation>),
        ..deed(
            "/api/inference/validate",
            "check a request without running it",
            || post(inference::validate),
        )
    },
    Route {
        request: Some(schema::<GenerateRequest>),
        response: Some(schema::<Submitted>),
        status: "202",
        parameters: &[CLASS, PRIORITY, KEY],
        ..deed("/api/jobs", "submit a durable job", || post(jobs::submit))
    },
    Route {
        parameters: &[
            ("query", "state", "only jobs in this state"),
            ("query", "limit", "at most so many, 1 to 500"),
            ("query", "cursor", "go on behind this cursor"),
        ],
        ..shown(
            "/api/jobs",
            "list jobs, newest first",
            || get(jobs::list),
            schema::<JobPage>,
        )
    },
    shown(
        "/api/jobs/{id}",
        "show a job",
        || get(jobs::show),
        schema::<JobView>,
    ),
    Route {
        method: "delete",
        response: None,
        status: "204",
        media: "",
        ..shown(
            "/api/jobs/{id}",
            "forget a job that has ended",
            || delete(jobs::forget),
            schema::<JobView>,
        )
    },
    deed("/api/jobs/{id}/cancel", "end a job at its next step", || {
        post(jobs::cancel)
    }),
    deed("/api/jobs/{id}/pause", "hold a job at its next step", || {
        post(jobs::pause)
    }),
    deed("/api/jobs/{id}/resume", "let a paused job go on", || {
        post(jobs::resume)
    }),
    Route {
        media: "text/event-stream",
        others: &[(
            "204",
            "the job has ended and Last-Event-ID is at or behind its last event: do not reconnect",
        )],
        parameters: RESUME,
        ..shown(
            "/api/jobs/{id}/events",
            "follow a job to its end; without a number to go on from, the job as it stands comes first; an event `gap` \
             tells that events were missed, and the job as it stands follows it",
            || get(events::of_job),
            schema::<Event>,
        )
    },
    Route {
        media: "text/event-stream",
        parameters: RESUME,
        ..shown(
            "/api/events",
            "follow everything; an event `gap` tells that events were missed, for instance over a restart",
            || get(events::of_all),
            schema::<Event>,
        )
    },
    Route {
        response: None,
        media: "image/*",
        parameters: &[
            ("header", "Range", "one range of bytes"),
            ("header", "If-None-Match", "the hash, quoted"),
        ],
        ..shown(
            "/api/artifacts/{hash}",
            "fetch a picture by its content",
            || get(artifacts::fetch),
            schema::<JobView>,
        )
    },
    shown(
        "/api/devices",
        "devices and their workers",
        || get(devices::list),
        schema::<Vec<DeviceView>>,
    ),
    shown(
        "/api/devices/{id}",
        "one device",
        || get(devices::show),
        schema::<DeviceView>,
    ),
    shown(
        "/api/models",
        "models and LoRAs",
        || get(models::list),
        schema::<Vec<ModelRecord>>,
    ),
    shown(
        "/api/models/{id}",
        "one of them",
        || get(models::show),
        schema::<ModelRecord>,
    ),
    shown(
        "/api/memory",
        "budgets and leases",
        || get(memory::list),
        schema::<Vec<MemoryView>>,
    ),
    shown(
        "/health",
        "the chain of domains; 503 unless all are sound",
        || get(whole::health),
        schema::<Health>,
    ),
    Route {
        response: None,
        media: "text/plain",
        ..shown(
            "/metrics",
            "figures for Prometheus",
            || get(whole::metrics),
            schema::<Health>,
        )
    },
    Route {
        response: None,
        ..shown(
            "/openapi.json",
            "this document",
            || get(whole::openapi),
            schema::<Health>,
        )
    },
];
