//! Samplers: from noise to a latent picture in a few evaluations of the model. Pure: noise comes from the caller.
//!
//! ```text
//! scheduler_config.json -> NoiseSchedule --new(sampler, schedule, steps)--> SamplerRun
//!
//!   for each evaluation i:   scale_input(i) -> the model at timestep(i) -> step(i)
//!
//!   levels:  0 ... i ... evaluations()      the noise in the latents before evaluation i; none at the end
//!   steps:   what the user counts; Heun's have two evaluations, except the last
//! ```
//!
//! `schedule` knows the model's noise, `plan` which levels a run visits, `level` what a level is, and each
//! other file how one family of samplers gets from one level to the next. All agree with diffusers'
//! schedulers; `tests/samplers.rs` holds them to it.

mod ddim;
mod dpm;
mod euler;
mod heun;
mod lcm;
mod level;
mod plan;
mod schedule;
mod unipc;

use calotype_protocol::{Prediction, Sampler, Schedule};

use ddim::Ddim;
use dpm::{Dpm, Equation};
use heun::Heun;
use lcm::Lcm;
use level::Level;
pub use schedule::NoiseSchedule;
use schedule::{Grid, Spacing};
use unipc::UniPc;

/// The samplers that [`SamplerRun::new`] knows.
pub const SUPPORTED: &[Sampler] = &[
    Sampler::Ddim,
    Sampler::Euler,
    Sampler::EulerAncestral,
    Sampler::Heun,
    Sampler::DpmPp2m,
    Sampler::DpmPp2mSde,
    Sampler::UniPc,
    Sampler::Lcm,
];

/// One run of a sampler: its levels, and what it remembers from one evaluation to the next.
#[derive(Debug, Clone)]
pub struct SamplerRun {
    prediction: Prediction,
    steps: u32,
    /// By evaluation.
    timesteps: Vec<f32>,
    /// By evaluation, and the end.
    levels: Vec<Level>,
    init_noise_sigma: f64,
    begin: usize,
    solver: Solver,
}

/// How to get from one level to the next.
#[derive(Debug, Clone)]
enum Solver {
    Ddim(Ddim),
    Euler,
    EulerAncestral,
    Heun(Heun),
    Dpm(Dpm),
    UniPc(UniPc),
    Lcm(Lcm),
}

impl Solver {
    /// The evaluations in a step.
    fn order(&self) -> usize {
        match self {
            Solver::Heun(_) => 2,
            Solver::Ddim(_) | Solver::Euler | Solver::EulerAncestral => 1,
            Solver::Dpm(_) | Solver::UniPc(_) | Solver::Lcm(_) => 1,
        }
    }

    fn forget(&mut self) {
        match self {
            Solver::Heun(heun) => heun.forget(),
            Solver::Dpm(dpm) => dpm.forget(),
            Solver::UniPc(unipc) => unipc.forget(),
            Solver::Ddim(_) | Solver::Euler | Solver::EulerAncestral | Solver::Lcm(_) => {}
        }
    }
}

impl SamplerRun {
    /// Plans a run of `steps` steps.
    ///
    /// # Errors
    ///
    /// Says what is not supported: the sampler, its combination with the schedule or the model's prediction,
    /// or the steps.
    pub fn new(
        noise: &NoiseSchedule,
        sampler: Sampler,
        schedule: Schedule,
        steps: u32,
    ) -> Result<Self, String> {
        let most = noise.train_timesteps();
        if steps == 0 || steps > most {
            return Err(format!("{steps} steps are not supported, only 1 to {most}"));
        }
        let schedule = plan::chosen_schedule(noise, sampler, schedule)?;
        let by_sigma = |grid, scaling| plan::by_sigma(noise, schedule, steps, grid, scaling);
        let (solver, (timesteps, levels)) = match sampler {
            Sampler::Ddim => {
                let timesteps =
                    noise.timesteps(steps, noise.spacing.unwrap_or(Spacing::Leading), Grid::Whole);
                let ends = plan::ddim_ends(noise, &timesteps, steps);
                (Solver::Ddim(Ddim { ends }), plan::by_timestep(noise, timesteps))
            }
            Sampler::Euler => (Solver::Euler, by_sigma(Grid::Fractional, Level::exploding)?),
            Sampler::EulerAncestral => match noise.prediction {
                Prediction::Sample => {
                    return Err(
                        "sampler \"euler_ancestral\" does not support the prediction \"sample\"".into(),
                    );
                }
                Prediction::Epsilon | Prediction::VPrediction => (
                    Solver::EulerAncestral,
                    by_sigma(Grid::Fractional, Level::exploding)?,
                ),
            },
            Sampler::Heun => {
                let plan = plan::twice(by_sigma(Grid::Fractional, Level::exploding)?);
                (Solver::Heun(Heun::default()), plan)
            }
            Sampler::DpmPp2m => (
                Solver::Dpm(Dpm::new(Equation::Ordinary)),
                by_sigma(Grid::OneMore, Level::preserving)?,
            ),
            Sampler::DpmPp2mSde => (
                Solver::Dpm(Dpm::new(Equation::Stochastic)),
                by_sigma(Grid::OneMore, Level::preserving)?,
            ),
            Sampler::UniPc => (
                Solver::UniPc(UniPc::default()),
                by_sigma(Grid::OneMore, Level::preserving)?,
            ),
            Sampler::Lcm => {
                let solver = Solver::Lcm(Lcm {
                    timestep_scaling: noise.timestep_scaling,
                });
                (
                    solver,
                    plan::by_timestep(noise, noise.consistency_timesteps(steps)?),
                )
            }
            Sampler::Ddpm
            | Sampler::Dpm2
            | Sampler::Dpm2Ancestral
            | Sampler::Lms
            | Sampler::DpmPp2sAncestral
            | Sampler::DpmPpSde
            | Sampler::Pndm
            | Sampler::Tcd => return Err(format!("sampler \"{}\" is not supported", sampler.name())),
        };
        let init_noise_sigma = plan::init_noise_sigma(noise, &levels);
        let prediction = noise.prediction;
        Ok(Self {
            prediction,
            steps,
            timesteps,
            levels,
            init_noise_sigma,
            begin: 0,
            solver,
        })
    }

