//! The noise that a model was trained with, and the timesteps and noise levels of a run.
//!
//! Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (betas); Lin et al., "Common Diffusion Noise
//! Schedules and Sample Steps are Flawed", 2023, table 2 (spacings); Karras et al., "Elucidating the Design
//! Space of Diffusion-Based Generative Models", 2022, equation 5 (Karras' schedule). The tables are kept in
//! the precision in which the reference values were made: rounded to f32.

use calotype_protocol::Prediction;
use serde_json::Value;

/// The exponent of Karras' schedule.
const RHO: f64 = 7.0;
/// More than any model has; keeps a wrong configuration from taking all the memory.
const MOST_TRAIN_TIMESTEPS: u32 = 100_000;

/// The noise schedule of a model, from its `scheduler_config.json`.
///
/// Which sampler the configuration names does not matter, nor do the settings that a sampler's name fixes
/// (`algorithm_type`, `solver_order`, `solver_type`, `lower_order_final`). `clip_sample` does not matter
/// either: latents are never clipped.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    pub(super) prediction: Prediction,
    pub(super) spacing: Option<Spacing>,
    pub(super) prefers_karras: bool,
    pub(super) ends_clean: bool,
    pub(super) original_inference_steps: u32,
    pub(super) timestep_scaling: f64,
    steps_offset: u32,
    /// By timestep, falling: how much of the picture is left, squared.
    alphas_cumprod: Vec<f64>,
    /// By timestep, rising: the ratio of noise to signal.
    sigmas: Vec<f64>,
}

/// How the timesteps of a run lie in those of the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

/// What a family of samplers makes of a spacing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grid {
    /// One timestep for each step, whole numbers.
    Whole,
    /// One timestep for each step, fractions where the spacing has them.
    Fractional,
    /// As if there were one step more, whose timestep, the lowest, is left out; whole numbers.
    OneMore,
}

impl NoiseSchedule {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    ///
    /// Says which field is missing, wrong or not supported.
    pub fn from_config(config: &Value) -> Result<Self, String> {
        if !config.is_object() {
            return Err("the scheduler's configuration is not a JSON object".into());
        }
        refuse_unsupported(config)?;
        let count = whole(config, "num_train_timesteps", Some(1000))?;
        if !(2..=MOST_TRAIN_TIMESTEPS).contains(&count) {
            return Err(format!(
                "`num_train_timesteps` is {count}, not from 2 to {MOST_TRAIN_TIMESTEPS}"
            ));
        }
        let betas = betas(config, count)?;
        let alphas_cumprod = alphas_cumprod(&betas);
        let sigmas: Vec<f64> = alphas_cumprod
            .iter()
            .map(|a| f64::from(((1.0 - a) / a).sqrt()))
            .collect();
        if !sigmas.iter().all(|sigma| sigma.is_finite() && *sigma > 0.0) {
            return Err("`beta_start` and `beta_end` give a noise level of zero or infinity".into());
        }
        let prediction = match text(config, "prediction_type", Some("epsilon"))? {
            "epsilon" => Prediction::Epsilon,
            "v_prediction" => Prediction::VPrediction,
            "sample" => Prediction::Sample,
            other => return Err(format!("`prediction_type` \"{other}\" is not supported")),
        };
        let spacing = match config.get("timestep_spacing") {
            None | Some(Value::Null) => None,
            Some(_) => Some(match text(config, "timestep_spacing", None)? {
                "leading" => Spacing::Leading,
                "trailing" => Spacing::Trailing,
                "linspace" => Spacing::Linspace,
                other => return Err(format!("`timestep_spacing` \"{other}\" is not supported")),
            }),
        };
        let steps_offset = whole(config, "steps_offset", Some(0))?;
        if steps_offset >= count {
            return Err(format!(
                "`steps_offset` {steps_offset} is not less than `num_train_timesteps` {count}"
            ));
        }
        Ok(Self {
            prediction,
            spacing,
            prefers_karras: flag(config, "use_karras_sigmas", false)?,
            ends_clean: flag(config, "set_alpha_to_one", true)?,
            original_inference_steps: whole(config, "original_inference_steps", Some(50))?,
            timestep_scaling: number(config, "timestep_scaling", Some(10.0))?,
            steps_offset,
            alphas_cumprod: alphas_cumprod.into_iter().map(f64::from).collect(),
            sigmas,
        })
    }

