//! The tick loop: holds models and jobs, and does one piece of work at a time. Between two pieces it takes messages, so
//! that a job joins, leaves, pauses or is cancelled at any step.
//!
//! 1. A waiting job is prepared: LoRAs are bound, text and images encoded.
//! 2. A job whose sampling is over is decoded, and its result said.
//! 3. Else the jobs that fit together share one run of the UNet and take a step each.
//!
//! Knows no pipe, no thread and no process: messages come by [`Loop::handle`] and leave by a function.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use calotype_protocol::{
    Attempt, Blob, BlobRef, Down, Dtype, Failure, Frame, JobId, Load, LoadId, Loaded, LogLevel, MemoryOp,
    ModelId, Outcome, Phase, ProbeOp, Progress, Run, RunResult, Up, Work,
};

use crate::facts;
use crate::failure::{failure, invalid, unsupported};
use crate::job::{Job, MAX_EDGE, Sampling, Shape, Stage};
use crate::model::{Model, UnetInput};
use crate::pixels::{Image, numbers_of};
use crate::runtime::Engine;

/// Most jobs in one run of the UNet.
pub(crate) const MAX_BATCH: usize = 4;
/// Most samples in one run of the UNet, unless one job alone brings more.
const MOST_SAMPLES: usize = 16;

/// Whether the loop goes on after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// More may come.
    Continue,
    /// The process leaves.
    Leave,
}

/// What the beat tells; written by the loop, read by the beat's thread.
#[derive(Debug, Default, Clone)]
pub struct Pulse {
    /// Resident models.
    pub resident: Vec<ModelId>,
    /// Jobs held.
    pub running: Vec<JobId>,
    /// Since when the piece of work under way lasts.
    pub since: Option<Instant>,
}

/// The pulse, shared between the two.
pub type SharedPulse = Arc<Mutex<Pulse>>;

pub(crate) fn pulse_of(shared: &SharedPulse) -> MutexGuard<'_, Pulse> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The loop's state.
pub struct Loop {
    engine: Box<dyn Engine>,
    emit: Box<dyn FnMut(Frame<Up>)>,
    pulse: SharedPulse,
    models: Vec<Model>,
    jobs: Vec<Job>,
    arrivals: u64,
    draining: bool,
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

impl Loop {
    /// A loop without models. `emit` is told everything that goes up.
    pub fn new(engine: Box<dyn Engine>, pulse: SharedPulse, emit: Box<dyn FnMut(Frame<Up>)>) -> Self {
        Self {
            engine,
            emit,
            pulse,
            models: Vec::new(),
            jobs: Vec::new(),
            arrivals: 0,
            draining: false,
        }
    }