    /// How often the model is evaluated in the whole schedule.
    pub fn evaluations(&self) -> usize {
        self.timesteps.len()
    }

    /// The timestep that the model is told at evaluation `i`; past the end, that of the last.
    pub fn timestep(&self, i: usize) -> f32 {
        self.timesteps
            .get(i)
            .or(self.timesteps.last())
            .copied()
            .unwrap_or(0.0)
    }

    /// The step that evaluation `i` belongs to, counted from 0 where the run begins (see
    /// [`SamplerRun::begin_at`]). This is the step whose noise [`SamplerRun::step`] asks for.
    pub fn step_of(&self, i: usize) -> u32 {
        u32::try_from(i.saturating_sub(self.begin) / self.solver.order()).unwrap_or(u32::MAX)
    }

    /// Where a run begins that keeps part of a given picture: 1 is the whole schedule, 0 is no evaluation at
    /// all (Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
    /// 2021).
    pub fn start_for_strength(&self, strength: f32) -> usize {
        // By way of the shortest decimal: 0.7 of 10 steps are 7, though the nearest f32 to 0.7 lies below it.
        let strength: f64 = strength.to_string().parse().unwrap_or(1.0);
        let kept = ((f64::from(self.steps) * strength) as u32).min(self.steps);
        let left_out = (self.steps - kept) as usize;
        (left_out * self.solver.order()).min(self.evaluations())
    }

    /// The factor of the initial noise when a run begins without a picture.
    pub fn init_noise_sigma(&self) -> f32 {
        self.init_noise_sigma as f32
    }

    /// Makes evaluation `index` the first, and forgets what has been. An index within a step is that of the
    /// step's beginning.
    pub fn begin_at(&mut self, index: usize) {
        let index = index.min(self.evaluations());
        self.begin = if index < self.evaluations() {
            index - index % self.solver.order()
        } else {
            index
        };
        self.solver.forget();
    }

    /// The latents as the model wants them at evaluation `i`: with the standard deviation of the training.
    pub fn scale_input(&self, i: usize, latents: &[f32]) -> Vec<f32> {
        let magnitude = self.level(i).magnitude();
        latents
            .iter()
            .map(|latent| (f64::from(*latent) / magnitude) as f32)
            .collect()
    }

    /// A clean latent with as much noise as evaluation `i` expects; with `evaluations()` or more it stays
    /// clean.
    pub fn add_noise(&self, i: usize, clean: &[f32], noise: &[f32]) -> Vec<f32> {
        let level = self.level(i);
        let pairs = clean
            .iter()
            .zip(noise)
            .map(|(clean, noise)| (f64::from(*clean), f64::from(*noise)));
        pairs
            .map(|(clean, noise)| (level.signal * clean + level.noise * noise) as f32)
            .collect()
    }

    /// Takes the latents from level `i` to level `i + 1` with the model's output at evaluation `i`.
    /// `step_noise` is asked for standard normal numbers, as many as there are latents, at most once; it is
    /// told the [`SamplerRun::step_of`]. Evaluations are to come in order from where the run begins; past the
    /// end nothing happens.
    pub fn step(
        &mut self,
        i: usize,
        output: &[f32],
        latents: &mut [f32],
        step_noise: &mut dyn FnMut(u32) -> Vec<f32>,
    ) {
        if i >= self.evaluations() {
            return;
        }
        let (here, next, timestep, step) = (
            self.level(i),
            self.level(i + 1),
            self.timestep(i),
            self.step_of(i),
        );
        let (skip, out) = here.denoising(self.prediction);
        let pairs = latents
            .iter()
            .zip(output)
            .map(|(latent, output)| (f64::from(*latent), f64::from(*output)));
        let denoised: Vec<f32> = pairs
            .map(|(latent, output)| (skip * latent + out * output) as f32)
            .collect();
        let mut noise = || step_noise(step);
        match &mut self.solver {
            Solver::Ddim(ddim) => ddim.step(i, here, &denoised, latents),
            Solver::Euler => euler::step(here, next, &denoised, latents),
            Solver::EulerAncestral => euler::ancestral_step(here, next, &denoised, latents, &mut noise),
            Solver::Heun(heun) => heun.step(here, next, &denoised, latents),
            Solver::Dpm(dpm) => dpm.step(here, next, denoised, latents, &mut noise),
            Solver::UniPc(unipc) => unipc.step(here, next, denoised, latents),
            Solver::Lcm(lcm) => lcm.step(timestep, next, &denoised, latents, &mut noise),
        }
    }

    fn level(&self, i: usize) -> Level {
        self.levels.get(i).copied().unwrap_or(Level::CLEAN)
    }
}

#[cfg(test)]
mod tests;
