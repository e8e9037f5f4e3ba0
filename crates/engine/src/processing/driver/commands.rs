//! What the facade asks of the driver.

use tokio::sync::oneshot;

use super::{Action, Command, Driver, Live};
use crate::error::{Code, Error};
use crate::inference::{AdapterNeed, ModelNeed, Needs, estimate};
use crate::memory::holding::Pieces;
use crate::processing::{JobRecord, JobState, JobView, Ticket};
use crate::store::{Held, Write};
use calotype_protocol::{Attempt, Down, JobId};
use std::sync::Arc;
use std::time::Instant;

impl Driver {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Accepted {
                record,
                ticket,
                reply,
            } => self.accepted(*record, ticket, reply),
            Command::Control { job, action, reply } => {
                let answer = self.jobs.contains_key(&job).then(|| self.control(&job, action));
                let _ = reply.send(answer);
            }
            Command::View { job, reply } => {
                let _ = reply.send(self.view(&job));
            }
            Command::Wait { job, reply } => {
                if let Some(live) = self.jobs.get_mut(&job) {
                    live.waiters.push(reply);
                }
            }
            Command::Snapshot { reply } => {
                let _ = reply.send(self.snapshot());
            }
            Command::Stop { reply } => self.stopping = Some(reply),
        }
    }

    fn accepted(&mut self, record: JobRecord, ticket: Ticket, reply: Option<oneshot::Sender<JobView>>) {
        let job = record.id.clone();
        // A model that was taken away since the job was accepted: the job is kept, and ends with that reason.
        let (needs, models, adapters, problem) = match self.required(&record) {
            Ok((needs, models, adapters)) => (needs, models, adapters, None),
            Err(error) => (Needs::nothing(), Vec::new(), None, Some(error)),
        };
        let working_sets = self.posts.values().map(|post| {
            let (plan, device_kind) = (&record.plan, &post.config.device.kind);
            let bytes = Pieces::ALL.map(|pieces| {
                let family = needs.family();
                estimate::need_bytes(plan, family, device_kind, &post.kind, pieces, &self.peaks).0
            });
            (Arc::clone(&post.kind), bytes)
        });
        let working_sets = Arc::new(working_sets.collect());
        let live = Live {
            state: record.state,
            alone: record.crashes > 0,
            reason: None,
            progress: None,
            place: None,
            pieces: Pieces::default(),
            sent: false,
            accompanied: false,
            wish: None,
            ending: false,
            refused_by: Vec::new(),
            failures: 0,
            lacks: 0,
            models: models.into(),
            adapters: adapters.map(Arc::new),
            needs: Arc::new(needs),
            working_sets,
            _ticket: ticket,
            waiters: Vec::new(),
            accepted: Instant::now(),
            started: None,
            record,
        };
        self.jobs.insert(job.clone(), live);
        metrics::counter!("calotype_jobs_accepted_total").increment(1);
        self.tell(&job);
        if let Some(reply) = reply
            && let Some(view) = self.view(&job)
        {
            let _ = reply.send(view);
        }
        if let Some(error) = problem {
            self.end(&job, JobState::Failed, Some(error));
        }
    }

    /// What a job asks of a worker, and the models that it needs.
    fn required(&self, record: &JobRecord) -> Result<(Needs, Vec<ModelNeed>, Option<AdapterNeed>), Error> {
        let (plan, catalogue) = (&record.plan, &self.catalogue);
        let needs = Needs::of(plan, catalogue)?;
        Ok((
            needs,
            ModelNeed::all_of(plan, catalogue)?,
            AdapterNeed::of(plan, catalogue)?,
        ))
    }

    fn control(&mut self, job: &JobId, action: Action) -> Result<JobView, Error> {
        let Some(live) = self.jobs.get_mut(job) else {
            return Err(Error::new(Code::Internal, "the job left while it was asked for"));
        };
        match (action, live.state) {
            // The pictures are made and being stored: too late to take back, and nothing left to hold.
            (_, JobState::Finishing) => {
                return Err(
                    Error::new(Code::Conflict, "the job is done, its pictures are being stored")
                        .job(job.clone()),
                );
            }
            _ if live.ending => {}
            (Action::Cancel, _) => self.cancel(job),
            (Action::Pause, JobState::Queued | JobState::Loading) => {
                live.state = JobState::Paused;
                live.reason = Some("paused before it began".into());
                self.keep_paused(job, true);
                self.tell(job);
            }
            (Action::Pause, JobState::Running) => {
                live.state = JobState::Pausing;
                live.wish = Some(Action::Pause);
                if live.sent {
                    self.send_of(job, |job, attempt| Down::Pause {
                        job,
                        attempt,
                        offload: false,
                    });
                }
                self.tell(job);
            }
            (Action::Resume, JobState::Paused) => {
                self.keep_paused(job, false);
                self.resume(job);
            }
            (Action::Resume, JobState::Pausing) => {
                live.wish = Some(Action::Resume);
                if live.sent {
                    self.send_of(job, |job, attempt| Down::Resume { job, attempt });
                }
            }
            // Asked again: it is so already.
            (Action::Pause, JobState::Pausing | JobState::Paused) => {}
            (Action::Resume, JobState::Queued | JobState::Loading | JobState::Running) => {}
            (_, JobState::Succeeded | JobState::Failed | JobState::Cancelled) => {}
        }
        self.view(job)
            .ok_or_else(|| Error::new(Code::Internal, "the job left while it was asked for"))
    }

    fn cancel(&mut self, job: &JobId) {
        let Some(live) = self.jobs.get_mut(job) else {
            return;
        };
        if live.place.is_none() {
            self.end(job, JobState::Cancelled, None);
            return;
        }
        live.wish = Some(Action::Cancel);
        live.reason = Some("leaves at the next step".into());
        if live.sent {
            self.send_of(job, |job, attempt| Down::Cancel { job, attempt });
        }
        self.tell(job);
    }

    fn resume(&mut self, job: &JobId) {
        let Some(live) = self.jobs.get_mut(job) else {
            return;
        };
        live.reason = None;
        if live.place.is_some() {
            // Said to be running when the worker says so.
            live.wish = Some(Action::Resume);
            self.send_of(job, |job, attempt| Down::Resume { job, attempt });
        } else {
            live.state = JobState::Queued;
            self.tell(job);
        }
    }

    /// Sends a line about a job to the worker that has it.
    pub(super) fn send_of(&self, job: &JobId, line: impl FnOnce(JobId, Attempt) -> Down) {
        let Some(live) = self.jobs.get(job) else { return };
        if let Some((worker, _)) = &live.place
            && let Some(handle) = self.posts.get(worker).and_then(|post| post.handle.as_ref())
        {
            handle.send(line(job.clone(), Attempt(live.record.attempts)).into());
        }
    }

    /// Journals that a job is held or let go.
    pub(super) fn keep_paused(&self, job: &JobId, paused: bool) {
        let job = job.clone();
        let held = if paused { Held::Yes } else { Held::No };
        let receipt = self.store.write(vec![Write::Hold {
            job: job.clone(),
            held,
        }]);
        tokio::spawn(async move {
            if let Err(error) = receipt.await {
                tracing::error!(job.id = %job, "Failed to journal a pause: {error}");
            }
        });
    }
}
