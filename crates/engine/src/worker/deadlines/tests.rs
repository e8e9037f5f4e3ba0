use calotype_protocol::{
    Beat, Dtype, Embed, Load, Loaded, ModelFormat, ModelSpec, Run, StepId, VaePlan, Work,
};
use proptest::prelude::*;

use super::*;

fn run(job: &str, attempt: u32) -> Down {
    let work = Work::Embed(Embed {
        model: "tiny".into(),
        text: String::new(),
    });
    Down::Run(Box::new(Run {
        job: job.into(),
        attempt: Attempt(attempt),
        step: StepId::from("generate"),
        priority: 0,
        deadline_ms: None,
        vae: VaePlan::Whole,
        work,
    }))
}

fn progress(job: &str, attempt: u32, done: u32, step_ms: f64) -> Up {
    let phase = Phase::Denoise;
    Up::Progress(Progress {
        job: job.into(),
        attempt: Attempt(attempt),
        phase,
        done,
        total: 100,
        step_ms,
    })
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn cancel(job: &str) -> Down {
    Down::Cancel {
        job: job.into(),
        attempt: Attempt(1),
    }
}

fn step_of(job: &str) -> Overdue {
    Overdue::Step {
        job: job.into(),
        attempt: Attempt(1),
    }
}

#[test]
fn a_job_without_progress_is_cancelled_and_then_condemned() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.heard(&progress("a", 1, 1, 10.0), start);
    assert_eq!(deadlines.next(), Some(start + s(10)));
    assert_eq!(deadlines.overdue(start + s(9)), []);
    assert_eq!(deadlines.overdue(start + s(10)), [step_of("a")]);
    assert_eq!(deadlines.next(), Some(start + s(12)));
    deadlines.heard(&progress("a", 1, 2, 10.0), start + s(11));
    assert_eq!(
        deadlines.overdue(start + s(12)),
        [Overdue::Cancel { job: "a".into() }]
    );
}

#[test]
fn the_first_step_of_a_phase_has_the_time_that_nothing_before_it_can_tell() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    assert_eq!(deadlines.next(), Some(start + s(120)));
    // The last of its phase: what comes now is of another kind.
    deadlines.heard(&progress("a", 1, 100, 1.0), start + s(1));
    assert_eq!(deadlines.next(), Some(start + s(121)));
    let decode = |done, at| {
        let progress = Progress {
            job: "a".into(),
            attempt: Attempt(1),
            phase: Phase::Decode,
            done,
            total: 2,
            step_ms: 1.0,
        };
        (Up::Progress(progress), start + s(at))
    };
    let (first, at) = decode(1, 60);
    deadlines.heard(&first, at);
    assert_eq!(deadlines.next(), Some(start + s(70)));
    assert_eq!(deadlines.overdue(start + s(70)), [step_of("a")]);
}

#[test]
fn a_slow_step_buys_the_next_one_time_but_no_more_than_it_took() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.heard(&progress("a", 1, 1, 6000.0), start + s(6));
    assert_eq!(deadlines.next(), Some(start + s(36)));
    deadlines.heard(&progress("a", 1, 2, 1e9), start + s(8));
    assert_eq!(deadlines.next(), Some(start + s(48)));
    deadlines.heard(&progress("a", 1, 3, f64::NAN), start + s(9)); // Counts as nothing.
    assert_eq!(deadlines.next(), Some(start + s(19)));
}

#[test]
fn progress_that_was_said_before_or_is_of_an_old_attempt_is_not_real() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 2), start);
    deadlines.heard(&progress("a", 2, 3, 1.0), start + s(1));
    deadlines.heard(&progress("a", 2, 3, 1.0), start + s(5));
    deadlines.heard(&progress("a", 1, 9, 1.0), start + s(5));
    assert_eq!(deadlines.next(), Some(start + s(11)));
    deadlines.heard(
        &Up::Cancelled {
            job: "a".into(),
            attempt: Attempt(1),
            at_step: 0,
        },
        start + s(6),
    );
    assert!(deadlines.next().is_some());
    deadlines.heard(
        &Up::Cancelled {
            job: "a".into(),
            attempt: Attempt(2),
            at_step: 0,
        },
        start + s(6),
    );
    assert_eq!(deadlines.next(), None);
}

#[test]
fn a_paused_job_has_no_deadline_until_it_is_resumed() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.heard(
        &Up::Paused {
            job: "a".into(),
            attempt: Attempt(1),
            at_step: 0,
        },
        start,
    );
    assert_eq!(deadlines.next(), None);
    deadlines.sent(
        &Down::Resume {
            job: "a".into(),
            attempt: Attempt(1),
        },
        start + s(100),
    );
    assert_eq!(deadlines.next(), Some(start + s(220)));
}

