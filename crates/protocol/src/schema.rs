//! The JSON Schema of the wire and the golden conversations, both generated from the types. `cargo xtask schema` writes
//! them into `schema/`; `cargo xtask check` compares.

use schemars::{Schema, schema_for};

use crate::{Down, Up};

/// JSON Schema of what goes down.
pub fn down() -> Schema {
    schema_for!(Down)
}

/// JSON Schema of what comes up.
pub fn up() -> Schema {
    schema_for!(Up)
}
