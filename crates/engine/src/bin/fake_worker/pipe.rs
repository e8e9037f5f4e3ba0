//! The worker's end of the pipe: frames out, frames in, and the beat.

use std::io::{self, BufReader, Write};
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use calotype_protocol::{Beat, Down, Frame, FrameError, FrameReader, JobId, ModelId, Up, write_frame};

/// What the beat tells.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) seq: AtomicU64,
    pub(crate) resident: Mutex<Vec<ModelId>>,
    pub(crate) running: Mutex<Vec<JobId>>,
    pub(crate) used_bytes: AtomicU64,
    pub(crate) total_bytes: AtomicU64,
    /// When the step or load under way began.
    pub(crate) since: Mutex<Option<Instant>>,
    pub(crate) leaving: AtomicBool,
}

impl Shared {
    pub(crate) fn pulse(&self) -> Beat {
        let used_bytes = self.used_bytes.load(Ordering::Relaxed);
        let since = *self.since.lock().expect("no panic");
        let oldest = since.map_or(Duration::ZERO, |since| since.elapsed());
        Beat {
            seq: self.seq.fetch_add(1, Ordering::Relaxed),
            free_bytes: self
                .total_bytes
                .load(Ordering::Relaxed)
                .saturating_sub(used_bytes),
            used_bytes,
            resident: self.resident.lock().expect("no panic").clone(),
            running: self.running.lock().expect("no panic").clone(),
            oldest_step_ms: u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Stdout, one frame at a time.
#[derive(Clone, Default)]
pub(crate) struct Pipe(Arc<Mutex<()>>);

impl Pipe {
    pub(crate) fn say(&self, message: Up) {
        self.send(&message.into());
    }

    pub(crate) fn send(&self, frame: &Frame<Up>) {
        let _one_at_a_time = self.0.lock().expect("no panic");
        if write_frame(&mut io::stdout().lock(), frame).is_err() {
            exit(5);
        }
    }

    pub(crate) fn raw(&self, bytes: &[u8]) {
        let _one_at_a_time = self.0.lock().expect("no panic");
        let mut stdout = io::stdout().lock();
        if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
            exit(5);
        }
    }
}

pub(crate) fn beat(pipe: Pipe, state: Arc<Shared>, every: Duration) {
    thread::spawn(move || {
        while !state.leaving.load(Ordering::Relaxed) {
            pipe.say(Up::Beat(state.pulse()));
            thread::sleep(every);
        }
    });
}

pub(crate) fn listen(mut reader: FrameReader<BufReader<io::Stdin>>, pipe: Pipe) -> Receiver<Frame<Down>> {
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