    /// Takes one message.
    pub fn handle(&mut self, frame: Frame<Down>) -> Flow {
        let Frame { message, blobs } = frame;
        match message {
            Down::Run(run) => self.take(*run, blobs),
            Down::Cancel { job, attempt } => {
                if let Some(index) = self.known("cancel", &job, attempt) {
                    let at_step = self.jobs.remove(index).steps_done();
                    self.say(Up::Cancelled {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Pause {
                job,
                attempt,
                offload: _,
            } => {
                // The state is in host memory already: there is nothing to move away.
                if let Some(index) = self.known("pause", &job, attempt) {
                    self.jobs[index].paused = true;
                    let at_step = self.jobs[index].steps_done();
                    self.say(Up::Paused {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Resume { job, attempt } => {
                if let Some(index) = self.known("resume", &job, attempt) {
                    self.jobs[index].paused = false;
                    let at_step = self.jobs[index].steps_done();
                    self.say(Up::Resumed {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Load(load) => self.load(&load),
            Down::Unload { unload, model } => self.unload(unload, model.as_ref()),
            Down::Memory { seq, op } => {
                match op {
                    MemoryOp::Status => {}
                    MemoryOp::Trim => self.models.iter_mut().for_each(Model::trim),
                    MemoryOp::ResetPeak => facts::reset_peak(),
                }
                self.say(Up::Memory {
                    seq,
                    report: facts::memory(),
                });
            }
            Down::Probe { seq, op } => {
                let figures = self.probe(op);
                self.say(Up::Probed { seq, figures });
            }
            Down::Release { segment } => self.say(Up::Released { segment }),
            Down::Ping { seq } => self.say(Up::Pong { seq }),
            Down::Drain {} => {
                self.draining = true;
                self.drop_paused();
            }
            Down::Exit {} | Down::Bye { .. } => return Flow::Leave,
            Down::Welcome(_) => self.log(LogLevel::Warn, None, "a second welcome was ignored"),
        }
        self.show();
        self.flow()
    }

    /// Whether a tick would do anything.
    pub fn has_work(&self) -> bool {
        self.jobs.iter().any(|job| !job.paused)
    }

    /// Does one piece of work.
    pub fn tick(&mut self) -> Flow {
        pulse_of(&self.pulse).since = Some(Instant::now());
        let mut order: Vec<usize> = (0..self.jobs.len())
            .filter(|index| !self.jobs[*index].paused)
            .collect();
        order.sort_by_key(|index| {
            (
                std::cmp::Reverse(self.jobs[*index].priority),
                self.jobs[*index].arrival,
            )
        });
        let waiting = order
            .iter()
            .find(|index| matches!(self.jobs[**index].stage, Stage::Waiting { .. }));
        let sampled = order.iter().find(|index| match &self.jobs[**index].stage {
            Stage::Sampling(sampling) => sampling.is_done(),
            Stage::Waiting { .. } => false,
        });
        if let Some(index) = sampled {
            self.finish(*index);
        } else if let Some(index) = waiting {
            self.prepare(*index);
        } else if !order.is_empty() {
            self.step(&order);
        }
        pulse_of(&self.pulse).since = None;
        self.show();
        self.flow()
    }

    fn flow(&mut self) -> Flow {
        if self.draining && self.jobs.is_empty() {
            self.say(Up::Bye {});
            return Flow::Leave;
        }
        Flow::Continue
    }

    fn say(&mut self, message: Up) {
        (self.emit)(message.into());
    }

    fn log(&mut self, level: LogLevel, job: Option<JobId>, message: impl Into<String>) {
        self.say(Up::Log {
            level,
            job,
            message: message.into(),
            dropped: 0,
        });
    }

    fn show(&mut self) {
        let mut pulse = pulse_of(&self.pulse);
        pulse.resident = self.models.iter().map(|model| model.id.clone()).collect();
        pulse.running = self.jobs.iter().map(|job| job.job.clone()).collect();
    }

    fn known(&mut self, what: &str, job: &JobId, attempt: Attempt) -> Option<usize> {
        let index = self
            .jobs
            .iter()
            .position(|held| held.job == *job && held.attempt == attempt);
        if index.is_none() {
            self.log(
                LogLevel::Debug,
                Some(job.clone()),
                format!("{what} of a job that is not here (attempt {attempt})"),
            );
        }
        index
    }

    fn take(&mut self, run: Run, blobs: Vec<Blob>) {
        let (job, attempt) = (run.job.clone(), run.attempt);
        if self
            .jobs
            .iter()
            .any(|held| held.job == job && held.attempt == attempt)
        {
            return self.log(
                LogLevel::Warn,
                Some(job),
                "a job that is here already was sent again",
            );
        }
        if self.draining {
            let failure = failure(Outcome::Failed, "the worker is leaving and takes nothing new");
            return self.say(Up::Failed {
                job,
                attempt,
                failure,
            });
        }
        if self.jobs.is_empty() {
            facts::reset_peak();
        }
        self.arrivals += 1;
        self.jobs.push(Job::new(run, blobs, self.arrivals));
    }

    fn drop_paused(&mut self) {
        let (paused, kept) = std::mem::take(&mut self.jobs)
            .into_iter()
            .partition(|job| job.paused);
        self.jobs = kept;
        let paused: Vec<Job> = paused;
        for job in paused {
            let failure = failure(Outcome::Failed, "the worker left while the job was paused");
            self.say(Up::Failed {
                job: job.job,
                attempt: job.attempt,
                failure,
            });
        }
    }

    fn load(&mut self, load: &Load) {
        self.models.retain(|model| model.id != load.model.id);
        pulse_of(&self.pulse).since = Some(Instant::now());
        let emit = &mut self.emit;
        let mut progress = |done_bytes: u64, total_bytes: u64| {
            emit(
                Up::LoadProgress {
                    load: load.load.clone(),
                    done_bytes,
                    total_bytes,
                }
                .into(),
            );
        };
        let loaded = Model::load(self.engine.as_ref(), load, &mut progress);
        pulse_of(&self.pulse).since = None;
        match loaded {
            Ok(model) => {
                let loaded = Loaded {
                    load: load.load.clone(),
                    model: model.id.clone(),
                    resident_bytes: model.resident_bytes,
                    phases_ms: model.phases_ms.clone(),
                };
                self.models.push(model);
                self.say(Up::Loaded(loaded));
            }
            Err(failure) => self.say(Up::LoadFailed {
                load: load.load.clone(),
                failure,
            }),
        }
    }

    fn unload(&mut self, unload: LoadId, model: Option<&ModelId>) {
        let leaves = |id: &ModelId| model.is_none_or(|model| model == id);
        let (gone, kept): (Vec<Job>, Vec<Job>) = std::mem::take(&mut self.jobs)
            .into_iter()
            .partition(|job| leaves(&job.model));
        self.jobs = kept;
        for job in gone {
            let failure = failure(Outcome::Failed, "the job's model was unloaded");
            self.say(Up::Failed {
                job: job.job,
                attempt: job.attempt,
                failure,
            });
        }
        let before = facts::used_bytes();
        self.models.retain(|model| !leaves(&model.id));
        let freed_bytes = before.saturating_sub(facts::used_bytes());
        self.say(Up::Unloaded { unload, freed_bytes });
    }

    fn progress(&mut self, index: usize, phase: Phase, done: u32, total: u32, step_ms: f64) {
        let (job, attempt) = (self.jobs[index].job.clone(), self.jobs[index].attempt);
        self.say(Up::Progress(Progress {
            job,
            attempt,
            phase,
            done,
            total,
            step_ms,
        }));
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        let job = self.jobs.remove(index);
        self.say(Up::Failed {
            job: job.job,
            attempt: job.attempt,
            failure,
        });
    }

    fn model_index(&self, id: &ModelId) -> Result<usize, Failure> {
        let index = self.models.iter().position(|model| model.id == *id);
        index.ok_or_else(|| failure(Outcome::Failed, format!("the model `{id}` is not resident")))
    }

    fn prepare(&mut self, index: usize) {
        // Taken out for the time: preparing borrows the model, the engine and the job at once.
        let empty = Stage::Waiting {
            work: Box::new(Work::Embed(calotype_protocol::Embed {
                model: self.jobs[index].model.clone(),
                text: String::new(),
            })),
            blobs: Vec::new(),
        };
        let stage = std::mem::replace(&mut self.jobs[index].stage, empty);
        let Stage::Waiting { work, blobs } = stage else {
            return;
        };
        let done = match work.as_ref() {
            Work::Generate(_) => self.start(index, &work, &blobs),
            Work::Encode(work) => self.encode_alone(index, work, &blobs),
            Work::Decode(work) => self.decode_alone(index, work, &blobs),
            other => Err(unsupported(format!(
                "this worker generates, encodes and decodes; `{}` needs a worker that says so in `ready`",
                other.kind()
            ))),
        };
        if let Err(failure) = done {
            self.fail(index, failure);
        }
    }

    fn start(&mut self, index: usize, work: &Work, blobs: &[Blob]) -> Result<(), Failure> {
        let Work::Generate(work) = work else { return Ok(()) };
        let at = self.model_index(&work.model)?;
        let started = Instant::now();
        let bound = self.models[at].bind(self.engine.as_ref(), &work.adapters)?;
        if !work.adapters.is_empty() {
            let bind_ms = ms(started);
            self.jobs[index].spend(Phase::Bind, bind_ms);
            self.progress(index, Phase::Bind, 1, 1, bind_ms);
        }
        let started = Instant::now();
        let sampling = Sampling::new(work, blobs, &mut self.models[at], self.engine.as_ref(), bound)?;
        let encode_ms = ms(started);
        self.jobs[index].stage = Stage::Sampling(Box::new(sampling));
        self.jobs[index].spend(Phase::Encode, encode_ms);
        self.progress(index, Phase::Encode, 1, 1, encode_ms);
        Ok(())
    }

    fn encode_alone(
        &mut self,
        index: usize,
        work: &calotype_protocol::Encode,
        blobs: &[Blob],
    ) -> Result<(), Failure> {
        let at = self.model_index(&work.model)?;
        let started = Instant::now();
        let image = Image::of("the image", &work.image, blobs)?;
        let model = &self.models[at];
        let scale = model.scale;
        for edge in [image.width, image.height] {
            if edge == 0 || edge > MAX_EDGE as usize || edge % scale != 0 {
                return Err(invalid(format!(
                    "an edge of {edge} is not a multiple of {scale} up to {MAX_EDGE}"
                )));
            }
        }
        let latents = model.encode(
            self.engine.as_ref(),
            image.to_numbers(),
            image.height,
            image.width,
        )?;
        let shape = vec![
            1,
            model.latent_channels,
            image.height / scale,
            image.width / scale,
        ];
        let encode_ms = ms(started);
        self.jobs[index].spend(Phase::Encode, encode_ms);
        self.progress(index, Phase::Encode, 1, 1, encode_ms);
        let blob = latents.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.deliver(
            index,
            vec![BlobRef {
                blob: 0,
                dtype: Dtype::F32,
                shape,
            }],
            vec![blob],
            Vec::new(),
        );
        Ok(())
    }

    fn decode_alone(
        &mut self,
        index: usize,
        work: &calotype_protocol::Decode,
        blobs: &[Blob],
    ) -> Result<(), Failure> {
        let at = self.model_index(&work.model)?;
        let started = Instant::now();
        let model = &self.models[at];
        let most = MAX_EDGE as usize / model.scale;
        let [images, channels, height, width] = work.latents.shape[..] else {
            return Err(invalid("the latents are not [images, channels, height, width]"));
        };
        let fits = |edge: usize| (1..=most).contains(&edge);
        if channels != model.latent_channels || !fits(height) || !fits(width) || !(1..=16).contains(&images) {
            return Err(invalid(format!(
                "latents of {:?} are not taken",
                work.latents.shape
            )));
        }
        let latents = numbers_of("the latents", &work.latents, blobs)?;
        let pictures = latents
            .chunks_exact(channels * height * width)
            .map(|latents| Ok(Image::from_tensor(&model.decode(latents, height, width)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        let decode_ms = ms(started);
        self.jobs[index].spend(Phase::Decode, decode_ms);
        self.progress(index, Phase::Decode, 1, 1, decode_ms);
        self.deliver_pictures(index, pictures, Vec::new());
        Ok(())
    }

    fn finish(&mut self, index: usize) {
        let started = Instant::now();
        let decoded =
            self.model_index(&self.jobs[index].model)
                .and_then(|at| match &self.jobs[index].stage {
                    Stage::Sampling(sampling) => {
                        let seeds = sampling.seeds.clone();
                        let pictures = (0..seeds.len()).map(|seed| sampling.picture(&self.models[at], seed));
                        Ok((pictures.collect::<Result<Vec<_>, _>>()?, seeds))
                    }
                    Stage::Waiting { .. } => Err(failure(
                        Outcome::Failed,
                        "the job was decoded before it was sampled",
                    )),
                });
        match decoded {
            Ok((pictures, seeds)) => {
                let decode_ms = ms(started);
                self.jobs[index].spend(Phase::Decode, decode_ms);
                self.progress(index, Phase::Decode, 1, 1, decode_ms);
                self.deliver_pictures(index, pictures, seeds);
            }
            Err(failure) => self.fail(index, failure),
        }
    }

    fn deliver_pictures(&mut self, index: usize, pictures: Vec<Image>, seeds: Vec<u64>) {
        let images = pictures
            .iter()
            .enumerate()
            .map(|(blob, picture)| picture.blob(blob))
            .collect();
        self.deliver(
            index,
            images,
            pictures.into_iter().map(|picture| picture.bytes).collect(),
            seeds,
        );
    }

    fn deliver(&mut self, index: usize, images: Vec<BlobRef>, blobs: Vec<Blob>, seeds: Vec<u64>) {
        let job = self.jobs.remove(index);
        let result = RunResult {
            job: job.job,
            attempt: job.attempt,
            images,
            seeds,
            timings_ms: job.timings_ms,
            peak_bytes: facts::peak_bytes(),
            batch_sizes: job.batch_sizes,
            engine: self.engine.name(),
        };
        (self.emit)(Frame {
            message: Up::Result(Box::new(result)),
            blobs,
        });
    }

    /// The first job, and after it those that fit to it, as many as go together.
    fn companions(&self, order: &[usize]) -> Vec<usize> {
        let (mut chosen, mut samples) = (Vec::new(), 0);
        let mut shape: Option<&Shape> = None;
        for index in order {
            let Stage::Sampling(sampling) = &self.jobs[*index].stage else {
                continue;
            };
            let fits = shape.is_none_or(|shape| *shape == sampling.shape);
            if fits && (chosen.is_empty() || samples + sampling.samples() <= MOST_SAMPLES) {
                shape = Some(&sampling.shape);
                samples += sampling.samples();
                chosen.push(*index);
            }
            if chosen.len() == MAX_BATCH {
                break;
            }
        }
        chosen
    }

    fn step(&mut self, order: &[usize]) {
        let chosen = self.companions(order);
        let started = Instant::now();
        let (mut sample, mut timesteps, mut states) = (Vec::new(), Vec::new(), Vec::new());
        let mut run = None;
        for index in &chosen {
            if let Stage::Sampling(sampling) = &self.jobs[*index].stage {
                sampling.bring(&mut sample, &mut timesteps, &mut states);
                run = Some((sampling.bound.clone(), sampling.latent, sampling.context()));
            }
        }
        let Some((bound, latent, context)) = run else {
            return;
        };
        let samples = timesteps.len() as u32;
        let output = self.model_index(&self.jobs[chosen[0]].model).and_then(|at| {
            self.models[at].run_unet(
                &bound,
                UnetInput {
                    sample,
                    timesteps,
                    states,
                    latent,
                    context,
                },
            )
        });
        let output = match output {
            Ok(output) => output,
            Err(failure) => {
                let mut failed = chosen;
                failed.sort_unstable();
                for index in failed.into_iter().rev() {
                    self.fail(index, failure.clone());
                }
                return;
            }
        };
        let count = latent.iter().product::<usize>();
        let mut rest = output.as_slice();
        let mut ended = Vec::new();
        for index in &chosen {
            let Stage::Sampling(sampling) = &mut self.jobs[*index].stage else {
                continue;
            };
            let (own, others) = rest.split_at((sampling.samples() * count).min(rest.len()));
            rest = others;
            ended.extend(sampling.take(own).map(|done| (*index, done)));
        }
        let step_ms = ms(started);
        for index in &chosen {
            self.jobs[*index].spend(Phase::Denoise, step_ms);
            self.jobs[*index].batch_sizes.push(samples);
        }
        for (index, step) in ended {
            self.progress(index, Phase::Denoise, step.done, step.total, step_ms);
            self.preview(index, step.done, step.total);
        }
    }

    fn preview(&mut self, index: usize, done: u32, total: u32) {
        let Stage::Sampling(sampling) = &self.jobs[index].stage else {
            return;
        };
        if sampling.preview_every == 0 || !done.is_multiple_of(sampling.preview_every) || done == total {
            return;
        }
        let decoded = self
            .model_index(&self.jobs[index].model)
            .and_then(|at| sampling.picture(&self.models[at], 0));
        let (job, attempt) = (self.jobs[index].job.clone(), self.jobs[index].attempt);
        match decoded {
            Ok(picture) => {
                let small = picture.halved();
                let message = Up::Preview {
                    job,
                    attempt,
                    done,
                    image: small.blob(0),
                };
                (self.emit)(Frame {
                    message,
                    blobs: vec![small.bytes],
                });
            }
            Err(failure) => self.log(
                LogLevel::Warn,
                Some(job),
                format!("no preview: {}", failure.message),
            ),
        }
    }

    fn probe(&mut self, op: ProbeOp) -> BTreeMap<String, f64> {
        let (total, free) = facts::host_bytes();
        let mut figures = BTreeMap::from([
            ("total_bytes".to_owned(), total as f64),
            ("free_bytes".to_owned(), free as f64),
            ("used_bytes".to_owned(), facts::used_bytes() as f64),
        ]);
        if op == ProbeOp::Device {
            return figures;
        }
        let source = vec![1u8; 64 << 20];
        let mut target = vec![0u8; source.len()];
        target.copy_from_slice(&source);
        let started = Instant::now();
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&target);
        figures.insert(
            "copy_bytes_per_s".into(),
            source.len() as f64 / started.elapsed().as_secs_f64(),
        );
        for model in &mut self.models {
            let bound = model.bind(self.engine.as_ref(), &[]);
            let embedding = bound.and_then(|bound| {
                model
                    .encode_text(&bound, &[], &[], 0)
                    .map(|embedding| (bound, embedding))
            });
            let Ok((bound, embedding)) = embedding else {
                continue;
            };
            let latent = [model.latent_channels, 32, 32];
            let input = || UnetInput {
                sample: vec![0.5; latent.iter().product()],
                timesteps: vec![500.0],
                states: embedding.states.clone(),
                latent,
                context: [embedding.chunks * embedding.tokens, embedding.width],
            };
            // The first run makes buffers; the second is the rate.
            let mut step_ms = 0.0;
            for _ in 0..2 {
                let started = Instant::now();
                if model.run_unet(&bound, input()).is_err() {
                    break;
                }
                step_ms = ms(started);
            }
            figures.insert(format!("step_256_ms.{}", model.id), step_ms);
        }
        figures
    }
}
