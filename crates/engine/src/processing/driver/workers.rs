//! What the workers say, and what it means for their jobs.

use std::sync::Arc;

use calotype_imaging::{Format, Rgb, encode};
use calotype_protocol::{
    Attempt, Blob, BlobRef, Failure, Frame, JobId, LoadId, Loaded, ModelId, Offload, Outcome, RunResult, Up,
};

use super::{Action, Driver, Internal, PostState, Stay, now_ms};
use crate::error::{Code, Error};
use crate::event::{EventKind, WorkerChange};
use crate::inference::{Abilities, Lack};
use crate::memory::{Owner, holding};
use crate::processing::{JobProgress, JobState};
use crate::worker::{ExitCause, ExitReport, WorkerEvent, WorkerEventKind};

impl Driver {
    pub(super) fn on_worker(&mut self, event: WorkerEvent) {
        let WorkerEvent {
            worker,
            incarnation,
            kind,
        } = event;
        let name = worker.0;
        let Some(post) = self.posts.get_mut(&name) else {
            return;
        };
        match kind {
            WorkerEventKind::Starting { pid } => {
                post.incarnation = incarnation;
                post.state = PostState::Starting;
                post.pid = Some(pid);
                self.tell_worker(&name, WorkerChange::Starting, None);
            }
            WorkerEventKind::Ready { hello, ready } => {
                post.state = PostState::Ready;
                post.deaths = 0;
                post.hello = Some(hello);
                post.capabilities = Some(Arc::new(ready.capabilities.clone()));
                post.ready = Some(ready);
                self.tell_worker(&name, WorkerChange::Ready, None);
                self.tell_abilities();
            }
            WorkerEventKind::Message(frame) => self.on_message(&name, incarnation, frame),
            WorkerEventKind::Gone(report) => self.gone(&name, report),
        }
    }

    /// Tells the door what the workers can do now.
    pub(super) fn tell_abilities(&self) {
        let known = self.posts.iter().filter_map(|(name, post)| {
            let ready = post.ready.as_ref()?;
            Some((name.clone(), ready.capabilities.clone()))
        });
        let unknown = self.posts.values().any(|post| post.ready.is_none());
        let abilities = Abilities::of(known.collect(), unknown);
        self.abilities.send_replace(Arc::new(abilities));
    }

    fn tell_worker(&self, worker: &str, state: WorkerChange, reason: Option<String>) {
        self.log.append(
            now_ms(),
            EventKind::Worker {
                worker: worker.to_owned(),
                state,
                reason,
            },
        );
    }

