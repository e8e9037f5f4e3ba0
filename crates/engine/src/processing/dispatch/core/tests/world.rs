//! Everything around a core, virtual: workers, a journal and clients. It carries effects out at once, or keeps them until
//! they are wanted, and checks after every input what must hold always.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use calotype_protocol::{
    Blob, Embed, Failure, Frame, JobId, Mode, ModelId, Outcome, Sampler, Schedule, Up, Work,
};

use super::workers::{Order, VirtualWorker};
use crate::error::{Code, Error};
use crate::inference::{AdapterNeed, ModelNeed, Needs, WorkShape};
use crate::memory::{Ledger, Owner, Peaks};
use crate::processing::dispatch::core::message::{
    Action, Effect, Ended, Input, Now, Outputs, StoreFault, StoreOutputsError, StoredOutputs, Then, Token,
};
use crate::processing::dispatch::core::step::Accepted;
use crate::processing::dispatch::core::{Core, CoreParts};
use crate::processing::job::state::StepState;
use crate::processing::job::{Class, JobResult, JobState, RunId, StepKey};
use crate::processing::schedule::{
    Demand, DeviceId, DeviceMemory, Fleet, ResidentModel, WorkerId, WorkerSpec,
};
use crate::store::{Held, Write};
use crate::worker::{ExitCause, ExitReport};

/// Memory is counted in what a step of the smallest shape takes on a processor.
pub(super) const UNIT: u64 = 2560;

/// A device and the workers on it.
#[derive(Debug, Clone)]
pub(super) struct Device {
    /// In [`UNIT`]s.
    pub(super) budget: u64,
    pub(super) workers: Vec<calotype_protocol::Capabilities>,
}

/// What a client submits.
#[derive(Debug, Clone)]
pub(super) struct JobSpec {
    pub(super) name: String,
    pub(super) class: Class,
    pub(super) priority: i32,
    pub(super) client: &'static str,
    /// Models and their weights, in [`UNIT`]s.
    pub(super) models: Vec<(&'static str, u64)>,
    /// Its working set, in [`UNIT`]s.
    pub(super) working: u32,
    pub(super) lora_set: Option<&'static str>,
    /// Estimated device time.
    pub(super) ms: f64,
}

/// An interactive job of one second with the model `m` of 10 units, and a working set of one unit.
pub(super) fn job(name: &str) -> JobSpec {
    JobSpec {
        name: name.to_owned(),
        class: Class::Interactive,
        priority: 0,
        client: "",
        models: vec![("m", 10)],
        working: 1,
        lora_set: None,
        ms: 1000.0,
    }
}

pub(super) fn critical(name: &str) -> JobSpec {
    JobSpec {
        class: Class::Critical,
        ..job(name)
    }
}

impl JobSpec {
    pub(super) fn demand(&self) -> Demand {
        let need = |(name, units): &(&'static str, u64)| ModelNeed {
            model: (*name).into(),
            single_bytes: units * UNIT,
            half_bytes: units * UNIT,
        };
        Demand {
            needs: Arc::new(Needs {
                families: vec!["sd".into()],
                formats: vec!["diffusers".into()],
                mode: Mode::TextToImage,
                sampler: Sampler::Euler,
                schedule: Schedule::Default,
                adapters: Vec::new(),
                edge: self.working,
            }),
            models: self.models.iter().map(need).collect(),
            adapters: self.lora_set.map(|set| Arc::new(AdapterNeed::new(set, UNIT / 4))),
            shape: Arc::new(WorkShape {
                family: "sd".into(),
                models: self.models.iter().map(|(name, _)| (*name).into()).collect(),
                width: self.working,
                height: 1,
                images: 1,
                is_guided: true,
                mode: Mode::TextToImage,
            }),
            exclusive: false,
            refused_by: Vec::new(),
        }
    }
}

/// A job on the virtual disk.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) spec: JobSpec,
    pub(super) sequence: u64,
    pub(super) state: JobState,
    pub(super) attempts: u32,
    pub(super) crashes: u32,
}

/// What a world does not do by itself.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Manual {
    pub(super) journal: bool,
    pub(super) prepare: bool,
    pub(super) outputs: bool,
    pub(super) workers: bool,
}

