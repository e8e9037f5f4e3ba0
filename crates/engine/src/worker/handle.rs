//! What the dispatcher holds of a worker.

use std::time::Duration;

use calotype_protocol::{Down, Frame};
use tokio::sync::{mpsc, oneshot};

use super::config::WorkerConfig;
use super::driver::{self, Command};
use super::event::WorkerEvent;

/// Starts a worker and its first process. Events come until the worker is stopped, its last handle is dropped, or
/// nobody listens to them; in each case the process is ended first.
///
/// Must be called inside a tokio runtime.
pub fn start(config: WorkerConfig, events: mpsc::Sender<WorkerEvent>) -> WorkerHandle {
    let (commands, to_do) = mpsc::unbounded_channel();
    tokio::spawn(driver::drive(config, to_do, events));
    WorkerHandle { commands }
}

/// Commands to a worker. None of them waits for its process, except `stop`.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
}

impl WorkerHandle {
    /// Sends a frame to the process that is ready now. With none the frame is dropped and logged: what was meant for
    /// a process that ended is settled by its `Gone`.
    pub fn send(&self, frame: Frame<Down>) {
        self.command(Command::Send { to: None, frame });
    }

    /// Like [`send`](Self::send), but only to the process of that incarnation: a frame that was sent before its
    /// `Gone` was read does not reach the successor.
    pub fn send_to(&self, incarnation: u64, frame: Frame<Down>) {
        self.command(Command::Send {
            to: Some(incarnation),
            frame,
        });
    }

    /// Ends the process (SIGTERM, grace, SIGKILL, to its group) and starts the next one at once.
    pub fn recycle(&self, reason: impl Into<String>) {
        self.command(Command::Recycle {
            reason: reason.into(),
        });
    }

    /// Ends the worker: work may finish within `grace`, then the process is told to leave, then it is killed. Returns
    /// after the reap; stops of many workers may be awaited together.
    ///
    /// The events must be received meanwhile, and until their channel ends: what the worker finished within the grace,
    /// and its `Gone`, come there and may still wait there when this returns. A receiver that is dropped ends the
    /// process at once, whatever it works on.
    pub async fn stop(&self, grace: Duration) {
        let (stopped, stop) = oneshot::channel();
        self.command(Command::Stop { grace, stopped });
        // The sender is dropped, too, by a worker that is no more.
        let _ = stop.await;
    }

    fn command(&self, command: Command) {
        // A worker that has stopped has no use for commands.
        let _ = self.commands.send(command);
    }
}