    fn on_message(&mut self, worker: &str, incarnation: u64, frame: Frame<Up>) {
        let Frame { message, blobs } = frame;
        match message {
            Up::Progress(progress) => {
                if let Some(live) = self.current(worker, incarnation, &progress.job, progress.attempt) {
                    let progress = JobProgress {
                        phase: progress.phase,
                        done: progress.done,
                        total: progress.total,
                        step_ms: progress.step_ms,
                    };
                    live.progress = Some(progress.clone());
                    let job = live.record.id.clone();
                    self.log.append(now_ms(), EventKind::Progress { job, progress });
                }
            }
            Up::Preview {
                job,
                attempt,
                done,
                image,
            } => {
                if self.current(worker, incarnation, &job, attempt).is_some() {
                    self.preview(job, done, &image, &blobs);
                }
            }
            Up::Result(result) => {
                let RunResult { job, attempt, .. } = &*result;
                if self.current(worker, incarnation, job, *attempt).is_some() {
                    self.result(worker, *result, blobs);
                }
            }
            Up::Failed {
                job,
                attempt,
                failure,
            } => {
                if self.current(worker, incarnation, &job, attempt).is_some() {
                    self.failed(&job, failure);
                }
            }
            Up::Cancelled {
                job,
                attempt,
                at_step,
            } => {
                if let Some(live) = self.current(worker, incarnation, &job, attempt) {
                    live.reason = Some(format!("left at step {at_step}"));
                    if live.wish == Some(Action::Cancel) {
                        self.end(&job, JobState::Cancelled, None);
                    } else {
                        // Nobody asked: the supervisor did, because a step took too long.
                        let what = format!("step {at_step} took longer than its deadline");
                        self.end(
                            &job,
                            JobState::Failed,
                            Some(Error::new(Code::DeadlineMissed, what)),
                        );
                    }
                }
            }
            Up::Paused {
                job,
                attempt,
                at_step,
            } => {
                if let Some(live) = self.current(worker, incarnation, &job, attempt) {
                    if live.wish == Some(Action::Pause) {
                        live.wish = None;
                    }
                    live.state = JobState::Paused;
                    live.reason = Some(format!("paused at step {at_step}"));
                    self.keep_paused(&job, true);
                    self.tell(&job);
                }
            }
            Up::Resumed { job, attempt, .. } => {
                if let Some(live) = self.current(worker, incarnation, &job, attempt) {
                    if live.wish == Some(Action::Resume) {
                        live.wish = None;
                    }
                    live.state = JobState::Running;
                    live.reason = None;
                    self.keep_paused(&job, false);
                    self.tell(&job);
                }
            }
            Up::Loaded(loaded) => self.loaded(worker, loaded),
            Up::LoadFailed { load, failure } => self.load_failed(worker, &load, &failure),
            Up::Unloaded { unload, freed_bytes } => self.unloaded(worker, &unload, freed_bytes),
            Up::Beat(beat) => {
                if let Some(post) = self.posts.get_mut(worker) {
                    post.used_bytes = beat.used_bytes;
                    if post.jobs.is_empty() && beat.running.is_empty() && post.moving.is_none() {
                        post.idle_bytes = Some(beat.used_bytes);
                    }
                }
            }
            Up::Released { segment } => self.cache.released(&segment, worker),
            Up::LoadProgress { .. } | Up::Memory { .. } | Up::Probed { .. } => {}
            // The supervisor's part.
            Up::Hello(_)
            | Up::Ready(_)
            | Up::Pong { .. }
            | Up::Log { .. }
            | Up::Fatal { .. }
            | Up::Bye {} => {}
        }
    }

    /// The job that a line is about, if it is about its present attempt in this very process; else the line is stale.
    fn current(
        &mut self,
        worker: &str,
        incarnation: u64,
        job: &JobId,
        attempt: Attempt,
    ) -> Option<&mut super::Live> {
        let live = self.jobs.get_mut(job).filter(|live| {
            live.sent
                && !live.ending
                && live.record.attempts == attempt.0
                && live
                    .place
                    .as_ref()
                    .is_some_and(|(at, process)| at == worker && *process == incarnation)
        });
        if live.is_none() {
            metrics::counter!("calotype_stale_lines_total").increment(1);
            tracing::warn!(worker, job.id = %job, "Dropped a stale line about attempt {attempt} of job {job}");
        }
        live
    }

    fn preview(&self, job: JobId, done: u32, image: &BlobRef, blobs: &[Blob]) {
        let [height, width, 3] = image.shape[..] else {
            return;
        };
        let Ok(pixels) = image.of(blobs) else { return };
        let (Ok(width), Ok(height)) = (u32::try_from(width), u32::try_from(height)) else {
            return;
        };
        let (pixels, internal) = (pixels.to_vec(), self.internal.clone());
        tokio::task::spawn_blocking(move || {
            let encoded = Rgb::new(width, height, pixels).and_then(|rgb| encode(&rgb, Format::Png, 0, None));
            if let Ok(png) = encoded {
                let _ = internal.send(Internal::Preview { job, done, png });
            }
        });
    }

    fn loaded(&mut self, worker: &str, loaded: Loaded) {
        let Some(post) = self.posts.get_mut(worker) else {
            return;
        };
        let Some(moving) = post.moving.take_if(|moving| moving.load == loaded.load) else {
            return;
        };
        // Of what waits in host memory only a part lies on the device at a time.
        let bytes = holding::on_device_bytes(loaded.resident_bytes, moving.residency.offload);
        if let Some(ledger) = self.ledgers.get_mut(&post.device) {
            ledger.correct(&weights_of(worker, &loaded.model), bytes);
        }
        self.uses += 1;
        let stay = Stay {
            bytes,
            residency: moving.residency,
            last_use: self.uses,
        };
        let phases: Vec<String> = loaded
            .phases_ms
            .iter()
            .map(|(phase, ms)| format!("{phase} {ms:.0} ms"))
            .collect();
        tracing::info!(
            "Loaded `{}` into {worker}: {} bytes in {} ms, {} components from memory and {} from files ({})",
            loaded.model,
            stay.bytes,
            moving.began.elapsed().as_millis(),
            moving.segments.len(),
            moving.read.len(),
            phases.join(", ")
        );
        metrics::histogram!("calotype_load_seconds").record(moving.began.elapsed().as_secs_f64());
        post.resident.insert(loaded.model, stay);
        if let Some(job) = moving.waiting {
            self.back_to_queue(&job);
        }
        // The next time it shall come from memory. What waits on the host was wanted before it was loaded, and once.
        if moving.residency.offload == Offload::None {
            for source in moving.read {
                self.cache.want(source);
            }
        }
    }

