//! A worker without a model, for tests of the supervisor and the dispatcher, for benchmarks and for scheduling. The same
//! seed always gives the same pixels.
//!
//! `fake_worker [FAULT] [OPTION]...`: the fault is one of `fault.rs`, `good` where none is given. Each option can be said
//! by a variable of the environment too; the argument is stronger.
//!
//! | option | variable | meaning, and what holds without it |
//! |---|---|---|
//! | `--step-ms MS` | `FAKE_STEP_MS` | time of a tick with one run in it, a decimal fraction is taken; 0 |
//! | `--share PART` | `FAKE_SHARE` | what each further run adds, 0 to 1: a tick of n runs takes step × (1 + (n − 1) × share); 0 |
//! | `--load-ms MS` | `FAKE_LOAD_MS` | time of a load, in ten pieces with progress; it stops running jobs, as in the real workers; 0 |
//! | `--model-bytes BYTES[,MODEL=BYTES]...` | `FAKE_MODEL_BYTES` | what a model takes, for all and for single ones; 1000 |
//! | `--max-batch N` | `FAKE_MAX_BATCH` | most runs in a tick, the most urgent and the oldest first; 8 |
//! | `--total-bytes BYTES` | `FAKE_TOTAL_BYTES` | memory of the device; 1 GiB |
//! | `--quiet` | `FAKE_QUIET` | neither progress nor previews are told |
//! | `--offloads` | `FAKE_OFFLOADS` | weights may wait in host memory, and in segments |
//! | `--marker FILE` | `FAKE_MARKER` | the file by which `killed_once` knows that it was already killed |

#![expect(
    clippy::expect_used,
    reason = "a test's tool: a panic is as good a fault as any"
)]

mod fault;
mod models;
mod options;
mod pipe;
mod says;
mod work;

use std::io::{self, BufReader};
use std::process::{Command, exit};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use calotype_protocol::{Down, Frame, FrameReader, LogLevel, Up};

use fault::Fault;
use options::Options;
use pipe::{Pipe, Shared, beat, listen};
use says::{hello, ready};
use work::Worker;

fn main() {
    let options = match Options::of_process() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            exit(2);
        }
    };
    let fault = options.fault;
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
    pipe.say(Up::Ready(Box::new(ready(&options))));
    fail_when_ready(fault, &pipe);
    let state = Arc::new(Shared::default());
    state.total_bytes.store(options.total_bytes, Ordering::Relaxed);
    beat(pipe.clone(), Arc::clone(&state), beat_every);
    let frames = listen(reader, pipe.clone());
    Worker::new(options, pipe, state).work(&frames);
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

pub(crate) fn sleep_for_ever() -> ! {
    loop {
        thread::park();
    }
}
