//! Laws of pausing, resuming, cancelling and preemption.

use proptest::prelude::*;

use super::workers::can;
use super::world::{World, critical, device, job};
use crate::error::Code;
use crate::processing::dispatch::core::message::Action;
use crate::processing::job::state::{AfterWithdrawal, Kept, PausedBy, StepState, Wish};
use crate::processing::job::{Class, JobState};

#[test]
fn four_paused_jobs_hold_no_place() {
    let mut world = World::with_places(4);
    for name in ["a", "b", "c", "d"] {
        world.submit(job(name));
        assert!(world.is_running(name));
        world.pause(name);
        assert_eq!(world.state(name), StepState::Paused(Kept::InWorker));
    }
    for name in ["e", "f", "g", "h"] {
        world.submit(job(name));
        assert!(world.is_running(name), "{name} waits: {:?}", world.why(name));
    }
    world.submit(job("i"));
    assert_eq!(world.why("i"), Some("places_taken"));
}

#[test]
fn pausing_gives_the_working_set_back_once_the_worker_says_that_the_run_is_out() {
    let mut world = World::with_places(2);
    world.submit(job("a"));
    assert_eq!(world.leased(0), 11);
    world.manual.workers = true;
    world.pause("a");
    assert_eq!(world.leased(0), 11, "its state is still on the device");
    world.manual.workers = false;
    world.pump();
    assert_eq!(world.leased(0), 10);
    world.resume("a");
    assert_eq!(world.leased(0), 11);
}

#[test]
fn a_resumed_run_goes_on_in_its_own_worker_and_only_when_there_is_room() {
    let mut world = World::new(vec![device(100, &[can(1)]), device(100, &[can(1)])]);
    world.submit(job("a"));
    let own = world.worker_of("a").expect("it runs");
    world.pause("a");
    world.submit(job("b"));
    assert_eq!(world.worker_of("b"), Some(own), "the model is there");
    world.resume("a");
    assert_eq!(
        (world.state("a"), world.why("a")),
        (StepState::Suspended, Some("places_taken"))
    );
    world.finish("b");
    assert!(world.is_running("a"));
    assert_eq!(world.heard(own).last(), Some(&"resume a"));
    world.finish("a");
    assert_eq!(world.end_of("a"), Some(JobState::Succeeded));
    assert_eq!(
        world.rows[&super::world::id("a")].attempts,
        1,
        "its work so far was kept"
    );
}

#[test]
fn a_critical_job_preempts_one_run_at_a_step_and_the_victim_goes_on_afterwards() {
    let mut world = World::with_places(2);
    world.submit(job("a"));
    world.submit(super::world::JobSpec {
        class: Class::Batch,
        ..job("b")
    });
    world.manual.workers = true;
    world.submit(critical("c"));
    assert_eq!(
        world.state("b"),
        StepState::Pausing(PausedBy::Scheduler),
        "the lower class makes room"
    );
    assert!(world.is_running("a"), "one is enough");
    assert_eq!(world.why("c"), Some("preempts"));
    world.manual.workers = false;
    world.pump();
    assert!(world.is_running("c"));
    assert_eq!(world.state("b"), StepState::Suspended);
    world.submit(job("d"));
    world.finish("c");
    assert!(world.is_running("b") || world.is_running("d"));
    world.finish("a");
    assert!(world.is_running("b") && world.is_running("d"));
    world.finish("b");
    assert_eq!(world.end_of("b"), Some(JobState::Succeeded));
    assert_eq!(world.rows[&super::world::id("b")].attempts, 1);
}

#[test]
fn a_critical_job_preempts_a_run_that_was_still_on_its_way_when_it_came() {
    let mut world = World::with_places(1);
    world.manual.prepare = true;
    world.submit(job("a"));
    world.submit(critical("c"));
    assert_eq!(world.state("a"), StepState::Preparing(Wish::GoOn));
    world.prepare(0, Ok(()));
    world.manual.prepare = false;
    world.pump();
    assert!(world.is_running("c"));
    assert_eq!(world.state("a"), StepState::Suspended);
}

