//! A worker without a model, for tests of the supervisor and the dispatcher. Its first argument names how it fails;
//! `good` does not fail. The same seed always gives the same pixels.
//!
//! Environment: `FAKE_STEP_MS`, time of one tick (0); `FAKE_MARKER`, the file by which `killed_once` knows that it was
//! already killed.

#![expect(
    clippy::expect_used,
    reason = "a test's tool: a panic is as good a fault as any"
)]

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use calotype_protocol::{
    Attempt, Beat, BlobRef, Capabilities, DeviceFacts, Down, Dtype, Failure, Frame, FrameError, FrameReader,
    Generate, Hello, InstanceId, JobId, Load, Loaded, LogLevel, MemoryReport, Mode, ModelId, Outcome,
    PROTOCOL, Phase, Progress, Ready, Run, RunResult, Sampler, Schedule, Up, Version, Work, write_frame,
};

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident = $name:literal),+ $(,)?) => {
        /// How it fails.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Fault { $($(#[$doc])* $fault),+ }

        impl Fault {
            fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Fault::$fault),)+ _ => None }
            }
        }
    };
}

faults! {
    /// Not at all. It leaves, as any worker, when its stdin ends.
    Good = "good",
    /// Says hello, then leaves with status 3.
    ExitsBeforeReady = "exits_before_ready",
    /// A traceback on stderr and status 1, before anything was said.
    DiesAtImport = "dies_at_import",
    /// Never says anything.
    NeverSaysHello = "never_says_hello",
    /// Says hello and nothing more.
    NeverReady = "never_ready",
    /// A line of text among the frames.
    PrintsToStdout = "prints_to_stdout",
    /// Leaves in the middle of a line.
    HalfALine = "half_a_line",
    /// Speaks the next major version.
    WrongMajor = "wrong_major",
    /// Ready, and never heard of again: no beats either.
    Silent = "silent",
    /// Ten thousand lines to the log and to stderr, then good.
    FloodOfLogs = "flood_of_logs",
    /// No run has memory enough.
    OutOfMemory = "out_of_memory",
    /// The first run has not.
    OutOfMemoryOnce = "out_of_memory_once",
    /// SIGKILL at half the steps.
    KilledMidStep = "killed_mid_step",
    /// The same, unless the marker file is there.
    KilledOnce = "killed_once",
    /// Goes on after `cancel`.
    IgnoresCancel = "ignores_cancel",
    /// Cannot be ended by SIGTERM, and is stuck.
    IgnoresTerminate = "ignores_terminate",
    /// Leaves a `sleep` in its group, and its pipes with it.
    LeavesAGrandchild = "leaves_a_grandchild",
    /// Stuck in its first step; beats go on, `cancel` is not read.
    NeverFinishes = "never_finishes",
    /// Makes no progress, but heeds `cancel`.
    Stalls = "stalls",
    /// Announces a blob of 300 MiB.
    OversizeFrame = "oversize_frame",
    /// Results of an older attempt come first.
    StaleAttempt = "stale_attempt",
    /// Every run fails.
    Fails = "fails",
    /// Every load fails.
    ModelLoad = "model_load",
    /// Loses its device at the first run.
    LosesItsDevice = "loses_its_device",
    /// Good; the name is for the test of what every worker does.
    ExitsOnStdinEof = "exits_on_stdin_eof",
}

