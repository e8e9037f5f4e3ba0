//! The driver's state, as clients see it.

use std::collections::BTreeMap;

use calotype_protocol::JobId;

use super::{Driver, Live, Post, PostState, Snapshot};
use crate::device::Device;
use crate::memory::{Ledger, Owner};
use crate::processing::{JobRecord, JobState, JobView};
use crate::view::{DeviceView, LeaseView, MemoryView, WorkerView};

impl Driver {
    pub(super) fn view(&self, job: &JobId) -> Option<JobView> {
        let live = self.jobs.get(job)?;
        let position = (live.state == JobState::Queued).then(|| {
            let place = |live: &Live| {
                (
                    live.record.class,
                    -i64::from(live.record.priority),
                    live.record.sequence,
                )
            };
            let ahead = |other: &&Live| other.state == JobState::Queued && place(other) < place(live);
            self.jobs.values().filter(ahead).count() + 1
        });
        Some(view_of(live, position))
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let devices: Vec<DeviceView> = self
            .devices
            .values()
            .map(|device| self.device_view(device))
            .collect();
        let mut jobs = BTreeMap::new();
        for live in self.jobs.values() {
            *jobs.entry(live.state.name().to_owned()).or_insert(0) += 1;
        }
        Snapshot {
            devices,
            memory: self
                .devices
                .values()
                .map(|device| self.memory_view(device))
                .collect(),
            jobs,
        }
    }

    /// The workers of a device, the preferred one first.
    fn posts_of(&self, device: &Device) -> Vec<&Post> {
        let mut posts: Vec<&Post> = self
            .posts
            .values()
            .filter(|post| post.device == device.id)
            .collect();
        posts.sort_by_key(|post| post.rank);
        posts
    }

    fn device_view(&self, device: &Device) -> DeviceView {
        let posts = self.posts_of(device);
        let ready = posts.iter().any(|post| post.state == PostState::Ready);
        let state = if posts.is_empty() {
            "unserved"
        } else if posts.iter().any(|post| !post.jobs.is_empty()) {
            "busy"
        } else if ready {
            "available"
        } else {
            "offline"
        };
        DeviceView {
            device: device.clone(),
            state: state.into(),
            workers: posts.into_iter().map(worker_view).collect(),
        }
    }

    fn memory_view(&self, device: &Device) -> MemoryView {
        let ledger = self.ledgers.get(&device.id);
        let leases = ledger.into_iter().flat_map(Ledger::leases).map(|(owner, bytes)| {
            let (kind, of) = match owner {
                Owner::Weights { model, .. } => ("weights", model.to_string()),
                Owner::Adapters { set, .. } => ("adapters", set.to_string()),
                Owner::WorkingSet(job) => ("working_set", job.to_string()),
            };
            LeaseView {
                id: owner.to_string(),
                kind: kind.into(),
                owner: of,
                bytes,
            }
        });
        MemoryView {
            device: device.id.clone(),
            total_bytes: device.total_bytes,
            free_bytes: device.free_bytes,
            read_at_ms: device.read_at_ms,
            budget_bytes: ledger.map_or(0, Ledger::budget_bytes),
            leased_bytes: ledger.map_or(0, Ledger::leased_bytes),
            high_water_bytes: ledger.map_or(0, Ledger::high_water_bytes),
            worker_used_bytes: self.posts_of(device).iter().map(|post| post.used_bytes).sum(),
            leases: leases.collect(),
            // It is of the host, which is the processor's device.
            cache: (device.kind == "cpu").then(|| self.cache.view()).flatten(),
        }
    }
}

/// A record that is not live: waiting to be taken over, or ended.
pub(crate) fn view_of_record(record: JobRecord) -> JobView {
    JobView {
        id: record.id,
        state: record.state,
        reason: None,
        position: None,
        class: record.class,
        priority: record.priority,
        attempts: record.attempts,
        model: record.plan.model.clone(),
        plan: record.plan,
        progress: None,
        result: record.result,
        error: record.error,
        created_at_ms: record.created_at_ms,
        started_at_ms: record.started_at_ms,
        finished_at_ms: record.finished_at_ms,
    }
}

pub(super) fn view_of(live: &Live, position: Option<usize>) -> JobView {
    JobView {
        state: live.state,
        reason: live.reason.clone(),
        position,
        progress: live.progress.clone(),
        ..view_of_record(live.record.clone())
    }
}

fn worker_view(post: &Post) -> WorkerView {
    WorkerView {
        name: post.config.name.0.clone(),
        runtime: post.runtime.clone(),
        state: match post.state {
            PostState::Asleep => "asleep",
            PostState::Starting => "starting",
            PostState::Ready => "ready",
            PostState::Gone => "gone",
        }
        .into(),
        pid: post.pid,
        incarnation: post.incarnation,
        last_exit: post.last_exit.clone(),
        program: post.hello.as_ref().map(|hello| hello.worker.clone()),
        capabilities: post.ready.as_ref().map(|ready| ready.capabilities.clone()),
        resident: post.resident.keys().cloned().collect(),
        jobs: post.jobs.iter().map(ToString::to_string).collect(),
    }
}