#[test]
fn all_runs_that_must_make_room_for_a_critical_job_do_and_none_goes_on_before_it() {
    let mut world = World::with_places(2);
    for name in ["a", "b"] {
        world.submit(super::world::JobSpec {
            working: 40,
            ..job(name)
        });
    }
    world.submit(super::world::JobSpec {
        working: 85,
        ..critical("c")
    });
    assert!(world.is_running("c"), "{:?}", world.why("c"));
    assert_eq!(
        (world.state("a"), world.state("b")),
        (StepState::Suspended, StepState::Suspended)
    );
    world.finish("c");
    assert!(world.is_running("a") && world.is_running("b"));
    let pauses = world
        .heard(0)
        .iter()
        .filter(|line| line.starts_with("pause"))
        .count();
    assert_eq!(pauses, 2);
}

#[test]
fn a_critical_job_preempts_nobody_of_its_own_class() {
    let mut world = World::with_places(1);
    world.submit(critical("a"));
    world.submit(critical("b"));
    assert!(world.is_running("a"));
    assert_eq!(world.why("b"), Some("places_taken"));
}

#[test]
fn a_victim_goes_on_when_the_critical_job_was_cancelled_meanwhile() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.manual.workers = true;
    world.submit(critical("c"));
    world.cancel("c");
    world.manual.workers = false;
    world.pump();
    assert_eq!(world.end_of("c"), Some(JobState::Cancelled));
    assert!(world.is_running("a"));
}

#[test]
fn a_client_may_pause_a_victim_and_it_stays_paused_until_it_is_resumed() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.manual.workers = true;
    world.submit(critical("c"));
    world.pause("a");
    world.manual.workers = false;
    world.pump();
    assert!(world.is_running("c"));
    world.finish("c");
    assert_eq!(world.state("a"), StepState::Paused(Kept::InWorker));
    world.resume("a");
    assert!(world.is_running("a"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However late the worker answers, and however often it is asked.
    #[test]
    fn a_run_ends_as_it_was_asked_last(asks in prop::collection::vec((any::<bool>(), 0usize..3, 0usize..3), 1..12)) {
        let mut world = World::with_places(1);
        world.submit(job("a"));
        world.manual.workers = true;
        for (pauses, takes, says) in &asks {
            world.ask("a", if *pauses { Action::Pause } else { Action::Resume });
            for _ in 0..*takes {
                world.works(0);
            }
            for _ in 0..*says {
                world.hears(0);
            }
        }
        world.manual.workers = false;
        world.pump();
        let last = asks.last().expect("there is one").0;
        let expected = if last { StepState::Paused(Kept::InWorker) } else { StepState::Running };
        prop_assert_eq!(world.state("a"), expected);
        prop_assert!(world.answers.values().all(Result::is_ok));
    }
}

/// A world in which `a` stands in a state, and nothing moves by itself.
fn world_with_a_in(state: StepState) -> World {
    let mut world = World::with_places(1);
    match state {
        StepState::Ready => {
            world.submit(job("b"));
            world.submit(job("a"));
        }
        StepState::Claiming(Wish::GoOn) => {
            world.submit(job("b"));
            world.cancel("b");
            world.manual.journal = true;
            world.submit(job("a"));
        }
        StepState::Preparing(Wish::GoOn) => {
            world.manual.prepare = true;
            world.submit(job("a"));
        }
        StepState::Pausing(PausedBy::Client) => {
            world.submit(job("a"));
            world.manual.workers = true;
            world.pause("a");
        }
        StepState::Pausing(PausedBy::Scheduler) => {
            world.submit(job("a"));
            world.manual.workers = true;
            world.submit(critical("c"));
        }
        StepState::Paused(Kept::Nowhere) => {
            world.submit(job("b"));
            world.submit(job("a"));
            world.pause("a");
        }
        StepState::Suspended => {
            world.submit(job("a"));
            world.submit(critical("c"));
        }
        StepState::Resuming => {
            world.submit(job("a"));
            world.pause("a");
            world.manual.workers = true;
            world.resume("a");
        }
        StepState::Withdrawing(_) => {
            world.submit(job("a"));
            world.pause("a");
            world.manual.workers = true;
            let mut large = job("large");
            large.models = vec![("n", 95)];
            world.submit(large);
        }
        StepState::Running => world.submit(job("a")),
        _ => {
            world.submit(job("a"));
            world.pause("a");
        }
    }
    (world.manual.journal, world.manual.prepare) = (true, true);
    (world.manual.workers, world.manual.outputs) = (true, true);
    world
}

#[test]
fn a_cancel_is_final_in_every_state() {
    for state in [
        StepState::Ready,
        StepState::Claiming(Wish::GoOn),
        StepState::Preparing(Wish::GoOn),
        StepState::Running,
        StepState::Pausing(PausedBy::Client),
        StepState::Pausing(PausedBy::Scheduler),
        StepState::Paused(Kept::Nowhere),
        StepState::Paused(Kept::InWorker),
        StepState::Suspended,
        StepState::Resuming,
        StepState::Withdrawing(AfterWithdrawal::StaysPaused),
    ] {
        for after in [Action::Pause, Action::Resume] {
            let mut world = world_with_a_in(state);
            assert_eq!(world.state("a"), state);
            world.cancel("a");
            let token = world.ask("a", after);
            world.manual = super::world::Manual::default();
            world.pump();
            assert!(world.answers.contains_key(&token), "{state}");
            assert_eq!(
                world.end_of("a"),
                Some(JobState::Cancelled),
                "{state}, then {after:?}"
            );
            assert!(
                world.workers[0].runs.keys().all(|job| job.as_str() != "a"),
                "{state}"
            );
        }
    }
}

#[test]
fn a_job_whose_pictures_are_being_stored_cannot_be_cancelled_paused_or_resumed_any_more() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.manual.outputs = true;
    world.finish("a");
    for action in [Action::Cancel, Action::Pause, Action::Resume] {
        let token = world.ask("a", action);
        assert_eq!(world.answers[&token], Err(Code::Conflict), "{action:?}");
    }
    world.manual.outputs = false;
    world.pump();
    assert_eq!(world.end_of("a"), Some(JobState::Succeeded));
}

