//! Laws of the choice of a worker and of what must happen there, those of the policy before lanes among them. Where one has
//! changed:
//!
//! - A job that waited for memory was not overtaken by smaller ones at all. Now smaller ones go on until it has waited for a
//!   bound, and then the worker is kept free for it (`reservations_hold_up_others_and_not_what_is_critical`).
//! - A load was started beside runs. Now only where the worker can do both.
//! - Jobs were spread by who had the model, then by how many runs there were. Now by when the job would be done there.

use std::sync::Arc;
use std::time::Duration;

use calotype_protocol::{Capabilities, JobId, LoadId, Mode, ModelId, Offload, Sampler, Schedule, VaePlan};
use proptest::prelude::*;

use super::super::choice::Copies;
use super::super::demand::{Demand, DemandId, Demands};
use super::super::estimates::Estimates;
use super::super::fleet::{DeviceId, DeviceMemory, Fleet, WorkerId};
use super::super::lanes::{LaneKey, Lanes};
use super::super::placement::{Asked, Placement, place};
use super::super::reason::{Refusal, WaitReason};
use super::super::serves::Derived;
use super::super::worker::{
    MoveKind, PendingMove, ProcessState, Reservation, ResidentModel, Uses, Worker, WorkerSpec,
};
use crate::error::{Code, Error};
use crate::inference::{AdapterNeed, MissingFeature, ModelNeed, Needs};
use crate::memory::memory_plan::{MemoryFeatures, MemoryPlan, Precision, Residency, Slicing};
use crate::memory::{Ledger, Owner};
use crate::processing::job::{Class, StepKey};

const OFFLOADS: [&str; 2] = ["offload_model", "offload_sequential"];

fn can() -> Capabilities {
    Capabilities {
        max_edge: 1024,
        ..super::can(2)
    }
}

fn model(name: &str, weights_bytes: u64) -> ModelNeed {
    ModelNeed {
        model: name.into(),
        single_bytes: weights_bytes,
        half_bytes: weights_bytes / 2,
    }
}

/// A job with the model `m` of 50 bytes.
fn demand() -> Demand {
    Demand {
        needs: Arc::new(Needs {
            families: vec!["sd".into()],
            formats: vec!["diffusers".into()],
            mode: Mode::TextToImage,
            sampler: Sampler::Euler,
            schedule: Schedule::Default,
            adapters: Vec::new(),
            edge: 256,
        }),
        models: [model("m", 50)].into(),
        ..Demand::nothing()
    }
}

fn with_models(models: &[ModelNeed]) -> Demand {
    Demand {
        models: models.into(),
        ..demand()
    }
}

/// A fleet, and what a job takes beside the weights by how it is sliced.
struct Stage {
    fleet: Fleet,
    working: [u64; 6],
    is_critical: bool,
    bound_to: Option<WorkerId>,
    copies: Copies,
}

/// Workers by name, budget of their device, and rank; on devices of their own.
fn stage(workers: &[(&str, u64, usize)]) -> Stage {
    let devices = workers.iter().map(|(name, budget_bytes, _)| DeviceMemory {
        id: (*name).to_owned(),
        ledger: Ledger::new(*budget_bytes),
    });
    let specs = workers
        .iter()
        .enumerate()
        .map(|(index, (name, _, rank))| WorkerSpec {
            name: (*name).into(),
            device: DeviceId(index as u32),
            runtime: "native".into(),
            kind: "native@cpu".into(),
            device_kind: "cpu".into(),
            rank: *rank,
            starts_when_needed: false,
        });
    let mut fleet = Fleet::new(devices.collect(), specs.collect(), 0);
    for worker in &mut fleet.workers {
        worker.process = ProcessState::Ready;
        worker.capabilities = Some(Arc::new(can()));
    }
    Stage {
        fleet,
        working: [10; 6],
        is_critical: false,
        bound_to: None,
        copies: Copies::Any,
    }
}

/// One worker on a device of 100 bytes, in which `m` is resident with 50.
fn one() -> Stage {
    let mut stage = stage(&[("cpu0", 100, 1)]);
    stage.hold(0, "m", 50, 1);
    stage
}

fn uses(models: &[ModelNeed]) -> Uses {
    Uses {
        models: models.into(),
        adapters: None,
    }
}

