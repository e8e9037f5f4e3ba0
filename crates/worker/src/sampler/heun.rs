//! Heun's method (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
//! Algorithm 1).
//!
//! A step is two evaluations: an Euler step, then the same step again with the mean of the slopes at both its
//! ends. The last step is one evaluation, since the slope at the end is not defined there.

use super::level::Level;

/// What the first half of a step leaves for the second.
#[derive(Debug, Clone)]
struct Half {
    from: Level,
    latents: Vec<f32>,
    slope: Vec<f32>,
}

/// Remembers the first half while the second is awaited.
#[derive(Debug, Clone, Default)]
pub(super) struct Heun {
    half: Option<Half>,
}

impl Heun {
    pub(super) fn forget(&mut self) {
        self.half = None;
    }

    pub(super) fn step(&mut self, here: Level, next: Level, denoised: &[f32], latents: &mut [f32]) {
        let pairs = latents.iter().zip(denoised);
        let slope: Vec<f32> = pairs
            .map(|(x, d)| ((f64::from(*x) - f64::from(*d)) / here.noise) as f32)
            .collect();
        match self.half.take() {
            None => {
                let start = latents.to_vec();
                advance(latents, &start, next.noise - here.noise, |n| {
                    slope.get(n).copied().map(f64::from)
                });
                self.half = (next.noise > 0.0).then_some(Half {
                    from: here,
                    latents: start,
                    slope,
                });
            }
            Some(half) => {
                let mean =
                    |n: usize| Some((f64::from(*half.slope.get(n)?) + f64::from(*slope.get(n)?)) / 2.0);
                advance(latents, &half.latents, here.noise - half.from.noise, mean);
            }
        }
    }
}

/// `latents = start + distance * slope`.
fn advance(latents: &mut [f32], start: &[f32], distance: f64, slope: impl Fn(usize) -> Option<f64>) {
    for (n, (latent, start)) in latents.iter_mut().zip(start).enumerate() {
        if let Some(slope) = slope(n) {
            *latent = (f64::from(*start) + distance * slope) as f32;
        }
    }
}
