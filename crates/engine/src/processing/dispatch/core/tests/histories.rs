//! Random histories: clients, workers, the disk and the server's own death in any order. `World` checks after every input
//! what must hold always; at the end everything is healthy again, and every job must end.
//!
//! A history that breaks a law is printed as a call of `replay` that can be pasted into this file as a test. Nothing is kept
//! in files beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use calotype_protocol::{JobId, Outcome};
use proptest::prelude::*;

use super::workers::can;
use super::world::{JobSpec, World, device, job};
use crate::error::{Code, Error};
use crate::processing::dispatch::core::message::{Action, Input};
use crate::processing::job::Class;
use crate::worker::ExitCause;

/// One thing that happens. Numbers choose among what is there at that moment.
#[derive(Debug, Clone)]
enum Event {
    Submit {
        class: usize,
        client: usize,
        models: usize,
        working: u32,
        priority: i32,
    },
    Pause(usize),
    Resume(usize),
    Cancel(usize),
    /// The next write comes to the disk, or fails.
    Write,
    /// The core hears of a write.
    Hear(usize),
    Prepare(usize),
    PrepareFails(usize),
    Encode(usize),
    Probe,
    DiskFails,
    DiskWorks,
    /// A worker takes its next line.
    Take(usize),
    /// The core hears a worker's next line.
    Say(usize),
    Finish(usize),
    Fail(usize, usize),
    LoadFails(usize, usize),
    Dies(usize),
    MissesDeadline(usize, usize),
    Starts(usize),
    Wait(u64),
    /// Everything that can move without a new idea moves once.
    Everything,
    ServerDies,
}

use Event::*;

const MODELS: [&[(&str, u64)]; 5] = [
    &[("m", 10)],
    &[("n", 10)],
    &[("o", 25)],
    &[("m", 10), ("control", 5)],
    &[("p", 12)],
];
const OUTCOMES: [Outcome; 5] = [
    Outcome::Failed,
    Outcome::OutOfMemory,
    Outcome::NotSupported,
    Outcome::InvalidInput,
    Outcome::ModelLoad,
];

fn world() -> World {
    let mut both = can(3);
    both.loads_beside_runs = true;
    let mut world = World::new(vec![device(40, &[can(2), both]), device(30, &[can(1)])]);
    // Jobs may evict what was just loaded for another, until one of them has waited for its bound.
    world.loads_take_ms = 100;
    world.manual.journal = true;
    world.manual.prepare = true;
    world.manual.outputs = true;
    world.manual.workers = true;
    world
}

/// Those jobs that have not ended on the disk, in the order of arrival.
fn live(world: &World) -> Vec<JobId> {
    let mut rows: Vec<_> = world
        .rows
        .iter()
        .filter(|(_, row)| !row.state.is_final())
        .collect();
    rows.sort_by_key(|(_, row)| row.sequence);
    rows.into_iter().map(|(job, _)| job.clone()).collect()
}

fn pick<T: Clone>(of: &[T], index: usize) -> Option<T> {
    (!of.is_empty()).then(|| of[index % of.len()].clone())
}

/// Jobs whose runs are at work in some worker.
fn at_work(world: &World) -> Vec<JobId> {
    let runs = world.workers.iter().flat_map(|worker| &worker.runs);
    runs.filter(|(_, inside)| !inside.is_paused)
        .map(|(job, _)| job.clone())
        .collect()
}

