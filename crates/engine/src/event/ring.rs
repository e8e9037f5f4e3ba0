//! The latest events, bounded in number and bytes, with an index by job; and the latest preview of each job, bounded in
//! bytes. Pure: knows no clock, lock or waiting reader.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use calotype_protocol::{JobId, Phase};

use super::event::{Event, EventKind};
use super::logged::LoggedEvent;
use super::previews::Previews;

/// A job's queue has room for at most so many times what it holds.
const SPARE: usize = 4;

/// How much is held for those who come back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Most events.
    pub(crate) events: usize,
    /// Most bytes of events.
    pub(crate) bytes: usize,
    /// Most bytes of previews.
    pub(crate) preview_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            events: 8192,
            bytes: 16 << 20,
            preview_bytes: 32 << 20,
        }
    }
}

/// What a reader finds behind its cursor.
#[derive(Debug)]
pub(super) enum Found {
    /// The next event.
    Event(Arc<LoggedEvent>),
    /// Events up to this number are not there for this reader; it goes on behind it.
    Gap(u64),
    /// Nothing yet.
    Nothing,
    /// The job's last event is at or before the cursor.
    Ended,
}

#[derive(Debug)]
pub(super) struct Ring {
    limits: Limits,
    /// Oldest first.
    events: VecDeque<Arc<LoggedEvent>>,
    bytes: usize,
    /// The last number that was given out.
    latest: u64,
    /// The last number that a reader cannot get any more: of an event that was dropped, or of an earlier run.
    dropped_to: u64,
    jobs: HashMap<JobId, JobEvents>,
    previews: Previews,
    /// Events looked at, for the test that says how many.
    #[cfg(test)]
    pub(super) visited: std::cell::Cell<usize>,
}

/// What is held of one job.
#[derive(Debug)]
struct JobEvents {
    /// Oldest first; each is also in the ring.
    events: VecDeque<Arc<LoggedEvent>>,
    /// The number of its latest preview.
    preview: Option<u64>,
    /// The last number that may have been an event of this job and was dropped.
    dropped_to: u64,
    /// While it has readers, what was dropped is remembered, so that other jobs' events make no gap in its stream.
    readers: usize,
}

impl JobEvents {
    fn new(dropped_to: u64) -> Self {
        Self {
            events: VecDeque::new(),
            preview: None,
            dropped_to,
            readers: 0,
        }
    }

    fn has_ended(&self) -> bool {
        self.events.back().is_some_and(|event| event.kind.is_final())
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.preview.is_none() && self.readers == 0
    }
}

impl Ring {
    /// An empty one whose first event gets `first_id`.
    pub(super) fn new(first_id: u64, limits: Limits) -> Self {
        let before = first_id.saturating_sub(1);
        Self {
            limits,
            events: VecDeque::new(),
            bytes: 0,
            latest: before,
            dropped_to: before,
            jobs: HashMap::new(),
            previews: Previews::new(limits.preview_bytes),
            #[cfg(test)]
            visited: std::cell::Cell::new(0),
        }
    }

    /// The last number that was given out.
    pub(super) fn latest(&self) -> u64 {
        self.latest
    }

    /// Adds an event, and drops the oldest ones for which there is no room beside it.
    pub(super) fn append(&mut self, at_ms: u64, kind: EventKind) {
        self.latest += 1;
        let id = self.latest;
        let event = Arc::new(LoggedEvent::new(Event { id, at_ms, kind }));
        if matches!(event.kind, EventKind::Progress { .. })
            && let Some(before) = self.last_of_job(&event)
            && matches!(before.kind, EventKind::Progress { .. })
        {
            before.overtake();
        }
        if event.kind.is_final() {
            self.drop_preview(&event);
        }
        let bytes = Self::cost(&event);
        while !self.events.is_empty()
            && (self.events.len() >= self.limits.events || self.bytes + bytes > self.limits.bytes)
        {
            self.drop_oldest();
        }
        if bytes > self.limits.bytes || self.limits.events == 0 {
            self.dropped(&event);
            return;
        }
        if let Some(job) = event.kind.job() {
            let events = &mut self.job_events(job).events;
            events.push_back(Arc::clone(&event));
        }
        self.bytes += bytes;
        self.events.push_back(event);
    }

    /// Keeps the latest preview of a job. One that comes after the job's end is not wanted any more. Says whether it was
    /// kept.
    pub(super) fn preview(
        &mut self,
        at_ms: u64,
        job: JobId,
        done: u32,
        phase: Phase,
        png: Arc<[u8]>,
    ) -> bool {
        if self.jobs.get(&job).is_some_and(JobEvents::has_ended) {
            return false;
        }
        let id = self.latest + 1;
        let kind = EventKind::Preview {
            job: job.clone(),
            done,
            phase,
            png,
        };
        let event = Arc::new(LoggedEvent::new(Event { id, at_ms, kind }));
        let before = self.job_events(&job).preview.take();
        self.previews.remove(before);
        let (kept, pushed_out) = self.previews.insert(event);
        for event in pushed_out {
            self.forget_preview(&event);
        }
        if kept {
            self.latest = id;
            self.job_events(&job).preview = Some(id);
        } else {
            self.tidy(&job);
        }
        kept
    }