impl Stage {
    fn worker(&mut self, index: usize) -> &mut Worker {
        &mut self.fleet.workers[index]
    }

    fn ledger(&mut self, index: usize) -> &mut Ledger {
        self.fleet
            .ledger_mut(WorkerId(index as u32))
            .expect("each has a device")
    }

    /// A model is resident.
    fn hold(&mut self, index: usize, name: &str, bytes: u64, last_use: u64) {
        let owner = Owner::Weights {
            worker: self.worker(index).spec.name.to_string(),
            model: name.into(),
        };
        self.ledger(index).hold(owner, bytes);
        let resident = ResidentModel {
            bytes,
            residency: Residency::default(),
            last_use,
            was_used: true,
        };
        self.worker(index).hold(name.into(), resident);
    }

    /// A run is in a worker that takes memory.
    fn run(&mut self, index: usize, step: u64, models: &[ModelNeed], working_bytes: u64, ms: f64) {
        self.worker(index)
            .admit(StepKey(step), uses(models), ms, Duration::ZERO);
        self.ledger(index)
            .hold(Owner::WorkingSet(JobId(step.to_string())), working_bytes);
    }

    /// Somebody else has so much memory.
    fn others_have(&mut self, index: usize, bytes: u64) {
        self.ledger(index).hold(Owner::WorkingSet("others".into()), bytes);
    }

    fn plans(&mut self, index: usize, plans: &[&str]) {
        let plans: Vec<String> = plans.iter().map(|plan| (*plan).to_owned()).collect();
        self.worker(index).memory_features = MemoryFeatures::of(&plans);
    }

    fn place(&mut self, demand: &Demand) -> Placement {
        self.fleet.index_models();
        let working = self.working;
        let derived = Derived::of(demand, &self.fleet, |_, slicing| working[slicing.index()]);
        let asked = Asked {
            id: DemandId::none(),
            demand,
            derived: &derived,
            bound_to: self.bound_to,
            own_ms: 0.0,
            share: 1.0,
            is_critical: self.is_critical,
            copies: self.copies,
        };
        place(asked, &self.fleet, &Estimates::default(), Duration::ZERO)
    }

    /// A step with this demand waits that takes so long.
    fn others_wait(&mut self, demand: &Demand, ms: f64) {
        let (mut lanes, mut demands) = (Lanes::default(), Demands::default());
        let lane = LaneKey {
            class: Class::Interactive,
            client: "other".into(),
            demand: demands.intern(demand.clone()),
            bound_to: None,
        };
        lanes.push(&lane, 0, StepKey(1));
        self.fleet
            .count_wanted(&mut lanes, &demands, &|_, _| ms, Duration::ZERO);
    }

    /// The name of the worker where something happens for it, or why not.
    fn goes_to(&mut self, demand: &Demand) -> String {
        let id = match self.place(demand) {
            Placement::Start { worker, .. } | Placement::Load { worker, .. } => worker,
            Placement::Wait { reason, .. } => return reason.code().to_owned(),
            other => return format!("{other:?}"),
        };
        self.fleet
            .worker(id)
            .map_or_else(String::new, |worker| worker.spec.name.to_string())
    }

    fn why(&mut self, demand: &Demand) -> WaitReason {
        match self.place(demand) {
            Placement::Wait { reason, .. } => reason,
            other => panic!("it does not wait: {other:?}"),
        }
    }
}

fn start(worker: u32, working_bytes: u64) -> Placement {
    Placement::Start {
        worker: WorkerId(worker),
        plan: MemoryPlan::default(),
        working_bytes,
        lora_bytes: 0,
    }
}

fn evict(models: &[(u32, &str)]) -> Placement {
    Placement::Evict {
        worker: WorkerId(0),
        models: models
            .iter()
            .map(|(worker, model)| (WorkerId(*worker), ModelId::from(*model)))
            .collect(),
    }
}

#[test]
fn a_job_starts_where_its_model_is_and_a_place_and_else_waits_with_the_number_of_places() {
    let mut stage = one();
    assert_eq!(stage.place(&demand()), start(0, 10));
    stage.run(0, 1, &[model("m", 50)], 1, 1000.0);
    assert_eq!(stage.place(&demand()), start(0, 10));
    stage.run(0, 2, &[model("m", 50)], 1, 1000.0);
    let reason = stage.why(&demand());
    assert_eq!(
        reason,
        WaitReason::PlacesTaken {
            worker: "cpu0".into(),
            places: 2
        }
    );
    assert!(reason.to_string().contains("2 places"));
}

