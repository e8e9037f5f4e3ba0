//! The embedded model through the loop, held against torch and diffusers (`fixtures/README.md`).
//! `CALOTYPE_TEST_RUNTIME=onnxruntime` runs the same with ONNX Runtime.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use calotype_protocol::noise;
use calotype_protocol::{
    Adapter, Attempt, BlobRef, Decode, Down, Dtype, Encode, Frame, Generate, JobId, Load, Mode, ModelFormat,
    ModelSpec, NoiseSource, Outcome, Phase, Run, RunResult, Sampler, Schedule, Span, StepId, Up, VaePlan,
    Work,
};
use calotype_worker::model::{Model, UnetInput};
use calotype_worker::runtime::{self, Engine, Runtime};
use calotype_worker::tick::{Loop, SharedPulse};
use safetensors::SafeTensors;
use serde_json::Value;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models")
        .canonicalize()
        .unwrap()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(name)).unwrap()).unwrap()
}

fn array(file: &str, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixtures().join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect()
}

fn engine() -> Box<dyn Engine> {
    let wanted = std::env::var("CALOTYPE_TEST_RUNTIME").unwrap_or_default();
    let runtime = if wanted == "onnxruntime" {
        Runtime::Onnxruntime
    } else {
        Runtime::Rten
    };
    let (engine, note) = runtime::open(runtime, None);
    assert_eq!(note, None);
    engine
}

fn load() -> Load {
    let components = BTreeMap::from([
        (
            "root".to_owned(),
            models().join("calotype-tiny").display().to_string(),
        ),
        ("graphs".to_owned(), models().join("graphs").display().to_string()),
    ]);
    let model = ModelSpec {
        id: "tiny".into(),
        family: "sd".into(),
        format: ModelFormat::Diffusers,
        components,
        segments: BTreeMap::new(),
    };
    Load {
        load: "load".into(),
        model,
        dtype: Dtype::F32,
        budget_bytes: 1 << 30,
        plan: calotype_protocol::LoadPlan::default(),
    }
}

fn model(engine: &dyn Engine) -> Model {
    Model::load(engine, &load(), &mut |_, _| {}).unwrap()
}

fn adapter(path: PathBuf, weight: f32) -> Adapter {
    Adapter {
        id: "lora".into(),
        path: path.display().to_string(),
        weight,
    }
}

fn lora(name: &str, weight: f32) -> Adapter {
    adapter(
        models().join(format!("loras/calotype-tiny-{name}.safetensors")),
        weight,
    )
}

fn furthest(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter()
        .zip(right)
        .map(|(left, right)| (left - right).abs())
        .fold(0.0, f32::max)
}

fn span(text: &str) -> Vec<Span> {
    vec![Span {
        text: text.into(),
        weight: 1.0,
    }]
}

fn unet_output(model: &mut Model, engine: &dyn Engine, adapters: &[Adapter]) -> Vec<f32> {
    let bound = model.bind(engine, adapters).unwrap();
    let input = UnetInput {
        sample: noise::normal(1, 0, 2 * 4 * 8 * 8),
        timesteps: vec![999.0, 259.0],
        states: noise::normal(3, 0, 2 * 77 * 240),
        latent: [4, 8, 8],
        context: [77, 240],
    };
    model.run_unet(&bound, input).unwrap()
}

fn rows(states: &[f32]) -> Vec<f32> {
    [0usize, 1, 5, 9, 76]
        .iter()
        .flat_map(|row| states[row * 240..(row + 1) * 240].to_vec())
        .collect()
}

#[test]
fn the_text_encoder_gives_the_states_of_torch() {
    let engine = engine();
    let mut model = model(engine.as_ref());
    let prompt = json("model.json")["text"]["prompt"].as_str().unwrap().to_owned();
    let bound = model.bind(engine.as_ref(), &[]).unwrap();
    for (clip_skip, name) in [(0, "last_hidden_state"), (1, "penultimate_state")] {
        let embedding = model.encode_text(&bound, &span(&prompt), clip_skip).unwrap();
        let expected = array("model.safetensors", &format!("text/{name}_rows"));
        assert!(furthest(&rows(&embedding.states), &expected) < 1e-4, "{name}");
    }
}