    /// The next event after `cursor` for `job` (or for all). A progress that a later one of the same job has overtaken
    /// is passed over.
    pub(super) fn after(&self, cursor: u64, job: Option<&JobId>) -> Found {
        let Some(job) = job else {
            if cursor < self.dropped_to {
                return Found::Gap(self.dropped_to);
            }
            let preview = self.previews.after(cursor);
            return earlier(self.next_in(&self.events, cursor), preview).map_or(Found::Nothing, Found::Event);
        };
        let dropped_to = self.jobs.get(job).map_or(self.dropped_to, |of| of.dropped_to);
        if cursor < dropped_to {
            // The job as it stands follows and makes up for all there has been.
            return Found::Gap(self.latest);
        }
        let Some(of) = self.jobs.get(job) else {
            return Found::Nothing;
        };
        let preview = of
            .preview
            .filter(|id| *id > cursor)
            .and_then(|id| self.previews.get(id));
        match earlier(self.next_in(&of.events, cursor), preview) {
            Some(event) => Found::Event(event),
            None if of.has_ended() => Found::Ended,
            None => Found::Nothing,
        }
    }

    /// From here on it is remembered what of this job is dropped.
    pub(super) fn reader_comes(&mut self, job: &JobId) {
        self.job_events(job).readers += 1;
    }

    /// Says whether it was the job's last one.
    pub(super) fn reader_leaves(&mut self, job: &JobId) -> bool {
        let Some(of) = self.jobs.get_mut(job) else {
            return true;
        };
        of.readers = of.readers.saturating_sub(1);
        let was_last = of.readers == 0;
        self.tidy(job);
        was_last
    }

    fn next_in(&self, events: &VecDeque<Arc<LoggedEvent>>, cursor: u64) -> Option<Arc<LoggedEvent>> {
        let from = events.partition_point(|event| {
            self.visit();
            event.id <= cursor
        });
        let mut behind = events.range(from..).inspect(|_| self.visit());
        behind.find(|event| !event.is_overtaken()).cloned()
    }

    fn visit(&self) {
        #[cfg(test)]
        self.visited.set(self.visited.get() + 1);
    }

    fn job_events(&mut self, job: &JobId) -> &mut JobEvents {
        let dropped_to = self.dropped_to;
        self.jobs
            .entry(job.clone())
            .or_insert_with(|| JobEvents::new(dropped_to))
    }

    fn last_of_job(&self, event: &LoggedEvent) -> Option<&Arc<LoggedEvent>> {
        self.jobs.get(event.kind.job()?)?.events.back()
    }

    fn drop_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= Self::cost(&event);
            if let Some(of) = event.kind.job().and_then(|job| self.jobs.get_mut(job)) {
                of.events.pop_front();
                // A queue that was long once keeps its room otherwise, uncounted.
                let most = SPARE * of.events.len().max(SPARE);
                if of.events.capacity() > most {
                    of.events.shrink_to(most / 2);
                }
            }
            self.dropped(&event);
        }
    }

    /// Remembers that readers cannot get an event any more. One that was overtaken is no loss.
    fn dropped(&mut self, event: &LoggedEvent) {
        let is_lost = !event.is_overtaken();
        if is_lost {
            self.dropped_to = event.id;
        }
        if let Some(job) = event.kind.job() {
            if let Some(of) = self.jobs.get_mut(job)
                && is_lost
            {
                of.dropped_to = event.id;
            }
            self.tidy(job);
        }
    }

    fn drop_preview(&mut self, event: &LoggedEvent) {
        let of = event.kind.job().and_then(|job| self.jobs.get_mut(job));
        let preview = of.and_then(|of| of.preview.take());
        self.previews.remove(preview);
    }

    fn forget_preview(&mut self, event: &LoggedEvent) {
        if let Some(job) = event.kind.job() {
            if let Some(of) = self.jobs.get_mut(job) {
                of.preview = None;
            }
            self.tidy(job);
        }
    }

    /// Forgets a job of which nothing is held.
    fn tidy(&mut self, job: &JobId) {
        if self.jobs.get(job).is_some_and(JobEvents::is_empty) {
            self.jobs.remove(job);
        }
    }

    /// Memory of an event with its places in the ring, whose queue grows by doubling, and in the index.
    fn cost(event: &LoggedEvent) -> usize {
        let job = event.kind.job().map_or(0, |job| job.0.len());
        event.bytes() + (2 + SPARE) * size_of::<usize>() + size_of::<(JobId, JobEvents)>() + job
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize, usize) {
        assert_eq!(
            self.bytes,
            self.events.iter().map(|event| Self::cost(event)).sum::<usize>()
        );
        (self.events.len(), self.bytes, self.previews.bytes())
    }

    #[cfg(test)]
    pub(super) fn jobs_held(&self) -> usize {
        self.jobs.len()
    }
}

fn earlier(a: Option<Arc<LoggedEvent>>, b: Option<Arc<LoggedEvent>>) -> Option<Arc<LoggedEvent>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if a.id < b.id { a } else { b }),
        (a, b) => a.or(b),
    }
}
