use std::slice::from_ref;
use std::sync::Arc;

use calotype_protocol::{Capabilities, Mode, Offload, Sampler, Schedule, VaePlan};
use proptest::prelude::*;

use super::*;
use crate::inference::{AdapterNeed, Needs};
use crate::memory::WorkingSets;
use crate::memory::holding::{Pieces, Residency, Ways};
use crate::processing::Class;

const OFFLOADS: [&str; 2] = ["offload_model", "offload_sequential"];

fn needs() -> Needs {
    Needs {
        families: vec!["sd".into()],
        formats: vec!["diffusers".into()],
        mode: Mode::TextToImage,
        sampler: Sampler::Euler,
        schedule: Schedule::Default,
        adapters: Vec::new(),
        edge: 256,
    }
}

fn can() -> Capabilities {
    Capabilities {
        engine: "fake".into(),
        families: vec!["sd".into()],
        formats: vec!["diffusers".into()],
        work: vec!["generate".into()],
        modes: Mode::ALL.to_vec(),
        samplers: Sampler::ALL.to_vec(),
        schedules: Schedule::ALL.to_vec(),
        adapters: vec!["lora".into()],
        plans: Vec::new(),
        segments: false,
        loads_beside_runs: false,
        max_batch: 2,
        pauses: true,
        previews: true,
        max_edge: 1024,
    }
}

fn model(name: &str, weights_bytes: u64) -> ModelNeed {
    ModelNeed {
        model: name.into(),
        single_bytes: weights_bytes,
        half_bytes: weights_bytes / 2,
    }
}

fn working(bytes: u64) -> Arc<WorkingSets> {
    sets([bytes; 6])
}

/// In the order of `Pieces::ALL`.
fn sets(by_pieces: [u64; 6]) -> Arc<WorkingSets> {
    Arc::new([("native@cpu".into(), by_pieces)].into_iter().collect())
}

fn ways(plans: &[&str]) -> Ways {
    let plans: Vec<String> = plans.iter().map(|plan| (*plan).to_owned()).collect();
    Ways::of(&plans)
}

fn waiting(name: &str, sequence: u64) -> Waiting {
    Waiting {
        job: name.into(),
        class: Class::Interactive,
        priority: 0,
        sequence,
        models: [model("m", 50)].into(),
        adapters: None,
        needs: Arc::new(needs()),
        working_sets: working(10),
        alone: false,
        refused_by: Vec::new(),
    }
}

fn resident(model: &str, bytes: u64, in_use: bool, last_use: u64) -> Resident {
    Resident {
        model: model.into(),
        bytes,
        residency: Residency::default(),
        in_use,
        last_use,
    }
}

fn slot() -> Slot {
    Slot {
        worker: "cpu0".into(),
        device: "cpu0".into(),
        kind: "native@cpu".into(),
        precision: Precision::Single,
        ways: Ways::default(),
        rank: 1,
        standing: Standing::Ready,
        not_ready: String::new(),
        capabilities: Some(Arc::new(can())),
        busy: 0,
        most: 2,
        taken_alone: false,
        moving: false,
        resident: vec![resident("m", 50, false, 1)],
        adapter_sets: Vec::new(),
        unusable: Vec::new(),
    }
}

fn room(free_bytes: u64) -> BTreeMap<String, Room> {
    let room = Room {
        free_bytes,
        budget_bytes: 100,
    };
    BTreeMap::from([("cpu0".into(), room), ("cuda0".into(), room)])
}

fn run(name: &str) -> Decision {
    run_at(name, "cpu0")
}

fn run_at(name: &str, worker: &str) -> Decision {
    Decision::Run {
        job: name.into(),
        worker: worker.into(),
        pieces: Pieces::default(),
        changed_bytes: 0,
    }
}

#[test]
fn class_goes_before_priority_and_priority_before_arrival() {
    let mut jobs = vec![
        waiting("late", 9),
        waiting("urgent", 8),
        waiting("batch", 1),
        waiting("early", 2),
    ];
    jobs[1].priority = 5;
    jobs[2].class = Class::Batch;
    order(&mut jobs);
    let names: Vec<&str> = jobs.iter().map(|job| job.job.as_str()).collect();
    assert_eq!(names, ["urgent", "early", "late", "batch"]);
}

