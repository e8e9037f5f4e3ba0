use calotype_protocol::noise::normal;
use calotype_protocol::{Sampler, Schedule};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{NoiseSchedule, SUPPORTED, SamplerRun};

const COUNT: usize = 12;

fn config() -> Value {
    json!({
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": true
    })
}

fn config_with(changes: Value) -> Value {
    let mut config = config();
    let (Value::Object(fields), Value::Object(changes)) = (&mut config, changes) else {
        unreachable!()
    };
    fields.extend(changes);
    config
}

fn schedule_with(changes: Value) -> NoiseSchedule {
    NoiseSchedule::from_config(&config_with(changes)).unwrap()
}

fn run_with(changes: Value, sampler: Sampler, steps: u32) -> SamplerRun {
    SamplerRun::new(&schedule_with(changes), sampler, Schedule::Default, steps).unwrap()
}

/// Runs with a model and our noise, and returns the latents at the end.
fn denoise(run: &mut SamplerRun, model: impl Fn(&[f32], f32) -> Vec<f32>) -> Vec<f32> {
    let mut latents: Vec<f32> = normal(1, 0, COUNT)
        .iter()
        .map(|n| n * run.init_noise_sigma())
        .collect();
    for i in 0..run.evaluations() {
        let output = model(&run.scale_input(i, &latents), run.timestep(i));
        run.step(i, &output, &mut latents, &mut |step| normal(1, step + 1, COUNT));
    }
    latents
}

#[test]
fn a_model_that_knows_the_picture_gets_it_from_every_sampler() {
    let picture = normal(9, 0, COUNT);
    for &sampler in SUPPORTED
        .iter()
        .filter(|sampler| **sampler != Sampler::EulerAncestral)
    {
        let mut run = run_with(json!({"prediction_type": "sample"}), sampler, 12);
        let latents = denoise(&mut run, |_, _| picture.clone());
        for (latent, pixel) in latents.iter().zip(&picture) {
            assert!(
                (latent - pixel).abs() < 1e-3,
                "{sampler:?}: {latent} is not {pixel}"
            );
        }
    }
}

#[test]
fn heun_evaluates_every_step_but_the_last_twice() {
    for steps in [1, 2, 7] {
        let run = run_with(json!({}), Sampler::Heun, steps);
        assert_eq!(run.evaluations(), 2 * steps as usize - 1);
        assert_eq!(run.step_of(run.evaluations() - 1), steps - 1);
    }
    let run = run_with(json!({}), Sampler::Heun, 3);
    assert_eq!(
        (0..5).map(|i| run.step_of(i)).collect::<Vec<_>>(),
        [0, 0, 1, 1, 2]
    );
    assert_eq!(run.timestep(1), run.timestep(2));
}

#[test]
fn heun_begins_at_the_beginning_of_a_step() {
    let mut run = run_with(json!({}), Sampler::Heun, 5);
    run.begin_at(3);
    assert_eq!((run.step_of(2), run.step_of(4)), (0, 1));
    assert_eq!(run.start_for_strength(0.6), 4);
}

#[test]
fn strength_counts_whole_steps_as_decimals() {
    let run = run_with(json!({}), Sampler::Euler, 10);
    for (strength, start) in [
        (0.0, 10),
        (0.05, 10),
        (0.3, 7),
        (0.7, 3),
        (0.99, 1),
        (1.0, 0),
        (7.0, 0),
        (-1.0, 10),
    ] {
        assert_eq!(run.start_for_strength(strength), start, "{strength}");
    }
    assert_eq!(run.start_for_strength(f32::NAN), 10);
    assert_eq!(run_with(json!({}), Sampler::Heun, 10).start_for_strength(0.0), 19);
}

#[test]
fn steps_count_from_where_the_run_begins() {
    let mut run = run_with(json!({}), Sampler::EulerAncestral, 10);
    run.begin_at(7);
    let mut asked = Vec::new();
    let mut latents = vec![0.5; COUNT];
    for i in 7..10 {
        run.step(i, &[0.1; COUNT], &mut latents, &mut |step| {
            asked.push(step);
            normal(1, step + 1, COUNT)
        });
    }
    assert_eq!(asked, [0, 1], "the last step adds no noise");
}

