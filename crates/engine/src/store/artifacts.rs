//! Content-addressed files.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// BLAKE3 of a file's bytes, 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ArtifactHash(pub String);