#[test]
fn a_cancel_from_outside_must_be_heeded_within_a_step_whatever_progress_is_made() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.sent(&cancel("a"), start + s(1));
    deadlines.heard(&progress("a", 1, 1, 1.0), start + s(5));
    deadlines.sent(&cancel("a"), start + s(6));
    assert_eq!(deadlines.next(), Some(start + s(11)));
    assert_eq!(
        deadlines.overdue(start + s(11)),
        [Overdue::Cancel { job: "a".into() }]
    );
}

#[test]
fn a_job_that_waits_for_its_turn_lives_by_the_progress_of_others() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.sent(&run("b", 1), start);
    deadlines.heard(&progress("b", 1, 1, 1.0), start);
    for done in 1..=30 {
        let now = start + s(9 * u64::from(done));
        deadlines.heard(&progress("a", 1, done, 1.0), now);
        assert_eq!(deadlines.overdue(now), []);
    }
    let last = start + s(270);
    assert_eq!(deadlines.overdue(last + s(9)), []);
    assert_eq!(deadlines.overdue(last + s(10)), [step_of("a"), step_of("b")]);
}

/// A load of 200 MB, which may take 40 s without progress.
fn load(load: &str) -> Down {
    let model = ModelSpec {
        id: "tiny".into(),
        family: "sd".into(),
        format: ModelFormat::Onnx,
        components: BTreeMap::new(),
        segments: BTreeMap::new(),
    };
    Down::Load(Load {
        load: load.into(),
        model,
        dtype: Dtype::F32,
        budget_bytes: 200_000_000,
        plan: calotype_protocol::LoadPlan::default(),
    })
}

fn load_progress(load: &str, done_bytes: u64) -> Up {
    Up::LoadProgress {
        load: load.into(),
        done_bytes,
        total_bytes: 200_000_000,
    }
}

fn loaded(load: &str) -> Up {
    Up::Loaded(Loaded {
        load: load.into(),
        model: "tiny".into(),
        resident_bytes: 1,
        phases_ms: BTreeMap::new(),
    })
}

fn beat(oldest_step_ms: u64) -> Up {
    Up::Beat(Beat {
        seq: 1,
        free_bytes: 1,
        used_bytes: 1,
        resident: Vec::new(),
        running: Vec::new(),
        oldest_step_ms,
    })
}

#[test]
fn no_jobs_clock_ticks_while_a_load_moves_and_each_has_its_whole_time_after_it() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.sent(&run("b", 1), start);
    deadlines.heard(&progress("a", 1, 1, 1000.0), start + s(1));
    deadlines.sent(&load("l"), start + s(2));
    // Far more than the 10 s of a step.
    for part in 1..=7 {
        let now = start + s(2 + 20 * part);
        deadlines.heard(&load_progress("l", part * 20_000_000), now);
        assert_eq!(deadlines.overdue(now), []);
    }
    deadlines.heard(&loaded("l"), start + s(145));
    assert_eq!(deadlines.overdue(start + s(154)), []);
    assert_eq!(deadlines.next(), Some(start + s(155)));
    // The first step of the other has more, and had 119 s of it left.
    assert_eq!(deadlines.overdue(start + s(155)), [step_of("a")]);
    deadlines.heard(
        &Up::Cancelled {
            job: "a".into(),
            attempt: Attempt(1),
            at_step: 1,
        },
        start + s(155),
    );
    assert_eq!(deadlines.next(), Some(start + s(265)));
}

#[test]
fn a_load_that_failed_gives_the_jobs_their_time_back_too() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.heard(&progress("a", 1, 1, 1.0), start);
    deadlines.sent(&load("l"), start);
    let failure = calotype_protocol::Failure {
        outcome: calotype_protocol::Outcome::ModelLoad,
        message: "no such file".into(),
        detail: None,
    };
    let load = "l".into();
    deadlines.heard(&Up::LoadFailed { load, failure }, start + s(30));
    assert_eq!(deadlines.overdue(start + s(30)), []);
    assert_eq!(deadlines.next(), Some(start + s(40)));
}

#[test]
fn a_load_that_hangs_is_found_and_no_job_beside_it_is_blamed() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.heard(&progress("a", 1, 1, 1.0), start);
    deadlines.sent(&load("l"), start + s(5));
    assert_eq!(deadlines.next(), Some(start + s(45)));
    // Beats tell of the load itself, which began after it was sent.
    deadlines.heard(&beat(39_000), start + s(44));
    assert_eq!(deadlines.overdue(start + s(44)), []);
    assert_eq!(
        deadlines.overdue(start + s(45)),
        [Overdue::Load { load: "l".into() }]
    );
}

