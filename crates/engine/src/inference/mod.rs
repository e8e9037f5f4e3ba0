//! From a request to a plan that can run: validation, prompt syntax, seeds, and the work that goes down the pipe.

mod request;

pub use request::{GenerateRequest, LoraRequest, OutputFormat, Plan, PlannedLora};
