//! Virtual time: a heap of events, the core that is told of each, and its effects carried out by virtual devices.

mod wire;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use calotype_protocol::{Embed, JobId, Loaded, ModelId, Up, Work};

use super::event::{Event, INCARNATION, JobFacts, Timed, at, handshake, line, number};
use super::worker::VirtualWorker;
use super::workload::{Delays, DeviceSpec, Job, Model, ms};
use crate::memory::{Ledger, Peaks};
use crate::processing::dispatch::core::{Accepted, Core, CoreParts, Effect, Input, StoredOutputs};
use crate::processing::job::{JobResult, StepKey};
use crate::processing::schedule::{DeviceId, DeviceMemory, Fleet, WorkerId, WorkerSpec};

/// Inputs of one moment that are taken in before the core decides, as its driver does.
const TOGETHER_MOST: usize = 128;
/// What an unload takes.
const UNLOAD: Duration = Duration::from_millis(20);

/// Told of the core's own time, by what it did.
pub(super) trait Watch {
    /// Around everything that is told at one moment and what the core decides on it.
    fn around(&mut self, work: &mut dyn FnMut() -> Vec<Effect>) -> Vec<Effect>;
}

/// Looks at no clock.
pub(super) struct Unwatched;

impl Watch for Unwatched {
    fn around(&mut self, work: &mut dyn FnMut() -> Vec<Effect>) -> Vec<Effect> {
        work()
    }
}

pub(super) struct World<W = Unwatched> {
    pub(super) core: Core,
    pub(super) watch: W,
    now: Duration,
    events: BinaryHeap<Reverse<Timed>>,
    order: u64,
    pub(super) workers: Vec<VirtualWorker>,
    pub(super) models: Vec<Model>,
    pub(super) jobs: Vec<JobFacts>,
    pub(super) ended: usize,
    delays: Delays,
    faults: Vec<String>,
}

impl World {
    pub(super) fn new(devices: Vec<DeviceSpec>, models: Vec<Model>) -> Self {
        Self::watched(devices, models, Unwatched)
    }
}

