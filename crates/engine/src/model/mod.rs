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
//! | `segment` | the weights of a component, copied into shared memory |
//! | `swap` | a model with parts in place of its own |
//! | `usual` | steps, sampler and guidance where nobody says them |

mod catalogue;
mod family;
mod file;
mod folder;
mod graphs;
mod header;
mod record;
pub(crate) mod segment;
mod sidecar;
mod swap;
mod usual;

pub use catalogue::Catalogue;
pub(crate) use catalogue::nearest;
pub(crate) use family::text_role;
#[cfg(test)]
pub(crate) use header::tests::write as write_weights;
pub use record::{ModelKind, ModelRecord, Variant};
pub use sidecar::{Preset, PresetLora};
pub(crate) use swap::resident_id;
pub(crate) use usual::usual;
