//! What happens in virtual time, in its order, and what virtual workers say.

use std::time::Duration;

use calotype_protocol::{Hello, InstanceId, JobId, LoadId, ModelId, Ready, Up, Version};

use super::workload::{DeviceSpec, Job};
use crate::processing::dispatch::core::{Input, Now};
use crate::processing::schedule::WorkerId;

pub(super) const INCARNATION: u64 = 1;

/// What happens at a moment.
pub(super) enum Event {
    Arrival(Job),
    Input(Box<Input>),
    /// A worker has something to say, unless it has changed since.
    Speaks {
        worker: u32,
        version: u64,
    },
    Loaded {
        worker: u32,
        load: LoadId,
        model: ModelId,
        took_ms: f64,
    },
    Unloaded {
        worker: u32,
        unload: LoadId,
        model: ModelId,
    },
}

/// Ordered by time, then by the order in which they were made.
pub(super) struct Timed {
    pub(super) at: Duration,
    pub(super) order: u64,
    pub(super) event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What is known of a job that was submitted.
#[derive(Debug)]
pub(super) struct JobFacts {
    pub(super) job: Job,
    pub(super) accepted_at: Duration,
    /// When it first went down to a worker.
    pub(super) began_at: Option<Duration>,
    pub(super) ended_at: Option<Duration>,
    pub(super) attempts: u32,
    /// Times that it left its worker to make room.
    pub(super) pauses: u32,
    /// What it had of a device so far.
    pub(super) device_ms: f64,
}

impl JobFacts {
    /// From its acceptance to its first run, or to now.
    pub(super) fn waited(&self, now: Duration) -> Duration {
        self.began_at.unwrap_or(now).saturating_sub(self.accepted_at)
    }
}

pub(super) fn at(since_start: Duration) -> Now {
    Now {
        since_start,
        wall_ms: since_start.as_millis() as u64,
    }
}

pub(super) fn line(worker: u32, line: Up) -> Input {
    Input::Line {
        worker: WorkerId(worker),
        incarnation: INCARNATION,
        line,
        blobs: Vec::new(),
    }
}

/// A job's index, from its name.
pub(super) fn number(job: &JobId) -> usize {
    job.0
        .strip_prefix("job_")
        .and_then(|number| number.parse().ok())
        .unwrap_or(usize::MAX)
}

pub(super) fn handshake(device: &DeviceSpec) -> (Box<Hello>, Box<Ready>) {
    let hello = Hello {
        protocol: Version { major: 1, minor: 0 },
        worker: "virtual".into(),
        runtime: "python".into(),
        instance: InstanceId("virtual".into()),
        pid: 1,
        libraries: Default::default(),
    };
    let ready = Ready {
        device: calotype_protocol::DeviceFacts {
            name: "virtual".into(),
            total_bytes: device.budget_bytes,
            free_bytes: device.budget_bytes,
            dtypes: Vec::new(),
            compute_capability: None,
        },
        capabilities: device.capabilities(),
    };
    (Box::new(hello), Box::new(ready))
}
