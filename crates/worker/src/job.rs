//! One job: what was asked, its latents and conditioning, and how far it is. Knows no other job and no pipe.

use std::collections::BTreeMap;
use std::rc::Rc;

use calotype_protocol::noise;
use calotype_protocol::{
    Adapter, Attempt, Failure, Generate, JobId, Mode, ModelId, Outcome, Phase, Run, Work,
};

use crate::failure::{failure, invalid, unsupported};
use crate::model::text::Embedding;
use crate::model::{Bound, Model};
use crate::pixels::{Image, Mask, numbers_of};
use crate::runtime::Engine;
use crate::sampler::SamplerRun;

/// Largest edge of an image.
pub(crate) const MAX_EDGE: u32 = 1024;
/// Most images of one job.
const MOST_IMAGES: usize = 16;

/// How far a job is.
pub(crate) enum Stage {
    /// As it came.
    Waiting { work: Box<Work>, blobs: Vec<Vec<u8>> },
    /// In the tick loop, or done with it.
    Sampling(Box<Sampling>),
}

/// A job that this worker holds.
pub(crate) struct Job {
    pub(crate) job: JobId,
    pub(crate) attempt: Attempt,
    pub(crate) priority: i32,
    pub(crate) arrival: u64,
    pub(crate) model: ModelId,
    pub(crate) paused: bool,
    pub(crate) stage: Stage,
    pub(crate) timings_ms: BTreeMap<Phase, f64>,
    pub(crate) batch_sizes: Vec<u32>,
}

impl Job {
    pub(crate) fn new(run: Run, blobs: Vec<Vec<u8>>, arrival: u64) -> Self {
        Self {
            job: run.job,
            attempt: run.attempt,
            priority: run.priority,
            arrival,
            model: run.work.model().clone(),
            paused: false,
            stage: Stage::Waiting {
                work: Box::new(run.work),
                blobs,
            },
            timings_ms: BTreeMap::new(),
            batch_sizes: Vec::new(),
        }
    }

    pub(crate) fn steps_done(&self) -> u32 {
        match &self.stage {
            Stage::Waiting { .. } => 0,
            Stage::Sampling(sampling) => sampling.steps_done(),
        }
    }

    pub(crate) fn spend(&mut self, phase: Phase, ms: f64) {
        *self.timings_ms.entry(phase).or_default() += ms;
    }
}

/// What must agree for two jobs to share a run of the UNet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    model: ModelId,
    latent: [usize; 3],
    adapters: String,
    context: [usize; 2],
}

/// What is kept of the picture that an inpainting starts from.
struct Kept {
    encoded: Vec<f32>,
    noise: Vec<f32>,
    /// True where to repaint, one a latent's place.
    mask: Vec<bool>,
    original: Image,
    pixel_mask: Mask,
}

/// A generation under way.
pub(crate) struct Sampling {
    pub(crate) shape: Shape,
    pub(crate) bound: Rc<Bound>,
    adapters: Vec<Adapter>,
    pub(crate) latent: [usize; 3],
    pub(crate) seeds: Vec<u64>,
    pub(crate) preview_every: u32,
    pub(crate) latents: Vec<f32>,
    sampler: SamplerRun,
    /// The next evaluation.
    at: usize,
    start: usize,
    guidance: f32,
    cond: Rc<Embedding>,
    uncond: Option<Rc<Embedding>>,
    kept: Option<Kept>,
}

/// A step that has ended.
pub(crate) struct StepDone {
    pub(crate) done: u32,
    pub(crate) total: u32,
}

