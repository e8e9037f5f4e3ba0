//! Jobs that were accepted: looked at, controlled, waited for.

use calotype_protocol::JobId;
use tokio::sync::oneshot;

use super::{Engine, JobPage, JobQuery, going_down};
use crate::error::{Code, Error};
use crate::processing::{Action, Command, JobState, JobView, StepView, view_as_told, view_of};
use crate::store::JobFilter;

/// Largest page of jobs.
const PAGE_MOST: usize = 500;
const PAGE_DEFAULT: usize = 50;

impl Engine {
    /// A job as it stands.
    pub async fn job(&self, id: &JobId) -> Result<JobView, Error> {
        // Asked before the journal: a job that ends in between is shown as the journal has it.
        let live = self.live(vec![id.clone()]).await.pop().flatten();
        match self.inner.store.job(id).await? {
            Some(record) => Ok(view_of(record, live)),
            None => Err(Error::new(Code::NotFound, format!("there is no job {id}"))
                .advice("GET /api/jobs lists them")),
        }
    }

    /// A job as it was told to subscribers: it has ended only once its last event is in the log.
    pub(super) async fn job_as_told(&self, id: &JobId) -> Result<JobView, Error> {
        let live = self.live(vec![id.clone()]).await.pop().flatten();
        match self.inner.store.job(id).await? {
            Some(record) => Ok(view_as_told(record, live)),
            None => Err(Error::new(Code::NotFound, format!("there is no job {id}"))),
        }
    }

    /// Jobs as the dispatcher has them; `None` for each that is not live, or when the dispatcher is gone.
    async fn live(&self, jobs: Vec<JobId>) -> Vec<Option<StepView>> {
        let (count, (reply, answer)) = (jobs.len(), oneshot::channel());
        let _ = self.inner.commands.send(Command::Views { jobs, reply }).await;
        answer.await.unwrap_or_else(|_| vec![None; count])
    }

    /// A page of jobs, newest first.
    pub async fn jobs(&self, query: JobQuery) -> Result<JobPage, Error> {
        let limit = match query.limit {
            0 => PAGE_DEFAULT,
            limit => limit.min(PAGE_MOST),
        };
        let records = match query.state {
            // What a live job does is known to the dispatcher alone.
            Some(state) if !state.is_final() => {
                let (reply, answer) = oneshot::channel();
                let before = query.cursor;
                self.tell(Command::InState {
                    state,
                    before,
                    limit,
                    reply,
                })
                .await?;
                let sequences = answer.await.map_err(|_| going_down())?;
                let mut records = self.inner.store.by_sequences(&sequences).await?;
                records.sort_unstable_by_key(|record| std::cmp::Reverse(record.sequence));
                records
            }
            state => {
                let filter = JobFilter {
                    state,
                    before_sequence: query.cursor,
                    limit,
                };
                self.inner.store.jobs(filter).await?
            }
        };
        let cursor = (records.len() == limit)
            .then(|| records.last().map(|record| record.sequence))
            .flatten();
        let live: Vec<JobId> = records
            .iter()
            .filter(|record| !record.state.is_final())
            .map(|record| record.id.clone())
            .collect();
        let mut views = if live.is_empty() {
            Vec::new()
        } else {
            self.live(live).await
        }
        .into_iter();
        let jobs = records.into_iter().map(|record| {
            let view = if record.state.is_final() {
                None
            } else {
                views.next().flatten()
            };
            view_of(record, view)
        });
        let jobs = jobs.collect();
        Ok(JobPage { jobs, cursor })
    }

    /// Ends a job; it is `cancelled` once its state says so.
    pub async fn cancel(&self, id: &JobId) -> Result<JobView, Error> {
        self.control(id, Action::Cancel).await
    }

    /// Holds a job at its next step; it is `paused` once its state says so.
    pub async fn pause(&self, id: &JobId) -> Result<JobView, Error> {
        self.control(id, Action::Pause).await
    }

    /// Lets a paused job go on.
    pub async fn resume(&self, id: &JobId) -> Result<JobView, Error> {
        self.control(id, Action::Resume).await
    }

    async fn control(&self, id: &JobId, action: Action) -> Result<JobView, Error> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Control {
            job: id.clone(),
            action,
            reply,
        })
        .await?;
        match answer.await {
            Ok(Some(outcome)) => {
                outcome?;
                self.job(id).await
            }
            Ok(None) | Err(_) => {
                let view = self.job(id).await?;
                if action == Action::Cancel && view.state == JobState::Cancelled {
                    return Ok(view);
                }
                let what = format!("the job is already {}", view.state.name());
                Err(Error::new(Code::Conflict, what).job(id.clone()))
            }
        }
    }

    /// Forgets a job that has ended.
    pub async fn delete(&self, id: &JobId) -> Result<(), Error> {
        let view = self.job(id).await?;
        if !view.state.is_final() {
            return Err(
                Error::new(Code::Conflict, format!("the job is {}", view.state.name()))
                    .advice("cancel it first")
                    .job(id.clone()),
            );
        }
        self.inner.store.delete(id).await?;
        Ok(())
    }

    /// Waits for a job's end.
    pub async fn wait(&self, id: &JobId) -> Result<JobView, Error> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Wait {
            job: id.clone(),
            reply,
        })
        .await?;
        match answer.await {
            Ok(view) => Ok(view),
            Err(_) => {
                let view = self.job(id).await?;
                if view.state.is_final() {
                    Ok(view)
                } else {
                    Err(going_down())
                }
            }
        }
    }
}
