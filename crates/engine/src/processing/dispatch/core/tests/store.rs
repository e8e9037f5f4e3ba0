//! Laws of the journal: what is told, what is owed while the store does not work, and what is written afterwards.

use super::world::{World, id, job};
use crate::error::Code;
use crate::processing::job::JobState;
use crate::processing::job::state::{Kept, StepState};

#[test]
fn an_end_is_told_only_when_it_is_on_the_disk() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.manual.journal = true;
    world.finish("a");
    assert_eq!((world.state("a"), world.end_of("a")), (StepState::Ending, None));
    assert!(world.write_next());
    assert_eq!(world.end_of("a"), None, "nobody knows yet that it is on the disk");
    world.outcome(0);
    assert_eq!(world.end_of("a"), Some(JobState::Succeeded));
    world.assert_nothing_is_left();
}

#[test]
fn an_end_is_not_told_because_an_earlier_write_of_the_same_job_is_on_the_disk() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.manual.journal = true;
    world.fail("a", calotype_protocol::Outcome::Failed);
    world.cancel("a");
    assert!(world.write_next());
    world.outcome(0);
    assert_eq!(world.end_of("a"), None, "only that it waits again is on the disk");
    world.manual.journal = false;
    world.pump();
    assert_eq!(world.end_of("a"), Some(JobState::Cancelled));
}

#[test]
fn a_claim_that_finds_the_disk_full_starts_nothing_and_costs_no_attempt() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.finish("a");
    world.disk_works = false;
    world.submit(job("b"));
    assert_eq!(
        (world.state("b"), world.why("b")),
        (StepState::Ready, Some("store_outage"))
    );
    assert!(world.workers[0].runs.is_empty());
    assert_eq!(world.leased(0), 10, "the claim's lease is given back");
    world.disk_works = true;
    world.wait_ms(500);
    assert!(world.is_running("b"));
    assert_eq!(world.rows[&id("b")].attempts, 1);
}

#[test]
fn an_outage_starts_nothing_new_and_what_runs_goes_on() {
    let mut world = World::with_places(2);
    world.submit(job("a"));
    world.disk_works = false;
    world.submit(job("b"));
    world.submit(job("c"));
    assert!(world.is_running("a"));
    assert_eq!(
        (world.why("b"), world.why("c")),
        (Some("store_outage"), Some("store_outage"))
    );
    world.wait_ms(500);
    assert_eq!(world.why("b"), Some("store_outage"), "the probe failed too");
    assert!(world.core.wake_at().is_some(), "it is tried again");
}

#[test]
fn outputs_that_the_disk_does_not_take_are_kept_and_stored_when_it_does() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.disk_works = false;
    world.finish("a");
    world.wait_ms(500);
    world.wait_ms(500);
    assert_eq!(
        (world.state("a"), world.end_of("a")),
        (StepState::Finishing, None)
    );
    assert_eq!(
        world.rows[&id("a")].state,
        JobState::Running,
        "the disk says nothing else"
    );
    world.disk_works = true;
    world.wait_ms(500);
    assert_eq!(world.end_of("a"), Some(JobState::Succeeded));
    world.assert_nothing_is_left();
}

#[test]
fn an_end_that_the_disk_does_not_take_is_told_when_it_does() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.manual.journal = true;
    world.finish("a");
    world.disk_works = false;
    world.manual.journal = false;
    world.pump();
    assert_eq!((world.state("a"), world.end_of("a")), (StepState::Ending, None));
    assert_eq!(
        world.core.view(&id("a")).and_then(|view| view.reason_code),
        Some("store_outage")
    );
    world.disk_works = true;
    world.wait_ms(500);
    assert_eq!(world.end_of("a"), Some(JobState::Succeeded));
    world.assert_nothing_is_left();
}

