//! Who goes next, and where. Pure: knows no clock, lock or process; the driver carries out what `plan` returns.
//!
//! Order: class, then priority, then arrival. On one worker nobody overtakes a job that waits for room, so that a large
//! job is not starved by small ones. A job that was in a worker that died runs alone until it has shown its innocence.

use calotype_protocol::{JobId, ModelId};

use super::Class;

/// A job that could run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub job: JobId,
    /// Its class.
    pub class: Class,
    /// Its priority.
    pub priority: i32,
    /// Its place in the order of arrival.
    pub sequence: u64,
    /// The model that must be resident.
    pub model: ModelId,
    /// What that model's weights take.
    pub weights_bytes: u64,
    /// What the job takes beside them.
    pub need_bytes: u64,
    /// Whether it must be the only job in its worker.
    pub alone: bool,
}

/// A model in a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    /// Which.
    pub model: ModelId,
    /// What it takes.
    pub bytes: u64,
    /// Whether a job uses it.
    pub in_use: bool,
    /// Grows with each use; the smallest is evicted first.
    pub last_use: u64,
}

/// A worker as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub worker: String,
    /// Whether it takes work.
    pub ready: bool,
    /// Why not, for people.
    pub not_ready: String,
    /// Jobs inside.
    pub busy: usize,
    /// Most jobs inside.
    pub most: usize,
    /// Whether a job inside must stay alone.
    pub taken_alone: bool,
    /// Whether a load or unload is under way.
    pub moving: bool,
    /// Models inside.
    pub resident: Vec<Resident>,
    /// Not leased.
    pub free_bytes: u64,
    /// The most that can be leased.
    pub budget_bytes: u64,
}

/// What the driver shall do, each with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Start the job.
    Run {
        /// Which.
        job: JobId,
        /// Where.
        worker: String,
    },
    /// Make a model resident for the job.
    Load {
        /// For which job.
        job: JobId,
        /// Which model.
        model: ModelId,
        /// Where.
        worker: String,
    },
    /// Drop an idle model to make room.
    Evict {
        /// Which.
        model: ModelId,
        /// Where.
        worker: String,
    },
    /// Nothing can be done for this job now.
    Wait {
        /// Which.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// Nothing can ever be done for it here.
    Refuse {
        /// Which.
        job: JobId,
        /// What it would take.
        need_bytes: u64,
        /// The most there is.
        budget_bytes: u64,
    },
}

/// Sorts jobs into the order in which they go.
pub fn order(waiting: &mut [Waiting]) {
    waiting.sort_by(|a, b| {
        (a.class, std::cmp::Reverse(a.priority), a.sequence).cmp(&(
            b.class,
            std::cmp::Reverse(b.priority),
            b.sequence,
        ))
    });
}

/// Decides for every waiting job, in order. `waiting` is sorted by [`order`].
pub fn plan(waiting: &[Waiting], slots: &[Slot]) -> Vec<Decision> {
    let mut slots = slots.to_vec();
    // Behind whom a worker's queue stands still.
    let mut held: Vec<Option<JobId>> = vec![None; slots.len()];
    let mut decisions = Vec::with_capacity(waiting.len());
    for job in waiting {
        let Some(index) = choose(job, &slots, &held) else {
            decisions.push(Decision::Wait {
                job: job.job.clone(),
                reason: nobody_ready(&slots),
            });
            continue;
        };
        let Some(slot) = slots.get_mut(index) else {
            continue;
        };
        if let Some(Some(first)) = held.get(index) {
            decisions.push(Decision::Wait {
                job: job.job.clone(),
                reason: format!("waits behind {first}"),
            });
            continue;
        }
        let decision = decide(job, slot);
        let goes_on = matches!(
            decision.last(),
            Some(Decision::Run { .. } | Decision::Refuse { .. })
        );
        if !goes_on && let Some(held) = held.get_mut(index) {
            *held = Some(job.job.clone());
        }
        decisions.extend(decision);
    }
    decisions
}

/// Index of the worker that suits the job best: ready, not held up, model resident, least busy.
fn choose(job: &Waiting, slots: &[Slot], held: &[Option<JobId>]) -> Option<usize> {
    slots
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.ready)
        .min_by_key(|(index, slot)| {
            let resident = slot.resident.iter().any(|resident| resident.model == job.model);
            (
                held.get(*index).is_some_and(Option::is_some),
                !resident,
                slot.busy,
            )
        })
        .map(|(index, _)| index)
}

