//! The JSON Schema of the wire, made from the types, and a line of the golden conversations. `cargo xtask schema` writes both
//! into `schema/`; `cargo xtask check` compares. Every worker in any language must read and write the same lines.

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use crate::{Down, Up};

/// JSON Schema of what goes down.
pub fn down() -> Schema {
    schema_for!(Down)
}

/// JSON Schema of what comes up.
pub fn up() -> Schema {
    schema_for!(Up)
}

/// One line of a golden conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Orchestrator to worker.
    Down(Down),
    /// Worker to orchestrator.
    Up(Up),
}
