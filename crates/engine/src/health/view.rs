//! The health of the server as clients see it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Domain;

/// The health of the server: a status, and the links from device to postprocessing that it follows from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `ok`, `starting`, `degraded` (a link cannot do its part, or a device has lost all its workers) or `draining`.
    pub status: String,
    /// The links in the order in which they start.
    pub chain: Vec<DomainHealth>,
    /// Version of the server.
    pub version: String,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// Number of live jobs in each state.
    pub jobs: BTreeMap<String, usize>,
}

impl Health {
    /// Whether new work is accepted and done. A device without workers does not change that while every link is healthy.
    pub fn serves(&self) -> bool {
        let takes_work = self.status == "ok" || self.status == "degraded";
        takes_work && !self.chain.is_empty() && self.chain.iter().all(|link| link.healthy)
    }
}

/// The health of one link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainHealth {
    /// The link.
    pub domain: Domain,
    /// Whether it can do its work now.
    pub healthy: bool,
    /// What was found, for people.
    pub detail: String,
    /// Milliseconds since it was last tried or read; absent for a link that was never tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_ms_ago: Option<u64>,
}
