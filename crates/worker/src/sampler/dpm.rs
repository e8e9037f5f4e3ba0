//! DPM-Solver++ of second order with two steps of memory, "2M", midpoint variant; as an ordinary and as a
//! stochastic equation.
//!
//! Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022.

use super::level::{Level, beyond, blend};

/// Which equation is solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Equation {
    /// Without new noise.
    Ordinary,
    /// With new noise in every step but the last.
    Stochastic,
}

/// Remembers the level and the denoised picture of the evaluation before.
#[derive(Debug, Clone)]
pub(super) struct Dpm {
    equation: Equation,
    before: Option<(Level, Vec<f32>)>,
}

impl Dpm {
    pub(super) fn new(equation: Equation) -> Self {
        Self {
            equation,
            before: None,
        }
    }

    pub(super) fn forget(&mut self) {
        self.before = None;
    }

    pub(super) fn step(
        &mut self,
        here: Level,
        next: Level,
        denoised: Vec<f32>,
        latents: &mut [f32],
        noise: &mut dyn FnMut() -> Vec<f32>,
    ) {
        let target = match &self.before {
            Some((level, before)) => extrapolated(*level, here, next, before, &denoised),
            None => None,
        };
        let target = target.as_deref().unwrap_or(&denoised);
        match self.equation {
            Equation::Ordinary => blend(latents, here.toward(next), target),
            Equation::Stochastic => {
                // `exp(-h)`, which is zero where h is infinite.
                let shrink = (next.noise / here.noise) * (here.signal / next.signal);
                let renewed = 1.0 - shrink * shrink;
                blend(
                    latents,
                    (next.noise / here.noise * shrink, next.signal * renewed),
                    target,
                );
                let added = next.noise * renewed.max(0.0).sqrt();
                if added > 0.0 {
                    blend(latents, (1.0, added), &noise());
                }
            }
        }
        self.before = Some((here, denoised));
    }
}

/// The denoised picture in the middle of the step from `here` to `next`, as the line through the last two
/// pictures tells it. None for the step that ends without noise: there the middle is infinitely far.
pub(super) fn extrapolated(
    before: Level,
    here: Level,
    next: Level,
    denoised_before: &[f32],
    denoised: &[f32],
) -> Option<Vec<f32>> {
    if next.noise <= 0.0 {
        return None;
    }
    let step = next.log_ratio() - here.log_ratio();
    let step_before = here.log_ratio() - before.log_ratio();
    Some(beyond(denoised, denoised_before, 0.5 * step / step_before))
}