#[test]
fn the_unet_with_and_without_loras_gives_the_outputs_of_diffusers() {
    let engine = engine();
    let mut model = model(engine.as_ref());
    let base = unet_output(&mut model, engine.as_ref(), &[]);
    assert!(furthest(&base, &array("model.safetensors", "unet/base")) < 1e-4);
    let fixture = |name: &str| fixtures().join(name);
    let cases = [
        ("lcm_1.0", vec![lora("lcm", 1.0)]),
        ("pixel_0.5", vec![lora("pixel", 0.5)]),
        ("both", vec![lora("lcm", 1.0), lora("pixel", 0.5)]),
        (
            "tiny_0.7",
            vec![adapter(fixture("lora_tiny_peft.safetensors"), 0.7)],
        ),
        (
            "tiny_0.7",
            vec![adapter(fixture("lora_tiny_kohya.safetensors"), 0.7)],
        ),
    ];
    for (name, adapters) in cases {
        let output = unet_output(&mut model, engine.as_ref(), &adapters);
        let expected = array("model.safetensors", &format!("unet/{name}"));
        assert!(
            furthest(&output, &expected) < 1e-4,
            "{name}: {}",
            furthest(&output, &expected)
        );
    }
    // Off again: bit for bit what it was.
    assert_eq!(unet_output(&mut model, engine.as_ref(), &[]), base);
}

#[test]
fn a_lora_in_either_naming_changes_the_text_encoder_as_peft_does() {
    let engine = engine();
    let mut model = model(engine.as_ref());
    let prompt = json("model.json")["text"]["prompt"].as_str().unwrap().to_owned();
    let expected = array("model.safetensors", "text/tiny_0.7_last_hidden_state_rows");
    for file in ["lora_tiny_peft.safetensors", "lora_tiny_kohya.safetensors"] {
        let adapters = [adapter(fixtures().join(file), 0.7)];
        let bound = model.bind(engine.as_ref(), &adapters).unwrap();
        let embedding = model.encode_text(&bound, &span(&prompt), 0).unwrap();
        assert!(furthest(&rows(&embedding.states), &expected) < 1e-4, "{file}");
    }
}

#[test]
fn the_vae_decodes_and_encodes_as_diffusers_does() {
    let engine = engine();
    let model = model(engine.as_ref());
    let scale = 0.46381;
    let latents: Vec<f32> = noise::normal(4, 0, 4 * 8 * 8)
        .iter()
        .map(|x| 2.0 * x * scale)
        .collect();
    let expected = array("model.safetensors", "vae/decoded");
    assert!(furthest(&model.decode(&latents, 8, 8).unwrap().data, &expected) < 1e-4);
    let pixels = expected.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
    let mean = model.encode(engine.as_ref(), pixels, 64, 64).unwrap();
    let parameters = array("model.safetensors", "vae/encoded_parameters");
    let expected: Vec<f32> = parameters[..256].iter().map(|x| x * scale).collect();
    assert!(furthest(&mean, &expected) < 1e-4);
}

/// A loop whose messages are kept.
struct Bench {
    tick_loop: Loop,
    said: Rc<RefCell<Vec<Frame<Up>>>>,
}

impl Bench {
    fn new() -> Self {
        let said: Rc<RefCell<Vec<Frame<Up>>>> = Rc::default();
        let ear = said.clone();
        let tick_loop = Loop::new(
            engine(),
            SharedPulse::default(),
            Box::new(move |frame| ear.borrow_mut().push(frame)),
        );
        let mut bench = Self { tick_loop, said };
        bench.tick_loop.handle(Down::Load(load()).into());
        assert!(
            bench
                .said
                .borrow()
                .iter()
                .any(|frame| matches!(frame.message, Up::Loaded(_)))
        );
        bench
    }