fn nobody_ready(slots: &[Slot]) -> String {
    match slots.first() {
        None => "there is no worker".into(),
        Some(slot) => format!("no worker is ready: {}: {}", slot.worker, slot.not_ready),
    }
}

fn decide(job: &Waiting, slot: &mut Slot) -> Vec<Decision> {
    let wait = |reason: String| {
        vec![Decision::Wait {
            job: job.job.clone(),
            reason,
        }]
    };
    let whole_bytes = job.weights_bytes.saturating_add(job.need_bytes);
    if whole_bytes > slot.budget_bytes {
        return vec![Decision::Refuse {
            job: job.job.clone(),
            need_bytes: whole_bytes,
            budget_bytes: slot.budget_bytes,
        }];
    }
    if slot.moving {
        return wait(format!("{} is loading or dropping a model", slot.worker));
    }
    if slot.taken_alone {
        return wait(format!("{} runs a job that must be alone", slot.worker));
    }
    if job.alone && slot.busy > 0 {
        return wait("was in a worker that died, and runs alone next".into());
    }
    if slot.busy >= slot.most {
        return wait(format!("all {} places of {} are taken", slot.most, slot.worker));
    }
    let Some(resident) = slot
        .resident
        .iter_mut()
        .find(|resident| resident.model == job.model)
    else {
        return bring_in(job, slot);
    };
    if job.need_bytes > slot.free_bytes {
        resident.in_use = true;
        let short_bytes = job.need_bytes - slot.free_bytes;
        return match evictable(slot, short_bytes) {
            Some(models) => evict(models, slot),
            None => wait(format!(
                "needs {} bytes, {} are free",
                job.need_bytes, slot.free_bytes
            )),
        };
    }
    resident.in_use = true;
    slot.free_bytes -= job.need_bytes;
    slot.busy += 1;
    slot.taken_alone = job.alone;
    vec![Decision::Run {
        job: job.job.clone(),
        worker: slot.worker.clone(),
    }]
}

fn bring_in(job: &Waiting, slot: &mut Slot) -> Vec<Decision> {
    let need_bytes = job.weights_bytes.saturating_add(job.need_bytes);
    if need_bytes > slot.free_bytes {
        return match evictable(slot, need_bytes - slot.free_bytes) {
            Some(models) => evict(models, slot),
            None => vec![Decision::Wait {
                job: job.job.clone(),
                reason: format!("its model needs {need_bytes} bytes, {} are free", slot.free_bytes),
            }],
        };
    }
    slot.moving = true;
    slot.free_bytes -= job.weights_bytes;
    vec![Decision::Load {
        job: job.job.clone(),
        model: job.model.clone(),
        worker: slot.worker.clone(),
    }]
}

/// Idle models that together free `short_bytes`, the longest unused first; `None` when all of them would not do.
fn evictable(slot: &Slot, short_bytes: u64) -> Option<Vec<ModelId>> {
    let mut idle: Vec<&Resident> = slot.resident.iter().filter(|resident| !resident.in_use).collect();
    idle.sort_by_key(|resident| resident.last_use);
    let mut freed_bytes = 0u64;
    let mut models = Vec::new();
    for resident in idle {
        if freed_bytes >= short_bytes {
            break;
        }
        freed_bytes = freed_bytes.saturating_add(resident.bytes);
        models.push(resident.model.clone());
    }
    (freed_bytes >= short_bytes).then_some(models)
}

