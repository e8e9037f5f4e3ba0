//! Names of things on the wire. Each is a string or number of its own type, so that they cannot be mixed up.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

text_id!(
    /// One job as a client sees it, `job_…`.
    JobId
);
text_id!(
    /// A catalogue model, for instance `calotype-tiny`.
    ModelId
);
text_id!(
    /// One worker process; a new process has a new one.
    InstanceId
);
text_id!(
    /// One `load`, to match its answer.
    LoadId
);
text_id!(
    /// A shared-memory segment that holds weights.
    SegmentId
);
text_id!(
    /// A step of a job's workflow; a plain generation has the one step `generate`.
    StepId
);

/// How often a job was started, from 1. A line with an older attempt is stale and is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
