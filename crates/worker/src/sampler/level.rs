//! How much of a latent is picture and how much is noise.

use calotype_protocol::Prediction;

/// A latent is `signal * picture + noise * standard normal numbers`.
///
/// Two scalings occur: variance preserving (`signal² + noise² = 1`: DDIM, LCM, DPM-Solver++, UniPC) and
/// variance exploding (`signal = 1`, noise is Karras' sigma: Euler, Heun). Everything here holds for both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Level {
    pub(super) signal: f64,
    pub(super) noise: f64,
}

impl Level {
    /// The picture itself.
    pub(super) const CLEAN: Level = Level {
        signal: 1.0,
        noise: 0.0,
    };

    /// Variance preserving, from the cumulative product of the alphas.
    pub(super) fn from_alpha_cumprod(alpha: f64) -> Self {
        Self {
            signal: alpha.sqrt(),
            noise: (1.0 - alpha).sqrt(),
        }
    }

    /// Variance preserving, from the ratio of noise to signal.
    pub(super) fn preserving(sigma: f64) -> Self {
        let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self {
            signal,
            noise: sigma * signal,
        }
    }

    /// Variance exploding, from the ratio of noise to signal.
    pub(super) fn exploding(sigma: f64) -> Self {
        Self {
            signal: 1.0,
            noise: sigma,
        }
    }

    /// The standard deviation of a latent whose picture has the standard deviation 1: what the model's input
    /// is divided by.
    pub(super) fn magnitude(self) -> f64 {
        self.signal.hypot(self.noise)
    }

    /// Half the logarithm of the signal-to-noise ratio, the lambda of Lu et al. Infinite at [`Level::CLEAN`].
    pub(super) fn log_ratio(self) -> f64 {
        self.signal.ln() - self.noise.ln()
    }

    /// The factors of the latent and of the model's output whose sum is the picture that the model sees.
    pub(super) fn denoising(self, prediction: Prediction) -> (f64, f64) {
        let magnitude = self.magnitude();
        match prediction {
            Prediction::Epsilon => (1.0 / self.signal, -self.noise / self.signal),
            Prediction::VPrediction => (self.signal / (magnitude * magnitude), -self.noise / magnitude),
            Prediction::Sample => (0.0, 1.0),
        }
    }

    /// The factors of the latent and of the denoised picture whose sum is the latent at `next`: the
    /// first-order step that DDIM, Euler and DPM-Solver++ have in common. The noise in the latent stays the
    /// same, there is only less of it.
    pub(super) fn toward(self, next: Level) -> (f64, f64) {
        let keep = next.noise / self.noise;
        (keep, next.signal - keep * self.signal)
    }
}

/// `latents = keep * latents + pull * target`.
pub(super) fn blend(latents: &mut [f32], (keep, pull): (f64, f64), target: &[f32]) {
    for (latent, target) in latents.iter_mut().zip(target) {
        *latent = (keep * f64::from(*latent) + pull * f64::from(*target)) as f32;
    }
}

/// `a + factor * (a - b)`.
pub(super) fn beyond(a: &[f32], b: &[f32], factor: f64) -> Vec<f32> {
    let pairs = a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    pairs.map(|(a, b)| (a + factor * (a - b)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denoising_undoes_the_noise_in_both_scalings() {
        let (picture, noise) = (0.7, -1.3);
        for level in [
            Level::preserving(2.5),
            Level::exploding(2.5),
            Level::from_alpha_cumprod(0.3),
        ] {
            let latent = level.signal * picture + level.noise * noise;
            let magnitude = level.magnitude();
            let velocity = (level.signal * noise - level.noise * picture) / magnitude;
            for (prediction, output) in [
                (Prediction::Epsilon, noise),
                (Prediction::VPrediction, velocity),
                (Prediction::Sample, picture),
            ] {
                let (skip, out) = level.denoising(prediction);
                assert!(
                    (skip * latent + out * output - picture).abs() < 1e-12,
                    "{level:?} {prediction:?}"
                );
            }
        }
    }

    #[test]
    fn toward_keeps_the_noise() {
        let (picture, noise) = (0.7, -1.3);
        let (here, next) = (Level::preserving(2.5), Level::preserving(0.5));
        let (keep, pull) = here.toward(next);
        let latent = here.signal * picture + here.noise * noise;
        assert!(
            (keep * latent + pull * picture - (next.signal * picture + next.noise * noise)).abs() < 1e-12
        );
        assert_eq!(here.toward(Level::CLEAN), (0.0, 1.0));
    }
}