pub(super) struct World {
    pub(super) core: Core,
    devices: Vec<Device>,
    pub(super) at_ms: u64,
    pub(super) workers: Vec<VirtualWorker>,
    pub(super) rows: BTreeMap<JobId, Row>,
    pub(super) disk_works: bool,
    pub(super) writes: VecDeque<(Vec<Write>, Then)>,
    pub(super) outcomes: Vec<(Then, Result<(), StoreFault>)>,
    pub(super) prepares: Vec<RunId>,
    pub(super) outputs: Vec<(StepKey, Box<Outputs>)>,
    pub(super) probes: usize,
    pub(super) answers: BTreeMap<u64, Result<(), Code>>,
    asked: BTreeMap<u64, (JobId, Action)>,
    /// Jobs that clients have asked to be held and nothing else since: the first token of these wishes, and whether one was
    /// told that it is so.
    promised_held: BTreeMap<JobId, (u64, bool)>,
    pub(super) ended: Vec<Ended>,
    pub(super) drained: usize,
    pub(super) manual: Manual,
    /// Whether a device may hold more than its budget, because a measurement said so.
    pub(super) measures_more: bool,
    pub(super) loads_take_ms: u64,
    /// Whether jobs are being taken over from the disk.
    is_restarting: bool,
    /// When the scheduler was last asked: estimates change with time, and what they say is asked for at the next input.
    passed_at_ms: Option<u64>,
    tokens: u64,
    sequence: u64,
}

pub(super) fn device(budget: u64, workers: &[calotype_protocol::Capabilities]) -> Device {
    Device {
        budget,
        workers: workers.to_vec(),
    }
}

fn core_of(devices: &[Device]) -> Core {
    let mut specs = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        for _ in &device.workers {
            specs.push(WorkerSpec {
                name: format!("w{}", specs.len()).into(),
                device: DeviceId(index as u32),
                runtime: "virtual".into(),
                kind: "virtual@cpu".into(),
                device_kind: "cpu".into(),
                rank: 0,
                starts_when_needed: false,
            });
        }
    }
    let memories = devices.iter().enumerate().map(|(index, device)| DeviceMemory {
        id: format!("d{index}"),
        ledger: Ledger::new(device.budget * UNIT),
    });
    Core::new(CoreParts {
        fleet: Fleet::new(memories.collect(), specs, 0),
        peaks: Peaks::default(),
        outputs_limit_bytes: 1 << 30,
    })
}

impl World {
    /// With its workers ready.
    pub(super) fn new(devices: Vec<Device>) -> Self {
        let workers = devices.iter().flat_map(|device| &device.workers);
        let mut world = Self {
            core: core_of(&devices),
            workers: workers.cloned().map(VirtualWorker::new).collect(),
            devices,
            at_ms: 0,
            rows: BTreeMap::new(),
            disk_works: true,
            writes: VecDeque::new(),
            outcomes: Vec::new(),
            prepares: Vec::new(),
            outputs: Vec::new(),
            probes: 0,
            answers: BTreeMap::new(),
            asked: BTreeMap::new(),
            promised_held: BTreeMap::new(),
            ended: Vec::new(),
            drained: 0,
            manual: Manual::default(),
            measures_more: false,
            loads_take_ms: 0,
            is_restarting: false,
            passed_at_ms: None,
            tokens: 0,
            sequence: 0,
        };
        for index in 0..world.workers.len() {
            world.starts(index);
        }
        world
    }

    /// One worker with so many places on a device of 100 units.
    pub(super) fn with_places(places: u32) -> Self {
        Self::new(vec![device(100, &[super::workers::can(places)])])
    }

    pub(super) fn now(&self) -> Now {
        Now {
            since_start: Duration::from_millis(self.at_ms),
            wall_ms: 1_000_000 + self.at_ms,
        }
    }

