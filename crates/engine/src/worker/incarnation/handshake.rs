//! The handshake from the parent's side: `hello` is answered with `welcome`, or with `bye` to another protocol.

use std::io;
use std::path::{Path, PathBuf};

use calotype_protocol::{Down, FrameLimits, Heartbeat, Hello, Limits, PROTOCOL, Welcome};
use tokio::time::Instant;
use tracing::warn;

use super::Incarnation;
use super::leaving::Stage;
use crate::worker::event::ExitCause;
use crate::worker::state::{IllegalMove, Move, State};

impl Incarnation {
    pub(super) fn greet(&mut self, hello: Hello, now: Instant) -> Result<(), IllegalMove> {
        self.state = self.state.on(Move::Hello)?;
        if self.state != State::Handshaking {
            return Ok(());
        }
        if hello.protocol.major != PROTOCOL.major {
            let worker = hello.protocol;
            let reason = format!(
                "this orchestrator speaks protocol {}.{}, the worker {}.{}",
                PROTOCOL.major, PROTOCOL.minor, worker.major, worker.minor
            );
            self.channel.send(Down::Bye { reason }.into());
            let cause = ExitCause::WrongVersion {
                worker,
                ours: PROTOCOL,
            };
            self.leave(cause, Stage::Exiting, now + self.config.timing.term_grace);
            return Ok(());
        }
        self.hello = Some(Box::new(hello));
        self.handshake_due = now + self.config.timing.ready;
        self.channel.send(Down::Welcome(self.welcome()).into());
        Ok(())
    }

    fn welcome(&self) -> Welcome {
        let FrameLimits {
            line_bytes,
            blob_bytes,
            blobs: _,
            total_bytes: _,
        } = FrameLimits::default();
        let scratch = scratch_of(&self.config.scratch, self.pid());
        if let Err(error) = std::fs::create_dir_all(&scratch) {
            warn!(worker = %self.config.name, %error, "A worker's scratch folder could not be made");
        }
        let every_ms = u64::try_from(self.config.timing.heartbeat_every.as_millis()).unwrap_or(u64::MAX);
        Welcome {
            protocol: PROTOCOL,
            device: self.config.device.clone(),
            limits: Limits {
                frame_bytes: line_bytes as u64,
                blob_bytes: blob_bytes as u64,
            },
            heartbeat: Heartbeat { every_ms },
            scratch: scratch.to_string_lossy().into_owned(),
            threads: self.config.threads,
            deterministic: false,
        }
    }
}

pub(super) fn scratch_of(scratch: &Path, pid: u32) -> PathBuf {
    scratch.join(format!("worker-{pid}"))
}

pub(super) fn remove_scratch(scratch: &Path) {
    match std::fs::remove_dir_all(scratch) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!(%error, scratch = %scratch.display(), "A scratch folder could not be removed"),
    }
}