#[test]
fn a_parked_run_takes_no_place() {
    let mut stage = one();
    for step in 1..=2 {
        stage.run(0, step, &[model("m", 50)], 1, 1000.0);
        stage.worker(0).park(StepKey(step), Duration::ZERO);
    }
    assert_eq!(stage.place(&demand()), start(0, 10));
}

#[test]
fn a_model_that_is_being_loaded_is_waited_for_and_not_loaded_twice() {
    let mut stage = stage(&[("cpu0", 100, 1)]);
    assert!(matches!(stage.place(&demand()), Placement::Load { .. }));
    stage.worker(0).begin_move(PendingMove {
        id: LoadId("load".into()),
        model: "m".into(),
        kind: MoveKind::Load {
            weights_bytes: 0,
            residency: Residency::default(),
            wanted_by: StepKey(1),
            expected_ms: 100.0,
        },
        began: Duration::ZERO,
    });
    assert_eq!(stage.why(&demand()).code(), "model_loads");
    assert_eq!(
        stage.why(&with_models(&[model("n", 1)])).code(),
        "worker_moves_models"
    );
}

#[test]
fn a_job_starts_once_all_its_models_are_resident_and_memory_is_asked_for_all_that_is_missing() {
    let mut stage = one();
    let both = with_models(&[model("m", 50), model("control", 20)]);
    assert!(matches!(stage.place(&both), Placement::Load { model, .. } if model.as_str() == "control"));
    // So that the first is not loaded in vain; what the job uses itself stays.
    stage.others_have(0, 21);
    assert_eq!(stage.why(&both).code(), "memory_in_use");
    stage.others_have(0, 0);
    stage.hold(0, "control", 20, 1);
    assert_eq!(stage.place(&both), start(0, 10));
}

#[test]
fn the_longest_unused_idle_model_is_evicted_one_in_use_is_not_and_one_of_a_paused_run_last() {
    let mut stage = stage(&[("cpu0", 100, 1)]);
    stage.hold(0, "new", 40, 9);
    stage.hold(0, "old", 40, 3);
    stage.hold(0, "busy", 20, 1);
    let mut both = can();
    both.loads_beside_runs = true;
    stage.worker(0).capabilities = Some(Arc::new(both));
    stage.run(0, 1, &[model("busy", 20)], 0, 1000.0);
    let asks = |bytes| with_models(&[model("m", bytes)]);
    assert_eq!(stage.place(&asks(30)), evict(&[(0, "old")]));
    assert_eq!(stage.place(&asks(60)), evict(&[(0, "old"), (0, "new")]));
    assert_eq!(stage.why(&asks(80)).code(), "memory_in_use");
    stage
        .worker(0)
        .admit(StepKey(2), uses(&[model("old", 40)]), 1.0, Duration::ZERO);
    stage.worker(0).park(StepKey(2), Duration::ZERO);
    assert_eq!(stage.place(&asks(30)), evict(&[(0, "new")]));
}

#[test]
fn workers_of_one_device_make_room_for_each_other() {
    let mut stage = stage(&[("cpu0", 100, 1), ("cpu0-other", 100, 2)]);
    stage.worker(1).spec.device = DeviceId(0);
    stage.hold(1, "m", 50, 1);
    stage.others_have(0, 10);
    assert_eq!(stage.place(&demand()), evict(&[(1, "m")]));
}

#[test]
fn room_that_another_worker_of_the_device_is_making_is_waited_for() {
    let mut stage = stage(&[("cpu0", 100, 1), ("cpu0-other", 100, 2)]);
    stage.worker(1).spec.device = DeviceId(0);
    stage.hold(0, "old", 30, 1);
    stage.hold(1, "other", 50, 2);
    let unload = PendingMove {
        id: LoadId("unload_1".into()),
        model: "other".into(),
        kind: MoveKind::Unload,
        began: Duration::ZERO,
    };
    stage.worker(1).begin_move(unload);
    stage.others_have(0, 10);
    let why = stage.why(&demand());
    let WaitReason::WorkerMovesModels { worker } = why else {
        panic!("it waits for something else: {why:?}");
    };
    assert_eq!(worker, "cpu0-other");
}

