//! Laws of workers and cards: spreading, deaths, stale lines, draining, and what costs no pass.

use proptest::prelude::*;

use calotype_protocol::{Attempt, Beat, JobId, Outcome, Phase, Progress, Up};

use super::workers::can;
use super::world::{JobSpec, UNIT, World, critical, device, id, job, line};
use crate::error::Code;
use crate::processing::dispatch::core::message::Input;
use crate::processing::job::state::{Kept, StepState};
use crate::processing::job::{Class, JobState};
use crate::worker::ExitCause;

fn with(name: &str, model: &'static str) -> JobSpec {
    JobSpec {
        models: vec![(model, 10)],
        ..job(name)
    }
}

/// Two cards that have room for one model of 10 units each.
fn two_cards(places: u32) -> World {
    World::new(vec![device(15, &[can(places)]), device(15, &[can(places)])])
}

#[test]
fn two_models_asked_for_in_turn_settle_on_two_cards() {
    let mut world = two_cards(1);
    for turn in 0..12 {
        let name = format!("j{turn}");
        world.submit(with(&name, if turn % 2 == 0 { "m" } else { "n" }));
        world.at_ms += 100;
        world.finish(&name);
    }
    assert_eq!((world.workers[0].loads, world.workers[1].loads), (1, 1));
}

#[test]
fn sixteen_jobs_use_both_cards_from_a_start_where_one_has_the_model() {
    let mut world = two_cards(1);
    world.submit(job("first"));
    world.at_ms += 1000;
    world.finish("first");
    assert_eq!((world.workers[0].loads, world.workers[1].loads), (1, 0));
    for index in 0..16 {
        world.submit(job(&format!("j{index}")));
    }
    let mut rounds = 0;
    while world.ended.len() < 17 {
        rounds += 1;
        assert!(rounds < 100, "nothing moves");
        world.at_ms += 1000;
        let inside: Vec<JobId> = world
            .workers
            .iter()
            .flat_map(|worker| worker.runs.keys().cloned())
            .collect();
        for name in inside {
            world.finish(name.as_str());
        }
    }
    assert_eq!(world.workers[1].loads, 1);
    assert!(rounds <= 8, "16 seconds of work took {rounds} on two cards");
}

#[test]
fn a_single_job_waits_for_the_card_that_has_its_model_where_that_is_sooner_than_a_load() {
    let mut world = two_cards(1);
    world.submit(job("a"));
    world.at_ms += 990;
    // A load takes 50 ms, the run 10 more at the least a tenth of it.
    world.submit(JobSpec { ms: 10.0, ..job("b") });
    assert_eq!(
        world.workers[1].loads, 1,
        "a tenth of a second is longer than a load"
    );
    let mut world = two_cards(1);
    world.submit(JobSpec { ms: 30.0, ..job("a") });
    world.submit(job("b"));
    assert_eq!(world.workers[1].loads, 0);
    assert_eq!(world.why("b"), Some("places_taken"));
}

#[test]
fn a_job_whose_worker_died_runs_alone_next_and_a_second_death_identifies_it() {
    let mut world = World::with_places(2);
    world.submit(job("a"));
    world.dies(0);
    assert_eq!(
        (world.state("a"), world.why("a")),
        (StepState::Ready, Some("worker_not_ready"))
    );
    assert_eq!(
        world.rows[&id("a")].crashes,
        1,
        "a restart of the server must know it too"
    );
    world.submit(job("b"));
    world.starts(0);
    assert!(world.is_running("a"));
    assert_eq!(world.why("b"), Some("worker_runs_alone"));
    world.dies(0);
    assert_eq!(world.end_of("a"), Some(JobState::Failed));
    assert_eq!(
        world.ended[0].end.error.as_ref().map(|error| error.code),
        Some(Code::Quarantined)
    );
    world.starts(0);
    assert!(world.is_running("b"));
}

