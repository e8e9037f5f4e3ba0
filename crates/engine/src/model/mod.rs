//! Which models lie in the folders, found out from headers and small files alone.
//!
//! `record` is what a model is, `sidecar` the optional file beside it, `header` the safetensors header, `identify` turns a
//! folder or a file into a record, `catalogue` holds them by name.

mod catalogue;
mod header;
mod identify;
mod record;
mod sidecar;

pub use catalogue::Catalogue;
pub(crate) use catalogue::nearest;
pub use record::{ModelKind, ModelRecord};
pub use sidecar::{Preset, PresetLora};