#[test]
fn a_run_that_is_late_is_expected_to_take_as_long_again() {
    let mut stage = one();
    stage.run(0, 1, &[model("m", 50)], 5, 100.0);
    let backlog_ms = |stage: &mut Stage, ms| stage.worker(0).backlog_ms(Duration::from_millis(ms));
    assert!((backlog_ms(&mut stage, 40) - 60.0).abs() < 1e-6);
    assert!((backlog_ms(&mut stage, 100) - 10.0).abs() < 1e-6);
    assert!((backlog_ms(&mut stage, 5_100) - 5_000.0).abs() < 1e-6);
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let mut stage = one();
    stage.working = [51; 6];
    let why = Refusal::TooLarge {
        need_bytes: 101,
        budget_bytes: 100,
    };
    assert_eq!(stage.place(&demand()), Placement::Refuse(why));
}

#[test]
fn reservations_hold_up_others_and_not_what_is_critical() {
    let mut stage = one();
    let id = {
        let mut demands = Demands::default();
        demands.intern(Demand::nothing())
    };
    stage.worker(0).reserved_for = Some(Reservation {
        demand: id,
        is_critical: false,
    });
    assert_eq!(stage.why(&demand()).code(), "reserved");
    stage.is_critical = true;
    assert_eq!(stage.place(&demand()), start(0, 10));
}

#[test]
fn a_suspect_runs_alone_and_nobody_joins_it() {
    let suspect = Demand {
        exclusive: true,
        ..demand()
    };
    let mut stage = one();
    assert_eq!(stage.place(&suspect), start(0, 10));
    stage.run(0, 1, &[model("m", 50)], 1, 1000.0);
    assert_eq!(stage.why(&suspect).code(), "needs_worker_alone");
    stage.worker(0).runs_alone = true;
    assert_eq!(stage.why(&demand()).code(), "worker_runs_alone");
}

#[test]
fn a_job_goes_to_the_best_device_that_can_do_it() {
    let mut stage = stage(&[("cpu0", 1 << 30, 1), ("cuda0", 1 << 30, 0)]);
    stage.hold(0, "m", 50, 1);
    assert_eq!(stage.goes_to(&demand()), "cuda0");
    // What it cannot do goes to the other, and that is no reason to wait.
    let mut heun_only = can();
    heun_only.samplers = vec![Sampler::Heun];
    stage.worker(1).capabilities = Some(Arc::new(heun_only));
    assert_eq!(stage.goes_to(&demand()), "cpu0");
    // For a small model one that is about to be ready is not waited for.
    stage.worker(1).capabilities = None;
    stage.worker(1).process = ProcessState::Starting;
    assert_eq!(stage.goes_to(&demand()), "cpu0");
    // For a large one it is; but not one that keeps dying.
    let large = with_models(&[model("m", 512 << 20)]);
    assert!(matches!(stage.why(&large), WaitReason::WorkerNotReady { worker, .. } if worker == "cuda0"));
    stage.worker(1).last_exit = Some("signal 9".into());
    stage.worker(1).deaths = 1;
    assert!(matches!(stage.why(&large), WaitReason::WorkerNotReady { worker, .. } if worker == "cuda0"));
    stage.worker(1).deaths = 2;
    assert_eq!(stage.goes_to(&large), "cpu0");
}

#[test]
fn a_sleeping_worker_is_woken_only_for_what_the_others_cannot_do() {
    let mut stage = stage(&[("cpu0", 100, 1), ("cpu0-python", 100, 2)]);
    stage.worker(1).process = ProcessState::Asleep;
    stage.worker(1).capabilities = None;
    assert_eq!(stage.goes_to(&demand()), "cpu0");
    let mut other = demand();
    Arc::make_mut(&mut other.needs).families = vec!["sdxl".into()];
    assert_eq!(stage.place(&other), Placement::Wake { worker: WorkerId(1) });
    stage.worker(1).process = ProcessState::Starting;
    assert_eq!(stage.why(&other).code(), "worker_not_ready");
}

