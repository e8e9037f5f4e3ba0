//! The native worker: a tick loop, samplers, and ONNX graphs bound to safetensors weights.
//!
//! [`run`] speaks the protocol on stdin and stdout. [`tick`] is the loop without a process around it; [`model`] is what a
//! model does; [`runtime`] is what computes; [`sampler`] is the mathematics of the steps. This crate knows no queue, no
//! catalogue and no file format of pictures: those are the orchestrator's.

mod facts;
mod failure;
mod handshake;
mod job;
pub mod model;
mod pixels;
pub mod runtime;
pub mod sampler;
mod stdio;
pub mod tick;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use calotype_protocol::{Down, Frame, LogLevel, PROTOCOL, Up, Welcome};

pub use runtime::Runtime;
use stdio::Voice;
use tick::{Flow, Loop, SharedPulse};

/// What the command line says to a worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerOptions {
    /// Which engine computes.
    pub runtime: Runtime,
    /// Where ONNX Runtime's library lies; looked for where none is given.
    pub onnxruntime_library: Option<PathBuf>,
}

/// Serves the orchestrator until it is told to leave or the pipe ends.
pub fn run(options: WorkerOptions) -> ExitCode {
    let voice = match Voice::claim() {
        Ok(voice) => voice,
        Err(error) => {
            eprintln!("calotype-worker: stdout cannot be taken: {error}");
            return ExitCode::FAILURE;
        }
    };
    // A panic leaves the state in doubt: it is said, and the process ends.
    let last_words = voice.clone();
    let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| serve(options, voice)));
    match served {
        Ok(code) => code,
        Err(panic) => {
            let reason = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "a panic".into());
            last_words.say(&Up::Fatal { reason }.into());
            ExitCode::FAILURE
        }
    }
}

fn serve(options: WorkerOptions, voice: Voice) -> ExitCode {
    let receiver = match stdio::listen(voice.clone()) {
        Ok(receiver) => receiver,
        Err(error) => {
            eprintln!("calotype-worker: no thread for reading: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (mut engine, note) = runtime::open(options.runtime, options.onnxruntime_library);
    voice.say(&handshake::hello(engine.as_ref()).into());
    let welcome = match receiver.recv() {
        Ok(Frame {
            message: Down::Welcome(welcome),
            ..
        }) => welcome,
        Ok(_) | Err(_) => {
            eprintln!("calotype-worker: the first message was not a welcome");
            return ExitCode::FAILURE;
        }
    };
    let Welcome {
        protocol,
        device,
        limits: _,
        heartbeat,
        scratch: _,
        threads,
        deterministic: _,
    } = welcome;
    if protocol.major != PROTOCOL.major {
        eprintln!(
            "calotype-worker: speaks protocol {}, not {}",
            PROTOCOL.major, protocol.major
        );
        return ExitCode::FAILURE;
    }
    if threads > 0 {
        engine.set_threads(threads as usize);
    }
    let note = note
        .map(|message| (LogLevel::Warn, message))
        .into_iter()
        .chain((device.kind != "cpu").then(|| {
            (
                LogLevel::Warn,
                format!(
                    "the device `{}` was given; this worker computes on the CPU",
                    device.kind
                ),
            )
        }));
    for (level, message) in note {
        voice.say(
            &Up::Log {
                level,
                job: None,
                message,
                dropped: 0,
            }
            .into(),
        );
    }
    voice.say(&handshake::ready(engine.as_ref()).into());
    let pulse = SharedPulse::default();
    let every = Duration::from_millis(heartbeat.every_ms.max(10));
    if let Err(error) = stdio::beat(voice.clone(), pulse.clone(), every) {
        eprintln!("calotype-worker: no thread for the beat: {error}");
        return ExitCode::FAILURE;
    }
    let said = voice.clone();
    drive(
        Loop::new(engine, pulse, Box::new(move |frame| said.say(&frame))),
        &receiver,
    );
    voice.flush();
    ExitCode::SUCCESS
}

/// Takes all messages that are there, then does one piece of work; waits where there is neither.
fn drive(mut tick_loop: Loop, receiver: &Receiver<Frame<Down>>) {
    loop {
        let message = if tick_loop.has_work() {
            match receiver.try_recv() {
                Ok(frame) => Some(frame),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            }
        } else {
            match receiver.recv() {
                Ok(frame) => Some(frame),
                Err(_) => return,
            }
        };
        let flow = match message {
            Some(frame) => tick_loop.handle(frame),
            None => tick_loop.tick(),
        };
        if flow == Flow::Leave {
            return;
        }
    }
}
