//! One run of the UNet, shared by the jobs that fit together.

use std::time::Instant;

use calotype_protocol::{Frame, LogLevel, Phase, Up};

use super::{Loop, MAX_BATCH, ms};
use crate::job::{Shape, Stage};
use crate::model::UnetInput;

/// Most samples in one run of the UNet, unless one job alone brings more. On a processor a batch saves little from the
/// second sample on, and nothing from the fourth (`docs/benchmarks.md`): beyond it, later jobs wait, and earlier ones are
/// done sooner.
const MOST_SAMPLES: usize = 4;

impl Loop {
    /// The first job, and after it those that fit to it, as many as go together.
    pub(super) fn companions(&self, order: &[usize]) -> Vec<usize> {
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

    pub(super) fn step(&mut self, order: &[usize]) {
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

    pub(super) fn preview(&mut self, index: usize, done: u32, total: u32) {
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
}