#[test]
fn what_no_worker_can_do_is_refused_with_what_each_lacks() {
    let mut job = demand();
    Arc::make_mut(&mut job.needs).adapters = vec!["controlnet".into()];
    let missing = MissingFeature {
        field: "control",
        words: "has no controlnet".into(),
    };
    let why = Refusal::NotServed {
        missing: vec![("cpu0".into(), missing)],
    };
    assert_eq!(one().place(&job), Placement::Refuse(why));
    assert_eq!(stage(&[]).why(&job), WaitReason::NoWorker);
}

#[test]
fn what_one_worker_cannot_load_or_do_goes_to_another() {
    let unusable = || (Error::new(Code::ModelUnusable, "torn"), Duration::ZERO);
    let mut stage = stage(&[("cpu0", 100, 1), ("cpu0-python", 100, 2)]);
    stage.worker(0).unusable.insert("m".into(), unusable());
    assert_eq!(stage.goes_to(&demand()), "cpu0-python");
    stage.worker(1).unusable.insert("m".into(), unusable());
    let why = Refusal::Unusable {
        worker: "cpu0".into(),
        model: "m".into(),
    };
    assert_eq!(stage.place(&demand()), Placement::Refuse(why));
    stage.worker(0).unusable.clear();
    stage.worker(1).unusable.clear();
    let mut refused = demand();
    let missing = MissingFeature {
        field: "prompt",
        words: "cannot".into(),
    };
    refused.refused_by.push(("cpu0".into(), missing));
    assert_eq!(stage.goes_to(&refused), "cpu0-python");
}

