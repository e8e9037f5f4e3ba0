//! What comes in and what goes out again: jobs taken, held and dropped, models loaded and unloaded.

use std::time::Instant;

use calotype_protocol::{
    Attempt, Blob, Failure, JobId, Load, LoadId, Loaded, LogLevel, ModelId, Outcome, Run, Up,
};

use super::{Loop, pulse_of};
use crate::facts;
use crate::failure::failure;
use crate::job::{Job, Stage};
use crate::model::Model;

/// What becomes of the merged LoRA weights that a job holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Adapters {
    Release,
    Bind,
}

impl Loop {
    pub(super) fn take(&mut self, run: Run, blobs: Vec<Blob>) {
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

    /// Takes a job out of the tick loop. Its state is in host memory already; with `offload` it lets go of what is not
    /// its own.
    pub(super) fn pause(&mut self, job: &JobId, attempt: Attempt, offload: bool) {
        let Some(index) = self.known("pause", job, attempt) else {
            return;
        };
        self.jobs[index].paused = true;
        if offload && let Err(failure) = self.rebind(index, Adapters::Release) {
            return self.fail(index, failure);
        }
        let at_step = self.jobs[index].steps_done();
        self.say(Up::Paused {
            job: job.clone(),
            attempt,
            at_step,
        });
    }

    /// Takes a job into the tick loop again.
    pub(super) fn resume(&mut self, job: &JobId, attempt: Attempt) {
        let Some(index) = self.known("resume", job, attempt) else {
            return;
        };
        if self.jobs[index].paused
            && let Err(failure) = self.rebind(index, Adapters::Bind)
        {
            return self.fail(index, failure);
        }
        self.jobs[index].paused = false;
        let at_step = self.jobs[index].steps_done();
        self.say(Up::Resumed {
            job: job.clone(),
            attempt,
            at_step,
        });
    }

    fn rebind(&mut self, index: usize, adapters: Adapters) -> Result<(), Failure> {
        let at = self.model_index(&self.jobs[index].model);
        let Stage::Sampling(sampling) = &mut self.jobs[index].stage else {
            return Ok(());
        };
        let (model, engine) = (&mut self.models[at?], self.engine.as_ref());
        match adapters {
            Adapters::Release => sampling.release_adapters(model, engine),
            Adapters::Bind => sampling.bind_adapters(model, engine),
        }
    }

    pub(super) fn drop_paused(&mut self) {
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

    pub(super) fn load(&mut self, load: &Load) {
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

    pub(super) fn unload(&mut self, unload: LoadId, model: Option<&ModelId>) {
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
}
