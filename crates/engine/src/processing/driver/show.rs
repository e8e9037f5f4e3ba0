//! The driver's state, as clients see it.

use std::collections::BTreeMap;

use calotype_protocol::JobId;

use super::{Driver, Live, Post, PostState, Snapshot};
use crate::error::Domain;
use crate::memory::Owner;
use crate::processing::{JobRecord, JobState, JobView};
use crate::view::{DeviceView, DomainHealth, LeaseView, MemoryView, WorkerView};

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
        let mut devices: Vec<DeviceView> = self.posts.values().map(device_view).collect();
        devices.extend(self.unserved.iter().map(|device| DeviceView {
            device: device.clone(),
            state: "unserved".into(),
            worker: None,
        }));
        let mut jobs = BTreeMap::new();
        for live in self.jobs.values() {
            *jobs.entry(live.state.name().to_owned()).or_insert(0) += 1;
        }
        Snapshot {
            devices,
            memory: self.posts.values().map(memory_view).collect(),
            chain: self.chain(),
            jobs,
        }
    }

    fn chain(&self) -> Vec<DomainHealth> {
        let link = |domain, healthy, detail: String| DomainHealth {
            domain,
            healthy,
            detail,
        };
        let ready = self
            .posts
            .values()
            .filter(|post| post.state == PostState::Ready)
            .count();
        let models = self
            .catalogue
            .models()
            .filter(|model| model.problem.is_none())
            .count();
        let engines: Vec<&str> = self
            .posts
            .values()
            .filter_map(|post| post.ready.as_ref())
            .map(|ready| ready.capabilities.engine.as_str())
            .collect();
        let over: Vec<&str> = self
            .posts
            .values()
            .filter(|post| post.ledger.leased_bytes() > post.ledger.budget_bytes())
            .map(|post| post.device.id.as_str())
            .collect();
        vec![
            link(
                Domain::Device,
                ready > 0,
                format!("{ready} of {} workers ready", self.posts.len()),
            ),
            link(
                Domain::Memory,
                over.is_empty(),
                if over.is_empty() {
                    "leases within budget".into()
                } else {
                    format!("over budget: {}", over.join(", "))
                },
            ),
            link(
                Domain::Model,
                models > 0,
                format!("{models} models usable, {} not loadable", self.unusable.len()),
            ),
            link(
                Domain::Processing,
                true,
                format!("{} jobs live, journal open", self.jobs.len()),
            ),
            link(
                Domain::Inference,
                ready > 0,
                if engines.is_empty() {
                    "no runtime ready".into()
                } else {
                    engines.join(", ")
                },
            ),
            link(Domain::Postprocessing, true, "png, jpeg, webp".into()),
        ]
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

fn device_view(post: &Post) -> DeviceView {
    let state = match post.state {
        PostState::Ready if post.jobs.is_empty() => "available",
        PostState::Ready => "busy",
        PostState::Starting | PostState::Gone => "offline",
    };
    DeviceView {
        device: post.device.clone(),
        state: state.into(),
        worker: Some(worker_view(post)),
    }
}

fn worker_view(post: &Post) -> WorkerView {
    WorkerView {
        name: post.device.id.clone(),
        state: match post.state {
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

fn memory_view(post: &Post) -> MemoryView {
    let leases = post
        .ledger
        .leases()
        .map(|(owner, bytes)| {
            let (kind, of) = match owner {
                Owner::Weights(model) => ("weights", model.to_string()),
                Owner::WorkingSet(job) => ("working_set", job.to_string()),
            };
            LeaseView {
                id: owner.to_string(),
                kind: kind.into(),
                owner: of,
                bytes,
            }
        })
        .collect();
    MemoryView {
        device: post.device.id.clone(),
        total_bytes: post.device.total_bytes,
        free_bytes: post.device.free_bytes,
        budget_bytes: post.ledger.budget_bytes(),
        leased_bytes: post.ledger.leased_bytes(),
        high_water_bytes: post.ledger.high_water_bytes(),
        worker_used_bytes: post.used_bytes,
        leases,
    }
}