    /// Tells the core something, takes in what it wants, and checks what must hold always.
    pub(super) fn tell(&mut self, input: Input) {
        let now = self.now();
        self.core.take(input, now);
        if self.core.dirty {
            self.passed_at_ms = Some(self.at_ms);
        }
        let mut effects = self.core.settle(now);
        let mut passes = 0;
        while self.passed_at_ms == Some(self.at_ms) {
            let decided = effects.iter().any(is_decision);
            effects.into_iter().for_each(|effect| self.take(effect));
            passes += 1;
            assert!(passes < 50, "the scheduler decides without end");
            // What could start has started: another pass at the same moment has nothing to do. Only where the last one
            // decided something another worker may have become the better one for a step that was asked before.
            self.core.dirty = true;
            effects = self.core.settle(now);
            if !effects.iter().any(is_decision) {
                break;
            }
            assert!(
                decided,
                "a wake-up was lost: this was possible before: {effects:?}"
            );
        }
        effects.into_iter().for_each(|effect| self.take(effect));
        self.check();
    }

    fn take(&mut self, effect: Effect) {
        match effect {
            Effect::Journal { writes, then } => self.writes.push_back((writes, then)),
            Effect::Prepare { run, .. } => self.prepares.push(run),
            Effect::Send {
                worker,
                incarnation,
                frame,
            } => self.send(worker, incarnation, Order::Line(frame.message)),
            Effect::Load {
                worker,
                incarnation,
                load,
                model,
                ..
            } => {
                let bytes = self.size_of(&model);
                self.send(worker, incarnation, Order::Load { load, model, bytes });
            }
            Effect::StoreOutputs { step, outputs } => self.outputs.push((step, outputs)),
            Effect::StartWorker { .. } => panic!("no worker here sleeps"),
            Effect::RecycleWorker { worker, .. } => self.workers[worker.0 as usize].is_to_recycle = true,
            Effect::ProbeStore => self.probes += 1,
            Effect::Answer { token, outcome } => self.answered(token, outcome),
            Effect::Ended(ended) => {
                let row = &self.rows[&ended.job];
                assert_eq!(
                    row.state, ended.end.state,
                    "{} was told before it was written",
                    ended.job
                );
                let is_new = self.ended.iter().all(|before| before.job != ended.job);
                assert!(is_new, "{} ended twice", ended.job);
                self.promised_held.remove(&ended.job);
                self.ended.push(*ended);
            }
            Effect::Drained => self.drained += 1,
            Effect::Tell(_) | Effect::AbilitiesChanged | Effect::Preview { .. } => {}
        }
    }

    fn send(&mut self, worker: WorkerId, incarnation: u64, order: Order) {
        let worker = &mut self.workers[worker.0 as usize];
        // The pipe of a process that is gone takes nothing.
        if worker.is_alive && worker.incarnation == incarnation {
            worker.inbox.push_back(order);
        }
    }

    fn size_of(&self, model: &ModelId) -> u64 {
        let mut models = self.rows.values().flat_map(|row| &row.spec.models);
        let found = models.find(|(name, _)| *name == model.as_str());
        found.expect("some job has it").1 * UNIT
    }

    fn answered(&mut self, token: Token, outcome: Result<(), Error>) {
        let (job, action) = self.asked[&token.0].clone();
        if let Some((first, told)) = self.promised_held.get_mut(&job)
            && outcome.is_ok()
            && action == Action::Pause
            && token.0 >= *first
        {
            *told = true;
        }
        let before = self.answers.insert(token.0, outcome.map_err(|error| error.code));
        assert!(before.is_none(), "a client was answered twice");
    }

    // What clients do.

    pub(super) fn submit(&mut self, spec: JobSpec) {
        self.sequence += 1;
        let row = Row {
            sequence: self.sequence,
            state: JobState::Queued,
            attempts: 0,
            crashes: 0,
            spec,
        };
        self.rows.insert(id(&row.spec.name), row.clone());
        self.accept(&row);
        self.pump();
    }

    fn accept(&mut self, row: &Row) {
        let accepted = Accepted {
            key: StepKey(row.sequence),
            job: id(&row.spec.name),
            class: row.spec.class,
            priority: row.spec.priority,
            client: row.spec.client.into(),
            demand: Ok(row.spec.demand()),
            work_units: row.spec.ms / 25.0,
            attempts: row.attempts,
            crashes: row.crashes,
            is_held: row.state == JobState::Paused,
            age: Duration::ZERO,
        };
        self.tell(Input::Accepted(Box::new(accepted)));
    }