#[test]
fn a_pause_that_cannot_be_kept_is_told_as_such_holds_anyway_and_is_written_later() {
    let mut world = World::with_places(1);
    world.submit(job("a"));
    world.disk_works = false;
    let token = world.pause("a");
    assert_eq!(world.answers[&token], Err(Code::StoreFull));
    assert_eq!(world.state("a"), StepState::Paused(Kept::InWorker));
    assert_eq!(world.rows[&id("a")].state, JobState::Running);
    world.disk_works = true;
    world.wait_ms(500);
    assert_eq!(world.rows[&id("a")].state, JobState::Paused);
    world.restart();
    assert_eq!(world.state("a"), StepState::Paused(Kept::Nowhere));
}

#[test]
fn what_was_owed_is_written_as_it_stands_when_the_store_works_again() {
    let mut world = World::with_places(2);
    for name in ["a", "b"] {
        world.submit(job(name));
    }
    world.disk_works = false;
    world.pause("a");
    world.resume("a");
    world.pause("b");
    world.cancel("b");
    assert_eq!(world.state("b"), StepState::Ending);
    world.disk_works = true;
    world.wait_ms(500);
    assert_eq!(world.rows[&id("a")].state, JobState::Running);
    assert_eq!(world.rows[&id("b")].state, JobState::Cancelled);
    assert_eq!(world.end_of("b"), Some(JobState::Cancelled));
}

#[test]
fn ends_of_an_outage_are_told_in_the_order_of_arrival_and_each_once() {
    let mut world = World::with_places(4);
    for name in ["a", "b", "c", "d"] {
        world.submit(job(name));
    }
    world.disk_works = false;
    for name in ["d", "b", "a", "c"] {
        world.cancel(name);
    }
    assert!(world.ended.is_empty());
    world.disk_works = true;
    world.wait_ms(500);
    let told: Vec<&str> = world.ended.iter().map(|ended| ended.job.as_str()).collect();
    assert_eq!(told, ["a", "b", "c", "d"]);
}

#[test]
fn an_outage_that_comes_back_while_debts_are_written_loses_none_of_them() {
    let mut world = World::with_places(2);
    world.submit(job("a"));
    world.disk_works = false;
    world.cancel("a");
    world.disk_works = true;
    world.manual.journal = true;
    world.wait_ms(500);
    world.probe();
    world.disk_works = false;
    world.manual.journal = false;
    world.pump();
    assert_eq!(world.end_of("a"), None);
    world.disk_works = true;
    world.wait_ms(500);
    assert_eq!(world.end_of("a"), Some(JobState::Cancelled));
    world.assert_nothing_is_left();
}

#[test]
fn nothing_starts_while_outputs_hold_more_memory_than_they_may() {
    let mut world = World::with_places(1);
    world.core.outputs_limit_bytes = 0;
    world.submit(job("a"));
    world.submit(job("b"));
    world.manual.outputs = true;
    let index = world.worker_of("a").expect("it runs");
    world.workers[index].runs.remove(&id("a"));
    let attempt = calotype_protocol::Attempt(1);
    let mut input = super::world::line(index, 1, result_of("a", attempt));
    if let crate::processing::dispatch::core::message::Input::Line { blobs, .. } = &mut input {
        blobs.push(vec![0; 16]);
    }
    world.tell(input);
    world.pump();
    assert_eq!(world.why("b"), Some("outputs_pending"));
    world.manual.outputs = false;
    world.pump();
    assert!(world.is_running("b"));
    assert_eq!(world.core.outputs_held_bytes, 0);
}

fn result_of(name: &str, attempt: calotype_protocol::Attempt) -> calotype_protocol::Up {
    calotype_protocol::Up::Result(Box::new(calotype_protocol::RunResult {
        job: id(name),
        attempt,
        images: Vec::new(),
        seeds: Vec::new(),
        timings_ms: std::collections::BTreeMap::new(),
        peak_bytes: 0,
        phase_peaks_bytes: std::collections::BTreeMap::new(),
        batch_sizes: Vec::new(),
        engine: "virtual".into(),
        plan: Vec::new(),
    }))
}