fn evict(models: Vec<ModelId>, slot: &mut Slot) -> Vec<Decision> {
    slot.moving = true;
    models
        .into_iter()
        .map(|model| Decision::Evict {
            model,
            worker: slot.worker.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waiting(name: &str, sequence: u64) -> Waiting {
        Waiting {
            job: name.into(),
            class: Class::Interactive,
            priority: 0,
            sequence,
            model: "m".into(),
            weights_bytes: 50,
            need_bytes: 10,
            alone: false,
        }
    }

    fn slot() -> Slot {
        Slot {
            worker: "cpu0".into(),
            ready: true,
            not_ready: String::new(),
            busy: 0,
            most: 2,
            taken_alone: false,
            moving: false,
            resident: vec![Resident {
                model: "m".into(),
                bytes: 50,
                in_use: false,
                last_use: 1,
            }],
            free_bytes: 50,
            budget_bytes: 100,
        }
    }

    fn run(name: &str) -> Decision {
        Decision::Run {
            job: name.into(),
            worker: "cpu0".into(),
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
        let decisions = plan(
            &[waiting("a", 1), waiting("b", 2), waiting("c", 3), waiting("d", 4)],
            &[slot()],
        );
        assert_eq!(decisions[..2], [run("a"), run("b")]);
        assert!(matches!(&decisions[2], Decision::Wait { reason, .. } if reason.contains("2 places")));
        assert!(matches!(&decisions[3], Decision::Wait { reason, .. } if reason.contains("behind c")));
    }

    #[test]
    fn a_model_that_is_not_resident_is_loaded_once_for_all_who_wait() {
        let mut slot = slot();
        slot.resident.clear();
        slot.free_bytes = 100;
        let decisions = plan(&[waiting("a", 1), waiting("b", 2)], &[slot]);
        assert!(matches!(&decisions[0], Decision::Load { .. }));
        assert!(matches!(&decisions[1], Decision::Wait { .. }));
    }

    #[test]
    fn the_longest_unused_idle_model_is_evicted_and_one_in_use_is_not() {
        let mut slot = slot();
        slot.resident = vec![
            Resident {
                model: "new".into(),
                bytes: 40,
                in_use: false,
                last_use: 9,
            },
            Resident {
                model: "old".into(),
                bytes: 40,
                in_use: false,
                last_use: 3,
            },
            Resident {
                model: "busy".into(),
                bytes: 20,
                in_use: true,
                last_use: 1,
            },
        ];
        slot.free_bytes = 0;
        let mut job = waiting("a", 1);
        (job.weights_bytes, job.need_bytes) = (30, 10);
        assert_eq!(
            plan(&[job.clone()], &[slot.clone()]),
            [Decision::Evict {
                model: "old".into(),
                worker: "cpu0".into()
            }]
        );
        job.weights_bytes = 80;
        assert!(matches!(&plan(&[job], &[slot])[0], Decision::Wait { .. }));
    }

    #[test]
    fn what_can_never_fit_is_refused_with_the_numbers_and_holds_nobody_up() {
        let mut giant = waiting("giant", 1);
        giant.need_bytes = 51;
        assert_eq!(
            plan(&[giant, waiting("b", 2)], &[slot()]),
            [
                Decision::Refuse {
                    job: "giant".into(),
                    need_bytes: 101,
                    budget_bytes: 100
                },
                run("b")
            ]
        );
    }

    #[test]
    fn a_job_that_waits_for_room_is_not_overtaken() {
        let mut large = waiting("large", 1);
        large.need_bytes = 45;
        let mut slot = slot();
        slot.free_bytes = 40;
        slot.busy = 1;
        slot.resident[0].in_use = true;
        assert!(
            plan(&[large, waiting("small", 2)], &[slot])
                .iter()
                .all(|d| matches!(d, Decision::Wait { .. }))
        );
    }

    #[test]
    fn a_suspect_runs_alone_and_nobody_joins_it() {
        let mut suspect = waiting("suspect", 1);
        suspect.alone = true;
        let decisions = plan(&[suspect.clone(), waiting("b", 2)], &[slot()]);
        assert_eq!(decisions[0], run("suspect"));
        assert!(matches!(&decisions[1], Decision::Wait { .. }));
        let mut busy = slot();
        busy.busy = 1;
        assert!(matches!(&plan(&[suspect], &[busy])[0], Decision::Wait { .. }));
    }

    proptest! {
        #[test]
        fn every_job_gets_an_answer_and_no_worker_is_overfilled(
            jobs in proptest::collection::vec((0u64..40, 0u64..80, 0u8..3, any::<bool>()), 0..20),
            free_bytes in 0u64..=100, busy in 0usize..3,
        ) {
            let jobs: Vec<Waiting> = jobs.into_iter().enumerate().map(|(index, (need, weights, model, alone))| Waiting {
                need_bytes: need, weights_bytes: weights, model: ModelId(format!("m{model}")), alone,
                ..waiting(&format!("j{index}"), index as u64)
            }).collect();
            let mut slot = slot();
            slot.free_bytes = free_bytes;
            slot.busy = busy;
            slot.resident[0].model = "m0".into();
            let decisions = plan(&jobs, &[slot.clone()]);
            let mut spent = 0;
            let mut started = 0;
            for decision in &decisions {
                if let Decision::Run { job, .. } = decision {
                    started += 1;
                    spent += jobs.iter().find(|waiting| &waiting.job == job).map_or(0, |waiting| waiting.need_bytes);
                }
            }
            prop_assert!(spent <= free_bytes);
            prop_assert!(started == 0 || busy + started <= slot.most);
            let answered = decisions.iter().filter(|d| !matches!(d, Decision::Evict { .. })).count();
            prop_assert!(answered <= jobs.len());
            prop_assert!(decisions.len() >= jobs.len().min(1));
        }
    }
}