fn happens(world: &mut World, event: &Event) {
    let workers = world.workers.len();
    match event {
        Submit {
            class,
            client,
            models,
            working,
            priority,
        } => {
            let name = format!("j{}", world.rows.len());
            world.submit(JobSpec {
                class: Class::ALL[class % Class::COUNT],
                client: ["x", "y", "z"][client % 3],
                models: MODELS[models % MODELS.len()].to_vec(),
                working: *working,
                priority: *priority,
                lora_set: (models % 7 == 0).then_some("m x:1"),
                ..job(&name)
            });
        }
        Pause(index) | Resume(index) | Cancel(index) => {
            let action = match event {
                Pause(_) => Action::Pause,
                Resume(_) => Action::Resume,
                _ => Action::Cancel,
            };
            if let Some(job) = pick(&live(world), *index) {
                world.ask(job.as_str(), action);
            }
        }
        Write => {
            world.write_next();
        }
        Hear(index) => {
            if !world.outcomes.is_empty() {
                world.outcome(index % world.outcomes.len());
            }
        }
        Prepare(index) | PrepareFails(index) => {
            if !world.prepares.is_empty() {
                let outcome = match event {
                    Prepare(_) => Ok(()),
                    _ => Err(Error::new(Code::StoreFailed, "an input image is gone")),
                };
                world.prepare(index % world.prepares.len(), outcome);
            }
        }
        Encode(index) => {
            if !world.outputs.is_empty() {
                world.store_outputs(index % world.outputs.len());
            }
        }
        Probe => {
            if world.probes > 0 {
                world.probe();
            }
        }
        DiskFails => world.disk_works = false,
        DiskWorks => world.disk_works = true,
        Take(index) => {
            world.works(index % workers);
        }
        Say(index) => {
            world.hears(index % workers);
        }
        Finish(index) => {
            if let Some(job) = pick(&at_work(world), *index) {
                world.finish(job.as_str());
            }
        }
        Fail(index, outcome) => {
            if let Some(job) = pick(&at_work(world), *index) {
                world.fail(job.as_str(), OUTCOMES[outcome % OUTCOMES.len()]);
            }
        }
        LoadFails(index, outcome) => {
            world.load_fails(index % workers, OUTCOMES[outcome % OUTCOMES.len()]);
        }
        Dies(index) => {
            let index = index % workers;
            if world.workers[index].is_alive {
                world.dies(index);
            }
        }
        MissesDeadline(index, job) => {
            let index = index % workers;
            let inside: Vec<JobId> = world.workers[index].runs.keys().cloned().collect();
            if let Some(job) = pick(&inside, *job) {
                world.dies_by(index, ExitCause::StepDeadline { job });
            }
        }
        Starts(index) => {
            let index = index % workers;
            if !world.workers[index].is_alive {
                world.starts(index);
            }
        }
        Wait(ms) => world.wait_ms(*ms),
        Everything => everything(world),
        ServerDies => world.restart(),
    }
    recycle(world);
}

/// The supervisor does what the core wants of it.
fn recycle(world: &mut World) {
    for index in 0..world.workers.len() {
        if world.workers[index].is_to_recycle {
            world.dies_by(
                index,
                ExitCause::Recycled {
                    reason: String::new(),
                },
            );
        }
    }
}

/// What lies in pipes and queues moves on, except that no run ends.
fn everything(world: &mut World) {
    let manual = std::mem::take(&mut world.manual);
    world.pump();
    world.manual = manual;
}

/// Everything is healthy again, paused jobs are resumed, and runs end: every job must end.
fn heal(world: &mut World) {
    world.disk_works = true;
    let manual = std::mem::take(&mut world.manual);
    let mut rounds = 0;
    // An end may be on the disk and not be told yet.
    world.pump();
    while !live(world).is_empty() {
        rounds += 1;
        assert!(rounds < 1000, "these never end: {:?}", stuck(world));
        recycle(world);
        for index in 0..world.workers.len() {
            if !world.workers[index].is_alive {
                world.starts(index);
            }
        }
        world.pump();
        for job in live(world) {
            world.resume(job.as_str());
        }
        for job in at_work(world) {
            if world.worker_of(job.as_str()).is_some() && at_work(world).contains(&job) {
                world.finish(job.as_str());
            }
        }
        // A second at a time: the bounds of waits pass, and the store is tried again.
        world.wait_ms(1000);
    }
    assert!(world.outputs.is_empty() && world.prepares.is_empty() && world.writes.is_empty());
    world.assert_nothing_is_left();
    for worker in &world.workers {
        assert!(
            worker.runs.is_empty(),
            "a worker keeps runs of jobs that have ended: {worker:?}"
        );
    }
    for index in 0..world.workers.len() {
        world.dies_by(index, ExitCause::Stopped);
    }
    for device in &world.core.fleet.devices {
        assert_eq!(device.ledger.leased_bytes(), 0);
    }
    world.manual = manual;
}

