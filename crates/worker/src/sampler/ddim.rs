//! DDIM without added noise (Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2020).

use super::level::{Level, blend};

/// Knows where each step ends. That is not always where the next one begins: a step goes back by the whole
/// part of `num_train_timesteps / steps`, however the steps are spaced.
#[derive(Debug, Clone)]
pub(super) struct Ddim {
    pub(super) ends: Vec<Level>,
}

impl Ddim {
    pub(super) fn step(&self, i: usize, here: Level, denoised: &[f32], latents: &mut [f32]) {
        let end = self.ends.get(i).copied().unwrap_or(Level::CLEAN);
        blend(latents, here.toward(end), denoised);
    }
}