#[test]
fn a_step_that_hangs_before_a_load_is_blamed_itself() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.heard(&progress("a", 1, 1, 1.0), start);
    deadlines.sent(&load("l"), start + s(5));
    // The step under way began before the load was sent.
    deadlines.heard(&beat(8_000), start + s(8));
    assert_eq!(deadlines.overdue(start + s(8)), []);
    deadlines.heard(&beat(10_000), start + s(10));
    assert_eq!(deadlines.next(), Some(start + s(10)));
    assert_eq!(deadlines.overdue(start + s(10)), [step_of("a")]);
    deadlines.heard(&beat(12_000), start + s(12));
    assert_eq!(
        deadlines.overdue(start + s(12)),
        [Overdue::Cancel { job: "a".into() }]
    );
}

#[test]
fn a_load_behind_a_slow_step_has_its_whole_time_from_the_steps_end() {
    let timing = Timing {
        step_first: s(300),
        ..Timing::default()
    };
    let mut deadlines = Deadlines::new(timing);
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.sent(&load("l"), start + s(1));
    for at in 2..100 {
        deadlines.heard(&beat(at * 1000), start + s(at));
        assert_eq!(deadlines.overdue(start + s(at)), []);
    }
    deadlines.heard(&progress("a", 1, 1, 99_000.0), start + s(100));
    assert_eq!(deadlines.next(), Some(start + s(139)));
    assert_eq!(
        deadlines.overdue(start + s(139)),
        [Overdue::Load { load: "l".into() }]
    );
}

#[test]
fn a_load_behind_another_has_its_whole_time_from_the_others_end() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&load("first"), start);
    deadlines.sent(&load("second"), start);
    deadlines.heard(&load_progress("first", 100_000_000), start + s(30));
    assert_eq!(deadlines.overdue(start + s(60)), []);
    deadlines.heard(&loaded("first"), start + s(60));
    assert_eq!(deadlines.next(), Some(start + s(100)));
}

#[test]
fn a_cancel_that_a_load_keeps_from_being_read_has_its_time_after_the_load() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&run("a", 1), start);
    deadlines.heard(&progress("a", 1, 1, 1.0), start);
    deadlines.sent(&load("l"), start + s(1));
    deadlines.sent(&cancel("a"), start + s(2));
    assert_eq!(deadlines.overdue(start + s(30)), []);
    deadlines.heard(&loaded("l"), start + s(31));
    assert_eq!(deadlines.overdue(start + s(32)), []);
    assert_eq!(
        deadlines.overdue(start + s(42)),
        [Overdue::Cancel { job: "a".into() }]
    );
}

#[test]
fn a_load_has_time_by_its_bytes_and_more_with_each_new_byte() {
    let mut deadlines = Deadlines::new(Timing::default());
    let start = Instant::now();
    deadlines.sent(&load("l"), start);
    assert_eq!(deadlines.next(), Some(start + s(40)));
    let halfway = load_progress("l", 100_000_000);
    deadlines.heard(&halfway, start + s(30));
    assert_eq!(deadlines.next(), Some(start + s(65)));
    deadlines.heard(&halfway, start + s(60));
    assert_eq!(
        deadlines.overdue(start + s(65)),
        [Overdue::Load { load: "l".into() }]
    );
}

proptest! {
    #[test]
    fn a_job_is_never_condemned_before_it_was_asked_to_cancel_nor_while_a_load_moves(
        steps in prop::collection::vec((0u8..8, 0u64..15_000), 0..50),
    ) {
        let mut deadlines = Deadlines::new(Timing::default());
        let mut now = Instant::now();
        let mut done = 0;
        let (mut asked, mut sent) = (false, false);
        let mut loads = None;
        // Progress during a load shows that the worker is with its jobs all the same.
        let mut beside = false;
        for (step, gap_ms) in steps {
            now += Duration::from_millis(gap_ms);
            for overdue in deadlines.overdue(now) {
                match overdue {
                    Overdue::Step { .. } => { prop_assert!(sent && !asked && (beside || loads.is_none())); asked = true; }
                    Overdue::Cancel { .. } => {
                        prop_assert!(asked && (beside || loads.is_none()));
                        // The process is made to leave.
                        return Ok(());
                    }
                    Overdue::Load { .. } => prop_assert!(loads.is_some_and(|since| now >= since + s(40))),
                }
            }
            let (job, attempt) = (JobId::from("a"), Attempt(1));
            match step {
                0 => { deadlines.sent(&run("a", 1), now); asked = false; sent = true; }
                1 => { done += 1; deadlines.heard(&progress("a", 1, done, 1.0), now); beside = true; }
                2 => { deadlines.sent(&cancel("a"), now); asked |= sent; }
                3 => deadlines.heard(&Up::Paused { job, attempt, at_step: 0 }, now),
                4 => deadlines.sent(&Down::Resume { job, attempt }, now),
                5 if loads.is_none() => { deadlines.sent(&load("l"), now); loads = Some(now); beside = false; }
                6 => { deadlines.heard(&loaded("l"), now); loads = None; }
                _ => {}
            }
        }
    }
}