impl Sampling {
    pub(crate) fn new(
        work: &Generate,
        blobs: &[Vec<u8>],
        model: &mut Model,
        engine: &dyn Engine,
        bound: Rc<Bound>,
    ) -> Result<Self, Failure> {
        let latent = checked(work, model)?;
        let [channels, height, width] = latent;
        let mut sampler =
            SamplerRun::new(&model.schedule, work.sampler, work.schedule, work.steps).map_err(unsupported)?;
        if work.initial_noise.shape != [work.seeds.len(), channels, height, width] {
            return Err(invalid(format!(
                "the initial noise has the shape {:?}, not {:?}",
                work.initial_noise.shape,
                [work.seeds.len(), channels, height, width]
            )));
        }
        let noise = numbers_of("the initial noise", &work.initial_noise, blobs)?;
        let (cond, uncond) = conditioning(work, model, &bound)?;
        let image = match (work.mode, &work.init_image) {
            (Mode::TextToImage, _) => None,
            (Mode::ImageToImage | Mode::Inpaint, None) => return Err(invalid("an initial image is needed")),
            (Mode::ImageToImage | Mode::Inpaint, Some(blob)) => {
                Some(Image::of("the initial image", blob, blobs)?)
            }
        };
        let mut start = 0;
        let mut latents: Vec<f32> = noise.iter().map(|x| x * sampler.init_noise_sigma()).collect();
        let mut kept = None;
        if let Some(image) = image {
            if (image.width, image.height) != (work.width as usize, work.height as usize) {
                return Err(invalid(format!(
                    "the initial image is {}x{}",
                    image.width, image.height
                )));
            }
            if !(0.0..=1.0).contains(&work.strength) {
                return Err(invalid(format!(
                    "the strength {} is not between 0 and 1",
                    work.strength
                )));
            }
            let one = model.encode(engine, image.to_numbers(), image.height, image.width)?;
            let encoded = one.repeat(work.seeds.len());
            start = sampler.start_for_strength(work.strength);
            if work.mode == Mode::ImageToImage || work.strength < 1.0 {
                latents = sampler.add_noise(start, &encoded, &noise);
            }
            if work.mode == Mode::Inpaint {
                let blob = work
                    .mask
                    .as_ref()
                    .ok_or_else(|| invalid("inpainting needs a mask"))?;
                let pixel_mask = Mask::of(blob, blobs, image.height, image.width)?;
                let mask = pixel_mask.of_latents(model.scale);
                kept = Some(Kept {
                    encoded,
                    noise,
                    mask,
                    original: image,
                    pixel_mask,
                });
            }
        }
        sampler.begin_at(start);
        let context = [cond.chunks * cond.tokens, cond.width];
        let shape = Shape {
            model: work.model.clone(),
            latent,
            adapters: bound.adapters.clone(),
            context,
        };
        Ok(Self {
            shape,
            bound,
            adapters: work.adapters.clone(),
            latent,
            seeds: work.seeds.clone(),
            preview_every: work.preview_every,
            latents,
            sampler,
            at: start,
            start,
            guidance: work.guidance,
            cond,
            uncond,
            kept,
        })
    }

    /// Holds no merged LoRA weights any more, only the plain ones, which are the model's; [`bind_adapters`] comes before
    /// the next step.
    ///
    /// [`bind_adapters`]: Self::bind_adapters
    pub(crate) fn release_adapters(&mut self, model: &mut Model, engine: &dyn Engine) -> Result<(), Failure> {
        self.bound = model.bind(engine, &[])?;
        model.forget_idle_sets();
        Ok(())
    }

    /// Holds the merged LoRA weights again, those of the same files.
    pub(crate) fn bind_adapters(&mut self, model: &mut Model, engine: &dyn Engine) -> Result<(), Failure> {
        let bound = model.bind(engine, &self.adapters)?;
        if bound.adapters != self.shape.adapters {
            return Err(failure(
                Outcome::Failed,
                "a LoRA's file was replaced while the job was paused",
            ));
        }
        self.bound = bound;
        Ok(())
    }

    pub(crate) fn is_done(&self) -> bool {
        self.at >= self.sampler.evaluations()
    }

    pub(crate) fn steps_done(&self) -> u32 {
        if self.is_done() {
            self.total()
        } else {
            self.sampler.step_of(self.at)
        }
    }

    fn total(&self) -> u32 {
        match self.sampler.evaluations() {
            end if end > self.start => self.sampler.step_of(end - 1) + 1,
            _ => 0,
        }
    }

    /// Samples that it brings to a run of the UNet.
    pub(crate) fn samples(&self) -> usize {
        self.seeds.len() * if self.uncond.is_some() { 2 } else { 1 }
    }

    pub(crate) fn context(&self) -> [usize; 2] {
        self.shape.context
    }

    /// Adds its samples to a run: those without the prompt first, where there are any.
    pub(crate) fn bring(&self, sample: &mut Vec<f32>, timesteps: &mut Vec<f32>, states: &mut Vec<f32>) {
        let scaled = self.sampler.scale_input(self.at, &self.latents);
        for embedding in self.uncond.iter().chain([&self.cond]) {
            sample.extend_from_slice(&scaled);
            for _ in &self.seeds {
                timesteps.push(self.sampler.timestep(self.at));
                states.extend_from_slice(&embedding.states);
            }
        }
    }

