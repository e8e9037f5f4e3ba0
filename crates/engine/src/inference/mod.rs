//! From a request (`request`) to a plan that can run (`plan`): validation (`validate`, `control`, `parts`, `extras`, `loras`) against what workers
//! can do (`abilities`), prompt syntax (`prompt`), what it will take (`estimate`), what its worker must be able to do (`needs`),
//! and the work that goes down the pipe (`work`).

mod abilities;
mod control;
mod estimate;
mod extras;
mod images;
mod loras;
mod mask;
mod needs;
mod parts;
mod plan;
mod prompt;
mod request;
mod validate;
mod work;

pub use abilities::Abilities;
pub use estimate::WorkShape;
pub(crate) use estimate::{need_bytes, peak_key, work_units, worker_kind};
pub(crate) use images::check_image;
pub use images::{InputImage, Inputs};
pub(crate) use mask::paste_back;
pub(crate) use needs::not_served;
pub use needs::{AdapterNeed, MissingFeature, ModelNeed, Needs};
pub use plan::{
    MaskTreatment, Plan, PlannedControl, PlannedEmbedding, PlannedLora, PlannedRefiner, Variation,
};
pub use request::{
    ControlRequest, GenerateRequest, HiresRequest, LoraRequest, MaskArea, OutputFormat, Preprocessor,
    RefinerRequest,
};
pub(crate) use validate::plan;
pub use validate::{Planned, Warning};
pub(crate) use work::{InputFiles, work};