    /// Asks for something; the answer comes into `answers` under the number that this returns.
    pub(super) fn ask(&mut self, name: &str, action: Action) -> u64 {
        self.tokens += 1;
        let (token, job) = (self.tokens, id(name));
        if action == Action::Pause {
            self.promised_held
                .entry(job.clone())
                .or_insert((self.tokens, false));
        } else {
            self.promised_held.remove(&job);
        }
        self.asked.insert(token, (job.clone(), action));
        let token = Token(token);
        self.tell(Input::Control { job, action, token });
        self.pump();
        self.tokens
    }

    pub(super) fn pause(&mut self, name: &str) -> u64 {
        self.ask(name, Action::Pause)
    }

    pub(super) fn resume(&mut self, name: &str) -> u64 {
        self.ask(name, Action::Resume)
    }

    pub(super) fn cancel(&mut self, name: &str) -> u64 {
        self.ask(name, Action::Cancel)
    }

    // What the disk does.

    /// The next write comes to the disk, or does not.
    pub(super) fn write_next(&mut self) -> bool {
        let Some((writes, then)) = self.writes.pop_front() else {
            return false;
        };
        let outcome = if self.disk_works {
            writes.into_iter().for_each(|write| self.apply(write));
            Ok(())
        } else {
            Err(fault())
        };
        self.outcomes.push((then, outcome));
        true
    }

    fn apply(&mut self, write: Write) {
        let (job, state) = match &write {
            Write::Claim { job, .. } => (job, JobState::Running),
            Write::Requeue { job, held, .. } | Write::Hold { job, held } => match held {
                Held::Yes => (job, JobState::Paused),
                Held::No => (job, JobState::Queued),
            },
            Write::Finish { job, finish } => (job, finish.state),
            Write::Peak { .. } => return,
        };
        let Some(row) = self.rows.get_mut(job).filter(|row| !row.state.is_final()) else {
            return;
        };
        row.state = state;
        match write {
            Write::Claim { attempt, .. } => row.attempts = attempt,
            Write::Requeue { crashes, .. } => row.crashes = crashes,
            _ => {}
        }
    }

    pub(super) fn outcome(&mut self, index: usize) {
        let (then, outcome) = self.outcomes.remove(index);
        self.tell(Input::Journaled { then, outcome });
    }

    pub(super) fn prepare(&mut self, index: usize, outcome: Result<(), Error>) {
        let run = self.prepares.remove(index);
        let work = outcome.map(|()| {
            let embed = Embed {
                model: "m".into(),
                text: String::new(),
            };
            (Box::new(Work::Embed(embed)), Vec::<Blob>::new())
        });
        self.tell(Input::Prepared { run, work });
    }

    pub(super) fn store_outputs(&mut self, index: usize) {
        let (step, outputs) = self.outputs.remove(index);
        let outputs = if self.disk_works {
            let result = JobResult {
                worker: outputs.worker,
                ..JobResult::default()
            };
            Ok(Box::new(StoredOutputs { result }))
        } else {
            Err(StoreOutputsError::Store(fault(), outputs))
        };
        self.tell(Input::Stored { step, outputs });
    }

    pub(super) fn probe(&mut self) {
        self.probes -= 1;
        let outcome = if self.disk_works { Ok(()) } else { Err(fault()) };
        self.tell(Input::StoreProbed(outcome));
    }

    // What workers do.

    /// A process starts and is ready.
    pub(super) fn starts(&mut self, index: usize) {
        let (worker, virtual_worker) = (WorkerId(index as u32), &mut self.workers[index]);
        virtual_worker.incarnation += 1;
        virtual_worker.is_alive = true;
        let incarnation = virtual_worker.incarnation;
        let (hello, ready) = (virtual_worker.hello(), virtual_worker.ready());
        self.tell(Input::WorkerStarting {
            worker,
            incarnation,
            pid: incarnation as u32,
        });
        self.tell(Input::WorkerReady { worker, hello, ready });
        self.pump();
    }