    /// Takes its share of the UNet's output. Gives the step, if one has ended by it.
    pub(crate) fn take(&mut self, output: &[f32]) -> Option<StepDone> {
        let guided;
        let output = if self.uncond.is_some() {
            let (without, with) = output.split_at(output.len() / 2);
            guided = without
                .iter()
                .zip(with)
                .map(|(without, with)| without + self.guidance * (with - without))
                .collect::<Vec<_>>();
            &guided
        } else {
            output
        };
        let count = self.latent.iter().product::<usize>();
        let seeds = &self.seeds;
        let mut step_noise = |step: u32| {
            seeds
                .iter()
                .flat_map(|seed| noise::normal(*seed, noise::of_step(step), count))
                .collect()
        };
        let step = self.sampler.step_of(self.at);
        self.sampler
            .step(self.at, output, &mut self.latents, &mut step_noise);
        self.at += 1;
        if !self.is_done() && self.sampler.step_of(self.at) == step {
            return None;
        }
        if let Some(kept) = &self.kept {
            let known = self.sampler.add_noise(self.at, &kept.encoded, &kept.noise);
            let places = kept.mask.len();
            for (index, (latent, known)) in self.latents.iter_mut().zip(known).enumerate() {
                if !kept.mask[index % places] {
                    *latent = known;
                }
            }
        }
        Some(StepDone {
            done: step + 1,
            total: self.total(),
        })
    }

    /// The picture of seed number `index`, as it is now.
    pub(crate) fn picture(&self, model: &Model, index: usize) -> Result<Image, Failure> {
        let [_, height, width] = self.latent;
        let count = self.latent.iter().product::<usize>();
        let mut image = Image::from_tensor(&model.decode(
            &self.latents[index * count..(index + 1) * count],
            height,
            width,
        )?);
        if let Some(kept) = &self.kept {
            kept.pixel_mask.keep(&kept.original, &mut image);
        }
        Ok(image)
    }
}

/// Checks the request, and gives channels, height and width of its latents.
fn checked(work: &Generate, model: &Model) -> Result<[usize; 3], Failure> {
    let Generate {
        width,
        height,
        steps,
        guidance,
        seeds,
        control,
        refiner,
        ..
    } = work;
    let scale = model.scale as u32;
    for (name, edge) in [("width", *width), ("height", *height)] {
        if edge == 0 || edge > MAX_EDGE || edge % scale != 0 {
            return Err(invalid(format!(
                "the {name} {edge} is not a multiple of {scale} up to {MAX_EDGE}"
            )));
        }
    }
    if *steps == 0 || *steps > 1000 {
        return Err(invalid(format!("{steps} steps are not between 1 and 1000")));
    }
    if !guidance.is_finite() {
        return Err(invalid("the guidance is not a number"));
    }
    if seeds.is_empty() || seeds.len() > MOST_IMAGES {
        return Err(invalid(format!(
            "{} seeds are not between 1 and {MOST_IMAGES}",
            seeds.len()
        )));
    }
    if !control.is_empty() {
        return Err(unsupported("ControlNet needs a PyTorch worker"));
    }
    if work.hires.is_some() {
        return Err(unsupported("a second pass needs a PyTorch worker"));
    }
    if refiner.is_some() {
        return Err(unsupported("a refiner needs a PyTorch worker"));
    }
    Ok([
        model.latent_channels,
        (height / scale) as usize,
        (width / scale) as usize,
    ])
}

type Conditioning = (Rc<Embedding>, Option<Rc<Embedding>>);

fn conditioning(work: &Generate, model: &mut Model, bound: &Bound) -> Result<Conditioning, Failure> {
    let cond = model.encode_text(bound, &work.prompt, work.clip_skip)?;
    if work.guidance <= 1.0 {
        return Ok((cond, None));
    }
    let uncond = model.encode_text(bound, &work.negative_prompt, work.clip_skip)?;
    if cond.chunks == uncond.chunks {
        return Ok((cond, Some(uncond)));
    }
    let empty = model.encode_text(bound, &[], work.clip_skip)?;
    let chunks = cond.chunks.max(uncond.chunks);
    Ok((cond.padded(chunks, &empty), Some(uncond.padded(chunks, &empty))))
}