#[test]
fn a_model_too_large_for_its_device_waits_in_host_memory_where_the_worker_can_do_that() {
    let mut stage = stage(&[("cuda0", 100, 0)]);
    stage.worker(0).precision = Precision::Half;
    stage.plans(0, &OFFLOADS);
    let offload = |stage: &mut Stage, bytes| match stage.place(&with_models(&[model("m", bytes)])) {
        Placement::Load {
            residency,
            weights_bytes,
            ..
        } => Some((residency.offload, weights_bytes)),
        Placement::Refuse(_) => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(offload(&mut stage, 180), Some((Offload::None, 90)));
    assert_eq!(offload(&mut stage, 200), Some((Offload::Model, 87)));
    assert_eq!(offload(&mut stage, 600), Some((Offload::Sequential, 60)));
    stage.plans(0, &[]);
    assert_eq!(offload(&mut stage, 600), None);
}

#[test]
fn a_model_that_leaves_a_larger_job_no_room_is_loaded_anew_in_a_smaller_way_once_it_is_idle() {
    let mut stage = stage(&[("cuda0", 100, 0)]);
    stage.worker(0).precision = Precision::Half;
    stage.plans(0, &OFFLOADS);
    stage.hold(0, "m", 70, 1);
    // By itself it fits in blocks: 14 of its 70 bytes and 50 for the job.
    stage.working = [50; 6];
    let job = with_models(&[model("m", 140)]);
    assert_eq!(stage.place(&job), evict(&[(0, "m")]));
    stage.run(0, 1, &job.models, 0, 1000.0);
    assert_eq!(stage.why(&job).code(), "memory_in_use", "others use it");
    stage.worker(0).dismiss(StepKey(1), Duration::ZERO);
    // Held so already, it is not loaded again and again.
    if let Some(resident) = stage.worker(0).resident.get_mut(&ModelId::from("m")) {
        resident.residency.offload = Offload::Sequential;
    }
    stage.others_have(0, 1);
    assert_eq!(stage.why(&job).code(), "memory_in_use");
}

#[test]
fn a_job_too_large_beside_its_model_is_done_in_tiles_and_its_model_stays_where_it_is() {
    let mut stage = one();
    stage.plans(0, &["vae_slicing", "vae_tiling"]);
    stage.working = [60, 55, 20, 60, 55, 20];
    let tiles = Slicing {
        vae: VaePlan::Tiling,
        attention: false,
    };
    let Placement::Start {
        plan, working_bytes, ..
    } = stage.place(&demand())
    else {
        panic!("it starts in tiles")
    };
    assert_eq!((plan.slicing, working_bytes), (tiles, 20));
    // Whether it is done in tiles depends on the device and not on who else is there: it waits for the others.
    stage.working = [40, 40, 20, 40, 40, 20];
    stage.others_have(0, 20);
    assert_eq!(stage.why(&demand()).code(), "memory_in_use");
    stage.plans(0, &[]);
    stage.working = [60, 55, 20, 60, 55, 20];
    let why = Refusal::TooLarge {
        need_bytes: 110,
        budget_bytes: 100,
    };
    assert_eq!(stage.place(&demand()), Placement::Refuse(why));
}

#[test]
fn a_job_goes_to_the_device_that_has_room_for_all_of_it_and_to_a_worse_one_before_it_is_refused() {
    let mut cards = stage(&[("cuda0", 40, 0), ("cuda1", 70, 0), ("cpu0", 90, 1)]);
    cards.hold(2, "m", 50, 1);
    for card in 0..2 {
        cards.plans(card, &OFFLOADS);
    }
    cards.working = [20; 6];
    assert_eq!(
        cards.goes_to(&demand()),
        "cuda1",
        "the other card would offload it"
    );
    for card in 0..2 {
        cards.plans(card, &[]);
    }
    cards.working = [40; 6];
    assert_eq!(cards.goes_to(&demand()), "cpu0", "no card has room");
    cards.working = [50; 6];
    assert!(cards.goes_to(&demand()).contains("TooLarge"));
}

#[test]
fn what_loras_change_is_leased_once_for_all_jobs_with_the_same_set() {
    let styled = |set: &str| Demand {
        adapters: Some(Arc::new(AdapterNeed::new(set, 5))),
        ..demand()
    };
    let mut stage = one();
    let lora = |stage: &mut Stage, set| match stage.place(&styled(set)) {
        Placement::Start { lora_bytes, .. } => Some(lora_bytes),
        _ => None,
    };
    assert_eq!(lora(&mut stage, "m x:1"), Some(20));
    let uses = Uses {
        models: demand().models,
        adapters: styled("m x:1").adapters,
    };
    stage.worker(0).admit(StepKey(1), uses, 1000.0, Duration::ZERO);
    stage.others_have(0, 20);
    assert_eq!(lora(&mut stage, "m x:1"), Some(0));
    assert_eq!(lora(&mut stage, "m x:0.5"), Some(20));
    stage.others_have(0, 21);
    assert_eq!(
        (lora(&mut stage, "m x:1"), lora(&mut stage, "m x:0.5")),
        (Some(0), None)
    );
}

#[test]
fn a_whole_model_that_leaves_no_room_for_its_loras_is_loaded_anew_so_that_they_wait_with_it() {
    let job = Demand {
        models: [model("m", 100)].into(),
        adapters: Some(Arc::new(AdapterNeed::new("m x:1", 25))),
        ..demand()
    };
    let held = |budget_bytes, offload| {
        let mut gpu = stage(&[("cuda0", budget_bytes, 0)]);
        gpu.worker(0).precision = Precision::Half;
        gpu.plans(0, &OFFLOADS);
        gpu.hold(0, "m", 50, 1);
        if let Some(resident) = gpu.worker(0).resident.get_mut(&ModelId::from("m")) {
            resident.residency.offload = offload;
        }
        gpu.place(&job)
    };
    // 50 of the model, 50 of what is changed and 10 of the job; the model as it is leaves 49 of 99.
    assert!(matches!(
        held(110, Offload::None),
        Placement::Start { lora_bytes: 50, .. }
    ));
    assert_eq!(held(99, Offload::None), evict(&[(0, "m")]));
    assert!(matches!(
        held(99, Offload::Model),
        Placement::Start { lora_bytes: 0, .. }
    ));
}

#[test]
fn a_model_is_loaded_anew_with_attention_in_slices_for_a_job_that_needs_it_even_where_memory_is_free() {
    let mut stage = one();
    stage.plans(0, &["attention_slicing"]);
    stage.working = [60, 60, 60, 20, 20, 20];
    assert_eq!(stage.place(&demand()), evict(&[(0, "m")]));
    stage.run(0, 1, &demand().models, 0, 1000.0);
    assert_eq!(stage.why(&demand()).code(), "memory_in_use", "others use it");
    stage.worker(0).dismiss(StepKey(1), Duration::ZERO);
    if let Some(resident) = stage.worker(0).resident.get_mut(&ModelId::from("m")) {
        resident.residency.attention_slicing = true;
    }
    assert!(matches!(stage.place(&demand()), Placement::Start { .. }));
    stage.worker(0).lose_models();
    stage.others_have(0, 0);
    let owner = Owner::Weights {
        worker: "cpu0".into(),
        model: "m".into(),
    };
    stage.ledger(0).release(&owner);
    assert!(
        matches!(stage.place(&demand()), Placement::Load { residency, .. } if residency.attention_slicing)
    );
}

#[test]
fn a_load_is_not_made_beside_runs_unless_the_worker_can_do_both() {
    let mut stage = one();
    stage.run(0, 1, &demand().models, 1, 1000.0);
    let other = with_models(&[model("n", 10)]);
    assert_eq!(stage.why(&other).code(), "load_waits_for_runs");
    let mut both = can();
    both.loads_beside_runs = true;
    stage.worker(0).capabilities = Some(Arc::new(both));
    assert!(matches!(stage.place(&other), Placement::Load { .. }));
}

#[test]
fn a_job_goes_where_it_is_done_first() {
    let mut stage = stage(&[("cuda0", 200, 0), ("cuda1", 200, 0)]);
    stage.hold(0, "m", 50, 1);
    assert_eq!(stage.goes_to(&demand()), "cuda0", "the model is there");
    // A load takes 50 ms: what is busy for less is waited for.
    stage.run(0, 1, &demand().models, 1, 20.0);
    assert_eq!(stage.goes_to(&demand()), "cuda0");
    stage.run(0, 2, &demand().models, 1, 20.0);
    assert_eq!(stage.goes_to(&demand()), "places_taken");
    // With others waiting before it, the load is worth it.
    stage.others_wait(&demand(), 20.0);
    assert_eq!(stage.goes_to(&demand()), "cuda1");
    stage.hold(1, "m", 50, 1);
    assert_eq!(
        stage.goes_to(&demand()),
        "cuda1",
        "it is idle, and the model is there too"
    );
}

#[test]
fn a_suspended_run_goes_on_where_it_is_and_nowhere_else() {
    let mut stage = stage(&[("cuda0", 200, 0), ("cuda1", 200, 0)]);
    for index in 0..2 {
        stage.hold(index, "m", 50, 1);
    }
    stage.run(1, 1, &demand().models, 1, 1000.0);
    stage.bound_to = Some(WorkerId(1));
    assert_eq!(stage.goes_to(&demand()), "cuda1");
    stage.run(1, 2, &demand().models, 1, 1000.0);
    assert_eq!(stage.goes_to(&demand()), "places_taken");
}

#[test]
fn a_process_that_kept_memory_is_replaced_once_it_is_idle_and_that_helps() {
    let mut stage = stage(&[("cuda0", 100, 0)]);
    let unreturned = Owner::Unreturned {
        worker: "cuda0".into(),
    };
    stage.ledger(0).hold(unreturned, 50);
    stage.worker(0).unreturned_bytes = 50;
    assert_eq!(stage.place(&demand()), Placement::Recycle { worker: WorkerId(0) });
    assert!(
        matches!(
            stage.place(&with_models(&[model("m", 40)])),
            Placement::Load { .. }
        ),
        "it fits as it is"
    );
    stage.run(0, 1, &[], 0, 1000.0);
    assert_eq!(stage.why(&demand()).code(), "memory_in_use");
}

#[test]
fn a_process_is_not_replaced_where_that_gives_too_little_back() {
    let mut stage = stage(&[("cuda0", 100, 0)]);
    let unreturned = Owner::Unreturned {
        worker: "cuda0".into(),
    };
    stage.ledger(0).hold(unreturned, 5);
    stage.worker(0).unreturned_bytes = 5;
    stage.others_have(0, 60);
    assert_eq!(stage.why(&demand()).code(), "memory_in_use");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is there: what starts or is loaded fits, what is refused could not fit an empty device, and what is evicted
    /// is idle and enough.
    #[test]
    fn every_answer_can_be_carried_out(
        weights in 0u64..80, working in 0u64..60, others in 0u64..100, runs in 0usize..3, held in 0u64..50, is_idle in any::<bool>(),
    ) {
        let mut stage = stage(&[("cpu0", 100, 1)]);
        stage.working = [working; 6];
        stage.hold(0, "held", held, 1);
        if !is_idle {
            stage.run(0, 100, &[model("held", held)], 0, 10.0);
        }
        for step in 0..runs {
            stage.run(0, step as u64, &[], 0, 10.0);
        }
        stage.others_have(0, others.min(100 - held));
        let free_bytes = stage.ledger(0).free_bytes();
        let job = with_models(&[model("m", weights)]);
        match stage.place(&job) {
            Placement::Start { .. } => prop_assert!(false, "its model is not resident"),
            Placement::Load { weights_bytes, .. } => {
                prop_assert!(weights_bytes + working <= free_bytes);
                prop_assert!(stage.fleet.workers[0].runs.is_empty());
            }
            Placement::Evict { models, .. } => {
                prop_assert!(is_idle && free_bytes + held >= weights + working && free_bytes < weights + working);
                prop_assert_eq!(models, vec![(WorkerId(0), ModelId::from("held"))]);
            }
            Placement::Wait { reason, worker } => {
                prop_assert_eq!(worker, Some(WorkerId(0)));
                prop_assert!(!reason.to_string().is_empty());
            }
            Placement::Refuse(why) => {
                let expected = Refusal::TooLarge { need_bytes: weights + working, budget_bytes: 100 };
                prop_assert_eq!(why, expected);
                prop_assert!(weights + working > 100);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

/// A worker whose places are taken by runs of `m`, for which a minute of work waits, beside one without it.
fn full_beside(other: &str) -> Stage {
    let mut stage = stage(&[("holds", 100, 1), (other, 100, 1)]);
    stage.hold(0, "m", 50, 1);
    stage.run(0, 1, &[model("m", 50)], 5, 10.0);
    stage.run(0, 2, &[model("m", 50)], 5, 10.0);
    stage.others_wait(&demand(), 60_000.0);
    stage
}

#[test]
fn an_idle_worker_takes_a_copy_of_that_for_which_most_waits() {
    let mut stage = full_beside("idle");
    stage.copies = Copies::From { ms: 60_001.0 };
    assert_eq!(stage.goes_to(&demand()), "places_taken");
    stage.copies = Copies::From { ms: 60_000.0 };
    assert_eq!(stage.goes_to(&demand()), "idle");
    stage.copies = Copies::Any;
    assert_eq!(stage.goes_to(&demand()), "idle");
}

#[test]
fn a_busy_worker_is_given_to_that_for_which_most_waits_and_to_nothing_else() {
    let mut stage = full_beside("busy");
    stage.hold(1, "other", 20, 1);
    stage.run(1, 3, &[model("other", 20)], 5, 10.0);
    stage.copies = Copies::From { ms: 60_000.0 };
    assert_eq!(stage.goes_to(&demand()), "load_waits_for_runs");
    stage.copies = Copies::Any;
    assert_eq!(stage.goes_to(&demand()), "places_taken");
}

#[test]
fn a_worker_holds_a_model_from_when_it_makes_room_for_it_until_the_load_has_failed() {
    let mut stage = stage(&[("cpu0", 100, 1)]);
    let holders = |stage: &mut Stage| {
        stage.fleet.index_models();
        stage.fleet.holders(&"m".into()).to_vec()
    };
    stage.fleet.expect_models(WorkerId(0), &demand().models);
    assert_eq!(holders(&mut stage), [WorkerId(0)]);
    let id = LoadId("load_1".into());
    let pending = PendingMove {
        id: id.clone(),
        model: "m".into(),
        kind: MoveKind::Load {
            residency: Residency::default(),
            weights_bytes: 50,
            wanted_by: StepKey(1),
            expected_ms: 1.0,
        },
        began: Duration::ZERO,
    };
    stage.worker(0).begin_move(pending);
    assert_eq!(holders(&mut stage), [WorkerId(0)]);
    stage.worker(0).end_move(&id);
    assert_eq!(holders(&mut stage), []);
    stage.fleet.expect_models(WorkerId(0), &demand().models);
    stage.worker(0).lose_models();
    assert_eq!(holders(&mut stage), []);
}
