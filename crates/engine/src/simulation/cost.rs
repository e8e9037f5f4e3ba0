//! What the core itself costs, on the clock of the wall: the only file here that looks at it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use calotype_protocol::{Attempt, Beat, JobId, Phase, Progress, Up};

use super::Report;
use super::workload::{DeviceSpec, Dice, Job, Model};
use super::world::{Watch, World};
use crate::processing::dispatch::core::{Effect, Input, Then};
use crate::processing::schedule::WorkerId;

const GROUP: &str = "Cost of the core, 64 workers and 10 000 waiting";
const WORKERS: usize = 64;
const WAITING: usize = 10_000;
const SAMPLES: usize = 20_000;
/// The most that a decision may take, in microseconds.
const MOST_MICROS: f64 = 20.0;

/// Times by what the core did.
#[derive(Default)]
struct Stopwatch {
    is_on: bool,
    all: Duration,
    claims: usize,
    /// Moments in which something was claimed, by claim.
    decisions: Vec<Duration>,
}

impl Watch for Stopwatch {
    fn around(&mut self, work: &mut dyn FnMut() -> Vec<Effect>) -> Vec<Effect> {
        let began = Instant::now();
        let effects = work();
        let took = began.elapsed();
        if self.is_on {
            let is_claim = |effect: &&Effect| {
                matches!(
                    effect,
                    Effect::Journal {
                        then: Then::Claimed(_),
                        ..
                    }
                )
            };
            let claims = effects.iter().filter(is_claim).count();
            self.all += took;
            self.claims += claims;
            if claims > 0 {
                self.decisions.push(took / claims as u32);
            }
        }
        effects
    }
}

/// Measures and writes down.
pub(super) fn measure(report: &mut Report) {
    let one: Arc<str> = "client".into();
    of(report, "one client, one model", 1, |_| Job::of(0).by(&one));
    of(report, "10 000 clients, one model", 1, |index| {
        Job::of(0).by(&format!("client-{index}").into())
    });
    let mut dice = Dice::new(5);
    let clients: Vec<Arc<str>> = (0..50).map(|index| format!("client-{index}").into()).collect();
    of(report, "50 clients, 20 models, 5 sizes", 20, move |_| {
        let edge = [320, 384, 448, 512, 640][dice.below(5)];
        Job::of(dice.zipf(20))
            .sized(edge, 20)
            .by(&clients[dice.below(50)])
    });
}

fn of(report: &mut Report, how: &str, models: usize, mut job: impl FnMut(usize) -> Job) {
    const BYTES: u64 = 4 << 30;
    let device = DeviceSpec::with_room(2, BYTES, 4, 640);
    let models = (0..models).map(|index| Model::new(&format!("model-{index}"), BYTES, 60.0));
    let mut world = World::watched(vec![device; WORKERS], models.collect(), Stopwatch::default());
    let mut count = 0;
    let mut next = move || {
        count += 1;
        job(count)
    };
    let first: Vec<Job> = (0..WAITING + WORKERS * 4).map(|_| next()).collect();
    world.submit(first);
    // Every end is followed by a new job, so that the queue stays as long as it is.
    world.run_with([], Duration::from_secs(120), |_, _| {
        Some((Duration::ZERO, next()))
    });
    let mut row = |what: &str, mut times: Vec<Duration>, most: f64| {
        times.sort_unstable();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let mean = micros(times.iter().sum::<Duration>()) / times.len().max(1) as f64;
        let p99 = micros(times.get(times.len() * 99 / 100).copied().unwrap_or_default());
        report.law(
            GROUP,
            format!("{what}, {how}"),
            format!("mean {mean:.1} µs, p99 {p99:.1} µs"),
            format!("mean ≤ {most} µs"),
            mean <= most,
        );
    };

    world.watch.is_on = true;
    let (ends, until) = (world.ended, world.now() + Duration::from_secs(120));
    world.run_with([], until, |_, _| Some((Duration::ZERO, next())));
    let (all, jobs) = (world.watch.all, world.ended - ends);
    row(
        "a decision",
        std::mem::take(&mut world.watch.decisions),
        MOST_MICROS,
    );
    row(
        "everything that the core does for a job",
        vec![all / jobs.max(1) as u32; 1],
        100.0,
    );
    world.watch.is_on = false;

    let running = world
        .jobs
        .iter()
        .position(|facts| facts.began_at.is_some() && facts.ended_at.is_none());
    let name = JobId(format!("job_{}", running.unwrap_or(0)));
    let progress = |done: usize| {
        Up::Progress(Progress {
            job: name.clone(),
            attempt: Attempt(1),
            phase: Phase::Denoise,
            done: done as u32,
            total: 20,
            step_ms: 10.0,
        })
    };
    let beat = |seq: usize| {
        Up::Beat(Beat {
            seq: seq as u64,
            free_bytes: 0,
            used_bytes: 0,
            resident: Vec::new(),
            running: Vec::new(),
            oldest_step_ms: 0,
        })
    };
    let mut timed = |make: &dyn Fn(usize) -> Up| -> Vec<Duration> {
        let lines = (0..SAMPLES).map(|index| Input::Line {
            worker: WorkerId(0),
            incarnation: 1,
            line: make(index),
            blobs: Vec::new(),
        });
        let lines: Vec<Input> = lines.collect();
        let tell = |line| {
            let began = Instant::now();
            let _ = world.tell(vec![line]);
            began.elapsed()
        };
        lines.into_iter().map(tell).collect()
    };
    let (progresses, beats) = (timed(&progress), timed(&beat));
    row("a progress line", progresses, 5.0);
    row("a beat", beats, 5.0);

    let accepted: Vec<Input> = (0..2_000)
        .map(|_| next())
        .map(|job| world.accepted(job))
        .collect();
    let accept = |input| {
        let began = Instant::now();
        let _ = world.tell(vec![input]);
        began.elapsed()
    };
    let accepts = accepted.into_iter().map(accept).collect();
    row("an acceptance", accepts, MOST_MICROS);
}