fn stuck(world: &World) -> Vec<(String, String, Option<&'static str>)> {
    let jobs = live(world);
    let of = |job: &JobId| {
        let name = job.as_str();
        (
            name.to_owned(),
            format!("{:?}", world.state(name)),
            world.why(name),
        )
    };
    jobs.iter().map(of).collect()
}

fn replay(events: &[Event]) {
    let mut world = world();
    for event in events {
        happens(&mut world, event);
    }
    heal(&mut world);
}

fn any_event(classes: std::ops::Range<usize>) -> impl Strategy<Value = Event> {
    let some = 0usize..8;
    let submit = (classes, 0usize..3, 0usize..14, 1u32..12, -1i32..2);
    prop_oneof![
        8 => submit.prop_map(|(class, client, models, working, priority)| Submit { class, client, models, working, priority }),
        3 => some.clone().prop_map(Pause),
        3 => some.clone().prop_map(Resume),
        1 => some.clone().prop_map(Cancel),
        6 => Just(Write),
        6 => some.clone().prop_map(Hear),
        5 => some.clone().prop_map(Prepare),
        1 => some.clone().prop_map(PrepareFails),
        4 => some.clone().prop_map(Encode),
        2 => Just(Probe),
        1 => Just(DiskFails),
        2 => Just(DiskWorks),
        8 => some.clone().prop_map(Take),
        8 => some.clone().prop_map(Say),
        4 => some.clone().prop_map(Finish),
        1 => (some.clone(), some.clone()).prop_map(|(index, outcome)| Fail(index, outcome)),
        1 => (some.clone(), some.clone()).prop_map(|(index, outcome)| LoadFails(index, outcome)),
        1 => some.clone().prop_map(Dies),
        1 => (some.clone(), some.clone()).prop_map(|(index, job)| MissesDeadline(index, job)),
        3 => some.prop_map(Starts),
        3 => prop_oneof![0u64..50, 400u64..2000, 20_000u64..40_000].prop_map(Wait),
        8 => Just(Everything),
        1 => Just(ServerDies),
    ]
}

/// Replays a history and says which law it broke, as a test that can be pasted.
fn check(events: &[Event]) -> Result<(), TestCaseError> {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| replay(events))) else {
        return Ok(());
    };
    let why = panic.downcast_ref::<String>().cloned();
    let why = why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()));
    let why: String = why.unwrap_or_default().chars().take(2_000).collect();
    Err(TestCaseError::fail(format!("{why}\n\nreplay(&{events:?});\n")))
}

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..ProptestConfig::with_cases(400)
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_nothing_is_lost_doubled_or_left_behind(events in prop::collection::vec(any_event(1..4), 0..120)) {
        check(&events)?;
    }

    /// Critical jobs for more models than fit once loaded and evicted them in turns, and none of them started.
    #[test]
    fn nor_where_jobs_are_critical(events in prop::collection::vec(any_event(0..4), 0..120)) {
        check(&events)?;
    }
}

#[test]
fn critical_jobs_for_more_models_than_fit_do_not_evict_each_others_for_ever() {
    let submit = |client, models, working| Submit {
        class: 0,
        client,
        models,
        working,
        priority: 0,
    };
    replay(&[
        submit(0, 12, 1),
        submit(0, 12, 6),
        submit(0, 0, 4),
        submit(1, 0, 5),
        submit(1, 1, 1),
        submit(0, 0, 6),
    ]);
}

#[test]
fn a_drain_ends_whatever_is_under_way() {
    let mut world = world();
    for index in 0..6 {
        happens(
            &mut world,
            &Submit {
                class: index,
                client: index,
                models: index,
                working: 2,
                priority: 0,
            },
        );
        happens(&mut world, &Everything);
    }
    world.tell(Input::Drain);
    let before = at_work(&world).len();
    assert!(before > 0);
    while let Some(job) = at_work(&world).first().cloned() {
        world.finish(job.as_str());
        happens(&mut world, &Everything);
    }
    assert_eq!((world.drained, world.ended.len()), (1, before));
}

