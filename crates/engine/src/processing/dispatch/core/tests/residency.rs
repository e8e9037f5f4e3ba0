//! Laws of models: when they are loaded, who makes room, and what is done where memory does not come back.

use calotype_protocol::Outcome;

use super::workers::{Order, can};
use super::world::{JobSpec, UNIT, World, critical, device, id, job};
use crate::error::Code;
use crate::inference::peak_key;
use crate::memory::memory_plan::Slicing;
use crate::processing::dispatch::core::message::Action;
use crate::processing::dispatch::core::message::Input;
use crate::processing::job::JobState;
use crate::processing::job::state::{AfterWithdrawal, Kept, StepState, Wish};

fn with(name: &str, models: &[(&'static str, u64)]) -> JobSpec {
    JobSpec {
        models: models.to_vec(),
        ..job(name)
    }
}

#[test]
fn a_load_waits_for_the_runs_in_a_worker_that_cannot_do_both() {
    let mut world = World::with_places(2);
    world.submit(job("a"));
    world.submit(with("b", &[("n", 10)]));
    assert_eq!(
        (world.workers[0].loads, world.why("b")),
        (1, Some("load_waits_for_runs"))
    );
    // What needs no load does not wait behind it, before its bound.
    world.submit(job("c"));
    assert!(world.is_running("c"));
    world.finish("a");
    world.finish("c");
    assert!(world.is_running("b"));
}

#[test]
fn a_load_is_made_beside_the_runs_of_a_worker_that_can_do_both_and_they_go_on() {
    let mut both = can(2);
    both.loads_beside_runs = true;
    let mut world = World::new(vec![device(100, &[both])]);
    world.submit(job("a"));
    world.manual.workers = true;
    world.submit(with("b", &[("n", 10)]));
    assert_eq!(world.why("b"), Some("model_loads"));
    assert!(world.is_running("a"));
    world.submit(job("c"));
    assert!(world.is_running("c"), "its model is there, and a place");
    world.manual.workers = false;
    world.pump();
    world.finish("a");
    assert!(world.is_running("b"));
}

#[test]
fn a_load_that_waits_for_runs_has_the_worker_kept_free_after_its_bound() {
    let mut world = World::with_places(2);
    world.submit(job("a"));
    world.submit(with("b", &[("n", 10)]));
    world.wait_ms(1_000);
    world.submit(job("c"));
    assert_eq!(world.why("c"), Some("reserved"));
    world.submit(critical("urgent"));
    assert!(
        world.is_running("urgent"),
        "a reservation does not hold up what is critical"
    );
    world.finish("a");
    world.finish("urgent");
    assert!(world.is_running("b"));
    world.finish("b");
    assert!(world.is_running("c"));
}

#[test]
fn a_reservation_that_was_used_lets_the_others_start_at_once() {
    let mut world = World::with_places(3);
    world.submit(JobSpec {
        working: 10,
        ..job("a")
    });
    world.submit(job("b"));
    // It needs what `a` holds.
    world.submit(JobSpec {
        working: 85,
        ..job("wide")
    });
    assert_eq!(world.why("wide"), Some("memory_in_use"));
    world.wait_ms(1_000);
    // Asked before it in each pass.
    world.submit(JobSpec {
        priority: 5,
        ..job("c")
    });
    assert_eq!(world.why("c"), Some("reserved"));
    world.finish("a");
    assert!(world.is_running("wide"));
    assert!(world.is_running("c"), "{:?}", world.why("c"));
}

#[test]
fn the_longest_unused_model_makes_room() {
    let mut world = World::new(vec![device(25, &[can(1)])]);
    for (name, model) in [("a", "x"), ("b", "y"), ("c", "x"), ("d", "z")] {
        world.submit(with(name, &[(model, 10)]));
        world.finish(name);
    }
    assert_eq!(world.resident(0), ["x", "z"]);
}

#[test]
fn several_models_of_one_worker_make_room_together_and_all_their_leases_come_back() {
    let mut world = World::new(vec![device(25, &[can(1)])]);
    for (name, model) in [("a", "x"), ("b", "y")] {
        world.submit(with(name, &[(model, 10)]));
        world.finish(name);
    }
    world.submit(with("large", &[("z", 20)]));
    assert!(world.is_running("large"), "{:?}", world.why("large"));
    assert_eq!(world.resident(0), ["z"]);
    assert_eq!(world.leased(0), 21);
}

#[test]
fn workers_of_one_device_make_room_for_each_other() {
    let mut world = World::new(vec![device(15, &[can(1), can(1)])]);
    world.submit(job("a"));
    world.at_ms += 1000;
    world.finish("a");
    assert_eq!(world.resident(0), ["m"]);
    world.submit(with("b", &[("n", 10)]));
    assert!(world.is_running("b"));
    assert!(
        !world.resident(0).contains(&"m"),
        "what the other worker held is gone"
    );
}

#[test]
fn a_paused_job_gives_its_room_back_when_another_needs_it_and_begins_anew() {
    let mut world = World::new(vec![device(15, &[can(1)])]);
    world.submit(job("a"));
    world.pause("a");
    world.manual.workers = true;
    world.submit(with("b", &[("n", 10)]));
    assert_eq!(
        world.state("a"),
        StepState::Withdrawing(AfterWithdrawal::StaysPaused)
    );
    world.manual.workers = false;
    world.pump();
    assert!(world.is_running("b"), "{:?}", world.why("b"));
    assert_eq!(world.state("a"), StepState::Paused(Kept::Nowhere));
    world.resume("a");
    world.finish("b");
    assert!(world.is_running("a"));
    assert_eq!(world.rows[&id("a")].attempts, 2);
}

#[test]
fn memory_that_an_unload_does_not_give_back_stays_leased_until_the_process_is_replaced() {
    let mut world = World::new(vec![device(125, &[can(1)])]);
    world.submit(with("a", &[("m", 100)]));
    world.finish("a");
    world.workers[0].returns_percent = 40;
    world.submit(with("b", &[("n", 30)]));
    assert!(world.is_running("b"));
    assert_eq!(world.leased(0), 60 + 30 + 1);
    world.submit(with("c", &[("o", 80)]));
    assert!(!world.workers[0].is_to_recycle, "something runs there");
    world.finish("b");
    assert!(world.workers[0].is_to_recycle, "{:?}", world.why("c"));
    world.dies_by(
        0,
        crate::worker::ExitCause::Recycled {
            reason: String::new(),
        },
    );
    assert_eq!(world.leased(0), 0);
    world.starts(0);
    assert!(world.is_running("c"));
    assert_eq!(world.leased(0), 81);
}

#[test]
fn a_model_that_one_worker_cannot_load_is_loaded_by_another_and_else_ends_its_jobs() {
    let mut world = World::new(vec![device(100, &[can(1)]), device(100, &[can(1)])]);
    world.manual.workers = true;
    world.submit(job("a"));
    let first = world
        .workers
        .iter()
        .position(|worker| !worker.inbox.is_empty())
        .expect("one loads");
    world.load_fails(first, Outcome::ModelLoad);
    assert_eq!(world.workers[1 - first].inbox.len(), 1, "the other loads it");
    world.load_fails(1 - first, Outcome::ModelLoad);
    assert_eq!(world.end_of("a"), Some(JobState::Failed));
    world.assert_nothing_is_left();
    assert_eq!((world.leased(0), world.leased(1)), (0, 0));
    // Once the files have changed it is tried again.
    world.tell(Input::ModelsChanged {
        models: vec!["m".into()],
    });
    world.submit(job("b"));
    world.manual.workers = false;
    world.pump();
    assert!(world.is_running("b"));
}

#[test]
fn a_lack_of_memory_at_the_load_of_a_copy_does_not_end_jobs_that_the_first_card_can_do() {
    let mut world = World::new(vec![device(100, &[can(1)]), device(100, &[can(1)])]);
    world.submit(job("a"));
    let first = world.worker_of("a").expect("it runs");
    world.manual.workers = true;
    world.submit(job("b"));
    assert_eq!(world.workers[1 - first].inbox.len(), 1, "a copy is loaded");
    world.load_fails(1 - first, Outcome::OutOfMemory);
    world.manual.workers = false;
    world.pump();
    assert_eq!(world.end_of("b"), None);
    world.finish("a");
    assert!(world.is_running("b"), "{:?}", world.why("b"));
}

#[test]
fn a_lack_of_memory_at_a_load_that_nobody_else_could_do_ends_the_jobs_that_wait_for_it() {
    let mut world = World::with_places(1);
    world.manual.workers = true;
    world.submit(job("a"));
    world.load_fails(0, Outcome::OutOfMemory);
    assert_eq!(world.end_of("a"), Some(JobState::Failed));
    assert_eq!(world.leased(0), 0);
    world.assert_nothing_is_left();
}

#[test]
fn loras_are_leased_once_for_all_runs_with_the_same_set() {
    let styled = |name: &str, set| JobSpec {
        lora_set: Some(set),
        ..job(name)
    };
    let mut world = World::with_places(4);
    world.submit(styled("a", "m x:1"));
    assert_eq!(world.leased(0), 12);
    world.submit(styled("b", "m x:1"));
    assert_eq!(world.leased(0), 13);
    world.submit(styled("c", "m x:0.5"));
    assert_eq!(world.leased(0), 15);
    world.finish("a");
    assert_eq!(world.leased(0), 14, "b still uses them");
    world.finish("b");
    assert_eq!(world.leased(0), 12);
    world.finish("c");
    assert_eq!(world.leased(0), 10);
}

#[test]
fn a_job_whose_model_turns_out_to_leave_it_no_memory_at_all_is_refused_and_does_not_wait_for_ever() {
    let mut world = World::with_places(1);
    world.measures_more = true;
    world.manual.workers = true;
    world.submit(job("a"));
    if let Some(Order::Load { bytes, .. }) = world.workers[0].inbox.front_mut() {
        *bytes = 150 * UNIT;
    }
    world.manual.workers = false;
    world.pump();
    assert_eq!(world.leased(0), 150, "the truth is written down");
    assert_eq!(world.end_of("a"), Some(JobState::Failed), "{:?}", world.why("a"));
    let code = world.ended[0].end.error.as_ref().map(|error| error.code);
    assert_eq!(code, Some(Code::DoesNotFit));
}

#[test]
fn a_worker_is_not_kept_free_for_a_job_that_was_paused_or_cancelled_meanwhile() {
    for action in [Action::Pause, Action::Cancel] {
        let mut world = World::with_places(2);
        world.submit(job("a"));
        world.submit(with("b", &[("n", 10)]));
        world.wait_ms(1_000);
        world.submit(job("c"));
        assert_eq!(world.why("c"), Some("reserved"));
        world.manual.journal = true;
        world.ask("b", action);
        assert_eq!(world.state("c"), StepState::Claiming(Wish::GoOn), "{action:?}");
    }
}

#[test]
fn a_suspended_run_that_can_never_fit_again_ends_and_leaves_its_worker() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.submit(critical("c"));
    assert_eq!(world.state("a"), StepState::Suspended);
    let shape = peak_key(&job("a").demand().shape, "virtual@cpu", Slicing::default());
    world.core.peaks.measured(&shape, 1000 * UNIT);
    world.core.fleet.generation += 1;
    world.finish("c");
    assert_eq!(world.end_of("a"), Some(JobState::Failed));
    assert!(world.workers[0].runs.is_empty(), "{:?}", world.workers[0]);
    world.assert_nothing_is_left();
}