#[test]
fn begin_at_forgets_what_has_been() {
    for &sampler in SUPPORTED {
        let mut run = run_with(json!({}), sampler, 6);
        let model = |latents: &[f32], _| latents.iter().map(|x| 0.5 * x.tanh()).collect();
        let first = denoise(&mut run, model);
        run.begin_at(0);
        assert_eq!(denoise(&mut run, model), first, "{sampler:?}");
    }
}

#[test]
fn add_noise_at_the_end_is_clean() {
    let (clean, noise) = (normal(3, 0, COUNT), normal(4, 0, COUNT));
    for &sampler in SUPPORTED {
        let run = run_with(json!({}), sampler, 6);
        assert_eq!(run.add_noise(run.evaluations(), &clean, &noise), clean);
        assert_ne!(run.add_noise(0, &clean, &noise), clean);
    }
}

#[test]
fn evaluations_past_the_end_change_nothing() {
    for &sampler in SUPPORTED {
        let mut run = run_with(json!({}), sampler, 3);
        let mut latents = vec![1.0; COUNT];
        run.step(
            run.evaluations(),
            &[0.3; COUNT],
            &mut latents,
            &mut |_| unreachable!(),
        );
        assert_eq!(latents, [1.0; COUNT]);
        assert_eq!(run.timestep(1000), run.timestep(run.evaluations() - 1));
        run.begin_at(1000);
        assert_eq!(run.step_of(2), 0);
    }
}

#[test]
fn trailing_timesteps_are_as_many_as_the_steps() {
    // numpy.arange, which diffusers uses, gives one too many for some of these.
    for steps in 1..=200 {
        let run = run_with(json!({"timestep_spacing": "trailing"}), Sampler::Ddim, steps);
        assert_eq!(run.evaluations(), steps as usize);
        assert_eq!(run.timestep(0), 999.0);
        assert!(run.timestep(run.evaluations()) >= 0.0);
    }
}

#[test]
fn the_models_own_karras_schedule_is_the_default() {
    let own = run_with(json!({"use_karras_sigmas": true}), Sampler::Euler, 10);
    let asked = SamplerRun::new(&schedule_with(json!({})), Sampler::Euler, Schedule::Karras, 10).unwrap();
    assert_eq!(own.timestep(4), asked.timestep(4));
    assert_ne!(
        own.timestep(4),
        run_with(json!({}), Sampler::Euler, 10).timestep(4)
    );
    assert_eq!(
        run_with(json!({"use_karras_sigmas": true}), Sampler::Ddim, 10).timestep(0),
        901.0
    );
}

#[test]
fn what_is_not_supported_is_said() {
    let noise = schedule_with(json!({}));
    let refused = |noise: &NoiseSchedule, sampler, schedule, steps| {
        SamplerRun::new(noise, sampler, schedule, steps).unwrap_err()
    };
    assert!(refused(&noise, Sampler::Lms, Schedule::Default, 4).contains("\"lms\""));
    assert!(
        refused(&noise, Sampler::Ddim, Schedule::Karras, 4)
            .contains("\"ddim\" does not support the schedule \"karras\"")
    );
    assert!(refused(&noise, Sampler::Euler, Schedule::Simple, 4).contains("\"simple\""));
    assert!(refused(&noise, Sampler::Euler, Schedule::Default, 0).contains("0 steps"));
    assert!(refused(&noise, Sampler::Euler, Schedule::Default, 1001).contains("1 to 1000"));
    assert!(refused(&noise, Sampler::DpmPp2m, Schedule::Default, 1000).contains("too many"));
    assert!(refused(&noise, Sampler::Lcm, Schedule::Default, 51).contains("at most 50"));
    let sample = schedule_with(json!({"prediction_type": "sample"}));
    assert!(
        refused(&sample, Sampler::EulerAncestral, Schedule::Default, 4).contains("prediction \"sample\"")
    );
    for sampler in Sampler::ALL {
        let run = SamplerRun::new(&noise, *sampler, Schedule::Default, 4);
        assert_eq!(run.is_ok(), SUPPORTED.contains(sampler), "{sampler:?}");
    }
}

