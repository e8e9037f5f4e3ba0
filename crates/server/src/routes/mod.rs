//! One file a domain; the table of all routes that are served, from which both the router and `/openapi.json` are made.
//! `route` is what a line of the table says; `planned` is the table of the routes that are not served yet.

mod artifacts;
mod devices;
mod events;
mod inference;
mod jobs;
mod memory;
mod models;
mod operations;
mod planned;
mod route;
mod whole;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::routing::{delete, get, post};
use calotype_engine::inference::GenerateRequest;
use calotype_engine::model::ModelRecord;
use calotype_engine::processing::{JobState, JobView};
use calotype_engine::{Code, DeviceView, Event, Health, JobPage, MemoryView, Submitted, Validation};

use operations::DomainOperations;
pub(crate) use planned::{PLANNED, Planned};
#[cfg(test)]
pub(crate) use route::domain_of;
use route::{
    AFTER, ANY, ASKS, Also, BODY, CHANGES, CLASS, EVENTS, JSON, KEY, NAMED, PICTURES, PRIORITY, SUBMITS,
    WAITS, deed, in_header, in_query, limit, one, schema, shown,
};
pub(crate) use route::{Content, Parameter, Route};

pub(crate) const TABLE: &[Route] = &[
    Route {
        request: Some(schema::<GenerateRequest>),
        media: &[JSON, PICTURES[0], PICTURES[1], PICTURES[2]],
        parameters: &[CLASS, PRIORITY, KEY],
        refusals: &[ANY, ASKS, BODY, SUBMITS, WAITS],
        operations: &["I3", "I13", "I14", "I15"],
        ..deed(
            "/api/inference/generate",
            "make pictures and wait: the job as JSON, or the bytes of the first picture where Accept names its type; a client that leaves cancels the job",
            || post(inference::generate),
        )
    },
    Route {
        request: Some(schema::<GenerateRequest>),
        response: Some(schema::<Validation>),
        refusals: &[ANY, ASKS, BODY, &[Code::DoesNotFit]],
        operations: &["I5", "I16"],
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
        also: &[Also {
            status: "200",
            meaning: "the key came before with the same request: the job that it made then",
            content: Content::AsUsual,
        }],
        refusals: &[ANY, ASKS, BODY, SUBMITS],
        operations: &["I17"],
        ..deed("/api/jobs", "submit a durable job", || post(jobs::submit))
    },
    Route {
        parameters: &[
            in_query("state", "only jobs in this state", schema::<JobState>),
            in_query("limit", "most jobs in one answer", limit),
            in_query(
                "cursor",
                "go on behind this cursor, which the page before gave",
                schema::<u64>,
            ),
        ],
        operations: &["I17"],
        ..shown(
            "/api/jobs",
            "list jobs, newest first",
            || get(jobs::list),
            schema::<JobPage>,
        )
    },
    one(
        "/api/jobs/{id}",
        "show a job",
        || get(jobs::show),
        schema::<JobView>,
    )
    .serves(&["I17"]),
    Route {
        method: "delete",
        response: None,
        status: "204",
        media: &[],
        refusals: &[ANY, ASKS, NAMED, CHANGES],
        operations: &["I17"],
        ..shown(
            "/api/jobs/{id}",
            "forget a job that has ended",
            || delete(jobs::forget),
            schema::<JobView>,
        )
    },
    deed("/api/jobs/{id}/cancel", "end a job at its next step", || {
        post(jobs::cancel)
    })
    .serves(&["I10", "P6"]),
    deed("/api/jobs/{id}/pause", "hold a job at its next step", || {
        post(jobs::pause)
    })
    .serves(&["I17", "P6"]),
    deed("/api/jobs/{id}/resume", "let a paused job go on", || {
        post(jobs::resume)
    })
    .serves(&["I17", "P6"]),
    Route {
        media: &[EVENTS],
        parameters: &AFTER,
        also: &[Also {
            status: "204",
            meaning: "the job has ended and Last-Event-ID is at or behind its last event: do not reconnect",
            content: Content::Nothing,
        }],
        ..one(
            "/api/jobs/{id}/events",
            "follow a job to its end; without a number to go on from, the job as it stands comes first; an event `gap` \
             tells that events were missed, and the job as it stands follows it",
            || get(events::of_job),
            schema::<Event>,
        )
    },
    Route {
        media: &[EVENTS],
        parameters: &AFTER,
        ..shown(
            "/api/events",
            "follow everything; an event `gap` tells that events were missed, for instance over a restart",
            || get(events::of_all),
            schema::<Event>,
        )
    },
    Route {
        response: None,
        media: &PICTURES,
        parameters: &[
            in_header(
                "Range",
                "one range of bytes, for instance `bytes=0-1023`",
                schema::<String>,
            ),
            in_header("If-None-Match", "the hash in double quotes", schema::<String>),
        ],
        also: &[
            Also {
                status: "206",
                meaning: "the bytes of the range",
                content: Content::AsUsual,
            },
            Also {
                status: "304",
                meaning: "the client has these bytes",
                content: Content::Nothing,
            },
            Also {
                status: "416",
                meaning: "the range begins behind the end",
                content: Content::Nothing,
            },
        ],
        ..one(
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
    )
    .serves(&["D1", "D8", "D10"]),
    one(
        "/api/devices/{id}",
        "one device",
        || get(devices::show),
        schema::<DeviceView>,
    )
    .serves(&["D9", "D11", "D17"]),
    shown(
        "/api/models",
        "everything in the model folders: models, LoRAs, ControlNets, VAEs, embeddings and the rest",
        || get(models::list),
        schema::<Vec<ModelRecord>>,
    )
    .serves(&["O1", "O16", "O18"]),
    one(
        "/api/models/{id}",
        "one of them by its id, or by its name where only one has it",
        || get(models::show),
        schema::<ModelRecord>,
    )
    .serves(&["O20"]),
    shown(
        "/api/memory",
        "budgets and leases",
        || get(memory::list),
        schema::<Vec<MemoryView>>,
    )
    .serves(&["M1", "M3"]),
    Route {
        refusals: &[ANY],
        ..shown(
            "/api/operations",
            "every operation by domain: those that are served, and those that are planned and answer 501 with the reason",
            || get(operations::list),
            schema::<Vec<DomainOperations>>,
        )
    },
    Route {
        also: &[Also {
            status: "503",
            meaning: "the server starts, drains, or has a link that cannot do its part",
            content: Content::AsUsual,
        }],
        refusals: &[&[Code::InvalidInput]],
        ..shown(
            "/health",
            "the verdict on every link of the chain; open without a key",
            || get(whole::health),
            schema::<Health>,
        )
    },
    Route {
        response: None,
        media: &["text/plain"],
        refusals: &[ANY, &[Code::NotSupported]],
        ..shown(
            "/metrics",
            "figures for Prometheus",
            || get(whole::metrics),
            schema::<Health>,
        )
    },
    Route {
        response: None,
        refusals: &[ANY],
        ..shown(
            "/openapi.json",
            "this document",
            || get(whole::openapi),
            schema::<Health>,
        )
    },
];

/// The route that serves this request, if one does.
pub(crate) fn served(request: &Request) -> Option<&'static Route> {
    let path = request.extensions().get::<MatchedPath>()?.as_str();
    let method = answered_as(request.method());
    TABLE
        .iter()
        .find(|route| route.path == path && route.method.eq_ignore_ascii_case(method))
}

/// The method whose route answers a request: a `HEAD` is answered as a `GET`.
pub(crate) fn answered_as(method: &Method) -> &str {
    match method.as_str() {
        "HEAD" => "GET",
        other => other,
    }
}