#[test]
fn jobs_run_until_the_places_are_taken_and_the_rest_know_why_they_wait() {
    let jobs = [waiting("a", 1), waiting("b", 2), waiting("c", 3), waiting("d", 4)];
    let decisions = plan(&jobs, &[slot()], &room(50));
    assert_eq!(decisions[..2], [run("a"), run("b")]);
    assert!(matches!(&decisions[2], Decision::Wait { reason, .. } if reason.contains("2 places")));
    assert!(matches!(&decisions[3], Decision::Wait { reason, .. } if reason.contains("behind c")));
}

#[test]
fn a_model_that_is_not_resident_is_loaded_once_for_all_who_wait() {
    let mut slot = slot();
    slot.resident.clear();
    let decisions = plan(&[waiting("a", 1), waiting("b", 2)], &[slot], &room(100));
    assert!(matches!(&decisions[0], Decision::Load { .. }));
    assert!(matches!(&decisions[1], Decision::Wait { .. }));
}

#[test]
fn a_job_runs_once_all_its_models_are_resident() {
    let mut job = waiting("a", 1);
    job.models = [model("m", 50), model("control", 20)].into();
    let decisions = plan(&[job.clone()], &[slot()], &room(50));
    assert!(matches!(&decisions[0], Decision::Load { model, .. } if model.as_str() == "control"));
    let mut both = slot();
    both.resident.push(resident("control", 20, false, 1));
    assert_eq!(plan(&[job.clone()], &[both], &room(30)), [run("a")]);
    // Room is asked for all that is missing, so that the first is not loaded in vain; what the job uses stays.
    assert!(matches!(
        &plan(&[job], &[slot()], &room(29))[0],
        Decision::Wait { .. }
    ));
}

#[test]
fn the_longest_unused_idle_model_is_evicted_and_one_in_use_is_not() {
    let mut slot = slot();
    slot.resident = vec![
        resident("new", 40, false, 9),
        resident("old", 40, false, 3),
        resident("busy", 20, true, 1),
    ];
    let mut job = waiting("a", 1);
    (job.models, job.working_sets) = ([model("m", 30)].into(), working(10));
    assert_eq!(
        plan(&[job.clone()], &[slot.clone()], &room(0)),
        [Decision::Evict {
            model: "old".into(),
            worker: "cpu0".into()
        }]
    );
    job.models = [model("m", 80)].into();
    assert!(matches!(
        &plan(&[job], &[slot], &room(0))[0],
        Decision::Wait { .. }
    ));
}

