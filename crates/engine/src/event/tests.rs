//! Laws of the log and its readers.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use calotype_protocol::{JobId, Phase};
use proptest::prelude::*;

use super::log::EventLog;
use super::ring::Limits;
use super::{Answer, Event, EventKind, JobStates, LoggedEvent, Opened, Subscription, WorkerChange};
use crate::error::{Code, Error};
use crate::processing::job::{JobProgress, JobState, JobView};

/// The dispatcher's half: each job as it stands.
#[derive(Default)]
struct Jobs {
    states: Mutex<HashMap<JobId, JobState>>,
    asked: AtomicUsize,
}

impl JobStates for Jobs {
    fn job<'a>(&'a self, id: &'a JobId) -> Answer<'a, Result<JobView, Error>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let state = self.states.lock().unwrap().get(id).copied();
        Box::pin(async move {
            let state = state.ok_or_else(|| Error::new(Code::NotFound, "there is no such job"))?;
            Ok(view(id, state))
        })
    }
}

fn view(id: &JobId, state: JobState) -> JobView {
    let mut view: JobView = serde_json::from_value(serde_json::json!({
        "id": id, "state": state, "class": "interactive", "priority": 0, "attempts": 1, "model": "m",
        "created_at_ms": 1,
        "plan": {
            "model": "m", "mode": "text_to_image", "prompt": "a red apple", "negative_prompt": "", "width": 64,
            "height": 64, "steps": 4, "guidance": 1.0, "sampler": "lcm", "schedule": "default", "seeds": [1],
            "strength": 1.0, "clip_skip": 0, "preview_every": 0, "format": "png", "quality": 90, "loras": [],
            "latent_channels": 4, "latent_factor": 8,
        },
    }))
    .unwrap();
    view.reason = None;
    view
}

struct Bench {
    log: Arc<EventLog>,
    jobs: Arc<Jobs>,
}

impl Bench {
    fn new(first_id: u64, limits: Limits) -> Self {
        Self {
            log: Arc::new(EventLog::with_limits(first_id, limits)),
            jobs: Arc::default(),
        }
    }

    fn subscribe(&self, job: Option<&str>, after: Option<u64>) -> Subscription {
        let states: Arc<dyn JobStates> = Arc::clone(&self.jobs) as _;
        self.log.subscribe(job.map(JobId::from), after, states)
    }

    /// As the dispatcher does: first the state, then the event.
    fn state(&self, job: &str, state: JobState) -> u64 {
        let job = JobId::from(job);
        self.jobs.states.lock().unwrap().insert(job.clone(), state);
        let view = state.is_final().then(|| Box::new(view(&job, state)));
        let reason = None;
        self.log.append(
            0,
            EventKind::Job {
                job,
                state,
                reason,
                view,
            },
        );
        self.log.latest()
    }

    fn progress(&self, job: &str, done: u32) -> u64 {
        let progress = JobProgress {
            phase: Phase::Denoise,
            done,
            total: 9,
            step_ms: 1.0,
        };
        let job = job.into();
        self.log.append(0, EventKind::Progress { job, progress });
        self.log.latest()
    }

    fn preview(&self, job: &str, bytes: usize) -> u64 {
        self.log
            .preview(0, job.into(), 1, Phase::Denoise, vec![7_u8; bytes]);
        self.log.latest()
    }

    fn worker(&self) -> u64 {
        let kind = EventKind::Worker {
            worker: "w".into(),
            state: WorkerChange::Ready,
            reason: None,
        };
        self.log.append(0, kind);
        self.log.latest()
    }

    fn held(&self) -> (usize, usize, usize) {
        self.log.ring(|ring| ring.held())
    }

    fn asked(&self) -> usize {
        self.jobs.asked.load(Ordering::Relaxed)
    }
}

const SMALL: Limits = Limits {
    events: 4,
    bytes: 1 << 20,
    preview_bytes: 4096,
};

/// What is there now: an event, the end, or nothing yet.
fn now(reader: &mut Subscription) -> Poll<Option<Arc<LoggedEvent>>> {
    pin!(reader.next()).poll(&mut Context::from_waker(Waker::noop()))
}