    fn run(&mut self, job: &str, work: Work, blobs: Vec<Vec<u8>>) {
        let run = Run {
            job: job.into(),
            attempt: Attempt(1),
            step: StepId("generate".into()),
            priority: 0,
            deadline_ms: None,
            vae: VaePlan::Whole,
            work,
        };
        self.tick_loop.handle(Frame {
            message: Down::Run(Box::new(run)),
            blobs,
        });
    }

    fn finish(&mut self) {
        while self.tick_loop.has_work() {
            self.tick_loop.tick();
        }
    }

    fn result(&self, job: &str) -> (RunResult, Vec<Vec<u8>>) {
        let said = self.said.borrow();
        let found = said.iter().find_map(|frame| match &frame.message {
            Up::Result(result) if result.job == JobId::from(job) => {
                Some((*result.clone(), frame.blobs.clone()))
            }
            _ => None,
        });
        found.unwrap_or_else(|| {
            panic!(
                "no result of {job}: {:?}",
                said.iter().map(|f| &f.message).collect::<Vec<_>>()
            )
        })
    }

    fn picture(&mut self, work: (Work, Vec<Vec<u8>>)) -> Vec<u8> {
        let job = format!("job{}", self.said.borrow().len());
        self.run(&job, work.0, work.1);
        self.finish();
        self.result(&job).1.remove(0)
    }

