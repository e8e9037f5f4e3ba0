//! The pipe: stdin to messages, messages to what was stdout. Nothing but this file writes to the protocol's stream.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calotype_protocol::{Beat, Down, Frame, FrameError, FrameReader, Up, write_frame};

use crate::facts;
use crate::tick::{SharedPulse, pulse_of};

/// Messages that wait at most; after them the pipe itself fills.
const MOST_WAITING: usize = 256;

/// The one writer, shared by the loop, the reader and the beat.
#[derive(Clone)]
pub(crate) struct Voice(Arc<Mutex<BufWriter<File>>>);

impl Voice {
    /// Moves fd 1 away for the protocol and puts stderr in its place: whatever prints cannot corrupt the stream.
    pub(crate) fn claim() -> std::io::Result<Self> {
        // Above 2, and closed in children: a grandchild must not hold the stream open.
        let own = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        Ok(Self(Arc::new(Mutex::new(BufWriter::with_capacity(
            1 << 16,
            File::from(own),
        )))))
    }

    /// Writes one frame. Where nobody listens any more, the process ends.
    pub(crate) fn say(&self, frame: &Frame<Up>) {
        let mut pipe = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write_frame(&mut *pipe, frame) {
            leave(&format!("the orchestrator is gone: {error}"), 0);
        }
    }

    pub(crate) fn flush(&self) {
        let mut pipe = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // At the end of the process: there is nobody left to tell.
        let _ = pipe.flush();
    }
}

fn leave(why: &str, code: i32) -> ! {
    eprintln!("calotype-worker: {why}");
    std::process::exit(code)
}

/// Reads messages on a thread of its own. Pings are answered there and `exit` is obeyed there, so that no step can
/// delay them; the end of stdin ends the process at once.
pub(crate) fn listen(voice: Voice) -> std::io::Result<Receiver<Frame<Down>>> {
    let (sender, receiver) = sync_channel(MOST_WAITING);
    std::thread::Builder::new()
        .name("reader".into())
        .spawn(move || read(&voice, &sender))?;
    Ok(receiver)
}

fn read(voice: &Voice, sender: &SyncSender<Frame<Down>>) {
    let mut reader = FrameReader::new(BufReader::with_capacity(1 << 16, std::io::stdin()));
    loop {
        match reader.read::<Down>() {
            Ok(Frame {
                message: Down::Ping { seq },
                ..
            }) => voice.say(&Up::Pong { seq }.into()),
            Ok(Frame {
                message: Down::Exit {},
                ..
            }) => {
                voice.flush();
                std::process::exit(0)
            }
            Ok(Frame {
                message: Down::Bye { reason },
                ..
            }) => leave(&reason, 0),
            Ok(frame) => {
                if sender.send(frame).is_err() {
                    return;
                }
            }
            Err(FrameError::Closed) => std::process::exit(0),
            Err(error) => leave(&format!("bad frame from the orchestrator: {error}"), 2),
        }
    }
}

/// Beats on a thread of its own until the process ends.
pub(crate) fn beat(voice: Voice, pulse: SharedPulse, every: Duration) -> std::io::Result<()> {
    let beats = move || {
        let mut seq = 0;
        loop {
            seq += 1;
            let now = pulse_of(&pulse).clone();
            let beat = Beat {
                seq,
                free_bytes: facts::host_bytes().1,
                used_bytes: facts::used_bytes(),
                resident: now.resident,
                running: now.running,
                oldest_step_ms: now.since.map_or(0, |since| since.elapsed().as_millis() as u64),
            };
            voice.say(&Up::Beat(beat).into());
            std::thread::sleep(every);
        }
    };
    std::thread::Builder::new()
        .name("beat".into())
        .spawn(beats)
        .map(|_| ())
}