#[test]
fn critical_jobs_on_one_device_do_not_load_and_drop_their_models_in_turn() {
    replay(&[
        Submit {
            class: 1,
            client: 0,
            models: 7,
            working: 3,
            priority: 0,
        },
        Submit {
            class: 0,
            client: 0,
            models: 4,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 1,
            client: 0,
            models: 8,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 0,
            client: 0,
            models: 5,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 1,
            client: 0,
            models: 5,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 0,
            client: 0,
            models: 4,
            working: 6,
            priority: -1,
        },
        Submit {
            class: 1,
            client: 0,
            models: 5,
            working: 1,
            priority: 0,
        },
        DiskFails,
        Everything,
        Submit {
            class: 0,
            client: 0,
            models: 3,
            working: 3,
            priority: 0,
        },
    ]);
}

#[test]
fn a_reservation_has_those_asked_again_that_were_asked_before_it() {
    replay(&[
        Submit {
            class: 1,
            client: 0,
            models: 0,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 1,
            client: 0,
            models: 8,
            working: 1,
            priority: 0,
        },
        Everything,
        Finish(6),
        Everything,
        Submit {
            class: 1,
            client: 0,
            models: 5,
            working: 1,
            priority: 1,
        },
        Submit {
            class: 1,
            client: 0,
            models: 4,
            working: 2,
            priority: 0,
        },
        Submit {
            class: 1,
            client: 1,
            models: 11,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 1,
            client: 0,
            models: 4,
            working: 3,
            priority: 0,
        },
        ServerDies,
        LoadFails(4, 0),
        Take(0),
        Submit {
            class: 3,
            client: 0,
            models: 11,
            working: 6,
            priority: 0,
        },
        Take(2),
        Submit {
            class: 2,
            client: 0,
            models: 1,
            working: 3,
            priority: 0,
        },
        Pause(2),
        Say(2),
        Take(7),
        Everything,
        Wait(20000),
        Submit {
            class: 3,
            client: 0,
            models: 6,
            working: 11,
            priority: 0,
        },
    ]);
}

#[test]
fn what_a_critical_job_loads_is_not_evicted_by_one_that_had_reserved_the_worker() {
    replay(&[
        Submit {
            class: 0,
            client: 0,
            models: 7,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 0,
            client: 1,
            models: 11,
            working: 11,
            priority: 0,
        },
        DiskFails,
        Everything,
        Submit {
            class: 1,
            client: 0,
            models: 13,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 0,
            client: 0,
            models: 0,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 0,
            client: 0,
            models: 4,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 0,
            client: 0,
            models: 7,
            working: 5,
            priority: 0,
        },
        Cancel(3),
        Submit {
            class: 1,
            client: 0,
            models: 4,
            working: 9,
            priority: 0,
        },
        Submit {
            class: 0,
            client: 0,
            models: 8,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 0,
            client: 0,
            models: 4,
            working: 1,
            priority: 0,
        },
        Submit {
            class: 1,
            client: 0,
            models: 1,
            working: 8,
            priority: 0,
        },
    ]);
}

fn a_job_in_class(class: usize) -> Event {
    Submit {
        class,
        client: 0,
        models: 0,
        working: 1,
        priority: 0,
    }
}

#[test]
fn an_answer_to_an_earlier_pause_promises_nothing_of_a_later_one() {
    let job = a_job_in_class(0);
    replay(&[
        job.clone(),
        Pause(0),
        Write,
        Resume(0),
        job,
        Write,
        Pause(2),
        Hear(0),
        ServerDies,
    ]);
}

#[test]
fn a_suspended_job_that_is_cancelled_waits_for_nothing_any_more() {
    let job = a_job_in_class(1);
    replay(&[
        job.clone(),
        job.clone(),
        job.clone(),
        Everything,
        job.clone(),
        Pause(2),
        job.clone(),
        Starts(0),
        Everything,
        job,
        Resume(2),
        Wait(1),
        Cancel(2),
    ]);
}