#[test]
fn a_job_whose_worker_died_does_not_hold_up_a_healthy_worker_for_the_others() {
    let mut world = World::new(vec![device(100, &[can(2)]), device(100, &[can(2)])]);
    for name in ["a", "b", "c"] {
        world.submit(job(name));
    }
    let of_a = world.worker_of("a").expect("it runs");
    let healthy = 1 - of_a;
    if world.workers[healthy].runs.is_empty() {
        world.submit(job("x"));
    }
    world.dies(of_a);
    for name in ["d", "e", "f"] {
        world.submit(job(name));
    }
    assert_eq!(world.workers[healthy].runs.len(), 2, "its places are used");
    world.starts(of_a);
    let alone = &world.workers[of_a].runs;
    assert_eq!(alone.len(), 1);
    assert!(world.core.fleet.workers[of_a].runs_alone);
}

#[test]
fn a_death_releases_everything_that_the_worker_held() {
    let mut world = World::with_places(4);
    for name in ["running", "paused"] {
        world.submit(job(name));
    }
    world.pause("paused");
    world.submit(JobSpec {
        lora_set: Some("m x:1"),
        ..job("styled")
    });
    world.manual.prepare = true;
    world.submit(job("preparing"));
    world.cancel("preparing");
    world.dies(0);
    assert_eq!(world.state("paused"), StepState::Paused(Kept::Nowhere));
    world.manual.prepare = false;
    world.pump();
    assert_eq!(world.core.fleet.devices[0].ledger.leased_bytes(), 0);
    assert!(world.core.fleet.workers[0].runs.is_empty() && world.core.fleet.workers[0].parked.is_empty());
    assert_eq!(world.rows[&id("running")].crashes, 1);
    assert_eq!(
        world.rows[&id("paused")].crashes,
        0,
        "what was not at work killed nobody"
    );
}

#[test]
fn a_death_during_a_load_lets_the_job_be_loaded_for_again() {
    let mut world = World::with_places(1);
    world.manual.workers = true;
    world.submit(job("a"));
    assert_eq!(world.why("a"), Some("model_loads"));
    world.dies_by(0, ExitCause::LoadDeadline);
    assert_eq!(world.leased(0), 0);
    world.manual.workers = false;
    world.starts(0);
    assert!(world.is_running("a"));
    assert_eq!(world.rows[&id("a")].crashes, 0);
}

#[test]
fn a_claim_that_is_on_its_way_when_its_worker_dies_is_made_anew() {
    for journal_first in [true, false] {
        let mut world = World::with_places(1);
        world.submit(job("warm"));
        world.finish("warm");
        (world.manual.journal, world.manual.prepare) = (true, true);
        world.submit(job("a"));
        if journal_first {
            world.write_next();
            world.outcome(0);
        }
        world.dies(0);
        world.starts(0);
        (world.manual.journal, world.manual.prepare) = (false, false);
        world.pump();
        assert!(world.is_running("a"));
        assert_eq!(world.rows[&id("a")].crashes, 0);
    }
}

#[test]
fn a_run_that_missed_its_deadline_while_it_was_being_suspended_runs_alone_next() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.submit(critical("c"));
    assert_eq!(world.state("a"), StepState::Suspended);
    world.dies_by(0, ExitCause::StepDeadline { job: id("a") });
    assert_eq!(world.state("a"), StepState::Ready);
    assert_eq!(
        (world.rows[&id("a")].crashes, world.rows[&id("c")].crashes),
        (1, 0)
    );
    world.starts(0);
    world.finish("c");
    assert!(world.is_running("a"));
    assert!(world.core.fleet.workers[0].runs_alone);
    world.finish("a");
    world.assert_nothing_is_left();
}

