//! `/api/operations`: every operation by domain, from the tables of what is served and of what is planned.

use axum::Json;
use calotype_engine::Domain;
use schemars::JsonSchema;
use serde::Serialize;

use super::{PLANNED, TABLE};

const DOMAINS: [Domain; 7] = [
    Domain::Device,
    Domain::Memory,
    Domain::Model,
    Domain::Processing,
    Domain::Inference,
    Domain::Postprocessing,
    Domain::Server,
];

/// The operations of a domain.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DomainOperations {
    /// The domain.
    domain: Domain,
    /// Number of operations that are served.
    served: usize,
    /// Number of operations that are planned.
    planned: usize,
    /// Served ones first.
    operations: Vec<Operation>,
}

/// A route with one of its methods.
#[derive(Debug, Serialize, JsonSchema)]
struct Operation {
    /// For instance `GET`.
    method: String,
    /// `{…}` stands for one part of the path.
    path: &'static str,
    /// `false` for a planned operation, which answers 501 `NOT_SUPPORTED`.
    served: bool,
    /// What it does, or will do.
    summary: &'static str,
    /// Numbers of the operations that it stands for, for instance `D1`: the first of the domain `device` in the list of 136 that
    /// this project sets out to serve.
    numbers: &'static [&'static str],
    /// Why a planned operation is not served.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// What serves the same need today.
    #[serde(skip_serializing_if = "Option::is_none")]
    instead: Option<&'static str>,
}

pub(super) async fn list() -> Json<Vec<DomainOperations>> {
    Json(DOMAINS.into_iter().map(of).collect())
}

fn of(domain: Domain) -> DomainOperations {
    let served = TABLE.iter().filter(|route| route.domain() == domain);
    let mut operations: Vec<Operation> = served
        .map(|route| Operation {
            method: route.method.to_ascii_uppercase(),
            path: route.path,
            served: true,
            summary: route.summary,
            numbers: route.operations,
            reason: None,
            instead: None,
        })
        .collect();
    let served = operations.len();
    for planned in PLANNED.iter().filter(|planned| planned.domain == domain) {
        operations.extend(planned.methods.iter().map(|method| Operation {
            method: method.to_ascii_uppercase(),
            path: planned.path,
            served: false,
            summary: planned.summary,
            numbers: planned.operations,
            reason: Some(planned.reason),
            instead: planned.instead,
        }));
    }
    DomainOperations {
        domain,
        served,
        planned: operations.len() - served,
        operations,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_both_tables_is_listed_in_one_domain() {
        let listed: Vec<DomainOperations> = DOMAINS.into_iter().map(of).collect();
        let served: usize = listed.iter().map(|domain| domain.served).sum();
        assert_eq!(served, TABLE.len());
        let planned: usize = listed.iter().map(|domain| domain.planned).sum();
        let methods: usize = PLANNED.iter().map(|planned| planned.methods.len()).sum();
        assert_eq!(planned, methods);
    }
}
