//! Who goes next, and where. Pure: knows no clock, lock or process; the driver carries out what `plan` returns.
//!
//! Order: class, then priority, then arrival. A job goes to the best worker that can do it and has room: accelerators before
//! processors, those that run before those that must be started. On one worker nobody overtakes a job that waits for
//! room, so that a large job is not starved by small ones. A job that was in a worker that died runs alone until it has
//! shown its innocence. Workers of one device share its room.

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use calotype_protocol::{JobId, ModelId};

use crate::inference::{MissingFeature, ModelNeed};
use crate::memory::memory_plan::{self, MemoryPlan, Precision};

pub use world::{Decision, Refusal, Resident, Room, Slot, Standing, Waiting};

/// A model of fewer bytes is worth no wait for a better device: a processor has drawn its picture before an accelerator's
/// worker has started.
const SMALL_BYTES: u64 = 512 << 20;

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

/// Decides for every waiting job, in order. `waiting` is sorted by [`order`]; `rooms` are named by device.
pub fn plan(waiting: &[Waiting], slots: &[Slot], rooms: &BTreeMap<String, Room>) -> Vec<Decision> {
    let mut board = Board {
        slots: slots.to_vec(),
        rooms: rooms.clone(),
        held: vec![None; slots.len()],
    };
    waiting.iter().flat_map(|job| board.place(job)).collect()
}

/// The state of the world as the decisions so far have changed it.
struct Board {
    slots: Vec<Slot>,
    rooms: BTreeMap<String, Room>,
    /// Behind whom a worker's queue stands still.
    held: Vec<Option<JobId>>,
}

fn wait(job: &Waiting, reason: String) -> Decision {
    Decision::Wait {
        job: job.job.clone(),
        reason,
    }
}

/// What a worker lacks for a job, by its own word: of what it can do, or of this very job.
fn lack(job: &Waiting, slot: &Slot) -> Option<MissingFeature> {
    let of_this_job = job.refused_by.iter().find(|(worker, _)| *worker == slot.worker);
    match of_this_job {
        Some((_, lack)) => Some(lack.clone()),
        None => job.needs.missing_feature(slot.capabilities.as_ref()?),
    }
}

/// Why a worker takes nothing more now, or not this job.
fn occupied(job: &Waiting, slot: &Slot) -> Option<String> {
    let worker = &slot.worker;
    if slot.moving {
        Some(format!("{worker} is loading or dropping a model"))
    } else if slot.taken_alone {
        Some(format!("{worker} runs a job that must be alone"))
    } else if job.alone && slot.busy > 0 {
        Some("was in a worker that died, and runs alone next".into())
    } else if slot.busy >= slot.most {
        Some(format!("all {} places of {worker} are taken", slot.most))
    } else {
        None
    }
}

impl Board {
    fn place(&mut self, job: &Waiting) -> Vec<Decision> {
        let Some(index) = self.choose(job) else {
            return vec![self.nobody(job)];
        };
        let slot = &mut self.slots[index];
        match slot.standing {
            Standing::Ready => {}
            Standing::Asleep => {
                // Once is enough: the next job finds it starting.
                slot.standing = Standing::Starting;
                slot.not_ready = "it is starting".into();
                let worker = slot.worker.clone();
                let reason = format!("{worker} is started for it");
                let job_id = job.job.clone();
                return vec![Decision::Wake { worker, job: job_id }, wait(job, reason)];
            }
            Standing::Starting | Standing::Broken => {
                let reason = format!("no worker is ready: {}: {}", slot.worker, slot.not_ready);
                return vec![wait(job, reason)];
            }
        }
        if let Some(first) = &self.held[index] {
            return vec![wait(job, format!("waits behind {first}"))];
        }
        let decisions = self.decide(job, index);
        let goes_on = matches!(
            decisions.last(),
            Some(Decision::Run { .. } | Decision::Refuse { .. })
        );
        if !goes_on {
            self.held[index] = Some(job.job.clone());
        }
        decisions
    }