    fn load_failed(&mut self, worker: &str, load: &LoadId, failure: &Failure) {
        let Some(post) = self.posts.get_mut(worker) else {
            return;
        };
        let Some(moving) = post.moving.take_if(|moving| moving.load == *load) else {
            return;
        };
        if let Some(ledger) = self.ledgers.get_mut(&post.device) {
            ledger.release(&weights_of(worker, &moving.model));
        }
        let error = error_of(failure);
        tracing::error!("Failed to load `{}` into {worker}: {error}", moving.model);
        if failure.outcome == Outcome::ModelLoad && !moving.segments.is_empty() {
            self.distrust(&moving.model, load, &moving.segments);
            if let Some(job) = moving.waiting {
                self.back_to_queue(&job);
            }
            return;
        }
        if failure.outcome != Outcome::OutOfMemory {
            // Files do not mend themselves. What waits for the model goes to another worker, or ends with this reason.
            self.unusable.insert((worker.to_owned(), moving.model), error);
            if let Some(job) = moving.waiting {
                self.back_to_queue(&job);
            }
            return;
        }
        // Memory may come back for others; these have asked in vain.
        let losers: Vec<JobId> = self
            .jobs
            .values()
            .filter(|live| {
                live.models.iter().any(|need| need.model == moving.model)
                    && matches!(live.state, JobState::Queued | JobState::Loading)
                    && !live.ending
            })
            .map(|live| live.record.id.clone())
            .collect();
        for job in losers {
            self.end(&job, JobState::Failed, Some(error.clone()));
        }
    }

    fn unloaded(&mut self, worker: &str, unload: &LoadId, freed_bytes: u64) {
        let Some(post) = self.posts.get_mut(worker) else {
            return;
        };
        let Some(moving) = post.moving.take_if(|moving| moving.load == *unload) else {
            return;
        };
        tracing::info!(
            "Dropped `{}` from {worker}: {freed_bytes} bytes came back",
            moving.model
        );
        post.resident.remove(&moving.model);
        if let Some(ledger) = self.ledgers.get_mut(&post.device) {
            ledger.release(&weights_of(worker, &moving.model));
        }
    }

    fn back_to_queue(&mut self, job: &JobId) {
        if let Some(live) = self.jobs.get_mut(job)
            && live.state == JobState::Loading
        {
            live.state = JobState::Queued;
            live.reason = None;
        }
    }

    fn failed(&mut self, job: &JobId, failure: Failure) {
        let Some(live) = self.jobs.get_mut(job) else {
            return;
        };
        let retry = match failure.outcome {
            Outcome::OutOfMemory => {
                live.lacks += 1;
                live.alone = true;
                live.lacks == 1
            }
            Outcome::Failed | Outcome::Fatal => {
                live.failures += 1;
                live.failures == 1
            }
            Outcome::Cancelled => {
                self.end(job, JobState::Cancelled, None);
                return;
            }
            Outcome::NotSupported => {
                // Another may: the policy looks for one, and tells of all of them where there is none.
                let worker = live.place.as_ref().map(|(worker, _)| worker.clone());
                let words = match &failure.detail {
                    Some(detail) => format!("says: {}: {detail}", failure.message),
                    None => format!("says: {}", failure.message),
                };
                let lack = Lack {
                    field: "model",
                    words,
                };
                live.refused_by.extend(worker.map(|worker| (worker, lack)));
                true
            }
            Outcome::Done | Outcome::InvalidInput | Outcome::ModelLoad => false,
        };
        metrics::counter!("calotype_attempts_failed_total").increment(1);
        if retry && live.wish != Some(Action::Cancel) {
            live.reason = Some(format!("tried again after: {}", failure.message));
            self.put_back(job);
        } else {
            self.end(job, JobState::Failed, Some(error_of(&failure)));
        }
    }