#[test]
fn stale_lines_change_nothing() {
    let mut world = World::with_places(2);
    world.submit(job("a"));
    world.dies(0);
    world.starts(0);
    assert_eq!(world.rows[&id("a")].attempts, 2);
    let (job, at_step) = (id("a"), 1);
    for (incarnation, attempt) in [(1, 1), (1, 2), (2, 1), (3, 2)] {
        let attempt = Attempt(attempt);
        for up in [
            Up::Cancelled {
                job: job.clone(),
                attempt,
                at_step,
            },
            Up::Paused {
                job: job.clone(),
                attempt,
                at_step,
            },
            Up::Resumed {
                job: job.clone(),
                attempt,
                at_step,
            },
            Up::Failed {
                job: job.clone(),
                attempt,
                failure: super::world::failure(Outcome::Failed),
            },
        ] {
            let now = world.now();
            let effects = world.core.on(line(0, incarnation, up), now);
            assert!(effects.is_empty(), "{effects:?}");
            assert!(world.is_running("a"));
        }
    }
}

#[test]
fn a_message_that_changes_nothing_costs_no_pass_over_the_lanes() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    for index in 0..10 {
        world.submit(job(&format!("waits{index}")));
    }
    let progress = Progress {
        job: id("a"),
        attempt: Attempt(1),
        phase: Phase::Denoise,
        done: 1,
        total: 9,
        step_ms: 10.0,
    };
    let beat = Beat {
        seq: 1,
        free_bytes: 1,
        used_bytes: 1,
        resident: Vec::new(),
        running: vec![id("a")],
        oldest_step_ms: 1,
    };
    for up in [Up::Progress(progress), Up::Beat(beat), Up::Pong { seq: 1 }] {
        let now = world.now();
        world.core.dirty = false;
        world.core.take(line(0, 1, up), now);
        assert!(!world.core.dirty);
        world.core.settle(now);
    }
    let now = world.now();
    world.core.take(Input::Tick, now);
    assert!(!world.core.dirty);
}

#[test]
fn a_drain_finishes_what_runs_and_starts_nothing() {
    let mut world = World::with_places(2);
    for name in ["a", "b", "paused", "waits"] {
        if name == "waits" {
            world.pause("paused");
        }
        world.submit(job(name));
    }
    assert!(world.is_running("a") && world.is_running("b"));
    world.tell(Input::Drain);
    assert_eq!(world.drained, 0);
    world.finish("a");
    world.resume("paused");
    assert_eq!(world.why("waits"), Some("draining"));
    assert_eq!(world.drained, 0);
    world.manual.journal = true;
    world.finish("b");
    assert_eq!(world.drained, 0, "its end is not on the disk");
    world.manual.journal = false;
    world.pump();
    assert_eq!(world.drained, 1);
    assert_eq!(
        (world.end_of("a"), world.end_of("b")),
        (Some(JobState::Succeeded), Some(JobState::Succeeded))
    );
    world.restart();
    assert!(world.is_running("paused") && world.is_running("waits"));
}

#[test]
fn a_failure_is_tried_once_more_and_a_lack_of_memory_alone() {
    let mut world = World::with_places(2);
    world.submit(job("a"));
    world.fail("a", Outcome::Failed);
    assert!(world.is_running("a"));
    assert!(!world.core.fleet.workers[0].runs_alone);
    world.fail("a", Outcome::OutOfMemory);
    assert!(world.core.fleet.workers[0].runs_alone);
    world.fail("a", Outcome::OutOfMemory);
    assert_eq!(world.end_of("a"), Some(JobState::Failed));
    world.submit(job("b"));
    world.fail("b", Outcome::InvalidInput);
    assert_eq!(world.end_of("b"), Some(JobState::Failed));
    assert_eq!(world.rows[&id("b")].attempts, 1);
}

#[test]
fn what_a_worker_says_that_it_cannot_do_goes_to_another_and_fails_when_none_is_left() {
    let mut world = World::new(vec![device(100, &[can(1)]), device(100, &[can(1)])]);
    world.submit(job("a"));
    let first = world.worker_of("a").expect("it runs");
    world.fail("a", Outcome::NotSupported);
    let second = world.worker_of("a").expect("it runs");
    assert_ne!(first, second);
    world.fail("a", Outcome::NotSupported);
    assert_eq!(world.end_of("a"), Some(JobState::Failed));
    assert_eq!(
        world.ended[0].end.error.as_ref().map(|error| error.code),
        Some(Code::NotSupported)
    );
    world.assert_nothing_is_left();
}

