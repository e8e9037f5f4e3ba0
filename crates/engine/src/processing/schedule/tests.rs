//! Laws of the scheduler: whose turn it is (`lanes`), and which worker suits a demand and what must happen there
//! (`placement`). What follows from several decisions together is in the laws of the core.

mod lanes;
mod placement;

use calotype_protocol::{Capabilities, Mode, Sampler, Schedule};

/// A worker that can do everything, for the laws of the core as well.
pub(crate) fn can(places: u32) -> Capabilities {
    Capabilities {
        engine: "virtual".into(),
        families: vec!["sd".into()],
        formats: vec!["diffusers".into()],
        work: vec!["generate".into()],
        modes: Mode::ALL.to_vec(),
        samplers: Sampler::ALL.to_vec(),
        schedules: Schedule::ALL.to_vec(),
        adapters: vec!["lora".into()],
        plans: Vec::new(),
        segments: false,
        loads_beside_runs: false,
        max_batch: places,
        pauses: true,
        previews: true,
        max_edge: 1 << 20,
    }
}
