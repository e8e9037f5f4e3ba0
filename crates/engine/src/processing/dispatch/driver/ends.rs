//! What is told: the ends of jobs, what the workers can do, weights in memory that come and go.

use std::sync::Arc;

use calotype_protocol::SegmentId;

use super::Driver;
use crate::event::{EventKind, SegmentChange};
use crate::inference::Abilities;
use crate::processing::dispatch::core::{Ended, Now, StepView};
use crate::processing::dispatch::message::Internal;
use crate::processing::dispatch::snapshot::{self};
use crate::processing::job::{JobRecord, JobState, JobView};

impl Driver {
    /// A step's end is on disk. Its record makes the view: at hand if it was claimed, else it is read.
    pub(super) fn ended(&mut self, ended: Box<Ended>, now: Now) {
        let step = ended.step;
        let recent = || {
            let mut recent = self.recent.iter();
            recent
                .find(|(key, _)| *key == step)
                .map(|(_, record)| Arc::clone(record))
        };
        match self.claimed.remove(&step).or_else(recent) {
            Some(record) => self.tell_end(*ended, Some(record), now),
            None => {
                self.untold.insert(ended.job.clone(), StepView::ending(&ended));
                let (store, internal) = (self.store.clone(), self.internal.clone());
                tokio::spawn(async move {
                    let record = store.job(&ended.job).await.ok().flatten().map(Arc::new);
                    let _ = internal.send(Internal::EndedRecord { ended, record });
                });
            }
        }
        self.recent.retain(|(key, _)| *key != step);
        self.tickets.remove(&step);
    }

    /// Tells everybody that a job has ended.
    pub(super) fn tell_end(&mut self, ended: Ended, record: Option<Arc<JobRecord>>, now: Now) {
        let Ended {
            job,
            end,
            note,
            attempts,
            started_at_ms,
            took,
            ..
        } = ended;
        self.untold.remove(&job);
        match (&end.state, &end.error) {
            (JobState::Succeeded, _) => self.runs.succeeded(now.wall_ms),
            (JobState::Failed, Some(error)) => self.runs.failed(now.wall_ms, error),
            _ => {}
        }
        self.gate.took(took.as_millis() as u64);
        metrics::counter!("calotype_jobs_ended_total", "state" => end.state.name()).increment(1);
        metrics::histogram!("calotype_job_seconds").record(took.as_secs_f64());
        let (state, reason) = (end.state, note.filter(|_| end.state == JobState::Cancelled));
        let view = record.map(|record| {
            let record = JobRecord {
                state,
                attempts,
                started_at_ms: started_at_ms.or(record.started_at_ms),
                finished_at_ms: Some(end.at_ms),
                result: end.result,
                error: end.error,
                ..JobRecord::clone(&record)
            };
            JobView {
                reason: reason.clone(),
                ..snapshot::view_of(record, None)
            }
        });
        let waiters = self.waiters.remove(&job).unwrap_or_default();
        if let Some(view) = &view {
            for waiter in waiters {
                let _ = waiter.send(view.clone());
            }
        }
        let kind = EventKind::Job {
            job,
            state,
            reason,
            view: view.map(Box::new),
        };
        self.log.append(now.wall_ms, kind);
    }

    /// Tells the door what the workers can do now.
    pub(super) fn tell_abilities(&self) {
        let workers = &self.core.fleet().workers;
        let known = workers.iter().filter_map(|worker| {
            let can = worker.capabilities.as_deref()?;
            Some((worker.spec.name.to_string(), can.clone()))
        });
        let unknown = workers.iter().any(|worker| worker.capabilities.is_none());
        self.abilities
            .send_replace(Arc::new(Abilities::of(known.collect(), unknown)));
    }

    pub(super) fn tell_segment(
        &self,
        segment: &SegmentId,
        state: SegmentChange,
        reason: Option<String>,
        now: Now,
    ) {
        let kind = EventKind::Segment {
            segment: segment.to_string(),
            state,
            reason,
        };
        self.log.append(now.wall_ms, kind);
    }
}
