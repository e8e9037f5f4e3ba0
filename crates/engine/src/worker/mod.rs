//! The parent's half of a worker: it holds one process at a time, and replaces it when it ends.
//!
//! ```text
//!            spawned          hello / welcome         ready
//!   Idle ───────────▶ Starting ────────────▶ Handshaking ──────▶ Ready
//!                        │                        │                │  deadline, fault, recycle, stop
//!                        ├────────────────────────┴────────────────┼───▶ Stopping
//!                        │               the process ended         │        │
//!                        ▼                                         ▼        ▼
//!                       Gone ◀─────────── group killed, reaped, pipes drained
//!                        └── backoff, then the next incarnation begins at Idle
//! ```
//!
//! - `driver` is the one task of a worker: commands in, events out, restarts with `backoff`.
//! - `incarnation` is one process from spawn to reap: handshake (`state`), `deadlines`, leave-taking.
//! - `channel` moves frames and stderr; `process` is the only place that starts processes and sends signals.
//! - `memory_kills` reads the kernel's counters, by which a kill for memory is told from any other.
//! - `state`, `backoff`, `deadlines` and `limiter` are pure.
//!
//! It knows the protocol and no domain: which job goes where, and what becomes of it, is the dispatcher's.

mod backoff;
mod channel;
mod config;
mod deadlines;
mod driver;
mod event;
mod handle;
mod incarnation;
mod limiter;
mod memory_kills;
mod process;
mod state;

pub use config::{Timing, WorkerConfig, WorkerName};
pub use event::{ExitCause, ExitReport, WorkerEvent, WorkerEventKind};
pub use handle::{WorkerHandle, start};
pub use memory_kills::MemoryKillCounters;