    pub(super) fn dies_by(&mut self, index: usize, cause: ExitCause) {
        self.workers[index].die();
        let report = Box::new(ExitReport {
            cause,
            status: "signal 9".into(),
            stderr_tail: String::new(),
            restart_in: Some(Duration::ZERO),
            pid: 1,
        });
        let worker = WorkerId(index as u32);
        self.tell(Input::WorkerGone { worker, report });
        self.pump();
    }

    pub(super) fn dies(&mut self, index: usize) {
        self.dies_by(index, ExitCause::Killed { signal: 9 });
    }

    /// A worker takes the next line from its pipe.
    pub(super) fn works(&mut self, index: usize) -> bool {
        if matches!(self.workers[index].inbox.front(), Some(Order::Load { .. })) {
            self.at_ms += self.loads_take_ms;
        }
        let worked = self.workers[index].work();
        let mut inside: Vec<&JobId> = self
            .workers
            .iter()
            .flat_map(|worker| worker.runs.keys())
            .collect();
        let count = inside.len();
        inside.sort_unstable();
        inside.dedup();
        assert_eq!(inside.len(), count, "a job runs in two workers at once");
        worked
    }

    /// The core hears the next line of a worker.
    pub(super) fn hears(&mut self, index: usize) -> bool {
        let Some(line) = self.workers[index].outbox.pop_front() else {
            return false;
        };
        let (worker, incarnation) = (WorkerId(index as u32), self.workers[index].incarnation);
        self.tell(Input::Line {
            worker,
            incarnation,
            line,
            blobs: Vec::new(),
        });
        true
    }

    pub(super) fn worker_of(&self, name: &str) -> Option<usize> {
        self.workers
            .iter()
            .position(|worker| worker.runs.contains_key(&id(name)))
    }

    /// A run delivers its outputs.
    pub(super) fn finish(&mut self, name: &str) {
        let index = self
            .worker_of(name)
            .unwrap_or_else(|| panic!("{name} is in no worker"));
        self.workers[index].deliver(&id(name));
        self.pump();
    }

    /// A run fails.
    pub(super) fn fail(&mut self, name: &str, outcome: Outcome) {
        let index = self
            .worker_of(name)
            .unwrap_or_else(|| panic!("{name} is in no worker"));
        let job = id(name);
        let inside = self.workers[index].runs.remove(&job).expect("it is there");
        self.workers[index].outbox.push_back(Up::Failed {
            job,
            attempt: inside.attempt,
            failure: failure(outcome),
        });
        self.pump();
    }

    /// The load at the head of a worker's pipe fails, if there is one.
    pub(super) fn load_fails(&mut self, index: usize, outcome: Outcome) {
        let inbox = &mut self.workers[index].inbox;
        if !matches!(inbox.front(), Some(Order::Load { .. })) {
            return;
        }
        if let Some(Order::Load { load, .. }) = inbox.pop_front() {
            self.tell(Input::LoadFailed {
                worker: WorkerId(index as u32),
                load,
                failure: failure(outcome),
                from_memory: false,
            });
            self.pump();
        }
    }

    // Time.

    pub(super) fn wait_ms(&mut self, ms: u64) {
        self.at_ms += ms;
        self.tell(Input::Tick);
        self.pump();
    }

    /// Carries out everything that is not done by hand, until nothing moves.
    pub(super) fn pump(&mut self) {
        let mut turns = 0;
        while self.moves_once() {
            turns += 1;
            let ends =
                |worker: &VirtualWorker| worker.heard.iter().rev().take(6).cloned().collect::<Vec<_>>();
            let last = || self.workers.iter().map(ends).collect::<Vec<_>>();
            assert!(turns < 2_000, "it goes round and round: {:?}", last());
        }
    }

    fn moves_once(&mut self) -> bool {
        let manual = self.manual;
        if !manual.journal && (self.write_next() || !self.outcomes.is_empty()) {
            if !self.outcomes.is_empty() {
                self.outcome(0);
            }
            return true;
        }
        if !manual.prepare && !self.prepares.is_empty() {
            self.prepare(0, Ok(()));
            return true;
        }
        if !manual.outputs && !self.outputs.is_empty() {
            self.store_outputs(0);
            return true;
        }
        if !manual.journal && self.probes > 0 {
            self.probe();
            return true;
        }
        !manual.workers && (0..self.workers.len()).any(|index| self.works(index) || self.hears(index))
    }