/// All that is there now, and whether the stream has ended.
fn drain(reader: &mut Subscription) -> (Vec<Arc<LoggedEvent>>, bool) {
    let mut read = Vec::new();
    loop {
        match now(reader) {
            Poll::Ready(Some(event)) => read.push(event),
            Poll::Ready(None) => return (read, true),
            Poll::Pending => return (read, false),
        }
    }
}

fn opened(reader: &mut Subscription) -> Result<Opened, Error> {
    match pin!(reader.open()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(opened) => opened,
        Poll::Pending => panic!("the answer is there at once"),
    }
}

fn ids(events: &[Arc<LoggedEvent>]) -> Vec<u64> {
    events.iter().map(|event| event.id).collect()
}

fn gap(event: &Event) -> Option<(u64, u64)> {
    match event.kind {
        EventKind::Gap {
            missed_from,
            missed_to,
        } => Some((missed_from, missed_to)),
        _ => None,
    }
}

#[test]
fn a_reader_that_comes_back_goes_on_where_it_was() {
    let bench = Bench::new(10, Limits::default());
    for job in ["a", "b", "a"] {
        bench.state(job, JobState::Queued);
    }
    let all = drain(&mut bench.subscribe(None, Some(9)));
    assert_eq!((ids(&all.0), all.1), (vec![10, 11, 12], false));
    assert_eq!(ids(&drain(&mut bench.subscribe(None, Some(11))).0), [12]);
    assert_eq!(ids(&drain(&mut bench.subscribe(Some("a"), Some(9))).0), [10, 12]);
    assert!(now(&mut bench.subscribe(None, Some(12))).is_pending());
}

#[test]
fn a_slow_reader_gets_the_latest_progress_and_every_state_also_when_jobs_interleave() {
    let bench = Bench::new(10, Limits::default());
    bench.state("a", JobState::Running);
    bench.state("b", JobState::Running);
    for done in 1..=5 {
        bench.progress("a", done);
        bench.progress("b", done);
    }
    bench.state("a", JobState::Succeeded);
    assert_eq!(
        ids(&drain(&mut bench.subscribe(None, Some(9))).0),
        [10, 11, 20, 21, 22]
    );
    let (read, ended) = drain(&mut bench.subscribe(Some("a"), Some(9)));
    assert_eq!((ids(&read), ended), (vec![10, 20, 22], true));
}

#[test]
fn a_reader_older_than_the_ring_is_told_which_numbers_it_missed() {
    let bench = Bench::new(10, SMALL);
    for _ in 0..6 {
        bench.worker();
    }
    let (read, _) = drain(&mut bench.subscribe(None, Some(9)));
    assert_eq!(ids(&read), [9, 12, 13, 14, 15]);
    assert_eq!(gap(&read[0]), Some((10, 11)));
    // Nothing was missed by one that stands right before the oldest.
    assert_eq!(
        ids(&drain(&mut bench.subscribe(None, Some(11))).0),
        [12, 13, 14, 15]
    );
}

#[test]
fn a_number_of_an_earlier_run_is_a_gap_and_a_jobs_stream_then_shows_the_job_as_it_stands() {
    let bench = Bench::new(500, Limits::default());
    let (read, ended) = drain(&mut bench.subscribe(None, Some(20)));
    assert_eq!((read.len(), gap(&read[0]), ended), (1, Some((21, 499)), false));
    bench.state("a", JobState::Running);
    let (read, ended) = drain(&mut bench.subscribe(Some("a"), Some(20)));
    assert_eq!((gap(&read[0]), ended), (Some((21, 500)), false));
    assert!(
        matches!(&read[1].kind, EventKind::Job { view: Some(view), .. } if view.state == JobState::Running)
    );
    assert_eq!(ids(&read), [20, 500]);
    // One that breaks off between the two is told both again.
    assert_eq!(drain(&mut bench.subscribe(Some("a"), Some(20))).0.len(), 2);
}

