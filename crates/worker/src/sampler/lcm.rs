//! Multistep sampling of a latent consistency model (Luo et al., "Latent Consistency Models", 2023; Song et
//! al., "Consistency Models", 2023, Algorithm 1).

use super::level::{Level, blend};

/// The standard deviation of the data that the boundary condition assumes.
const DATA_DEVIATION: f64 = 0.5;

/// Holds how much the timestep is stretched in the boundary condition.
#[derive(Debug, Clone)]
pub(super) struct Lcm {
    pub(super) timestep_scaling: f64,
}

impl Lcm {
    /// One step: all the way to the picture, then back up to the noise of the next evaluation with new noise.
    pub(super) fn step(
        &self,
        timestep: f32,
        next: Level,
        denoised: &[f32],
        latents: &mut [f32],
        noise: &mut dyn FnMut() -> Vec<f32>,
    ) {
        let time = f64::from(timestep) * self.timestep_scaling;
        let total = time * time + DATA_DEVIATION * DATA_DEVIATION;
        blend(
            latents,
            (DATA_DEVIATION * DATA_DEVIATION / total, time / total.sqrt()),
            denoised,
        );
        if next.noise > 0.0 {
            blend(latents, (next.signal, next.noise), &noise());
        }
    }
}