    /// The server dies and starts anew with what is on the disk; its workers die with it.
    pub(super) fn restart(&mut self) {
        self.writes.clear();
        self.outcomes.clear();
        self.prepares.clear();
        self.outputs.clear();
        self.probes = 0;
        self.asked.clear();
        for job in self
            .promised_held
            .iter()
            .filter(|(_, (_, told))| *told)
            .map(|(job, _)| job)
        {
            let state = self.rows[job].state;
            assert!(
                state == JobState::Paused || state.is_final(),
                "{job} was promised to be held and is {state:?} on the disk"
            );
        }
        self.workers.iter_mut().for_each(VirtualWorker::die);
        self.core = core_of(&self.devices);
        self.is_restarting = true;
        for index in 0..self.workers.len() {
            self.starts(index);
        }
        let mut rows: Vec<Row> = self.rows.values().cloned().collect();
        rows.sort_by_key(|row| row.sequence);
        for mut row in rows.into_iter().filter(|row| !row.state.is_final()) {
            if row.state == JobState::Running {
                row.state = JobState::Queued;
            }
            self.accept(&row);
        }
        self.is_restarting = false;
        self.pump();
    }

    // What is seen.

    pub(super) fn state(&self, name: &str) -> StepState {
        let step = self.core.find(&id(name)).and_then(|key| self.core.steps.get(key));
        step.map_or(StepState::Ended, |step| step.state())
    }

    pub(super) fn is_running(&self, name: &str) -> bool {
        self.state(name) == StepState::Running
    }

    /// How a job ended, once that was told.
    pub(super) fn end_of(&self, name: &str) -> Option<JobState> {
        let ended = self.ended.iter().find(|ended| ended.job == id(name));
        ended.map(|ended| ended.end.state)
    }