    /// Index of the worker that suits the job best, among those that can do it or have not said yet what they can.
    fn choose(&self, job: &Waiting) -> Option<usize> {
        let can = |slot: &Slot| {
            lack(job, slot).is_none() && !job.models.iter().any(|need| slot.unusable.contains(&need.model))
        };
        let worth_a_wait = ModelNeed::sum(&job.models, Precision::Single) >= SMALL_BYTES;
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| can(slot))
            .min_by_key(|(index, slot)| {
                let resident = job
                    .models
                    .iter()
                    .filter(|need| slot.resident.iter().any(|there| there.model == need.model))
                    .count();
                let way = self.way(job, slot);
                (
                    // Where it can never run it is told why, and only if it can run nowhere else.
                    way.is_some_and(|way| way.is_err()),
                    // Of those that are there or about to be the better device; others are a last resort.
                    if worth_a_wait {
                        slot.standing.max(Standing::Starting)
                    } else {
                        slot.standing
                    },
                    slot.rank,
                    // Of two cards the one that has room for all of it.
                    way.and_then(Result::ok).map_or(0, MemoryPlan::cost),
                    slot.standing,
                    self.held[*index].is_some(),
                    job.models.len() - resident,
                    slot.busy,
                )
            })
            .map(|(index, _)| index)
    }

    /// How a worker would hold it, or the least bytes that it would need; `None` before it has said what it can.
    fn way(&self, job: &Waiting, slot: &Slot) -> Option<Result<MemoryPlan, u64>> {
        let room = self.rooms.get(&slot.device)?;
        slot.capabilities.as_ref()?;
        let weights_bytes = ModelNeed::sum(&job.models, slot.precision);
        let lora_bytes = job.adapters.as_ref().map_or(0, |need| need.bytes(slot.precision));
        let working_bytes = |slicing| job.working_sets.of(&slot.kind, slicing);
        let ways = slot.ways;
        Some(ways.fastest_fit(weights_bytes, lora_bytes, working_bytes, room.budget_bytes))
    }

    fn nobody(&self, job: &Waiting) -> Decision {
        if self.slots.is_empty() {
            return wait(job, "there is no worker".into());
        }
        let unusable = self
            .slots
            .iter()
            .filter(|slot| lack(job, slot).is_none())
            .find_map(|slot| {
                let model = job
                    .models
                    .iter()
                    .find(|need| slot.unusable.contains(&need.model))?;
                Some(Refusal::Unusable {
                    worker: slot.worker.clone(),
                    model: model.model.clone(),
                })
            });
        let lacks = self
            .slots
            .iter()
            .filter_map(|slot| Some((slot.worker.clone(), lack(job, slot)?)));
        Decision::Refuse {
            job: job.job.clone(),
            why: unusable.unwrap_or_else(|| Refusal::NotServed {
                lacks: lacks.collect(),
            }),
        }
    }

    fn decide(&mut self, job: &Waiting, index: usize) -> Vec<Decision> {
        let slot = &self.slots[index];
        let Some(room) = self.rooms.get(&slot.device).copied() else {
            return vec![wait(job, format!("{} has no ledger", slot.device))];
        };
        let precision = slot.precision;
        let way = match self.way(job, slot) {
            Some(Ok(way)) => way,
            Some(Err(need_bytes)) => {
                return vec![Decision::Refuse {
                    job: job.job.clone(),
                    why: Refusal::TooLarge {
                        need_bytes,
                        budget_bytes: room.budget_bytes,
                    },
                }];
            }
            None => return vec![wait(job, format!("{} has not said what it can do", slot.worker))],
        };
        // Once for all jobs with the same set.
        let adapters = job
            .adapters
            .as_ref()
            .filter(|need| !slot.adapter_sets.contains(&need.set));
        let lora_bytes = adapters.map_or(0, |need| need.bytes(precision));
        // They lie where the model does, which may have been loaded for a smaller job.
        let model = job.models.first().map(|need| &need.model);
        let loaded = slot.resident.iter().find(|there| Some(&there.model) == model);
        let lies = loaded.map_or(way.offload, |there| there.residency.offload);
        let lora_bytes = memory_plan::lora_on_device_bytes(lora_bytes, lies);
        let working_bytes = job
            .working_sets
            .of(&slot.kind, way.slicing)
            .saturating_add(lora_bytes);
        let weights =
            |need: &ModelNeed| memory_plan::on_device_bytes(need.weights_bytes(precision), way.offload);
        if let Some(reason) = occupied(job, slot) {
            return vec![wait(job, reason)];
        }
        let missing: Vec<&ModelNeed> = job
            .models
            .iter()
            .filter(|need| !slot.resident.iter().any(|there| there.model == need.model))
            .collect();
        let missing_bytes = missing
            .iter()
            .fold(0u64, |sum, need| sum.saturating_add(weights(need)));
        let need_bytes = missing_bytes.saturating_add(working_bytes);
        let first_missing = missing.first().map(|need| (*need).clone());
        let mut scores = false;
        for resident in &mut self.slots[index].resident {
            if job.models.iter().any(|need| need.model == resident.model) {
                resident.in_use = true;
                scores |= resident.residency.holds_scores(way);
            }
        }
        if need_bytes > room.free_bytes || scores {
            let device = self.slots[index].device.clone();
            let short_bytes = need_bytes.saturating_sub(room.free_bytes);
            let others = (!scores).then(|| self.evictable(&device, short_bytes));
            let models = others.flatten().or_else(|| self.held_too_large(job, index, way));
            return match models {
                Some(models) => self.evict(models),
                None => vec![wait(
                    job,
                    format!(
                        "needs {need_bytes} bytes on {device}, {} are free",
                        room.free_bytes
                    ),
                )],
            };
        }
        let slot = &mut self.slots[index];
        let worker = slot.worker.clone();
        let (taken_bytes, decision) = match first_missing {
            Some(need) => {
                slot.moving = true;
                let weights_bytes = weights(&need);
                let decision = Decision::Load {
                    job: job.job.clone(),
                    model: need.model,
                    worker,
                    residency: way.into(),
                    weights_bytes,
                };
                (weights_bytes, decision)
            }
            None => {
                slot.busy += 1;
                slot.taken_alone = job.alone;
                slot.adapter_sets
                    .extend(job.adapters.iter().map(|need| Arc::clone(&need.set)));
                let decision = Decision::Run {
                    job: job.job.clone(),
                    worker,
                    slicing: way.slicing,
                    lora_bytes,
                };
                (working_bytes, decision)
            }
        };
        if let Some(room) = self.rooms.get_mut(&slot.device) {
            room.free_bytes -= taken_bytes;
        }
        vec![decision]
    }

    /// Idle models of the device that together free `short_bytes`, the longest unused first, with the index of their
    /// slot; `None` when all of them would not do.
    fn evictable(&self, device: &str, short_bytes: u64) -> Option<Vec<(usize, ModelId)>> {
        let of_device = self.slots.iter().enumerate();
        let mut idle: Vec<(usize, &Resident)> = of_device
            .filter(|(_, slot)| slot.device == device && slot.standing == Standing::Ready && !slot.moving)
            .flat_map(|(index, slot)| slot.resident.iter().map(move |resident| (index, resident)))
            .filter(|(_, resident)| !resident.in_use)
            .collect();
        idle.sort_by_key(|(_, resident)| resident.last_use);
        let mut freed_bytes = 0u64;
        let mut models = Vec::new();
        for (index, resident) in idle {
            if freed_bytes >= short_bytes {
                break;
            }
            freed_bytes = freed_bytes.saturating_add(resident.bytes);
            models.push((index, resident.model.clone()));
        }
        (freed_bytes >= short_bytes).then_some(models)
    }

    /// The job's own models that must be loaded anew in a smaller way, now that nobody uses them: beside them as they are
    /// held, the job would wait for ever.
    fn held_too_large(&self, job: &Waiting, index: usize, way: MemoryPlan) -> Option<Vec<(usize, ModelId)>> {
        let slot = &self.slots[index];
        let own = slot
            .resident
            .iter()
            .filter(|resident| job.models.iter().any(|need| need.model == resident.model))
            .filter(|resident| resident.residency.is_too_large_for(way));
        let models: Vec<_> = own.map(|resident| (index, resident.model.clone())).collect();
        (slot.busy == 0 && !models.is_empty()).then_some(models)
    }

    fn evict(&mut self, models: Vec<(usize, ModelId)>) -> Vec<Decision> {
        models
            .into_iter()
            .map(|(index, model)| {
                let slot = &mut self.slots[index];
                slot.moving = true;
                Decision::Evict {
                    model,
                    worker: slot.worker.clone(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
