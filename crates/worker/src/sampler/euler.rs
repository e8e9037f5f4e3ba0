//! Euler's method on the probability flow, and its ancestral variant.
//!
//! Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, Algorithm 1
//! without its second half; the ancestral step takes away more noise than it should and puts new noise in its
//! place, as in Ho et al., "Denoising Diffusion Probabilistic Models", 2020.

use super::level::{Level, blend};

/// One plain step.
pub(super) fn step(here: Level, next: Level, denoised: &[f32], latents: &mut [f32]) {
    blend(latents, here.toward(next), denoised);
}

/// One ancestral step; the last one adds no noise.
pub(super) fn ancestral_step(
    here: Level,
    next: Level,
    denoised: &[f32],
    latents: &mut [f32],
    noise: &mut dyn FnMut() -> Vec<f32>,
) {
    let (from, to) = (here.noise * here.noise, next.noise * next.noise);
    let added = (to * (from - to) / from).max(0.0);
    let below = Level {
        noise: (to - added).max(0.0).sqrt(),
        ..next
    };
    blend(latents, here.toward(below), denoised);
    if added > 0.0 {
        blend(latents, (1.0, added.sqrt()), &noise());
    }
}
