//! From a request to a plan that can run: validation (`validate`), prompt syntax (`prompt`), what it will take
//! (`estimate`), what its worker must be able to do (`needs`), and the work that goes down the pipe (`work`).

pub(crate) mod estimate;
mod images;
mod needs;
mod prompt;
mod request;
mod validate;
mod work;

pub(crate) use images::check_image;
pub use images::{InputImage, Inputs};
pub(crate) use needs::not_served;
pub use needs::{Lack, Needs};
pub use request::{GenerateRequest, LoraRequest, OutputFormat, Plan, PlannedLora};
pub(crate) use validate::plan;
pub use validate::{Abilities, Planned, Warning};
pub(crate) use work::work;
