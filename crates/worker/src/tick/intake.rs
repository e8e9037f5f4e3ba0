//! What comes in and what goes out again: jobs taken and dropped, models loaded and unloaded.

use std::time::Instant;

use calotype_protocol::{Blob, Load, LoadId, Loaded, LogLevel, ModelId, Outcome, Run, Up};

use super::{Loop, pulse_of};
use crate::facts;
use crate::failure::failure;
use crate::job::Job;
use crate::model::Model;

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
