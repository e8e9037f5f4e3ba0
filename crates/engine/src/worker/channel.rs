//! The three pipes of one process, each with a task of its own: frames down, frames up, stderr.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calotype_protocol::{AsyncFrameReader, Down, Frame, FrameError, Up, write_frame_async};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};

use super::config::WorkerName;
use super::limiter::{Admission, Limiter};
use super::process::Ends;

/// Frames read ahead; then the pipe fills and the worker waits.
const FRAMES_AHEAD: usize = 64;
/// Kept of stderr for error reports.
const TAIL_BYTES: usize = 4096;
/// A longer line of stderr is logged in pieces.
const LINE_BYTES: usize = 1024;
/// Lines of stderr logged in a second.
const LINES_PER_SECOND: u32 = 50;

/// Frames both ways, and the last of stderr.
#[derive(Debug)]
pub(super) struct Channel {
    /// Frames from the worker; the last is an error, [`FrameError::Closed`] for a clean end.
    pub(super) frames: mpsc::Receiver<Result<Frame<Up>, FrameError>>,
    down: Option<mpsc::UnboundedSender<Frame<Down>>>,
    tail: Arc<Mutex<VecDeque<u8>>>,
    stderr: JoinHandle<()>,
    tasks: [JoinHandle<()>; 2],
}

impl Channel {
    /// Starts the three tasks.
    pub(super) fn open(
        worker: WorkerName,
        ends: Ends,
    ) -> io::Result<(Channel, tokio::sync::oneshot::Receiver<super::process::Ended>)> {
        let Ends {
            stdin,
            stdout,
            stderr,
            ended,
        } = ends;
        let stdin = ChildStdin::from_std(stdin)?;
        let stdout = ChildStdout::from_std(stdout)?;
        let stderr = ChildStderr::from_std(stderr)?;
        let (heard, frames) = mpsc::channel(FRAMES_AHEAD);
        let (down, to_send) = mpsc::unbounded_channel();
        let tail = Arc::new(Mutex::new(VecDeque::with_capacity(TAIL_BYTES)));
        let tasks = [
            tokio::spawn(read(stdout, heard)),
            tokio::spawn(write(stdin, to_send)),
        ];
        let stderr = tokio::spawn(drain(worker, stderr, Arc::clone(&tail)));
        Ok((
            Channel {
                frames,
                down: Some(down),
                tail,
                stderr,
                tasks,
            },
            ended,
        ))
    }

    /// Queues a frame. One that cannot be written any more is lost; the end of the process says so.
    pub(super) fn send(&self, frame: Frame<Down>) {
        if let Some(down) = &self.down
            && down.send(frame).is_err()
        {
            debug!("A frame was sent to a worker that no longer reads");
        }
    }

    /// The last of stderr, waiting until `by` for its end.
    pub(super) async fn stderr_tail(&mut self, by: Instant) -> String {
        if timeout_at(by, &mut self.stderr).await.is_err() {
            debug!("A worker's stderr is still held open after its group was killed");
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        // The ring may begin inside a character.
        let bytes = tail.make_contiguous();
        let skip = bytes
            .iter()
            .take_while(|byte| (0x80..0xC0).contains(*byte))
            .count()
            .min(3);
        String::from_utf8_lossy(&bytes[skip..]).trim_end().to_owned()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.stderr.abort();
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn read(stdout: ChildStdout, heard: mpsc::Sender<Result<Frame<Up>, FrameError>>) {
    let mut reader = AsyncFrameReader::new(BufReader::with_capacity(64 << 10, stdout));
    loop {
        let frame = reader.read::<Up>().await;
        let last = frame.is_err();
        if heard.send(frame).await.is_err() || last {
            return;
        }
    }
}

async fn write(mut stdin: ChildStdin, mut to_send: mpsc::UnboundedReceiver<Frame<Down>>) {
    while let Some(frame) = to_send.recv().await {
        if let Err(error) = write_frame_async(&mut stdin, &frame).await {
            debug!(%error, "A frame could not be written");
            return;
        }
    }
}

async fn drain(worker: WorkerName, mut stderr: ChildStderr, tail: Arc<Mutex<VecDeque<u8>>>) {
    let mut buffer = [0u8; 4096];
    let mut line = Vec::with_capacity(LINE_BYTES);
    let mut limiter = Limiter::new(LINES_PER_SECOND);
    let mut log = |line: &mut Vec<u8>| {
        if !line.is_empty() {
            if let Admission::Logged { dropped } = limiter.admit(Instant::now().into_std()) {
                info!(worker = %worker, dropped, "{}", String::from_utf8_lossy(line).trim_end());
            }
            line.clear();
        }
        limiter.untold()
    };
    loop {
        let read_bytes = match stderr.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read_bytes) => read_bytes,
        };
        let bytes = &buffer[..read_bytes];
        keep_tail(&mut tail.lock().unwrap_or_else(PoisonError::into_inner), bytes);
        for byte in bytes {
            // A progress bar ends its lines with a carriage return.
            if matches!(byte, b'\n' | b'\r') || line.len() == LINE_BYTES {
                log(&mut line);
            }
            if !matches!(byte, b'\n' | b'\r') {
                line.push(*byte);
            }
        }
    }
    let dropped = log(&mut line);
    if dropped > 0 {
        info!(worker = %worker, dropped, "Lines of a worker's stderr were left out");
    }
}

fn keep_tail(tail: &mut VecDeque<u8>, bytes: &[u8]) {
    let bytes = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
    let surplus = (tail.len() + bytes.len()).saturating_sub(TAIL_BYTES);
    tail.drain(..surplus);
    tail.extend(bytes);
}

/// How long to wait for the pipes after the group was killed. They end with their last holder; only a process that
/// left the group on purpose can hold them longer.
pub(super) const PIPES_END: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_4_kib() {
        let mut tail = VecDeque::new();
        keep_tail(&mut tail, &[b'a'; 3000]);
        keep_tail(&mut tail, &[b'b'; 3000]);
        assert_eq!(tail.len(), TAIL_BYTES);
        assert_eq!((tail[0], tail[1095], tail[1096]), (b'a', b'a', b'b'));
        keep_tail(&mut tail, &[b'c'; 9000]);
        assert_eq!(tail.len(), TAIL_BYTES);
        assert!(tail.iter().all(|byte| *byte == b'c'));
    }
}