    fn decoded(&mut self, latents: &[f32], size: usize) -> Vec<u8> {
        let shape = vec![1, 4, size / 8, size / 8];
        let work = Work::Decode(Decode {
            model: "tiny".into(),
            latents: BlobRef {
                blob: 0,
                dtype: Dtype::F32,
                shape,
            },
        });
        self.picture((work, vec![bytes(latents)]))
    }
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn generate(
    prompt: &str,
    sampler: Sampler,
    steps: u32,
    guidance: f32,
    seed: u64,
    size: u32,
) -> (Generate, Vec<Vec<u8>>) {
    let edge = size as usize / 8;
    let work = Generate {
        model: "tiny".into(),
        mode: Mode::TextToImage,
        prompt: span(prompt),
        negative_prompt: Vec::new(),
        width: size,
        height: size,
        steps,
        guidance,
        sampler,
        schedule: Schedule::Default,
        seeds: vec![seed],
        noise: NoiseSource::Philox,
        initial_noise: BlobRef {
            blob: 0,
            dtype: Dtype::F32,
            shape: vec![1, 4, edge, edge],
        },
        init_image: None,
        mask: None,
        strength: 1.0,
        adapters: Vec::new(),
        control: Vec::new(),
        refiner: None,
        hires: None,
        clip_skip: 0,
        preview_every: 0,
    };
    (
        work,
        vec![bytes(&noise::normal(seed, noise::INITIAL, 4 * edge * edge))],
    )
}

fn small(seed: u64, guidance: f32) -> (Work, Vec<Vec<u8>>) {
    let (work, blobs) = generate("a cat on grass", Sampler::EulerAncestral, 6, guidance, seed, 64);
    (Work::Generate(Box::new(work).as_ref().clone()), blobs)
}

fn greys(left: &[u8], right: &[u8]) -> (u8, f64) {
    assert_eq!(left.len(), right.len());
    let differences = left.iter().zip(right).map(|(left, right)| left.abs_diff(*right));
    let most = differences.clone().max().unwrap_or(0);
    (most, differences.map(f64::from).sum::<f64>() / left.len() as f64)
}

#[test]
fn whole_pictures_are_those_of_diffusers() {
    let mut bench = Bench::new();
    let requests = json("pictures.json")["requests"].clone();
    let mut quality = Vec::new();
    for request in requests.as_array().unwrap() {
        let name = request["name"].as_str().unwrap();
        let number = |field: &str| request[field].as_f64();
        let sampler = Sampler::from_name(request["sampler"].as_str().unwrap()).unwrap();
        let (steps, guidance) = (
            number("steps").unwrap() as u32,
            number("guidance").unwrap() as f32,
        );
        let seed = request["seed"].as_u64().unwrap();
        let (mut work, mut blobs) = generate(
            request["prompt"].as_str().unwrap(),
            sampler,
            steps,
            guidance,
            seed,
            256,
        );
        work.schedule = Schedule::from_name(request["schedule"].as_str().unwrap()).unwrap();
        work.negative_prompt = span(request["negative_prompt"].as_str().unwrap());
        for entry in request["loras"].as_array().unwrap() {
            work.adapters.push(lora(
                entry[0].as_str().unwrap(),
                entry[1].as_f64().unwrap() as f32,
            ));
        }
        if request["init"] == "quality" {
            work.mode = Mode::ImageToImage;
            work.strength = number("strength").unwrap() as f32;
            work.init_image = Some(BlobRef {
                blob: 1,
                dtype: Dtype::U8,
                shape: vec![256, 256, 3],
            });
            blobs.push(quality.clone());
        }
        let mut mask = Vec::new();
        if request["mask"] == "middle" {
            work.mode = Mode::Inpaint;
            let small = array("pictures.safetensors", "mask/middle");
            mask = (0..256 * 256)
                .map(|i| {
                    if small[i / 256 / 8 * 32 + i % 256 / 8] > 0.5 {
                        255
                    } else {
                        0
                    }
                })
                .collect();
            work.mask = Some(BlobRef {
                blob: 2,
                dtype: Dtype::U8,
                shape: vec![256, 256],
            });
            blobs.push(mask.clone());
        }
        let started = Instant::now();
        let picture = bench.picture((Work::Generate(work), blobs));
        let took = started.elapsed();
        let mut expected = bench.decoded(&array("pictures.safetensors", &format!("{name}/latents")), 256);
        for (index, repaint) in mask.iter().enumerate() {
            if *repaint == 0 {
                expected[index * 3..index * 3 + 3].copy_from_slice(&quality[index * 3..index * 3 + 3]);
            }
        }
        let (most, mean) = greys(&picture, &expected);
        println!("{name}: {took:?}, greatest difference {most}, mean {mean:.4}");
        assert!(
            mean < 0.3 && most <= 16,
            "{name}: greatest difference {most}, mean {mean}"
        );
        if name == "quality" {
            quality = picture;
        }
    }
}

#[test]
fn the_same_job_alone_and_in_a_batch_draws_the_same_bytes() {
    let mut bench = Bench::new();
    // Without guidance a job alone is one sample; with it, two.
    for (size, guidance) in [(64, 1.0), (128, 1.0), (192, 1.0), (64, 3.0)] {
        let asked = |seed| {
            let (work, blobs) = generate("a cat on grass", Sampler::EulerAncestral, 4, guidance, seed, size);
            (Work::Generate(work), blobs)
        };
        let alone: Vec<Vec<u8>> = (0..4).map(|seed| bench.picture(asked(seed))).collect();
        for seed in 0..4 {
            let (work, blobs) = asked(seed);
            bench.run(&format!("{size} {guidance} {seed}"), work, blobs);
        }
        bench.finish();
        let together: Vec<Vec<u8>> = (0..4)
            .map(|seed| {
                let (result, mut blobs) = bench.result(&format!("{size} {guidance} {seed}"));
                assert_eq!(result.batch_sizes, [4; 4]);
                blobs.remove(0)
            })
            .collect();
        let differ = alone
            .iter()
            .zip(&together)
            .filter(|(alone, together)| alone != together);
        assert_eq!(differ.count(), 0, "of 4 at {size}², guidance {guidance}");
    }
}

#[test]
fn a_job_that_joins_a_running_batch_is_the_job_alone() {
    let mut bench = Bench::new();
    let alone = bench.picture(small(5, 3.0));
    let (first, blobs) = small(4, 1.0);
    bench.run("first", first, blobs);
    for _ in 0..3 {
        bench.tick_loop.tick();
    }
    let (second, blobs) = small(5, 3.0);
    bench.run("second", second, blobs);
    bench.finish();
    let (result, blobs) = bench.result("second");
    assert!(result.batch_sizes.contains(&3), "{:?}", result.batch_sizes);
    assert!(greys(&blobs[0], &alone).0 <= 2);
}

#[test]
fn pause_and_resume_give_the_same_pixels() {
    let mut bench = Bench::new();
    let alone = bench.picture(small(9, 3.0));
    let (work, blobs) = small(9, 3.0);
    bench.run("job", work, blobs);
    for _ in 0..4 {
        bench.tick_loop.tick();
    }
    bench.tick_loop.handle(
        Down::Pause {
            job: "job".into(),
            attempt: Attempt(1),
            offload: true,
        }
        .into(),
    );
    assert!(matches!(
        bench.said.borrow().last().unwrap().message,
        Up::Paused { at_step: 3, .. }
    ));
    assert!(!bench.tick_loop.has_work());
    bench.tick_loop.handle(
        Down::Resume {
            job: "job".into(),
            attempt: Attempt(1),
        }
        .into(),
    );
    bench.finish();
    assert_eq!(bench.result("job").1[0], alone);
}

fn pause(job: &str, offload: bool) -> Frame<Down> {
    Down::Pause {
        job: job.into(),
        attempt: Attempt(1),
        offload,
    }
    .into()
}

fn resume(job: &str) -> Frame<Down> {
    Down::Resume {
        job: job.into(),
        attempt: Attempt(1),
    }
    .into()
}

/// What was said of pausing, in order.
fn answers(bench: &Bench) -> Vec<(&'static str, u32)> {
    let said = bench.said.borrow();
    let answers = said.iter().filter_map(|frame| match frame.message {
        Up::Paused { at_step, .. } => Some(("paused", at_step)),
        Up::Resumed { at_step, .. } => Some(("resumed", at_step)),
        _ => None,
    });
    answers.collect()
}

#[test]
fn each_pause_and_each_resume_has_one_answer_in_order_whatever_the_job_does() {
    let mut bench = Bench::new();
    let (work, blobs) = small(9, 3.0);
    bench.run("job", work, blobs);
    for line in [
        pause("job", true),
        pause("job", false),
        resume("job"),
        resume("job"),
        pause("job", true),
        resume("job"),
    ] {
        bench.tick_loop.handle(line);
    }
    let expected = ["paused", "paused", "resumed", "resumed", "paused", "resumed"].map(|word| (word, 0));
    assert_eq!(answers(&bench), expected);
    bench.tick_loop.handle(
        Down::Pause {
            job: "job".into(),
            attempt: Attempt(2),
            offload: true,
        }
        .into(),
    );
    bench.finish();
    bench.result("job");
    // It has ended: it answers nothing any more.
    bench.tick_loop.handle(pause("job", true));
    bench.tick_loop.handle(resume("job"));
    assert_eq!(answers(&bench).len(), 6);
}

#[test]
fn paused_jobs_take_no_place_and_do_not_hold_others_up() {
    let mut bench = Bench::new();
    for seed in 0..4 {
        let (work, blobs) = small(seed, 1.0);
        bench.run(&format!("held{seed}"), work, blobs);
    }
    // Each is prepared, then all take a step.
    for _ in 0..5 {
        bench.tick_loop.tick();
    }
    for seed in 0..4 {
        bench.tick_loop.handle(pause(&format!("held{seed}"), true));
    }
    assert!(!bench.tick_loop.has_work());
    for seed in 10..14 {
        let (work, blobs) = small(seed, 1.0);
        bench.run(&format!("new{seed}"), work, blobs);
    }
    bench.finish();
    for seed in 10..14 {
        // All four in each run of the UNet, as if nobody else were there.
        assert_eq!(bench.result(&format!("new{seed}")).0.batch_sizes, [4; 6]);
    }
    for seed in 0..4 {
        bench.tick_loop.handle(resume(&format!("held{seed}")));
    }
    bench.finish();
    for seed in 0..4 {
        bench.result(&format!("held{seed}"));
    }
}

#[test]
fn a_paused_job_with_a_lora_draws_the_same_when_resumed_and_fails_where_the_file_was_replaced() {
    let folder = std::env::temp_dir().join(format!("calotype-paused-lora-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("lora.safetensors");
    std::fs::copy(models().join("loras/calotype-tiny-lcm.safetensors"), &path).unwrap();
    let asked = || {
        let (mut work, blobs) = generate("a cat on grass", Sampler::Lcm, 4, 1.0, 9, 64);
        work.adapters = vec![adapter(path.clone(), 1.0)];
        (Work::Generate(work), blobs)
    };
    let mut bench = Bench::new();
    let alone = bench.picture(asked());
    let (work, blobs) = asked();
    bench.run("job", work, blobs);
    for _ in 0..3 {
        bench.tick_loop.tick();
    }
    bench.tick_loop.handle(pause("job", true));
    bench.tick_loop.handle(resume("job"));
    bench.finish();
    assert_eq!(bench.result("job").1[0], alone);
    let (work, blobs) = asked();
    bench.run("replaced", work, blobs);
    for _ in 0..3 {
        bench.tick_loop.tick();
    }
    bench.tick_loop.handle(pause("replaced", true));
    std::fs::copy(models().join("loras/calotype-tiny-pixel.safetensors"), &path).unwrap();
    bench.tick_loop.handle(resume("replaced"));
    std::fs::remove_dir_all(&folder).unwrap();
    let said = bench.said.borrow();
    let Up::Failed { failure, .. } = &said.last().unwrap().message else {
        panic!("{:?}", said.last().unwrap().message)
    };
    assert!(
        failure.message.contains("replaced while the job was paused"),
        "{}",
        failure.message
    );
}

#[test]
fn an_unload_fails_the_models_jobs_paused_ones_too() {
    let mut bench = Bench::new();
    for job in ["runs", "held"] {
        let (work, blobs) = small(1, 1.0);
        bench.run(job, work, blobs);
    }
    bench.tick_loop.handle(pause("held", true));
    bench.tick_loop.handle(
        Down::Unload {
            unload: "u".into(),
            model: Some("tiny".into()),
        }
        .into(),
    );
    bench.tick_loop.handle(resume("held"));
    let said = bench.said.borrow();
    let ends: Vec<String> = said
        .iter()
        .filter_map(|frame| match &frame.message {
            Up::Failed { job, failure, .. } => Some(format!("{job}: {}", failure.message)),
            Up::Unloaded { unload, .. } => Some(format!("{unload:?}")),
            Up::Resumed { .. } => Some("resumed".to_owned()),
            _ => None,
        })
        .collect();
    assert_eq!(
        ends,
        [
            "runs: the job's model was unloaded",
            "held: the job's model was unloaded",
            "LoadId(\"u\")"
        ]
    );
}

#[test]
fn a_cancelled_job_says_its_step_and_is_gone() {
    let mut bench = Bench::new();
    let (work, blobs) = small(9, 1.0);
    bench.run("job", work, blobs);
    bench.tick_loop.tick();
    bench.tick_loop.tick();
    bench.tick_loop.handle(
        Down::Cancel {
            job: "job".into(),
            attempt: Attempt(1),
        }
        .into(),
    );
    assert!(matches!(
        bench.said.borrow().last().unwrap().message,
        Up::Cancelled { at_step: 1, .. }
    ));
    assert!(!bench.tick_loop.has_work());
    bench.tick_loop.handle(
        Down::Cancel {
            job: "job".into(),
            attempt: Attempt(2),
        }
        .into(),
    );
    assert!(matches!(
        bench.said.borrow().last().unwrap().message,
        Up::Log { .. }
    ));
}

#[test]
fn progress_previews_and_timings_tell_what_was_done() {
    let mut bench = Bench::new();
    let (mut work, blobs) = generate("a cat", Sampler::Heun, 4, 1.0, 3, 64);
    work.preview_every = 2;
    bench.run("job", Work::Generate(work), blobs);
    bench.finish();
    let steps: Vec<(u32, u32)> = bench
        .said
        .borrow()
        .iter()
        .filter_map(|frame| match &frame.message {
            Up::Progress(progress) if progress.phase == Phase::Denoise => {
                Some((progress.done, progress.total))
            }
            _ => None,
        })
        .collect();
    assert_eq!(steps, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    let previews = bench
        .said
        .borrow()
        .iter()
        .filter(|frame| matches!(frame.message, Up::Preview { done: 2, .. }))
        .count();
    assert_eq!(previews, 1);
    let (result, blobs) = bench.result("job");
    assert_eq!(result.images[0].shape, [64, 64, 3]);
    assert_eq!(blobs[0].len(), 64 * 64 * 3);
    assert!(result.peak_bytes > 0 && result.timings_ms[&Phase::Denoise] > 0.0);
}

#[test]
fn what_cannot_be_served_fails_with_its_reason() {
    let mut bench = Bench::new();
    let mut outcomes = Vec::new();
    let mut try_work = |bench: &mut Bench, work: Work, blobs: Vec<Vec<u8>>| {
        bench.run("bad", work, blobs);
        bench.finish();
        match &bench.said.borrow().last().unwrap().message {
            Up::Failed { failure, .. } => outcomes.push((failure.outcome, failure.message.clone())),
            other => panic!("{other:?}"),
        }
    };
    let (good, blobs) = generate("a cat", Sampler::Euler, 4, 1.0, 3, 64);
    let mut odd = good.clone();
    odd.width = 63;
    try_work(&mut bench, Work::Generate(odd), blobs.clone());
    let mut strange = good.clone();
    strange.adapters = vec![adapter(
        models().join("calotype-tiny/vae/diffusion_pytorch_model.safetensors"),
        1.0,
    )];
    try_work(&mut bench, Work::Generate(strange), blobs.clone());
    try_work(&mut bench, Work::Generate(good), Vec::new());
    let image = BlobRef {
        blob: 0,
        dtype: Dtype::U8,
        shape: vec![8, 9, 3],
    };
    try_work(
        &mut bench,
        Work::Encode(Encode {
            model: "tiny".into(),
            image,
        }),
        vec![vec![0; 8 * 9 * 3]],
    );
    let embed = calotype_protocol::Embed {
        model: "tiny".into(),
        text: "a".into(),
    };
    try_work(&mut bench, Work::Embed(embed), Vec::new());
    let found: Vec<Outcome> = outcomes.iter().map(|(outcome, _)| *outcome).collect();
    assert_eq!(
        found,
        [
            Outcome::InvalidInput,
            Outcome::InvalidInput,
            Outcome::InvalidInput,
            Outcome::InvalidInput,
            Outcome::NotSupported
        ]
    );
    assert!(
        outcomes[1].1.contains("unknown key `decoder."),
        "{}",
        outcomes[1].1
    );
}

#[test]
fn a_model_without_its_weights_names_the_file() {
    let mut broken = load();
    broken
        .model
        .components
        .insert("unet".into(), fixtures().display().to_string());
    let failure = Model::load(engine().as_ref(), &broken, &mut |_, _| {})
        .err()
        .unwrap();
    assert_eq!(failure.outcome, Outcome::ModelLoad);
    assert!(failure.detail.unwrap().contains("config.json"));
    let mut wrong = load();
    let vae = models().join("calotype-tiny/vae/diffusion_pytorch_model.safetensors");
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        models().join("calotype-tiny/unet/config.json"),
        folder.path().join("config.json"),
    )
    .unwrap();
    std::fs::copy(vae, folder.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    wrong
        .model
        .components
        .insert("unet".into(), folder.path().display().to_string());
    let failure = Model::load(engine().as_ref(), &wrong, &mut |_, _| {})
        .err()
        .unwrap();
    assert_eq!(failure.outcome, Outcome::ModelLoad);
    assert!(
        failure
            .detail
            .unwrap()
            .contains("tensor `conv_in.bias` is missing")
    );
}
