//! Which models lie in the folders, found out from headers and small files alone.
//!
//! | File | What it is |
//! | --- | --- |
//! | `record` | what is known of a model |
//! | `sidecar` | the optional small file beside it |
//! | `header` | the header of a safetensors file; weights are never read |
//! | `family` | which family such tensors or configs are of |
//! | `graphs` | the architectures that the native worker can run |
//! | `folder` | a diffusers or ONNX folder to a record |
//! | `file` | a single file, or the folder of a single part, to a record |
//! | `catalogue` | all of them by name |

mod catalogue;
mod family;
mod file;
mod folder;
mod graphs;
mod header;
mod record;
mod sidecar;

pub use catalogue::Catalogue;
pub(crate) use catalogue::{nearest, resident_id};
pub use record::{ModelKind, ModelRecord, Variant};
pub use sidecar::{Preset, PresetLora};
