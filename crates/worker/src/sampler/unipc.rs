//! UniPC of second order, variant B2, on the denoised picture (Zhao et al., "UniPC: A Unified
//! Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023).
//!
//! The predictor is the step of DPM-Solver++ 2M. Each evaluation first corrects the step before it, which
//! costs no further call of the model: the new answer is used for both.

use super::dpm::extrapolated;
use super::level::{Level, blend};

/// An evaluation that has been: its level and its denoised picture.
type Past = (Level, Vec<f32>);

/// Remembers two evaluations, and the corrected latents that the last step left from.
#[derive(Debug, Clone, Default)]
pub(super) struct UniPc {
    last: Option<Past>,
    last_but_one: Option<Past>,
    last_latents: Vec<f32>,
}

impl UniPc {
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    pub(super) fn step(&mut self, here: Level, next: Level, denoised: Vec<f32>, latents: &mut [f32]) {
        if let Some(last) = &self.last {
            correct(
                self.last_but_one.as_ref(),
                last,
                &self.last_latents,
                here,
                &denoised,
                latents,
            );
        }
        self.last_latents.clear();
        self.last_latents.extend_from_slice(latents);
        let target = match &self.last {
            Some((level, before)) => extrapolated(*level, here, next, before, &denoised),
            None => None,
        };
        blend(latents, here.toward(next), target.as_deref().unwrap_or(&denoised));
        self.last_but_one = self.last.replace((here, denoised));
    }
}

/// Takes the step from `last` to `here` again, now that the denoised picture at its end is known.
fn correct(
    last_but_one: Option<&Past>,
    (last, denoised_last): &Past,
    last_latents: &[f32],
    here: Level,
    denoised: &[f32],
    latents: &mut [f32],
) {
    let (keep, pull) = last.toward(here);
    let step = here.log_ratio() - last.log_ratio();
    let (behind, before, [back, forth]) = match last_but_one {
        Some((level, before)) => {
            let behind = (level.log_ratio() - last.log_ratio()) / step;
            (behind, before, weights(step, behind))
        }
        None => (1.0, denoised_last, [0.0, 0.5]),
    };
    let pictures = denoised_last.iter().zip(before).zip(denoised);
    for ((latent, from), ((last, before), now)) in latents.iter_mut().zip(last_latents).zip(pictures) {
        let (last, before, now) = (f64::from(*last), f64::from(*before), f64::from(*now));
        let mean = last + back * (before - last) / behind + forth * (now - last);
        *latent = (keep * f64::from(*from) + pull * mean) as f32;
    }
}

/// The weights of the differences to the evaluation before and to the one at the end, such that the step is
/// exact for parabolas. `behind` is where the evaluation before lies, in steps; it is negative.
fn weights(step: f64, behind: f64) -> [f64; 2] {
    let h = -step;
    let scale = h.exp_m1();
    let first = scale / h - 1.0;
    let second = first / h - 0.5;
    let (first, second) = (first / scale, 2.0 * second / scale);
    let back = (first - second) / (1.0 - behind);
    [back, first - back]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_a_tiny_step_are_those_of_adams_and_moulton() {
        let [back, forth] = weights(1e-3, -1.0);
        assert!((back - 1.0 / 12.0).abs() < 1e-3, "{back}");
        assert!((forth - 5.0 / 12.0).abs() < 1e-3, "{forth}");
    }
}