fn main() {
    let name = std::env::args().nth(1).unwrap_or_else(|| "good".to_owned());
    let Some(fault) = Fault::from_name(&name) else {
        eprintln!("unknown fault `{name}`");
        exit(2);
    };
    match fault {
        Fault::DiesAtImport => {
            eprintln!("Traceback (most recent call last):\n  File \"worker.py\", line 1, in <module>");
            eprintln!("ModuleNotFoundError: No module named 'torch'");
            exit(1);
        }
        Fault::NeverSaysHello => sleep_for_ever(),
        _ => {}
    }
    let pipe = Pipe::default();
    let mut reader = FrameReader::new(BufReader::new(io::stdin()));
    pipe.say(Up::Hello(hello(fault)));
    match fault {
        Fault::ExitsBeforeReady => {
            eprintln!("no device found");
            exit(3);
        }
        Fault::NeverReady => sleep_for_ever(),
        _ => {}
    }
    let beat_every = match reader.read::<Down>() {
        Ok(Frame {
            message: Down::Welcome(welcome),
            blobs: _,
        }) => Duration::from_millis(welcome.heartbeat.every_ms),
        Ok(_) | Err(_) => exit(4),
    };
    pipe.say(Up::Ready(Box::new(ready())));
    fail_when_ready(fault, &pipe);
    let state = Arc::new(Shared::default());
    beat(pipe.clone(), Arc::clone(&state), beat_every);
    let frames = listen(reader, pipe.clone());
    let step_ms = std::env::var("FAKE_STEP_MS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    Worker {
        fault,
        pipe,
        step: Duration::from_millis(step_ms),
        jobs: Vec::new(),
        resident: Vec::new(),
        runs: 0,
        draining: false,
        state,
    }
    .work(&frames);
}

/// Faults that need no work.
fn fail_when_ready(fault: Fault, pipe: &Pipe) {
    match fault {
        Fault::PrintsToStdout => pipe.raw(b"Loading weights:  50%|#####     |\n"),
        Fault::HalfALine => {
            pipe.raw(b"{\"type\":\"beat\",\"se");
            exit(0);
        }
        Fault::OversizeFrame => {
            pipe.raw(format!("{{\"type\":\"bye\",\"blobs\":[{}]}}\n", 300u64 << 20).as_bytes());
        }
        Fault::Silent => sleep_for_ever(),
        Fault::IgnoresTerminate => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let _inside = runtime.enter();
            let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
            std::mem::forget(terminate.expect("a signal handler"));
            pipe.say(Up::Beat(Shared::default().pulse()));
            sleep_for_ever();
        }
        Fault::LeavesAGrandchild => {
            let grandchild = Command::new("sleep").arg("1000").spawn().expect("sleep is there");
            eprintln!("grandchild {}", grandchild.id());
            exit(0);
        }
        Fault::FloodOfLogs => {
            for line in 0..10_000 {
                eprintln!("stderr line {line}");
                let message = format!("log line {line}");
                pipe.say(Up::Log {
                    level: LogLevel::Info,
                    job: None,
                    message,
                    dropped: 0,
                });
            }
        }
        _ => {}
    }
}

/// What the beat tells.
#[derive(Default)]
struct Shared {
    seq: AtomicU64,
    resident: Mutex<Vec<ModelId>>,
    running: Mutex<Vec<JobId>>,
    leaving: AtomicBool,
}

impl Shared {
    fn pulse(&self) -> Beat {
        Beat {
            seq: self.seq.fetch_add(1, Ordering::Relaxed),
            free_bytes: 1 << 30,
            used_bytes: 1000,
            resident: self.resident.lock().expect("no panic").clone(),
            running: self.running.lock().expect("no panic").clone(),
            oldest_step_ms: 0,
        }
    }
}

/// Stdout, one frame at a time.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<()>>);

impl Pipe {
    fn say(&self, message: Up) {
        self.send(&message.into());
    }

    fn send(&self, frame: &Frame<Up>) {
        let _one_at_a_time = self.0.lock().expect("no panic");
        if write_frame(&mut io::stdout().lock(), frame).is_err() {
            exit(5);
        }
    }

    fn raw(&self, bytes: &[u8]) {
        let _one_at_a_time = self.0.lock().expect("no panic");
        let mut stdout = io::stdout().lock();
        if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
            exit(5);
        }
    }
}

fn beat(pipe: Pipe, state: Arc<Shared>, every: Duration) {
    thread::spawn(move || {
        while !state.leaving.load(Ordering::Relaxed) {
            pipe.say(Up::Beat(state.pulse()));
            thread::sleep(every);
        }
    });
}