    /// The stable word for why it waits.
    pub(super) fn why(&self, name: &str) -> Option<&'static str> {
        self.core.view(&id(name)).and_then(|view| view.reason_code)
    }

    /// Leased on a device, in [`UNIT`]s.
    pub(super) fn leased(&self, device: usize) -> u64 {
        self.core.fleet.devices[device].ledger.leased_bytes() / UNIT
    }

    pub(super) fn resident(&self, worker: usize) -> Vec<&str> {
        let resident: &BTreeMap<ModelId, ResidentModel> = &self.core.fleet.workers[worker].resident;
        resident.keys().map(ModelId::as_str).collect()
    }

    pub(super) fn heard(&self, worker: usize) -> Vec<&str> {
        self.workers[worker].heard.iter().map(String::as_str).collect()
    }

    /// What holds at every moment.
    fn check(&self) {
        for device in &self.core.fleet.devices {
            let (leased, budget) = (device.ledger.leased_bytes(), device.ledger.budget_bytes());
            assert!(
                leased <= budget || self.measures_more,
                "{} leases {leased} of {budget}",
                device.id
            );
            let sum: u64 = device.ledger.leases().map(|(_, bytes)| bytes).sum();
            assert_eq!(leased, sum);
            for (owner, _) in device.ledger.leases() {
                if let Owner::WorkingSet(job) = owner {
                    let step = self.core.find(job).and_then(|key| self.core.steps.get(key));
                    let state = step.map(|step| step.state());
                    assert!(
                        state.is_some_and(StepState::holds_place),
                        "{job} is {state:?} and holds a working set"
                    );
                }
            }
        }
        let fleet = &self.core.fleet;
        for id in fleet.ids() {
            for model in fleet.worker(id).into_iter().flat_map(|worker| worker.models()) {
                assert!(
                    fleet.holders(model).contains(&id),
                    "{model} is in {id:?}, which no list says"
                );
            }
        }
        for (id, model) in fleet.models().listed_holders() {
            let mut models = fleet.worker(id).into_iter().flat_map(|worker| worker.models());
            assert!(
                models.any(|held| held == model),
                "{model} is not in {id:?} any more"
            );
        }
        let (mut waiting, mut wanted) = (0, BTreeMap::new());
        for step in self.core.steps.iter() {
            let state = step.state();
            if state.is_waiting() {
                waiting += 1;
                let demand = self.core.steps.demands.get(step.demand);
                for need in demand.iter().flat_map(|demand| demand.models.iter()) {
                    *wanted.entry(&need.model).or_insert(0) += 1;
                }
            }
            let worker = step
                .attempted
                .as_ref()
                .and_then(|run| self.core.fleet.worker(run.worker));
            let is_in = |worker: &crate::processing::schedule::Worker| {
                (
                    worker.runs.contains_key(&step.key),
                    worker.parked.contains_key(&step.key),
                )
            };
            let (runs, is_parked) = worker.map_or((false, false), is_in);
            let may_be_parked = matches!(
                state,
                StepState::Paused(_)
                    | StepState::Suspended
                    | StepState::Withdrawing(_)
                    | StepState::Cancelling
            );
            assert!(
                runs || is_parked || !(state.holds_place() || state.is_in_worker()),
                "{} is {state} and in no worker",
                step.job
            );
            assert!(
                !runs || state.holds_place(),
                "{} is {state} and holds a place",
                step.job
            );
            assert!(!is_parked || may_be_parked, "{} is {state} and parked", step.job);
        }
        assert_eq!(
            self.core.steps.lanes.len(),
            waiting,
            "steps are lost or doubled in the lanes"
        );
        if self.core.hold_all().is_none() {
            let counted: BTreeMap<_, usize> = fleet.models().wanted_steps().collect();
            assert_eq!(counted, wanted, "what waits for each model is counted wrong");
        }
        for worker in &self.core.fleet.workers {
            let places = self.core.fleet.places(worker);
            assert!(
                worker.runs.len() <= places || worker.deaths > 0,
                "{} is overfilled",
                worker.spec.name
            );
            for key in worker.runs.keys().chain(worker.parked.keys()) {
                assert!(
                    self.core.steps.get(*key).is_some(),
                    "a step that ended stays in a worker"
                );
            }
        }
        for (job, row) in &self.rows {
            assert!(
                row.state.is_final() || self.core.find(job).is_some() || self.is_restarting,
                "{job} was accepted and is lost"
            );
        }
    }

    /// Nothing is left of jobs that have ended.
    pub(super) fn assert_nothing_is_left(&self) {
        assert_eq!(self.core.live(), 0);
        assert_eq!(self.core.waiting(), 0);
        assert_eq!(self.core.steps.demands.len(), 0);
        assert_eq!(self.core.steps.waits.len(), 0);
        assert_eq!(self.core.outputs_held_bytes, 0);
        for worker in &self.core.fleet.workers {
            assert!(worker.runs.is_empty() && worker.parked.is_empty() && worker.reserved_for.is_none());
            assert!(!worker.runs_alone && worker.pending.is_none());
        }
        for device in &self.core.fleet.devices {
            for (owner, _) in device.ledger.leases() {
                let is_of_a_process = matches!(owner, Owner::Weights { .. } | Owner::Unreturned { .. });
                assert!(is_of_a_process, "{owner} is left");
            }
        }
    }
}

fn is_decision(effect: &Effect) -> bool {
    !matches!(
        effect,
        Effect::Tell(_)
            | Effect::AbilitiesChanged
            | Effect::Answer { .. }
            | Effect::Ended(_)
            | Effect::Drained
    )
}

pub(super) fn id(name: &str) -> JobId {
    JobId(name.to_owned())
}

pub(super) fn fault() -> StoreFault {
    StoreFault {
        error: Error::new(Code::StoreFull, "the disk is full"),
    }
}

pub(super) fn failure(outcome: Outcome) -> Failure {
    Failure {
        outcome,
        message: "as the test wants it".into(),
        detail: None,
    }
}

/// A line that a worker may say about a run.
pub(super) fn line(worker: usize, incarnation: u64, line: Up) -> Input {
    let frame: Frame<Up> = line.into();
    Input::Line {
        worker: WorkerId(worker as u32),
        incarnation,
        line: frame.message,
        blobs: frame.blobs,
    }
}