#[test]
fn a_number_that_was_never_given_out_is_a_gap_over_the_whole_run() {
    let bench = Bench::new(1, Limits::default());
    assert!(
        now(&mut bench.subscribe(None, Some(77))).is_pending(),
        "nothing was missed yet"
    );
    bench.state("a", JobState::Running);
    let (read, _) = drain(&mut bench.subscribe(None, Some(77)));
    assert_eq!((read.len(), gap(&read[0])), (1, Some((1, 1))));
    let (read, _) = drain(&mut bench.subscribe(Some("a"), Some(u64::MAX)));
    assert_eq!((read.len(), gap(&read[0]), read[1].id), (2, Some((1, 1)), 1));
}

#[test]
fn events_of_other_jobs_make_no_gap_in_the_stream_of_one() {
    let bench = Bench::new(1, SMALL);
    bench.state("a", JobState::Running);
    let mut reader = bench.subscribe(Some("a"), None);
    assert_eq!(drain(&mut reader).0.len(), 1);
    for _ in 0..100 {
        bench.state("b", JobState::Queued);
    }
    let last = bench.state("a", JobState::Succeeded);
    let (read, ended) = drain(&mut reader);
    assert_eq!((ids(&read), ended), (vec![last], true));
}

#[test]
fn a_stream_asks_for_its_job_at_its_beginning_and_after_a_gap_and_never_else() {
    let bench = Bench::new(1, SMALL);
    bench.state("a", JobState::Running);
    let mut fresh = bench.subscribe(Some("a"), None);
    let mut back = bench.subscribe(Some("a"), Some(1));
    drain(&mut fresh);
    drain(&mut back);
    assert_eq!(bench.asked(), 2);
    for done in 1..=3 {
        bench.progress("a", done);
        bench.state("b", JobState::Queued);
        drain(&mut fresh);
        drain(&mut back);
    }
    assert_eq!(bench.asked(), 2);
    for _ in 0..3 {
        bench.state("a", JobState::Paused);
        bench.state("a", JobState::Running);
    }
    let (read, _) = drain(&mut fresh);
    assert!(gap(&read[0]).is_some() && read.len() == 2, "{read:?}");
    assert_eq!(bench.asked(), 3);
    bench.state("a", JobState::Succeeded);
    assert!(drain(&mut fresh).1);
    assert_eq!(bench.asked(), 3);
}

#[test]
fn a_stream_of_a_job_that_had_ended_before_the_number_has_nothing_to_tell() {
    let bench = Bench::new(1, Limits::default());
    assert_eq!(
        opened(&mut bench.subscribe(Some("a"), None)).unwrap_err().code,
        Code::NotFound
    );
    let first = bench.state("a", JobState::Running);
    let last = bench.state("a", JobState::Failed);
    let ended = |after| opened(&mut bench.subscribe(Some("a"), after)).unwrap();
    assert_eq!(ended(Some(last)), Opened::Ended);
    bench.worker();
    assert_eq!(ended(Some(last + 1)), Opened::Ended, "behind it");
    assert_eq!(ended(Some(first)), Opened::Following);
    assert_eq!(ended(None), Opened::Following, "the job as it stands is told");
    let mut shown = bench.subscribe(Some("a"), None);
    let (read, over) = drain(&mut shown);
    assert!(over && read.len() == 1);
    assert_eq!(ended(Some(read[0].id)), Opened::Ended);
}

#[test]
fn a_job_of_an_earlier_run_is_told_once_and_then_has_ended() {
    let bench = Bench::new(500, Limits::default());
    let job = JobId::from("a");
    bench.jobs.states.lock().unwrap().insert(job, JobState::Succeeded);
    let (read, over) = drain(&mut bench.subscribe(Some("a"), Some(20)));
    assert_eq!((ids(&read), over), (vec![20, 499], true));
    let mut again = bench.subscribe(Some("a"), Some(499));
    assert_eq!(opened(&mut again).unwrap(), Opened::Ended);
    assert!(matches!(now(&mut again), Poll::Ready(None)));
}

