//! The health of the server as clients see it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Domain;

/// The chain from device to postprocessing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `ok`, `starting`, `degraded` (a link cannot do its part, or a device has lost all its workers) or `draining`.
    pub status: String,
    /// In the order in which they start.
    pub chain: Vec<DomainHealth>,
    /// Version of the program.
    pub version: String,
    /// Time since the start.
    pub uptime_ms: u64,
    /// State to number of jobs in memory.
    pub jobs: BTreeMap<String, usize>,
}

impl Health {
    /// Whether new work is taken and done: also with a device that has lost its workers, while every link does its part.
    pub fn serves(&self) -> bool {
        let takes_work = self.status == "ok" || self.status == "degraded";
        takes_work && !self.chain.is_empty() && self.chain.iter().all(|link| link.healthy)
    }
}

/// One link of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainHealth {
    /// Which.
    pub domain: Domain,
    /// Whether it can do its part now.
    pub healthy: bool,
    /// What was found.
    pub detail: String,
    /// How long ago it was tried or read; absent for what was never tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_ms_ago: Option<u64>,
}