impl<W: Watch> World<W> {
    /// A fleet whose workers are ready and empty.
    pub(super) fn watched(devices: Vec<DeviceSpec>, models: Vec<Model>, watch: W) -> Self {
        let memories = devices.iter().enumerate().map(|(index, device)| DeviceMemory {
            id: format!("cuda:{index}"),
            ledger: Ledger::new(device.budget_bytes),
        });
        let specs = (0..devices.len()).map(|index| WorkerSpec {
            name: format!("cuda{index}-python").into(),
            device: DeviceId(index as u32),
            runtime: "python".into(),
            kind: "python@cuda".into(),
            device_kind: "cuda".into(),
            rank: 0,
            starts_when_needed: false,
        });
        let fleet = Fleet::new(memories.collect(), specs.collect(), 0);
        let mut core = Core::new(CoreParts {
            fleet,
            peaks: Peaks::default(),
            outputs_limit_bytes: u64::MAX,
        });
        for (index, device) in devices.iter().enumerate() {
            let worker = WorkerId(index as u32);
            let now = at(Duration::ZERO);
            core.on(
                Input::WorkerStarting {
                    worker,
                    incarnation: INCARNATION,
                    pid: 1,
                },
                now,
            );
            let (hello, ready) = handshake(device);
            core.on(Input::WorkerReady { worker, hello, ready }, now);
        }
        Self {
            core,
            watch,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            order: 0,
            workers: devices.into_iter().map(VirtualWorker::new).collect(),
            models,
            jobs: Vec::new(),
            ended: 0,
            delays: Delays::USUAL,
            faults: Vec::new(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// A job arrives after `pause`.
    pub(super) fn submit_in(&mut self, pause: Duration, job: Job) {
        self.push(pause, Event::Arrival(job));
    }

    /// All of them arrive now.
    pub(super) fn submit(&mut self, jobs: impl IntoIterator<Item = Job>) {
        for job in jobs {
            self.submit_in(Duration::ZERO, job);
        }
    }

    /// Until nothing happens any more.
    pub(super) fn run(&mut self) {
        self.run_with(std::iter::empty(), Duration::MAX, |_, _| None);
    }

    /// Until `end`, with arrivals in the order of their times, and with what a client submits after one of its jobs has
    /// ended.
    pub(super) fn run_with(
        &mut self,
        arrivals: impl IntoIterator<Item = (Duration, Job)>,
        end: Duration,
        mut after: impl FnMut(&JobFacts, Duration) -> Option<(Duration, Job)>,
    ) {
        let mut arrivals = arrivals.into_iter().peekable();
        loop {
            while let Some((at, job)) =
                arrivals.next_if(|(at, _)| self.next_at().is_none_or(|next| *at <= next))
            {
                self.submit_in(at.saturating_sub(self.now), job);
            }
            let Some(next) = self.next_at().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            let mut inputs = Vec::new();
            while inputs.len() < TOGETHER_MOST
                && let Some(Reverse(event)) = self.events.peek()
                && event.at <= self.now
            {
                if let Some(Reverse(timed)) = self.events.pop() {
                    self.happen(timed.event, &mut inputs);
                }
            }
            for effect in self.tell(inputs) {
                self.carry_out(effect, &mut after);
            }
        }
        if end < Duration::MAX {
            self.now = end;
        }
        for index in 0..self.workers.len() {
            self.work(index);
        }
    }

    /// Tells the core, and gives back what it wants done.
    pub(super) fn tell(&mut self, inputs: Vec<Input>) -> Vec<Effect> {
        let (core, now) = (&mut self.core, at(self.now));
        let mut inputs = inputs.into_iter();
        self.watch.around(&mut || {
            for input in inputs.by_ref() {
                core.take(input, now);
            }
            if core.wake_at().is_some_and(|at| at <= now.since_start) {
                core.take(Input::Tick, now);
            }
            core.settle(now)
        })
    }

    fn next_at(&self) -> Option<Duration> {
        let event = self.events.peek().map(|Reverse(event)| event.at);
        event.into_iter().chain(self.core.wake_at()).min()
    }

    fn push(&mut self, pause: Duration, event: Event) {
        self.order += 1;
        self.events.push(Reverse(Timed {
            at: self.now + pause,
            order: self.order,
            event,
        }));
    }

    fn happen(&mut self, event: Event, inputs: &mut Vec<Input>) {
        match event {
            Event::Arrival(job) => inputs.push(self.accepted(job)),
            Event::Input(input) => inputs.push(*input),
            Event::Speaks { worker, version } => {
                let index = worker as usize;
                if self.workers[index].version != version {
                    return;
                }
                self.work(index);
                let lines = self.workers[index].lines();
                for line in &lines {
                    if let Up::Paused { job, .. } = line {
                        self.jobs[number(job)].pauses += 1;
                    }
                }
                inputs.extend(lines.into_iter().map(|up| line(worker, up)));
                self.changed(index);
            }
            Event::Loaded {
                worker,
                load,
                model,
                took_ms,
            } => {
                let bytes = self.bytes_of(&model);
                self.workers[worker as usize].loaded(&model, bytes, took_ms);
                let loaded = Loaded {
                    load,
                    model,
                    resident_bytes: bytes,
                    phases_ms: Default::default(),
                };
                inputs.push(line(worker, Up::Loaded(loaded)));
            }
            Event::Unloaded {
                worker,
                unload,
                model,
            } => {
                let freed_bytes = self.workers[worker as usize].unloaded(&model);
                inputs.push(line(worker, Up::Unloaded { unload, freed_bytes }));
            }
        }
    }

    /// A job is in the journal.
    pub(super) fn accepted(&mut self, job: Job) -> Input {
        let number = self.jobs.len();
        let model = &self.models[job.model];
        let accepted = Accepted {
            key: StepKey(number as u64 + 1),
            job: JobId(format!("job_{number}")),
            class: job.class,
            priority: 0,
            client: job.client.clone(),
            demand: Ok(job.demand(model)),
            work_units: job.work_units(),
            attempts: u32::from(job.is_suspect),
            crashes: u32::from(job.is_suspect),
            is_held: false,
            age: Duration::ZERO,
        };
        self.jobs.push(JobFacts {
            job,
            accepted_at: self.now,
            began_at: None,
            ended_at: None,
            attempts: 0,
            pauses: 0,
            device_ms: 0.0,
        });
        Input::Accepted(Box::new(accepted))
    }

    fn carry_out(
        &mut self,
        effect: Effect,
        after: &mut impl FnMut(&JobFacts, Duration) -> Option<(Duration, Job)>,
    ) {
        match effect {
            Effect::Journal { then, .. } => {
                let outcome = Ok(());
                self.push_input(self.delays.journal, Input::Journaled { then, outcome });
            }
            Effect::Prepare { run, job } => {
                let model = self.models[self.jobs[number(&job)].job.model].id.clone();
                let text = String::new();
                let work = Box::new(Work::Embed(Embed { model, text }));
                let work = Ok((work, Vec::new()));
                self.push_input(self.delays.prepare, Input::Prepared { run, work });
            }
            Effect::StoreOutputs { step, .. } => {
                let outputs = Ok(Box::new(StoredOutputs {
                    result: JobResult::default(),
                }));
                self.push_input(self.delays.outputs, Input::Stored { step, outputs });
            }
            Effect::Send { worker, frame, .. } => self.send(worker, frame.message),
            Effect::Load {
                worker, load, model, ..
            } => {
                let bytes = self.bytes_of(&model);
                let place = &mut self.workers[worker.0 as usize];
                place.load_begins();
                let took_ms = place.spec.load_ms(bytes);
                let worker = worker.0;
                self.push(
                    ms(took_ms),
                    Event::Loaded {
                        worker,
                        load,
                        model,
                        took_ms,
                    },
                );
            }
            Effect::Ended(ended) => {
                self.ended += 1;
                let facts = &mut self.jobs[number(&ended.job)];
                facts.ended_at = Some(self.now);
                facts.attempts = ended.attempts;
                if let Some(error) = ended.end.error {
                    self.faults.push(format!("{} failed: {error}", ended.job));
                }
                if let Some((pause, job)) = after(&self.jobs[number(&ended.job)], self.now) {
                    self.submit_in(pause, job);
                }
            }
            Effect::StartWorker { .. } | Effect::RecycleWorker { .. } | Effect::ProbeStore => {
                self.faults.push(format!("nobody expected {effect:?}"));
            }
            Effect::AbilitiesChanged
            | Effect::Tell(_)
            | Effect::Preview { .. }
            | Effect::Answer { .. }
            | Effect::Drained => {}
        }
    }

    fn push_input(&mut self, pause: Duration, input: Input) {
        self.push(pause, Event::Input(Box::new(input)));
    }

    fn work(&mut self, index: usize) {
        let jobs = &mut self.jobs;
        self.workers[index].work_until(self.now, |job, had_ms| jobs[job].device_ms += had_ms);
    }

    /// A worker has changed: it speaks at another time.
    fn changed(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        worker.version += 1;
        let (version, speaks_at) = (worker.version, worker.speaks_at());
        if let Some(at) = speaks_at {
            let worker = index as u32;
            self.push(at.saturating_sub(self.now), Event::Speaks { worker, version });
        }
    }

    fn bytes_of(&self, model: &ModelId) -> u64 {
        let found = self.models.iter().find(|known| known.id == *model);
        found.map_or(0, |model| model.bytes)
    }

    /// What went wrong; nothing, if the core keeps the rules.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = self.faults.clone();
        faults.extend(
            self.workers
                .iter()
                .flat_map(|worker| worker.faults.iter().cloned()),
        );
        for device in &self.core.fleet().devices {
            if device.ledger.high_water_bytes() > device.ledger.budget_bytes() {
                faults.push(format!("the ledger of {} went over its budget", device.id));
            }
        }
        faults
    }

    /// The last end.
    pub(super) fn makespan(&self) -> Duration {
        self.jobs
            .iter()
            .filter_map(|facts| facts.ended_at)
            .max()
            .unwrap_or_default()
    }

    pub(super) fn loads(&self) -> usize {
        self.workers.iter().map(|worker| worker.loads).sum()
    }
}