fn listen(mut reader: FrameReader<BufReader<io::Stdin>>, pipe: Pipe) -> Receiver<Frame<Down>> {
    let (heard, frames) = mpsc::channel();
    thread::spawn(move || {
        loop {
            match reader.read::<Down>() {
                Ok(Frame {
                    message: Down::Ping { seq },
                    blobs: _,
                }) => pipe.say(Up::Pong { seq }),
                Ok(frame) => {
                    if heard.send(frame).is_err() {
                        return;
                    }
                }
                // Whoever was served is gone.
                Err(FrameError::Closed) => exit(0),
                Err(error) => {
                    eprintln!("{error}");
                    exit(4);
                }
            }
        }
    });
    frames
}

struct Job {
    job: JobId,
    attempt: Attempt,
    work: Generate,
    done: u32,
    batch_sizes: Vec<u32>,
    turn: Turn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Takes,
    Paused,
}

struct Worker {
    fault: Fault,
    pipe: Pipe,
    step: Duration,
    jobs: Vec<Job>,
    resident: Vec<ModelId>,
    runs: u32,
    draining: bool,
    state: Arc<Shared>,
}

impl Worker {
    fn work(mut self, frames: &Receiver<Frame<Down>>) {
        loop {
            loop {
                let busy = self.jobs.iter().any(|job| job.turn == Turn::Takes) && self.fault != Fault::Stalls;
                let frame = if busy {
                    match frames.try_recv() {
                        Ok(frame) => frame,
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => exit(0),
                    }
                } else if let Ok(frame) = frames.recv() {
                    frame
                } else {
                    exit(0);
                };
                self.obey(frame.message);
                self.publish();
                if self.draining && self.jobs.is_empty() {
                    self.leave();
                }
            }
            self.tick();
            self.publish();
            if self.draining && self.jobs.is_empty() {
                self.leave();
            }
        }
    }