    /// How many timesteps the training had.
    pub(super) fn train_timesteps(&self) -> u32 {
        self.sigmas.len() as u32
    }

    /// What is left of the picture at a timestep, squared; timesteps outside the training count as the
    /// nearest inside.
    pub(super) fn alpha_cumprod(&self, timestep: i64) -> f64 {
        let last = self.alphas_cumprod.len().saturating_sub(1);
        let index = usize::try_from(timestep).unwrap_or(0).min(last);
        self.alphas_cumprod.get(index).copied().unwrap_or(1.0)
    }

    /// The timesteps of a run, falling.
    pub(super) fn timesteps(&self, steps: u32, spacing: Spacing, grid: Grid) -> Vec<f64> {
        let train = self.train_timesteps();
        let omitted = u32::from(grid == Grid::OneMore);
        let points = steps + omitted;
        let timestep = |place: u32| match spacing {
            Spacing::Leading => f64::from(place * (train / points) + self.steps_offset),
            Spacing::Trailing => {
                // As numpy.arange counts: first and second value, then multiples of their difference.
                let (top, ratio) = (f64::from(train), f64::from(train) / f64::from(steps));
                let below_top = f64::from(points - 1 - place);
                (top + below_top * ((top - ratio) - top)).round_ties_even() - 1.0
            }
            Spacing::Linspace => {
                let top = f64::from(train - 1);
                let value = if place == 0 {
                    0.0
                } else {
                    f64::from(place) * (top / f64::from(points - 1))
                };
                match grid {
                    Grid::Whole | Grid::OneMore => value.round_ties_even(),
                    Grid::Fractional => f64::from(value.min(top) as f32),
                }
            }
        };
        (omitted..points).rev().map(timestep).collect()
    }

    /// The timesteps of latent consistency models: evenly chosen among those of their training.
    ///
    /// # Errors
    ///
    /// When there are more steps than the training had.
    pub(super) fn consistency_timesteps(&self, steps: u32) -> Result<Vec<f64>, String> {
        let original = self.original_inference_steps;
        if original == 0 || original > self.train_timesteps() {
            return Err(format!(
                "`original_inference_steps` {original} is not from 1 to `num_train_timesteps`"
            ));
        }
        if steps > original {
            return Err(format!(
                "sampler \"lcm\" has at most {original} steps with this model, not {steps}"
            ));
        }
        let skip = self.train_timesteps() / original;
        let stride = f64::from(original) / f64::from(steps);
        let chosen = (0..steps).map(|step| original - (f64::from(step) * stride).floor() as u32);
        Ok(chosen.map(|place| f64::from(place * skip) - 1.0).collect())
    }

    /// The ratio of noise to signal at a timestep, between two by straight interpolation.
    pub(super) fn sigma_at(&self, timestep: f64) -> f64 {
        let below = timestep.max(0.0).floor();
        let at = |index: usize| {
            self.sigmas
                .get(index)
                .or(self.sigmas.last())
                .copied()
                .unwrap_or(0.0)
        };
        let (low, high) = (at(below as usize), at(below as usize + 1));
        low + (high - low) * (timestep.max(0.0) - below)
    }

    /// The timestep at which the training had this ratio of noise to signal, by straight interpolation of the
    /// logarithm.
    pub(super) fn timestep_at(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let rounded_log = |sigma: f64| f64::from((sigma as f32).ln());
        let at = |index: usize| self.sigmas.get(index).copied().map_or(log, rounded_log);
        let below = self
            .sigmas
            .partition_point(|level| rounded_log(*level) <= log)
            .saturating_sub(1);
        let below = below.min(self.sigmas.len().saturating_sub(2));
        let (low, high) = (at(below), at(below + 1));
        let fraction = if high > low {
            ((log - low) / (high - low)).clamp(0.0, 1.0)
        } else {
            0.0
        };
        below as f64 + fraction
    }

    /// The lowest and the highest ratio of noise to signal in the training.
    pub(super) fn sigma_range(&self) -> (f64, f64) {
        (
            self.sigmas.first().copied().unwrap_or(0.0),
            self.sigmas.last().copied().unwrap_or(0.0),
        )
    }
}

