//! Our samplers against runs of diffusers' schedulers; see `fixtures/README.md`.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use calotype_protocol::noise::{INITIAL, normal, of_step};
use calotype_protocol::{Sampler, Schedule};
use calotype_worker::sampler::{NoiseSchedule, SUPPORTED, SamplerRun};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// The largest difference that is allowed after every evaluation.
const TOLERANCE: f32 = 1e-4;
/// The same in proportion to the largest latent, where that is more than 1.
const RELATIVE_TOLERANCE: f32 = 1e-5;
const COUNT: usize = 16;

struct Fixtures {
    index: Value,
    arrays: Vec<u8>,
}

impl Fixtures {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let index = serde_json::from_str(&fs::read_to_string(folder.join("samplers.json")).unwrap()).unwrap();
        Self {
            index,
            arrays: fs::read(folder.join("samplers.safetensors")).unwrap(),
        }
    }

    fn seed(&self, name: &str) -> u64 {
        self.index[name].as_u64().unwrap()
    }

    fn noise_schedule(&self, case: &Value) -> NoiseSchedule {
        let mut config = self.index["configs"][text(case, "config")].clone();
        config["prediction_type"] = case["prediction_type"].clone();
        NoiseSchedule::from_config(&config).unwrap()
    }
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap()
}

fn floats(arrays: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = arrays.tensor(name).unwrap();
    tensor
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

fn toy_model(input: &[f32], timestep: f32) -> Vec<f32> {
    input
        .iter()
        .map(|x| 0.5 * x.tanh() + 0.1 * (timestep / 100.0).cos())
        .collect()
}

/// The largest difference.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter()
        .zip(theirs)
        .map(|(ours, theirs)| (ours - theirs).abs())
        .fold(0.0, f32::max)
}

/// The largest difference, in proportion to the largest value where that is more than 1.
fn relative_difference(ours: &[f32], theirs: &[f32]) -> f32 {
    difference(ours, theirs) / theirs.iter().fold(1.0, |most, value| value.abs().max(most))
}

#[test]
fn every_sampler_follows_the_reference() {
    let fixtures = Fixtures::read();
    let arrays = SafeTensors::deserialize(&fixtures.arrays).unwrap();
    let (noise_seed, init_seed) = (fixtures.seed("noise_seed"), fixtures.seed("init_seed"));
    let mut worst: BTreeMap<&str, (f32, f32)> = BTreeMap::new();
    let cases = fixtures.index["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let name = text(case, "name");
        let array = |array: &str| floats(&arrays, &format!("{name}/{array}"));
        let sampler = Sampler::from_name(text(case, "sampler")).unwrap();
        let schedule = Schedule::from_name(text(case, "schedule")).unwrap();
        let steps = case["steps"].as_u64().unwrap() as u32;
        let mut run = SamplerRun::new(&fixtures.noise_schedule(case), sampler, schedule, steps).unwrap();

        let noise = normal(noise_seed, INITIAL, COUNT);
        let (first, mut latents) = match case.get("strength") {
            None => {
                let sigma = case["init_noise_sigma"].as_f64().unwrap() as f32;
                let ours = run.init_noise_sigma();
                assert!(
                    (ours - sigma).abs() <= 1e-6 * sigma,
                    "{name}: starts with {ours}, not {sigma}"
                );
                (0, noise.iter().map(|n| n * ours).collect())
            }
            Some(strength) => {
                let first = run.start_for_strength(strength.as_f64().unwrap() as f32);
                assert_eq!(first as u64, case["first_call"].as_u64().unwrap(), "{name}");
                run.begin_at(first);
                let clean: Vec<f32> = normal(init_seed, INITIAL, COUNT)
                    .iter()
                    .map(|n| 0.5 * n)
                    .collect();
                let start = run.add_noise(first, &clean, &noise);
                assert!(
                    relative_difference(&start, &array("start")) <= 1e-6,
                    "{name}: start"
                );
                (first, start)
            }
        };
        let calls = case["calls"].as_u64().unwrap() as usize;
        assert_eq!(run.evaluations() - first, calls, "{name}");
        let timesteps: Vec<f32> = (first..run.evaluations()).map(|i| run.timestep(i)).collect();
        let reference = array("timesteps");
        assert!(
            relative_difference(&timesteps, &reference) <= 1e-6,
            "{name}: {timesteps:?} are not {reference:?}"
        );
        let trajectory = array("latents");
        for (i, expected) in (first..run.evaluations()).zip(trajectory.chunks_exact(COUNT)) {
            let output = toy_model(&run.scale_input(i, &latents), run.timestep(i));
            run.step(i, &output, &mut latents, &mut |step| {
                normal(noise_seed, of_step(step), COUNT)
            });
            let plain = difference(&latents, expected);
            let relative = relative_difference(&latents, expected);
            assert!(plain <= TOLERANCE, "{name}: {plain} after evaluation {i}");
            assert!(
                relative <= RELATIVE_TOLERANCE,
                "{name}: relatively {relative} after evaluation {i}"
            );
            let entry = worst.entry(text(case, "sampler")).or_default();
            *entry = (entry.0.max(plain), entry.1.max(relative));
        }
    }
    for (sampler, (plain, relative)) in &worst {
        println!("{sampler:16} {plain:.1e}, relatively {relative:.1e}");
    }
    assert_eq!(worst.len(), SUPPORTED.len());
}

#[test]
fn what_the_reference_does_not_have_is_refused() {
    let fixtures = Fixtures::read();
    for skipped in fixtures.index["skipped"].as_array().unwrap() {
        let mut case = skipped.clone();
        case["config"] = json!("model");
        let sampler = Sampler::from_name(text(&case, "sampler")).unwrap();
        let schedule = Schedule::from_name(text(&case, "schedule")).unwrap();
        assert!(
            SamplerRun::new(&fixtures.noise_schedule(&case), sampler, schedule, 10).is_err(),
            "{skipped}"
        );
    }
}