#[test]
fn a_pause_is_on_the_disk_before_it_is_answered_and_survives_a_restart_in_every_state() {
    for state in [
        StepState::Ready,
        StepState::Claiming(Wish::GoOn),
        StepState::Preparing(Wish::GoOn),
        StepState::Running,
        StepState::Pausing(PausedBy::Scheduler),
        StepState::Suspended,
        StepState::Resuming,
    ] {
        let mut world = world_with_a_in(state);
        let token = world.pause("a");
        assert!(
            !world.answers.contains_key(&token),
            "{state}: it is not on the disk yet"
        );
        while world.write_next() {}
        while !world.outcomes.is_empty() {
            world.outcome(0);
        }
        assert_eq!(world.answers[&token], Ok(()), "{state}");
        world.manual = super::world::Manual::default();
        world.restart();
        assert_eq!(world.state("a"), StepState::Paused(Kept::Nowhere), "{state}");
        world.resume("a");
        for other in ["b", "c"] {
            if world.is_running(other) {
                world.finish(other);
            }
        }
        assert!(world.is_running("a"), "{state}");
    }
}

#[test]
fn a_pause_that_is_asked_for_twice_is_answered_no_sooner_than_the_first_is_on_the_disk() {
    for action in [Action::Pause, Action::Resume] {
        let mut world = World::with_places(1);
        world.submit(job("a"));
        if action == Action::Resume {
            world.pause("a");
        }
        world.manual.journal = true;
        let tokens = [world.ask("a", action), world.ask("a", action)];
        assert!(
            tokens.iter().all(|token| !world.answers.contains_key(token)),
            "{action:?}"
        );
        world.manual.journal = false;
        world.pump();
        assert!(
            tokens.iter().all(|token| world.answers[token].is_ok()),
            "{action:?}"
        );
    }
}

#[test]
fn a_worker_that_cannot_pause_refuses_a_pause_and_is_not_preempted() {
    let mut stubborn = can(1);
    stubborn.pauses = false;
    let mut world = World::new(vec![device(100, &[stubborn])]);
    world.submit(job("a"));
    let token = world.pause("a");
    assert_eq!(world.answers[&token], Err(Code::NotSupported));
    assert!(world.is_running("a"));
    world.submit(critical("c"));
    assert!(world.is_running("a"));
    world.finish("a");
    assert!(world.is_running("c"));
}
