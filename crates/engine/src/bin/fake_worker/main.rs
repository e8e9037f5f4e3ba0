//! A worker without a model, for tests of the supervisor and the dispatcher. Its first argument names how it fails;
//! `good` does not fail. The same seed always gives the same pixels.
//!
//! Environment: `FAKE_STEP_MS`, time of one tick (0); `FAKE_MARKER`, the file by which `killed_once` knows that it was
//! already killed; `FAKE_OFFLOADS`, set where weights may wait in host memory, and in segments.

#![expect(
    clippy::expect_used,
    reason = "a test's tool: a panic is as good a fault as any"
)]

mod fault;
mod pipe;
mod says;
mod work;

use std::io::{self, BufReader};
use std::process::{Command, exit};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use calotype_protocol::{Down, Frame, FrameReader, LogLevel, Up};

use fault::Fault;
use pipe::{Pipe, Shared, beat, listen};
use says::{hello, ready};
use work::Worker;

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
    pipe.say(Up::Ready(Box::new(ready(
        std::env::var_os("FAKE_OFFLOADS").is_some(),
    ))));
    fail_when_ready(fault, &pipe);
    let state = Arc::new(Shared::default());
    beat(pipe.clone(), Arc::clone(&state), beat_every);
    let frames = listen(reader, pipe.clone());
    let step_ms = std::env::var("FAKE_STEP_MS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    Worker::new(fault, pipe, Duration::from_millis(step_ms), state).work(&frames);
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