#[test]
fn every_stream_ends_with_the_engine_behind_what_it_has_still_to_read() {
    let bench = Bench::new(1, Limits::default());
    bench.state("a", JobState::Running);
    let (mut one, mut all) = (bench.subscribe(Some("a"), None), bench.subscribe(None, Some(0)));
    bench.progress("a", 1);
    bench.log.close();
    assert_eq!((drain(&mut one).0.len(), drain(&mut all).0.len()), (2, 2));
    assert!(drain(&mut one).1 && drain(&mut all).1);
}

#[test]
fn the_latest_preview_of_a_job_comes_once_in_its_place_and_leaves_with_the_job() {
    let bench = Bench::new(1, Limits::default());
    let mut fast = bench.subscribe(None, None);
    bench.state("a", JobState::Running);
    let first = bench.preview("a", 10);
    assert_eq!(ids(&drain(&mut fast).0), [1, first]);
    bench.progress("a", 1);
    let second = bench.preview("a", 20);
    bench.progress("a", 2);
    assert_eq!(ids(&drain(&mut fast).0), [second, second + 1]);
    // A slow one gets the latest alone, in the order of the numbers, and with the bytes that were given.
    let (read, _) = drain(&mut bench.subscribe(Some("a"), Some(0)));
    assert_eq!(ids(&read), [1, second, second + 1]);
    assert!(matches!(&read[1].kind, EventKind::Preview { png, .. } if png.len() == 20));
    assert_eq!(bench.preview("b", 10), second + 2);
    bench.state("a", JobState::Succeeded);
    // Encoded too late.
    let latest = bench.log.latest();
    assert_eq!(bench.preview("a", 10), latest);
    let left = drain(&mut bench.subscribe(None, Some(0))).0;
    let previews = left
        .iter()
        .filter(|event| matches!(event.kind, EventKind::Preview { .. }));
    assert_eq!(
        previews
            .map(|event| event.kind.job().unwrap().as_str())
            .collect::<Vec<_>>(),
        ["b"]
    );
}

#[test]
fn a_preview_that_comes_after_the_end_keeps_no_stream_open() {
    let bench = Bench::new(1, SMALL);
    bench.state("a", JobState::Succeeded);
    for _ in 0..SMALL.events {
        bench.worker();
    }
    // The log does not hold the end any more.
    let mut reader = bench.subscribe(Some("a"), Some(bench.log.latest()));
    bench.preview("a", 10);
    assert_eq!(opened(&mut reader).unwrap(), Opened::Ended);
    assert!(matches!(now(&mut reader), Poll::Ready(None)));
}

#[test]
fn the_preview_not_renewed_for_longest_makes_room() {
    let bench = Bench::new(1, SMALL);
    for job in ["a", "b", "a", "c"] {
        bench.preview(job, 500);
    }
    let (read, _) = drain(&mut bench.subscribe(None, Some(0)));
    let jobs: Vec<_> = read
        .iter()
        .map(|event| event.kind.job().unwrap().as_str())
        .collect();
    assert_eq!(jobs, ["a", "c"]);
    assert!(bench.held().2 <= SMALL.preview_bytes);
    // One that is larger than all the room there is takes nobody's place.
    bench.preview("d", 1 << 20);
    assert_eq!(drain(&mut bench.subscribe(None, Some(0))).0.len(), 2);
}

#[test]
fn an_event_is_counted_with_its_text_and_one_larger_than_the_bound_is_a_gap() {
    let limits = Limits {
        bytes: 8192,
        ..Limits::default()
    };
    let bench = Bench::new(1, limits);
    let mut reader = bench.subscribe(None, None);
    let reason = Some("x".repeat(2000));
    let told = |reason: &Option<String>| {
        let (worker, reason) = ("w".to_owned(), reason.clone());
        let state = WorkerChange::Gone;
        bench.log.append(
            0,
            EventKind::Worker {
                worker,
                state,
                reason,
            },
        );
    };
    told(&reason);
    let (_, bytes, _) = bench.held();
    assert!((4000..5000).contains(&bytes), "{bytes}: the text and its JSON");
    told(&Some("x".repeat(9000)));
    assert_eq!(
        bench.held().0,
        0,
        "nothing is kept that a reader could not reach past the gap"
    );
    told(&None);
    assert_eq!(drain(&mut reader).0.len(), 2, "the gap and the last one");
}