#[test]
fn phases_sum_to_the_wall_time_through_loads_pauses_preemption_and_deaths() {
    let mut world = World::with_places(1);
    world.manual.workers = true;
    world.submit(job("a"));
    world.wait_ms(70);
    world.manual.workers = false;
    world.pump();
    world.wait_ms(100);
    world.dies(0);
    world.wait_ms(40);
    world.starts(0);
    world.wait_ms(30);
    world.pause("a");
    world.wait_ms(500);
    world.resume("a");
    world.wait_ms(20);
    world.submit(critical("c"));
    world.wait_ms(60);
    world.finish("c");
    world.wait_ms(10);
    world.manual.outputs = true;
    world.finish("a");
    world.wait_ms(5);
    world.manual.outputs = false;
    world.pump();
    let ended = world
        .ended
        .iter()
        .find(|ended| ended.job == id("a"))
        .expect("it ended");
    let phases = &ended.end.result.as_ref().expect("it has pictures").timings_ms;
    let sum: f64 = phases.values().sum();
    assert!((sum - ended.took.as_secs_f64() * 1e3).abs() < 1e-6, "{phases:?}");
    assert!((sum - 835.0).abs() < 1e-6, "{phases:?}");
    for (phase, ms) in [
        ("load", 70.0),
        ("earlier_attempts", 100.0),
        ("queued", 40.0),
        ("paused", 560.0),
        ("finish", 5.0),
        ("shared", 60.0),
    ] {
        assert!((phases[phase] - ms).abs() < 1e-6, "{phase}: {phases:?}");
    }
}

#[test]
fn classes_share_a_worker_and_an_old_background_job_is_not_starved() {
    let mut world = World::with_places(1);
    world.submit(job("first"));
    for index in 0..40 {
        world.submit(job(&format!("i{index}")));
    }
    world.submit(JobSpec {
        class: Class::Background,
        ..job("background")
    });
    world.at_ms += 1000;
    world.finish("first");
    let mut before = 0;
    while !world.is_running("background") {
        before += 1;
        let inside = world.workers[0]
            .runs
            .keys()
            .next()
            .cloned()
            .expect("something runs");
        world.at_ms += 1000;
        world.finish(inside.as_str());
    }
    assert!(before <= 9, "{before} interactive jobs went before it");
}

#[test]
fn units_of_the_world_are_what_the_scheduler_counts() {
    let mut world = World::with_places(1);
    world.submit(JobSpec {
        working: 7,
        ..job("a")
    });
    assert_eq!(world.core.fleet.devices[0].ledger.leased_bytes(), 17 * UNIT);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    /// `World` checks that no worker is overfilled and no ledger exceeded.
    #[test]
    fn every_job_gets_an_answer(jobs in prop::collection::vec((0usize..5, 1u32..120, 0usize..4), 1..20)) {
        const MODELS: [(&str, u64); 5] = [("m", 10), ("n", 30), ("o", 60), ("p", 99), ("q", 200)];
        let mut world = World::new(vec![device(100, &[can(2), can(1)]), device(50, &[can(3)])]);
        for (index, (model, working, class)) in jobs.iter().enumerate() {
            let name = format!("j{index}");
            world.submit(JobSpec {
                models: vec![MODELS[*model]],
                working: *working,
                class: Class::ALL[*class],
                ..job(&name)
            });
        }
        for index in 0..jobs.len() {
            let name = format!("j{index}");
            let is_answered = world.is_running(&name) || world.end_of(&name).is_some() || world.why(&name).is_some();
            prop_assert!(is_answered, "{name} is {} and nobody says why", world.state(&name));
        }
    }
}
