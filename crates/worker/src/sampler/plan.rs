//! Which timesteps and levels a run visits: the schedule of the model as each family of samplers reads it.

use calotype_protocol::{Sampler, Schedule};

use super::level::Level;
use super::schedule::{Grid, NoiseSchedule, Spacing, karras};

/// The timesteps by evaluation, and the levels by evaluation with the end.
pub(super) type Plan = (Vec<f32>, Vec<Level>);

/// Which spacing of the noise levels is meant. The default is the model's own, where the sampler has it.
pub(super) fn chosen_schedule(
    noise: &NoiseSchedule,
    sampler: Sampler,
    schedule: Schedule,
) -> Result<Schedule, String> {
    let has_karras = matches!(
        sampler,
        Sampler::Euler | Sampler::Heun | Sampler::DpmPp2m | Sampler::DpmPp2mSde | Sampler::UniPc
    );
    match schedule {
        Schedule::Default if noise.prefers_karras && has_karras => Ok(Schedule::Karras),
        Schedule::Default => Ok(Schedule::Default),
        Schedule::Karras if has_karras => Ok(Schedule::Karras),
        Schedule::Karras
        | Schedule::Exponential
        | Schedule::SgmUniform
        | Schedule::Simple
        | Schedule::Normal
        | Schedule::Beta => Err(format!(
            "sampler \"{}\" does not support the schedule \"{}\"",
            sampler.name(),
            schedule.name()
        )),
    }
}

/// The plan of samplers that look levels up by their timestep.
pub(super) fn by_timestep(noise: &NoiseSchedule, timesteps: Vec<f64>) -> Plan {
    let level = |timestep: &f64| Level::from_alpha_cumprod(noise.alpha_cumprod(*timestep as i64));
    let levels = timesteps.iter().map(level).chain([Level::CLEAN]).collect();
    (
        timesteps.into_iter().map(|timestep| timestep as f32).collect(),
        levels,
    )
}

/// Where DDIM's steps end.
pub(super) fn ddim_ends(noise: &NoiseSchedule, timesteps: &[f64], steps: u32) -> Vec<Level> {
    let back = i64::from(noise.train_timesteps() / steps);
    let end = |timestep: &f64| match *timestep as i64 - back {
        before if before < 0 && noise.ends_clean => Level::CLEAN,
        before => Level::from_alpha_cumprod(noise.alpha_cumprod(before)),
    };
    timesteps.iter().map(end).collect()
}

/// The plan of samplers that count in ratios of noise to signal.
pub(super) fn by_sigma(
    noise: &NoiseSchedule,
    schedule: Schedule,
    steps: u32,
    grid: Grid,
    scaling: fn(f64) -> Level,
) -> Result<Plan, String> {
    let mut timesteps = noise.timesteps(steps, noise.spacing.unwrap_or(Spacing::Linspace), grid);
    let mut sigmas: Vec<f64> = timesteps
        .iter()
        .map(|timestep| noise.sigma_at(*timestep))
        .collect();
    if schedule == Schedule::Karras {
        let (lowest, highest) = match grid {
            Grid::OneMore => noise.sigma_range(),
            Grid::Whole | Grid::Fractional => (
                sigmas.last().copied().unwrap_or(0.0),
                sigmas.first().copied().unwrap_or(0.0),
            ),
        };
        sigmas = karras(steps, lowest, highest);
        let whole = |timestep: f64| match grid {
            Grid::Fractional => timestep,
            Grid::Whole | Grid::OneMore => timestep.round_ties_even(),
        };
        timesteps = sigmas
            .iter()
            .map(|sigma| whole(noise.timestep_at(*sigma)))
            .collect();
    }
    // Rounded, since the reference is.
    let sigmas: Vec<f64> = sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect();
    if !sigmas.is_sorted_by(|before, after| before > after) {
        return Err(format!(
            "{steps} steps are too many for this model's noise schedule"
        ));
    }
    let levels = sigmas.into_iter().chain([0.0]).map(scaling).collect();
    Ok((
        timesteps.into_iter().map(|timestep| timestep as f32).collect(),
        levels,
    ))
}

/// The plan with each evaluation but the first done twice, as Heun's method needs it.
pub(super) fn twice((timesteps, levels): Plan) -> Plan {
    let last = levels.len().saturating_sub(1);
    let times = |n: usize| if n == 0 || n == last { 1 } else { 2 };
    let levels = levels
        .iter()
        .enumerate()
        .flat_map(|(n, level)| std::iter::repeat_n(*level, times(n)))
        .collect();
    let timesteps = timesteps
        .iter()
        .enumerate()
        .flat_map(|(n, time)| std::iter::repeat_n(*time, times(n)));
    (timesteps.collect(), levels)
}

/// The factor of the initial noise. With leading timesteps the first level still holds some of the picture.
pub(super) fn init_noise_sigma(noise: &NoiseSchedule, levels: &[Level]) -> f64 {
    let first = levels.first().copied().unwrap_or(Level::CLEAN);
    match noise.spacing.unwrap_or(Spacing::Linspace) {
        Spacing::Leading => first.magnitude(),
        // Variance exploding: sigma; variance preserving: 1.
        Spacing::Trailing | Spacing::Linspace if first.signal == 1.0 => first.noise,
        Spacing::Trailing | Spacing::Linspace => 1.0,
    }
}