#[test]
fn a_wrong_configuration_names_the_field() {
    for (changes, field) in [
        (json!({"beta_start": null}), "beta_start"),
        (json!({"beta_end": "much"}), "beta_end"),
        (json!({"beta_end": 1.5}), "beta_end"),
        (json!({"beta_start": 1e-12}), "beta_start"),
        (json!({"beta_schedule": "squaredcos_cap_v2"}), "beta_schedule"),
        (json!({"num_train_timesteps": 1}), "num_train_timesteps"),
        (json!({"num_train_timesteps": 1e9}), "num_train_timesteps"),
        (json!({"num_train_timesteps": 10.5}), "num_train_timesteps"),
        (json!({"trained_betas": [0.1, 0.2]}), "trained_betas"),
        (json!({"prediction_type": "flow_prediction"}), "prediction_type"),
        (json!({"timestep_spacing": "sideways"}), "timestep_spacing"),
        (json!({"timestep_spacing": 3}), "timestep_spacing"),
        (json!({"steps_offset": -1}), "steps_offset"),
        (json!({"steps_offset": 1000}), "steps_offset"),
        (json!({"set_alpha_to_one": 1}), "set_alpha_to_one"),
        (json!({"rescale_betas_zero_snr": true}), "rescale_betas_zero_snr"),
        (json!({"thresholding": true}), "thresholding"),
        (json!({"final_sigmas_type": "sigma_min"}), "final_sigmas_type"),
        (json!({"variance_type": "learned_range"}), "variance_type"),
    ] {
        let error = NoiseSchedule::from_config(&config_with(changes)).unwrap_err();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
    }
    assert!(NoiseSchedule::from_config(&json!([])).is_err());
}

proptest! {
    #[test]
    fn every_run_is_finite_and_its_timesteps_fall(
        sampler in prop::sample::select(SUPPORTED),
        schedule in prop::sample::select(&[Schedule::Default, Schedule::Karras][..]),
        prediction in prop::sample::select(&["epsilon", "v_prediction", "sample"][..]),
        spacing in prop::sample::select(&["leading", "trailing", "linspace"][..]),
        beta_schedule in prop::sample::select(&["linear", "scaled_linear"][..]),
        steps in 1u32..=150,
        strength in 0f32..=1.0,
    ) {
        let noise = schedule_with(json!({
            "prediction_type": prediction, "timestep_spacing": spacing, "beta_schedule": beta_schedule,
        }));
        let Ok(mut run) = SamplerRun::new(&noise, sampler, schedule, steps) else {
            let has_karras = !matches!(sampler, Sampler::Ddim | Sampler::EulerAncestral | Sampler::Lcm);
            prop_assert!(
                (schedule == Schedule::Karras && !has_karras)
                    || (sampler == Sampler::Lcm && steps > 50)
                    || (sampler == Sampler::EulerAncestral && prediction == "sample")
            );
            return Ok(());
        };
        let model = |latents: &[f32], time: f32| {
            latents.iter().map(|x| 0.5 * x.tanh() + 0.1 * (time / 100.0).cos()).collect::<Vec<_>>()
        };
        prop_assert!(run.init_noise_sigma().is_finite());
        prop_assert!((1..run.evaluations()).all(|i| run.timestep(i) <= run.timestep(i - 1)));
        prop_assert!((0..run.evaluations()).all(|i| (0.0..1000.0).contains(&run.timestep(i))));
        prop_assert!(denoise(&mut run, model).iter().all(|latent| latent.is_finite()));
        let start = run.start_for_strength(strength);
        prop_assert!(start <= run.evaluations());
        run.begin_at(start);
        let mut latents = run.add_noise(start, &normal(2, 0, COUNT), &normal(1, 0, COUNT));
        for i in start..run.evaluations() {
            let output = model(&run.scale_input(i, &latents), run.timestep(i));
            run.step(i, &output, &mut latents, &mut |step| normal(1, step + 1, COUNT));
        }
        prop_assert!(latents.iter().all(|latent| latent.is_finite()));
    }

    #[test]
    fn odd_lengths_and_orders_never_panic(
        sampler in prop::sample::select(SUPPORTED),
        steps in 1u32..20,
        calls in prop::collection::vec((0usize..50, 0usize..20, any::<bool>()), 0..20),
    ) {
        let mut run = run_with(json!({}), sampler, steps);
        let mut latents = vec![0.5; COUNT];
        for (i, length, begin) in calls {
            if begin {
                run.begin_at(i);
            }
            run.step(i, &vec![0.1; length], &mut latents, &mut |_| vec![0.2; length]);
            let _ = (run.timestep(i), run.step_of(i), run.scale_input(i, &latents));
        }
        prop_assert_eq!(latents.len(), COUNT);
    }
}