    /// The process is dead and reaped: its memory is back, its jobs are looked at one by one.
    fn gone(&mut self, worker: &str, report: ExitReport) {
        let Some(post) = self.posts.get_mut(worker) else {
            return;
        };
        post.state = PostState::Gone;
        post.pid = None;
        post.resident.clear();
        post.idle_bytes = None;
        let moving = post.moving.take();
        if let Some(ledger) = self.ledgers.get_mut(&post.device) {
            let held = |owner: &Owner| match owner {
                Owner::Weights { worker: of, .. } | Owner::Adapters { worker: of, .. } => of == worker,
                Owner::WorkingSet(job) => post.jobs.contains(job),
            };
            let owners: Vec<Owner> = ledger
                .leases()
                .map(|(owner, _)| owner.clone())
                .filter(held)
                .collect();
            for owner in owners {
                ledger.release(&owner);
            }
        }
        self.cache.worker_gone(worker);
        let jobs: Vec<JobId> = post.jobs.iter().cloned().collect();
        let cause = format!("{:?} ({})", report.cause, report.status);
        post.last_exit = Some(cause.clone());
        post.deaths += 1;
        metrics::counter!("calotype_worker_exits_total").increment(1);
        tracing::warn!(worker, "Worker {worker} is gone: {cause}");
        self.tell_worker(worker, WorkerChange::Gone, Some(cause.clone()));
        if let Some(job) = moving.and_then(|moving| moving.waiting) {
            self.back_to_queue(&job);
        }
        for job in jobs {
            self.bereaved(&job, &report, &cause);
        }
    }

    fn bereaved(&mut self, job: &JobId, report: &ExitReport, cause: &str) {
        let Some(live) = self.jobs.get_mut(job) else {
            return;
        };
        if live.ending {
            return;
        }
        if live.wish == Some(Action::Cancel) {
            self.end(job, JobState::Cancelled, None);
            return;
        }
        // A job whose claim is still being journaled never reached the process; `prepared` puts it back.
        let guilty = match &report.cause {
            ExitCause::Recycled { .. } | ExitCause::Stopped => false,
            ExitCause::StepDeadline { job: late } => late == job,
            ExitCause::FailedToStart
            | ExitCause::ExitedBeforeReady
            | ExitCause::WrongVersion { .. }
            | ExitCause::ProtocolError { .. }
            | ExitCause::HelloTimeout
            | ExitCause::ReadyTimeout
            | ExitCause::Silent
            | ExitCause::LoadDeadline
            | ExitCause::Fatal { .. }
            | ExitCause::Killed { .. }
            | ExitCause::Exited => live.sent,
        };
        if guilty {
            live.record.crashes += 1;
            live.alone = true;
        }
        if live.record.crashes >= 2 {
            let tail = report.stderr_tail.trim();
            let mut error = Error::new(
                Code::Quarantined,
                format!("two workers died with this job, the last one by {cause}"),
            )
            .advice("it is not tried again; submit it anew once the cause is known");
            if !tail.is_empty() {
                error.message.push_str(&format!("; its last words: {tail}"));
            }
            self.end(job, JobState::Failed, Some(error));
        } else if live.sent || guilty {
            live.reason = Some(format!("tried again after its worker died: {cause}"));
            self.put_back(job);
        }
    }
}

fn weights_of(worker: &str, model: &ModelId) -> Owner {
    Owner::Weights {
        worker: worker.to_owned(),
        model: model.clone(),
    }
}

/// A worker's failure as the engine's error.
fn error_of(failure: &Failure) -> Error {
    let code = match failure.outcome {
        Outcome::InvalidInput => Code::InvalidInput,
        Outcome::NotSupported => Code::NotSupported,
        Outcome::OutOfMemory => Code::OutOfMemory,
        Outcome::Cancelled => Code::Cancelled,
        Outcome::ModelLoad => Code::ModelUnusable,
        Outcome::Done | Outcome::Failed | Outcome::Fatal => Code::WorkerFailed,
    };
    let message = match &failure.detail {
        Some(detail) => format!("{}: {detail}", failure.message),
        None => failure.message.clone(),
    };
    Error::new(code, message)
}