    fn obey(&mut self, message: Down) {
        match message {
            Down::Load(load) => self.load(load),
            Down::Unload { unload, model } => {
                let before = self.resident.len();
                self.resident
                    .retain(|resident| model.as_ref().is_some_and(|model| model != resident));
                let freed_bytes = 1000 * (before - self.resident.len()) as u64;
                self.pipe.say(Up::Unloaded { unload, freed_bytes });
            }
            Down::Run(run) => self.run(*run),
            Down::Cancel { job, attempt } => {
                if self.fault != Fault::IgnoresCancel
                    && let Some(at) = self.find(&job, attempt)
                {
                    let at_step = self.jobs.remove(at).done;
                    self.pipe.say(Up::Cancelled {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Pause {
                job,
                attempt,
                offload: _,
            } => {
                if let Some(at) = self.find(&job, attempt) {
                    self.jobs[at].turn = Turn::Paused;
                    let at_step = self.jobs[at].done;
                    self.pipe.say(Up::Paused {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Resume { job, attempt } => {
                if let Some(at) = self.find(&job, attempt) {
                    self.jobs[at].turn = Turn::Takes;
                    let at_step = self.jobs[at].done;
                    self.pipe.say(Up::Resumed {
                        job,
                        attempt,
                        at_step,
                    });
                }
            }
            Down::Release { segment } => self.pipe.say(Up::Released { segment }),
            Down::Memory { seq, op: _ } => {
                let used_bytes = 1000 * self.resident.len() as u64;
                let total_bytes = 1 << 30;
                let free_bytes = total_bytes - used_bytes;
                let report = MemoryReport {
                    total_bytes,
                    free_bytes,
                    used_bytes,
                    peak_bytes: used_bytes,
                    cached_bytes: 0,
                };
                self.pipe.say(Up::Memory { seq, report });
            }
            Down::Probe { seq, op: _ } => {
                self.pipe.say(Up::Probed {
                    seq,
                    figures: BTreeMap::from([("step_ms".to_owned(), 0.0)]),
                });
            }
            Down::Drain {} => self.draining = true,
            Down::Exit {} | Down::Bye { .. } => self.leave(),
            Down::Welcome(_) | Down::Ping { .. } => {}
        }
    }

    fn load(&mut self, load: Load) {
        let Load {
            load,
            model,
            dtype: _,
            budget_bytes: _,
        } = load;
        if self.fault == Fault::ModelLoad {
            let failure = Failure {
                outcome: Outcome::ModelLoad,
                message: "the file ends in the middle of a tensor".to_owned(),
                detail: Some("unet.safetensors: conv_in.weight".to_owned()),
            };
            self.pipe.say(Up::LoadFailed { load, failure });
            return;
        }
        self.pipe.say(Up::LoadProgress {
            load: load.clone(),
            done_bytes: 500,
            total_bytes: 1000,
        });
        if !self.resident.contains(&model.id) {
            self.resident.push(model.id.clone());
        }
        let phases_ms = BTreeMap::from([("read".to_owned(), 0.0)]);
        self.pipe.say(Up::Loaded(Loaded {
            load,
            model: model.id,
            resident_bytes: 1000,
            phases_ms,
        }));
    }

    fn run(&mut self, run: Run) {
        let Run {
            job,
            attempt,
            step: _,
            priority: _,
            deadline_ms: _,
            work,
        } = run;
        self.runs += 1;
        let refusal = match (self.fault, &work) {
            (Fault::OutOfMemory, _) => Some((Outcome::OutOfMemory, "4000 bytes asked for, 1000 free")),
            (Fault::OutOfMemoryOnce, _) if self.runs == 1 => {
                Some((Outcome::OutOfMemory, "4000 bytes asked for, 1000 free"))
            }
            (Fault::Fails, _) => Some((Outcome::Failed, "it does not work")),
            (_, _) if self.draining => Some((Outcome::Failed, "the worker is leaving")),
            (_, Work::Generate(_)) => None,
            (_, _) => Some((Outcome::NotSupported, "this worker only generates")),
        };
        if let Some((outcome, message)) = refusal {
            let failure = Failure {
                outcome,
                message: message.to_owned(),
                detail: None,
            };
            self.pipe.say(Up::Failed {
                job,
                attempt,
                failure,
            });
            return;
        }
        match self.fault {
            Fault::NeverFinishes => {
                self.state.running.lock().expect("no panic").push(job);
                sleep_for_ever();
            }
            Fault::LosesItsDevice => {
                self.pipe.say(Up::Fatal {
                    reason: "an illegal address was accessed".to_owned(),
                });
                exit(6);
            }
            _ => {}
        }
        if let Work::Generate(work) = work {
            self.jobs.push(Job {
                job,
                attempt,
                work,
                done: 0,
                batch_sizes: Vec::new(),
                turn: Turn::Takes,
            });
        }
    }

    /// One step of every job that takes its turn.
    fn tick(&mut self) {
        if !self.step.is_zero() {
            thread::sleep(self.step);
        }
        let batch: usize = self
            .jobs
            .iter()
            .filter(|job| job.turn == Turn::Takes)
            .map(|job| job.work.seeds.len())
            .sum();
        let step_ms = self.step.as_secs_f64() * 1000.0;
        for job in self.jobs.iter_mut().filter(|job| job.turn == Turn::Takes) {
            if job.done < job.work.steps {
                job.done += 1;
                job.batch_sizes.push(u32::try_from(batch).unwrap_or(u32::MAX));
                let (phase, done, total) = (Phase::Denoise, job.done, job.work.steps);
                let (id, attempt) = (job.job.clone(), job.attempt);
                self.pipe.say(Up::Progress(Progress {
                    job: id,
                    attempt,
                    phase,
                    done,
                    total,
                    step_ms,
                }));
                let every = job.work.preview_every;
                if every > 0 && done % every == 0 {
                    self.pipe.send(&preview(job));
                }
            }
            let at_half = job.done * 2 >= job.work.steps;
            match self.fault {
                Fault::KilledMidStep if at_half => kill_myself(),
                Fault::KilledOnce if at_half => {
                    let marker = std::env::var_os("FAKE_MARKER").expect("FAKE_MARKER");
                    if std::fs::File::create_new(marker).is_ok() {
                        kill_myself();
                    }
                }
                _ => {}
            }
        }
        let (fault, pipe) = (self.fault, &self.pipe);
        self.jobs.retain(|job| {
            if job.done < job.work.steps {
                return true;
            }
            if fault == Fault::StaleAttempt {
                pipe.send(&result(job, Attempt(job.attempt.0.saturating_sub(1)), step_ms));
            }
            pipe.send(&result(job, job.attempt, step_ms));
            false
        });
    }

    fn find(&self, job: &JobId, attempt: Attempt) -> Option<usize> {
        self.jobs
            .iter()
            .position(|running| running.job == *job && running.attempt == attempt)
    }

    fn publish(&self) {
        self.state
            .resident
            .lock()
            .expect("no panic")
            .clone_from(&self.resident);
        *self.state.running.lock().expect("no panic") = self.jobs.iter().map(|job| job.job.clone()).collect();
    }

    fn leave(&self) -> ! {
        self.state.leaving.store(true, Ordering::Relaxed);
        self.pipe.say(Up::Bye {});
        exit(0)
    }
}

fn result(job: &Job, attempt: Attempt, step_ms: f64) -> Frame<Up> {
    let (width, height) = (job.work.width as usize, job.work.height as usize);
    let blobs: Vec<Vec<u8>> = job
        .work
        .seeds
        .iter()
        .map(|seed| pixels(*seed, width * height * 3))
        .collect();
    let images = (0..blobs.len())
        .map(|blob| BlobRef {
            blob,
            dtype: Dtype::U8,
            shape: vec![height, width, 3],
        })
        .collect();
    let message = Up::Result(Box::new(RunResult {
        job: job.job.clone(),
        attempt,
        images,
        seeds: job.work.seeds.clone(),
        timings_ms: BTreeMap::from([(Phase::Denoise, step_ms * f64::from(job.work.steps))]),
        peak_bytes: 2000,
        batch_sizes: job.batch_sizes.clone(),
        engine: "fake".to_owned(),
    }));
    Frame { message, blobs }
}

fn preview(job: &Job) -> Frame<Up> {
    let image = BlobRef {
        blob: 0,
        dtype: Dtype::U8,
        shape: vec![8, 8, 3],
    };
    let seed = job.work.seeds.first().copied().unwrap_or(0);
    let message = Up::Preview {
        job: job.job.clone(),
        attempt: job.attempt,
        done: job.done,
        image,
    };
    Frame {
        message,
        blobs: vec![pixels(seed, 8 * 8 * 3)],
    }
}

/// Bytes of a SplitMix64 stream.
fn pixels(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

fn hello(fault: Fault) -> Hello {
    let major = if fault == Fault::WrongMajor {
        PROTOCOL.major + 1
    } else {
        PROTOCOL.major
    };
    Hello {
        protocol: Version {
            major,
            minor: PROTOCOL.minor,
        },
        worker: "fake 0.1.0".to_owned(),
        runtime: "fake".to_owned(),
        instance: InstanceId(format!("fake-{}", std::process::id())),
        pid: std::process::id(),
        libraries: BTreeMap::new(),
    }
}

fn ready() -> Ready {
    Ready {
        device: DeviceFacts {
            name: "fake".to_owned(),
            total_bytes: 1 << 30,
            free_bytes: 1 << 30,
            dtypes: vec!["f32".to_owned()],
            compute_capability: None,
        },
        capabilities: Capabilities {
            engine: "fake".to_owned(),
            families: vec!["sd".to_owned()],
            formats: vec!["diffusers".to_owned(), "onnx".to_owned(), "checkpoint".to_owned()],
            work: vec!["generate".to_owned()],
            modes: Mode::ALL.to_vec(),
            samplers: Sampler::ALL.to_vec(),
            schedules: Schedule::ALL.to_vec(),
            adapters: vec!["lora".to_owned()],
            max_batch: 8,
            pauses: true,
            previews: true,
            max_edge: 4096,
        },
    }
}

fn kill_myself() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    sleep_for_ever()
}

fn sleep_for_ever() -> ! {
    loop {
        thread::park();
    }
}