/// Karras' ratios of noise to signal, falling from `highest` to `lowest`.
pub(super) fn karras(steps: u32, lowest: f64, highest: f64) -> Vec<f64> {
    let (low, high) = (lowest.powf(1.0 / RHO), highest.powf(1.0 / RHO));
    let along = |step: u32| f64::from(step) / f64::from(steps.saturating_sub(1).max(1));
    (0..steps)
        .map(|step| (high + along(step) * (low - high)).powf(RHO))
        .collect()
}

/// Settings that change the outcome and are not implemented.
fn refuse_unsupported(config: &Value) -> Result<(), String> {
    for field in [
        "trained_betas",
        "sigma_min",
        "sigma_max",
        "lambda_min_clipped",
        "shift_terminal",
    ] {
        if config.get(field).is_some_and(|value| !value.is_null()) {
            return Err(format!("`{field}` is not supported"));
        }
    }
    for field in [
        "rescale_betas_zero_snr",
        "thresholding",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_lu_lambdas",
    ] {
        if flag(config, field, false)? {
            return Err(format!("`{field}` is not supported"));
        }
    }
    let variance = text(config, "variance_type", Some("fixed_small"))?;
    if variance.starts_with("learned") {
        return Err(format!("`variance_type` \"{variance}\" is not supported"));
    }
    for (field, only) in [
        ("final_sigmas_type", "zero"),
        ("interpolation_type", "linear"),
        ("timestep_type", "discrete"),
    ] {
        let value = text(config, field, Some(only))?;
        if value != only {
            return Err(format!("`{field}` \"{value}\" is not supported"));
        }
    }
    Ok(())
}

/// How much noise each timestep of the training added.
fn betas(config: &Value, count: u32) -> Result<Vec<f32>, String> {
    let within = |field: &str| match number(config, field, None)? {
        beta if beta > 0.0 && beta < 1.0 => Ok(beta),
        beta => Err(format!("`{field}` is {beta}, not between 0 and 1")),
    };
    let (start, end) = (within("beta_start")?, within("beta_end")?);
    match text(config, "beta_schedule", None)? {
        "linear" => Ok(line(start as f32, end as f32, count)),
        "scaled_linear" => {
            let roots = line(start.sqrt() as f32, end.sqrt() as f32, count);
            Ok(roots.into_iter().map(|root| root * root).collect())
        }
        other => Err(format!("`beta_schedule` \"{other}\" is not supported")),
    }
}

/// Evenly spaced values, counted from the nearer end.
fn line(start: f32, end: f32, count: u32) -> Vec<f32> {
    let step = (end - start) / (count - 1) as f32;
    let value = |n: u32| {
        if n < count / 2 {
            start + step * n as f32
        } else {
            end - step * (count - 1 - n) as f32
        }
    };
    (0..count).map(value).collect()
}

/// The running product of `1 - beta`, multiplied in f64 and rounded at each step.
fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let multiply = |product: &mut f64, beta: &f32| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    };
    betas.iter().scan(1.0, multiply).collect()
}

fn number(config: &Value, field: &str, default: Option<f64>) -> Result<f64, String> {
    match (config.get(field), default) {
        (None | Some(Value::Null), Some(default)) => Ok(default),
        (None | Some(Value::Null), None) => Err(format!("`{field}` is missing")),
        (Some(value), _) => value
            .as_f64()
            .ok_or_else(|| format!("`{field}` is {value}, not a number")),
    }
}

fn whole(config: &Value, field: &str, default: Option<u32>) -> Result<u32, String> {
    let value = number(config, field, default.map(f64::from))?;
    if value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value) {
        Ok(value as u32)
    } else {
        Err(format!("`{field}` is {value}, not a whole number"))
    }
}

fn text<'a>(config: &'a Value, field: &str, default: Option<&'a str>) -> Result<&'a str, String> {
    match (config.get(field), default) {
        (None | Some(Value::Null), Some(default)) => Ok(default),
        (None | Some(Value::Null), None) => Err(format!("`{field}` is missing")),
        (Some(value), _) => value
            .as_str()
            .ok_or_else(|| format!("`{field}` is {value}, not a text")),
    }
}

fn flag(config: &Value, field: &str, default: bool) -> Result<bool, String> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| format!("`{field}` is {value}, not true or false")),
    }
}