#[test]
fn the_json_of_an_event_is_made_once_for_all_readers() {
    let bench = Bench::new(1, Limits::default());
    bench.state("a", JobState::Succeeded);
    let read = |reader: &mut Subscription| drain(reader).0.remove(0);
    let (one, two) = (
        read(&mut bench.subscribe(None, Some(0))),
        read(&mut bench.subscribe(Some("a"), Some(0))),
    );
    assert!(std::ptr::eq(one.json(), two.json()));
    assert_eq!(serde_json::from_str::<Event>(one.json()).unwrap(), **one);
}

#[test]
fn of_a_job_that_is_done_and_followed_by_nobody_nothing_stays() {
    let bench = Bench::new(1, SMALL);
    for at in 0..50 {
        let job = format!("job-{at}");
        let reader = bench.subscribe(Some(&job), None);
        bench.state(&job, JobState::Running);
        bench.preview(&job, 10);
        bench.state(&job, JobState::Succeeded);
        drop(reader);
    }
    assert!(bench.log.ring(|ring| ring.jobs_held()) <= SMALL.events);
    assert_eq!(bench.held().2, 0);
}

/// Counts how often its task would be run again.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn an_event_wakes_the_readers_of_its_job_alone_and_costs_the_same_however_many_follow_other_jobs() {
    let most_visited = |streams: usize| {
        let bench = Bench::new(1, Limits::default());
        let jobs: Vec<String> = (0..streams).map(|at| format!("job-{at}")).collect();
        for job in &jobs {
            bench.state(job, JobState::Running);
        }
        let mut readers: Vec<_> = jobs.iter().map(|job| bench.subscribe(Some(job), None)).collect();
        let mut all = bench.subscribe(None, None);
        for reader in &mut readers {
            assert_eq!(drain(reader).0.len(), 1);
        }
        let asked = bench.asked();
        let mut most_visited = 0;
        for (at, job) in jobs.iter().enumerate() {
            let wakes: Vec<Arc<Wakes>> = (0..=streams).map(|_| Arc::default()).collect();
            {
                let mut waiting: Vec<_> = readers
                    .iter_mut()
                    .chain([&mut all])
                    .map(|reader| Box::pin(reader.next()))
                    .collect();
                for (wait, wakes) in waiting.iter_mut().zip(&wakes) {
                    let waker = Waker::from(Arc::clone(wakes));
                    assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                }
                bench.progress(job, 1);
            }
            let woken: Vec<usize> = (0..=streams)
                .filter(|other| wakes[*other].0.load(Ordering::Relaxed) > 0)
                .collect();
            assert_eq!(woken, [at, streams]);
            let before = bench.log.ring(|ring| ring.visited.get());
            let read = drain(&mut readers[at]).0;
            most_visited = most_visited.max(bench.log.ring(|ring| ring.visited.get()) - before);
            assert_eq!(read.len(), 1);
            drain(&mut all);
        }
        assert_eq!(bench.asked(), asked, "nobody asked for a job");
        most_visited
    };
    let (few, many) = (most_visited(3), most_visited(300));
    assert_eq!(few, many);
    assert!(many <= 8, "{many} events looked at for one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_reader_sleeps_through_an_event_that_comes_while_it_looks() {
    let bench = Bench::new(1, Limits::default());
    let jobs: Vec<String> = (0..8).map(|at| format!("job-{at}")).collect();
    for job in &jobs {
        bench.state(job, JobState::Running);
    }
    let mut readers: Vec<Subscription> = jobs.iter().map(|job| bench.subscribe(Some(job), None)).collect();
    readers.push(bench.subscribe(None, None));
    let tasks = readers.into_iter().map(|mut reader| {
        tokio::spawn(async move {
            let mut last = None;
            while let Some(event) = reader.next().await {
                last = Some(event);
            }
            last
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let appending = tokio::task::spawn_blocking(move || {
        for done in 0..500 {
            for job in &jobs {
                bench.progress(job, done);
            }
        }
        for job in &jobs {
            bench.state(job, JobState::Succeeded);
        }
        bench.log.close();
    });
    appending.await.unwrap();
    for task in tasks {
        let ended = tokio::time::timeout(std::time::Duration::from_secs(30), task).await;
        let last = ended.expect("the stream ends").unwrap().unwrap();
        assert!(last.kind.is_final());
    }
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Deed {
    /// A job goes on: to its next state, or one progress further.
    State(usize),
    Progress(usize),
    Preview(usize, usize),
    Worker,
    /// A new reader of a job or of all.
    Come(Option<usize>),
    /// A reader reads so many events.
    Read(usize, usize),
    /// A reader comes back with the last number that it saw.
    Reconnect(usize),
    Leave(usize),
}

const JOBS: usize = 4;

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => (0..JOBS).prop_map(Deed::State),
        6 => (0..JOBS).prop_map(Deed::Progress),
        2 => (0..JOBS, 0..1500_usize).prop_map(|(job, bytes)| Deed::Preview(job, bytes)),
        1 => Just(Deed::Worker),
        2 => prop::option::weighted(0.7, 0..JOBS).prop_map(Deed::Come),
        6 => (0..8_usize, 1..6_usize).prop_map(|(reader, count)| Deed::Read(reader, count)),
        2 => (0..8_usize).prop_map(Deed::Reconnect),
        1 => (0..8_usize).prop_map(Deed::Leave),
    ]
}

/// A reader and what must hold of it.
struct Follower {
    job: Option<usize>,
    stream: Subscription,
    /// All numbers up to here are accounted for before the stream began.
    began: u64,
    /// Since the beginning, over all its connections.
    read: Vec<Arc<LoggedEvent>>,
    over: bool,
}

impl Follower {
    fn read(&mut self) -> bool {
        match now(&mut self.stream) {
            Poll::Ready(Some(event)) => self.read.push(event),
            Poll::Ready(None) => self.over = true,
            Poll::Pending => return false,
        }
        !self.over
    }

    fn last_id(&self) -> Option<u64> {
        self.read.last().map(|event| event.id)
    }

    /// The laws of a stream, given all that was appended, of which it has read up to a number.
    fn check(&self, appended: &BTreeMap<u64, EventKind>, until: u64) -> Result<(), TestCaseError> {
        let mut last = None;
        let (mut told, mut gaps) = (BTreeMap::new(), Vec::new());
        for event in &self.read {
            let id = event.id;
            if let Some(missed) = gap(event) {
                prop_assert!(
                    last.is_none_or(|last| last <= id) && missed.0 == id + 1 && missed.0 <= missed.1
                );
                gaps.push(missed);
                continue;
            }
            prop_assert!(last.is_none_or(|last| last < id), "{:?} then {}", last, id);
            last = Some(id);
            if let Some(job) = self.job {
                prop_assert_eq!(event.kind.job(), Some(&name(job)), "of another job");
            }
            told.insert(id, Arc::clone(event));
        }
        for (id, kind) in appended
            .range(self.began + 1..)
            .take_while(|(id, _)| **id <= until)
        {
            if self.job.is_some_and(|job| kind.job() != Some(&name(job))) {
                continue;
            }
            let covered = gaps.iter().any(|(from, to)| (from..=to).contains(&id));
            let heard = told.get(id).is_some_and(|event| event.kind == *kind);
            let overtaken = match kind {
                EventKind::Progress { job, .. } => appended
                    .range(id + 1..)
                    .find(|(_, later)| later.job() == Some(job))
                    .is_some_and(|(_, later)| matches!(later, EventKind::Progress { .. })),
                _ => false,
            };
            // The job as it stands may know of an end whose event comes later.
            let had_ended = told
                .range(..id)
                .any(|(_, event)| self.job.is_some() && event.kind.is_final());
            prop_assert!(
                covered || heard || overtaken || had_ended,
                "{} {:?} is missing",
                id,
                kind
            );
        }
        Ok(())
    }
}

fn name(job: usize) -> JobId {
    JobId(format!("job-{job}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_readers_do_each_learns_every_state_or_that_it_missed_some_and_always_the_end(
        deeds in prop::collection::vec(deed(), 1..120),
        first_id in prop_oneof![Just(1_u64), Just(1 << 30)],
        events in 1..12_usize,
        bytes in 600..20_000_usize,
    ) {
        let limits = Limits { events, bytes, preview_bytes: 6000 };
        let bench = Bench::new(first_id, limits);
        let mut appended = BTreeMap::new();
        let mut steps = [0_usize; JOBS];
        let mut followers: Vec<Follower> = Vec::new();
        let mut left: Vec<Follower> = Vec::new();
        const STATES: [JobState; 5] =
            [JobState::Queued, JobState::Loading, JobState::Running, JobState::Finishing, JobState::Succeeded];
        let step = |job: usize, steps: &mut [usize; JOBS], appended: &mut BTreeMap<u64, EventKind>| {
            let state = STATES[steps[job]];
            steps[job] += 1;
            let id = bench.state(name(job).as_str(), state);
            let view = state.is_final().then(|| Box::new(view(&name(job), state)));
            appended.insert(id, EventKind::Job { job: name(job), state, reason: None, view });
        };
        for deed in deeds {
            match deed {
                Deed::State(job) if steps[job] < STATES.len() => step(job, &mut steps, &mut appended),
                Deed::Progress(job) if STATES.get(steps[job].wrapping_sub(1)) == Some(&JobState::Running) => {
                    let id = bench.progress(name(job).as_str(), 1);
                    let progress = JobProgress { phase: Phase::Denoise, done: 1, total: 9, step_ms: 1.0 };
                    appended.insert(id, EventKind::Progress { job: name(job), progress });
                }
                Deed::Preview(job, bytes) if steps[job] > 0 => {
                    bench.preview(name(job).as_str(), bytes);
                }
                Deed::Worker => {
                    let id = bench.worker();
                    let (worker, state) = ("w".to_owned(), WorkerChange::Ready);
                    appended.insert(id, EventKind::Worker { worker, state, reason: None });
                }
                Deed::Come(job) if job.is_none_or(|job| steps[job] > 0) => followers.push(Follower {
                    job,
                    stream: bench.subscribe(job.map(name).as_ref().map(JobId::as_str), None),
                    began: bench.log.latest(),
                    read: Vec::new(),
                    over: false,
                }),
                Deed::Read(reader, count) => {
                    let at = reader % followers.len().max(1);
                    if let Some(follower) = followers.get_mut(at) {
                        for _ in 0..count {
                            follower.read();
                        }
                    }
                }
                Deed::Reconnect(reader) => {
                    let at = reader % followers.len().max(1);
                    if let Some(follower) = followers.get_mut(at) && let Some(last) = follower.last_id() {
                        let job = follower.job.map(name);
                        follower.stream = bench.subscribe(job.as_ref().map(JobId::as_str), Some(last));
                        follower.over = false;
                    }
                }
                Deed::Leave(reader) if !followers.is_empty() => {
                    left.push(followers.remove(reader % followers.len()));
                }
                Deed::State(_) | Deed::Progress(_) | Deed::Preview(..) | Deed::Come(_) | Deed::Leave(_) => {}
            }
            let (held, held_bytes, preview_bytes) = bench.held();
            prop_assert!(held <= limits.events && held_bytes <= limits.bytes);
            prop_assert!(preview_bytes <= limits.preview_bytes);
        }
        for job in 0..JOBS {
            while steps[job] < STATES.len() {
                step(job, &mut steps, &mut appended);
            }
        }
        for follower in &mut followers {
            while follower.read() {}
            prop_assert_eq!(follower.over, follower.job.is_some(), "a job's stream ends, that of all goes on");
            follower.check(&appended, u64::MAX)?;
            if follower.job.is_some() {
                let told_the_end = follower.read.iter().any(|event| event.kind.is_final());
                prop_assert!(told_the_end, "the end is always told");
            }
        }
        for follower in &left {
            // Of one that left: what it read until then.
            let until = follower.last_id().unwrap_or(follower.began);
            follower.check(&appended, until)?;
        }
        drop((followers, left));
        prop_assert!(bench.log.ring(|ring| ring.jobs_held()) <= limits.events + JOBS);
    }
}