#[test]
fn workers_of_one_device_make_room_for_each_other() {
    let mut other = slot();
    (other.worker, other.rank) = ("cpu0-other".into(), 2);
    other.capabilities = None;
    other.standing = Standing::Ready;
    let mut own = slot();
    own.resident.clear();
    assert_eq!(
        plan(&[waiting("a", 1)], &[own, other], &room(50)),
        [Decision::Evict {
            model: "m".into(),
            worker: "cpu0-other".into()
        }]
    );
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers_and_holds_nobody_up() {
    let mut giant = waiting("giant", 1);
    giant.working_sets = working(51);
    let why = Refusal::TooLarge {
        need_bytes: 101,
        budget_bytes: 100,
    };
    assert_eq!(
        plan(&[giant, waiting("b", 2)], &[slot()], &room(50)),
        [
            Decision::Refuse {
                job: "giant".into(),
                why
            },
            run("b")
        ]
    );
}

#[test]
fn a_job_that_waits_for_room_is_not_overtaken() {
    let mut large = waiting("large", 1);
    large.working_sets = working(45);
    let mut slot = slot();
    slot.busy = 1;
    slot.resident[0].in_use = true;
    let decisions = plan(&[large, waiting("small", 2)], &[slot], &room(40));
    assert!(decisions.iter().all(|d| matches!(d, Decision::Wait { .. })));
}

#[test]
fn a_suspect_runs_alone_and_nobody_joins_it() {
    let mut suspect = waiting("suspect", 1);
    suspect.alone = true;
    let decisions = plan(&[suspect.clone(), waiting("b", 2)], &[slot()], &room(50));
    assert_eq!(decisions[0], run("suspect"));
    assert!(matches!(&decisions[1], Decision::Wait { .. }));
    let mut busy = slot();
    busy.busy = 1;
    assert!(matches!(
        &plan(&[suspect], &[busy], &room(50))[0],
        Decision::Wait { .. }
    ));
}

#[test]
fn a_job_goes_to_the_best_device_that_can_do_it() {
    let mut gpu = slot();
    (gpu.worker, gpu.device, gpu.rank) = ("cuda0".into(), "cuda0".into(), 0);
    assert_eq!(
        plan(&[waiting("a", 1)], &[slot(), gpu.clone()], &room(50)),
        [run_at("a", "cuda0")]
    );
    // What it cannot do goes to the other, and that is no reason to wait.
    if let Some(can) = &mut gpu.capabilities {
        Arc::make_mut(can).samplers = vec![Sampler::Heun];
    }
    assert_eq!(
        plan(&[waiting("a", 1)], &[slot(), gpu.clone()], &room(50)),
        [run("a")]
    );
    // For a small model one that is about to be ready is not waited for.
    (gpu.capabilities, gpu.standing) = (None, Standing::Starting);
    assert_eq!(
        plan(&[waiting("a", 1)], &[slot(), gpu.clone()], &room(50)),
        [run("a")]
    );
    // For a large one it is; but not one that keeps dying.
    let mut large = waiting("a", 1);
    large.models = [model("m", SMALL_BYTES)].into();
    let roomy = room(50).into_keys().map(|device| {
        let room = Room {
            free_bytes: 1 << 30,
            budget_bytes: 1 << 30,
        };
        (device, room)
    });
    let roomy: BTreeMap<String, Room> = roomy.collect();
    let decisions = plan(&[large.clone()], &[slot(), gpu.clone()], &roomy);
    assert!(matches!(&decisions[0], Decision::Wait { reason, .. } if reason.contains("cuda0")));
    gpu.standing = Standing::Broken;
    assert_eq!(plan(&[large], &[slot(), gpu], &roomy), [run("a")]);
}

#[test]
fn a_sleeping_worker_is_woken_once_and_only_for_what_the_others_cannot_do() {
    let mut asleep = slot();
    (asleep.worker, asleep.rank) = ("cpu0-python".into(), 2);
    (asleep.standing, asleep.capabilities) = (Standing::Asleep, None);
    let slots = [slot(), asleep];
    assert_eq!(plan(&[waiting("a", 1)], &slots, &room(50)), [run("a")]);
    let mut other = waiting("b", 2);
    Arc::make_mut(&mut other.needs).families = vec!["sdxl".into()];
    let decisions = plan(&[other.clone(), other], &slots, &room(50));
    assert_eq!(
        decisions[0],
        Decision::Wake {
            worker: "cpu0-python".into(),
            job: "b".into()
        }
    );
    assert_eq!(decisions.len(), 3);
    assert!(decisions[1..].iter().all(|d| matches!(d, Decision::Wait { .. })));
}

#[test]
fn what_no_worker_can_do_is_refused_with_what_each_lacks() {
    let mut job = waiting("a", 1);
    Arc::make_mut(&mut job.needs).adapters = vec!["controlnet".into()];
    let decisions = plan(&[job], &[slot()], &room(50));
    let Decision::Refuse {
        why: Refusal::NotServed { lacks },
        ..
    } = &decisions[0]
    else {
        panic!("{decisions:?}")
    };
    assert_eq!(lacks.len(), 1);
    assert_eq!(
        (lacks[0].1.field, lacks[0].1.words.as_str()),
        ("control", "has no controlnet")
    );
}

#[test]
fn what_one_worker_cannot_load_or_do_goes_to_another() {
    let mut other = slot();
    (other.worker, other.rank) = ("cpu0-python".into(), 2);
    let mut own = slot();
    own.unusable.push("m".into());
    let slots = [own.clone(), other.clone()];
    assert_eq!(
        plan(&[waiting("a", 1)], &slots, &room(50)),
        [run_at("a", "cpu0-python")]
    );
    other.unusable.push("m".into());
    let decisions = plan(&[waiting("a", 1)], &[own, other.clone()], &room(50));
    let why = Refusal::Unusable {
        worker: "cpu0".into(),
        model: "m".into(),
    };
    assert_eq!(decisions, [Decision::Refuse { job: "a".into(), why }]);
    let mut refused = waiting("a", 1);
    let lack = Lack {
        field: "prompt",
        words: "cannot".into(),
    };
    refused.refused_by.push(("cpu0".into(), lack));
    other.unusable.clear();
    assert_eq!(
        plan(&[refused], &[slot(), other], &room(50)),
        [run_at("a", "cpu0-python")]
    );
}

#[test]
fn a_model_too_large_for_its_device_waits_in_host_memory_where_the_worker_can_do_that() {
    let mut gpu = slot();
    (gpu.worker, gpu.device) = ("cuda0".into(), "cuda0".into());
    (gpu.precision, gpu.ways) = (Precision::Half, ways(&OFFLOADS));
    gpu.resident.clear();
    let mut job = waiting("a", 1);
    let offload_of = |job: &Waiting, gpu: &Slot| match &plan(from_ref(job), from_ref(gpu), &room(100))[0] {
        Decision::Load {
            residency,
            weights_bytes,
            ..
        } => Some((residency.offload, *weights_bytes)),
        Decision::Refuse { .. } => None,
        other => panic!("{other:?}"),
    };
    job.models = [model("m", 180)].into();
    assert_eq!(offload_of(&job, &gpu), Some((Offload::None, 90)));
    job.models = [model("m", 200)].into();
    assert_eq!(offload_of(&job, &gpu), Some((Offload::Model, 87)));
    job.models = [model("m", 600)].into();
    assert_eq!(offload_of(&job, &gpu), Some((Offload::Sequential, 60)));
    gpu.ways = Ways::default();
    assert_eq!(offload_of(&job, &gpu), None);
}

#[test]
fn a_model_that_leaves_a_larger_job_no_room_is_loaded_anew_in_a_smaller_way_once_it_is_idle() {
    let mut gpu = slot();
    (gpu.worker, gpu.device) = ("cuda0".into(), "cuda0".into());
    (gpu.precision, gpu.ways) = (Precision::Half, ways(&OFFLOADS));
    gpu.resident = vec![resident("m", 70, false, 1)];
    let mut job = waiting("a", 1);
    // By itself it fits in blocks: 14 of its 70 bytes and 50 for the job.
    (job.models, job.working_sets) = ([model("m", 140)].into(), working(50));
    let decided = |gpu: &Slot, free_bytes| plan(from_ref(&job), from_ref(gpu), &room(free_bytes)).remove(0);
    let evict = Decision::Evict {
        model: "m".into(),
        worker: "cuda0".into(),
    };
    assert_eq!(decided(&gpu, 30), evict);
    gpu.busy = 1;
    assert!(
        matches!(decided(&gpu, 30), Decision::Wait { .. }),
        "others use it"
    );
    gpu.busy = 0;
    gpu.resident.clear();
    let load = decided(&gpu, 100);
    assert!(
        matches!(
            &load,
            Decision::Load {
                residency: Residency {
                    offload: Offload::Sequential,
                    ..
                },
                weights_bytes: 14,
                ..
            }
        ),
        "{load:?}"
    );
    // Held so already, it is not loaded again and again.
    let mut held = resident("m", 70, false, 1);
    held.residency.offload = Offload::Sequential;
    gpu.resident = vec![held];
    assert!(matches!(decided(&gpu, 30), Decision::Wait { .. }));
}

#[test]
fn a_job_too_large_beside_its_model_is_done_in_tiles_and_its_model_stays_where_it_is() {
    let mut gpu = slot();
    gpu.ways = ways(&["vae_slicing", "vae_tiling"]);
    let mut job = waiting("a", 1);
    job.working_sets = sets([60, 55, 20, 60, 55, 20]);
    let in_tiles = Pieces {
        vae: VaePlan::Tiling,
        attention: false,
    };
    let decisions = plan(from_ref(&job), from_ref(&gpu), &room(50));
    let expected = Decision::Run {
        job: "a".into(),
        worker: "cpu0".into(),
        pieces: in_tiles,
        changed_bytes: 0,
    };
    assert_eq!(decisions, [expected]);
    // Whether it is done in tiles depends on the device and not on who else is there: it waits for the others.
    job.working_sets = sets([40, 40, 20, 40, 40, 20]);
    let decisions = plan(from_ref(&job), from_ref(&gpu), &room(30));
    assert!(matches!(decisions[..], [Decision::Wait { .. }]), "{decisions:?}");
    gpu.ways = Ways::default();
    job.working_sets = sets([60, 55, 20, 60, 55, 20]);
    let decisions = plan(from_ref(&job), from_ref(&gpu), &room(50));
    let why = Refusal::TooLarge {
        need_bytes: 110,
        budget_bytes: 100,
    };
    assert_eq!(decisions, [Decision::Refuse { job: "a".into(), why }]);
}

#[test]
fn a_job_goes_to_the_device_that_has_room_for_all_of_it_and_to_a_worse_one_before_it_is_refused() {
    let card = |index: usize, plans: &[&str]| {
        let name = format!("cuda{index}");
        Slot {
            worker: name.clone(),
            device: name,
            kind: "python@cuda".into(),
            rank: 0,
            ways: ways(plans),
            resident: Vec::new(),
            ..slot()
        }
    };
    let slots = [card(0, &OFFLOADS), card(1, &OFFLOADS), slot()];
    let mut rooms = room(100);
    for (device, budget_bytes) in [("cuda0", 40), ("cuda1", 70), ("cpu0", 90)] {
        let free_bytes = budget_bytes;
        rooms.insert(
            device.into(),
            Room {
                free_bytes,
                budget_bytes,
            },
        );
    }
    let goes_to = |working_bytes, slots: &[Slot]| {
        let job = Waiting {
            working_sets: working(working_bytes),
            ..waiting("a", 1)
        };
        match plan(&[job], slots, &rooms).remove(0) {
            Decision::Load { worker, .. } | Decision::Run { worker, .. } => worker,
            other => format!("{other:?}"),
        }
    };
    assert_eq!(goes_to(20, &slots), "cuda1", "the other card would offload it");
    assert_eq!(goes_to(10, &slots[..1]), "cuda0");
    let cards = [card(0, &[]), card(1, &[]), slot()];
    assert_eq!(goes_to(40, &cards), "cpu0", "no card has room");
    let refused = goes_to(50, &cards);
    assert!(refused.contains("TooLarge"), "{refused}");
}

#[test]
fn what_loras_change_is_leased_once_for_all_jobs_with_the_same_set() {
    let styled = |name: &str, set: &str| Waiting {
        adapters: Some(Arc::new(AdapterNeed::new(set, 5))),
        ..waiting(name, 1)
    };
    let jobs = [styled("a", "m x:1"), styled("b", "m x:1"), styled("c", "m x:0.5")];
    let changed = |slot: &Slot, free_bytes| -> Vec<Option<u64>> {
        let decisions = plan(&jobs, from_ref(slot), &room(free_bytes));
        let bytes = decisions.into_iter().map(|decision| match decision {
            Decision::Run { changed_bytes, .. } => Some(changed_bytes),
            _ => None,
        });
        bytes.collect()
    };
    let mut worker = Slot { most: 9, ..slot() };
    assert_eq!(changed(&worker, 90), [Some(20), Some(0), Some(20)]);
    // 10 for each job and 20 for each set.
    assert_eq!(changed(&worker, 69), [Some(20), Some(0), None]);
    worker.adapter_sets.push("m x:0.5".into());
    assert_eq!(changed(&worker, 69), [Some(20), Some(0), Some(0)]);
}

#[test]
fn a_whole_model_that_leaves_no_room_for_its_loras_is_loaded_anew_so_that_they_wait_with_it() {
    let mut gpu = slot();
    (gpu.precision, gpu.ways) = (Precision::Half, ways(&OFFLOADS));
    gpu.resident = vec![resident("m", 50, false, 1)];
    let job = Waiting {
        models: [model("m", 100)].into(),
        adapters: Some(Arc::new(AdapterNeed::new("m x:1", 25))),
        ..waiting("a", 1)
    };
    let decided = |gpu: &Slot, free_bytes, budget_bytes| {
        let room = Room {
            free_bytes,
            budget_bytes,
        };
        let rooms = BTreeMap::from([("cpu0".into(), room)]);
        plan(from_ref(&job), from_ref(gpu), &rooms).remove(0)
    };
    let evict = Decision::Evict {
        model: "m".into(),
        worker: "cpu0".into(),
    };
    // 50 of the model, 50 of what is changed and 10 of the job; the model as it is leaves 49 of 99.
    assert!(matches!(
        decided(&gpu, 60, 110),
        Decision::Run {
            changed_bytes: 50,
            ..
        }
    ));
    assert_eq!(decided(&gpu, 49, 99), evict);
    gpu.resident[0].residency.offload = Offload::Model;
    assert!(matches!(
        decided(&gpu, 49, 99),
        Decision::Run { changed_bytes: 0, .. }
    ));
}

#[test]
fn a_model_is_loaded_anew_with_attention_in_slices_for_a_job_that_needs_it_even_where_room_is_left() {
    let mut gpu = slot();
    gpu.ways = ways(&["attention_slicing"]);
    let mut job = waiting("a", 1);
    job.working_sets = sets([60, 60, 60, 20, 20, 20]);
    let evict = Decision::Evict {
        model: "m".into(),
        worker: "cpu0".into(),
    };
    let decided = |gpu: &Slot| plan(from_ref(&job), from_ref(gpu), &room(50)).remove(0);
    assert_eq!(decided(&gpu), evict);
    gpu.busy = 1;
    assert!(matches!(decided(&gpu), Decision::Wait { .. }), "others use it");
    gpu.busy = 0;
    gpu.resident[0].residency.attention_slicing = true;
    assert!(matches!(decided(&gpu), Decision::Run { .. }));
    gpu.resident.clear();
    let load = plan(from_ref(&job), from_ref(&gpu), &room(100)).remove(0);
    let slices = matches!(&load, Decision::Load { residency, .. } if residency.attention_slicing);
    assert!(slices, "{load:?}");
}

proptest! {
    #[test]
    fn every_job_gets_an_answer_and_no_worker_is_overfilled(
        jobs in proptest::collection::vec((0u64..40, 0u64..80, 0u8..3, any::<bool>()), 0..20),
        free_bytes in 0u64..=100, busy in 0usize..3,
    ) {
        let jobs: Vec<Waiting> = jobs.into_iter().enumerate().map(|(index, (need, weights, name, alone))| Waiting {
            working_sets: working(need), models: [model(&format!("m{name}"), weights)].into(), alone,
            ..waiting(&format!("j{index}"), index as u64)
        }).collect();
        let mut slot = slot();
        slot.busy = busy;
        slot.resident[0].model = "m0".into();
        let decisions = plan(&jobs, &[slot.clone()], &room(free_bytes));
        let mut spent = 0;
        let mut started = 0;
        for decision in &decisions {
            if let Decision::Run { job, .. } = decision {
                started += 1;
                spent += jobs.iter().find(|waiting| &waiting.job == job).map_or(0, |waiting| waiting.working_sets.of("native@cpu", Pieces::default()));
            }
        }
        prop_assert!(spent <= free_bytes);
        prop_assert!(started == 0 || busy + started <= slot.most);
        let answered = decisions.iter().filter(|d| !matches!(d, Decision::Evict { .. })).count();
        prop_assert!(answered <= jobs.len());
        prop_assert!(decisions.len() >= jobs.len().min(1));
    }
}
