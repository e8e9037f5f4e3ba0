//! The cache of weights in host memory: looked into before a load, told of what a load has read, and its steps done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use calotype_protocol::{Down, Load, LoadId, ModelId, Offload, Segment, SegmentId};

use super::{Driver, Internal, Post, Sourced, now_ms};
use crate::event::{EventKind, SegmentChange};
use crate::memory::weight_cache::{Source, Step};
use crate::model::segment;

/// Longest look at the files of a model.
const LOOK_MOST: Duration = Duration::from_secs(5);
/// Longest that a load waits until its weights are in memory.
const COPY_MOST: Duration = Duration::from_secs(120);

impl Driver {
    /// Sends a load down, with what of it waits in memory for workers that can take it from there.
    pub(super) fn send_load(&self, worker: &str, load: Load) {
        let Some(post) = self.posts.get(worker) else {
            return;
        };
        if !self.takes_segments(post) {
            if let Some(handle) = &post.handle {
                handle.send(Down::Load(load).into());
            }
            return;
        }
        let (worker, incarnation) = (worker.to_owned(), post.incarnation);
        let (internal, components) = (self.internal.clone(), load.model.components.clone());
        tokio::spawn(async move {
            let looked = tokio::task::spawn_blocking(move || segment::sources(&components));
            // A file system that does not answer is the worker's to wait for: it has a deadline, and dies alone.
            let sources = match tokio::time::timeout(LOOK_MOST, looked).await {
                Ok(Ok(sources)) => sources,
                Ok(Err(_)) | Err(_) => Vec::new(),
            };
            let _ = internal.send(Internal::Sourced {
                worker,
                incarnation,
                load: Box::new(load),
                sources,
            });
        });
    }

    fn takes_segments(&self, post: &Post) -> bool {
        let can = post
            .ready
            .as_ref()
            .is_some_and(|ready| ready.capabilities.segments);
        can && post.cached && self.cache.is_on()
    }

    /// The files of a load were looked at.
    pub(super) fn sourced(
        &mut self,
        worker: &str,
        incarnation: u64,
        load: Load,
        sources: Vec<(String, Source)>,
    ) {
        let Some(post) = self.posts.get_mut(worker) else {
            return;
        };
        let Some(moving) = post
            .moving
            .as_mut()
            .filter(|moving| moving.load == load.load && post.incarnation == incarnation)
        else {
            return;
        };
        // What waits on the host goes to the device again and again, and from page-locked memory in an eighth of the time.
        let mut waits = false;
        if moving.residency.offload != Offload::None {
            for (_, source) in &sources {
                if !self.cache.is_ready(source) {
                    self.cache.want(source.clone());
                    waits = true;
                }
            }
        }
        if waits {
            let (worker, load) = (worker.to_owned(), load.load.clone());
            let internal = self.internal.clone();
            tokio::spawn(async move {
                // A file system that does not answer: the worker waits for it, with a deadline.
                tokio::time::sleep(COPY_MOST).await;
                let _ = internal.send(Internal::Waited { worker, load });
            });
        }
        moving.sourced = Some(Sourced {
            load,
            incarnation,
            sources,
            waits,
        });
    }

    /// A load shall not wait for its weights any longer.
    pub(super) fn waited(&mut self, worker: &str, load: &LoadId) {
        let moving = self.posts.get_mut(worker).and_then(|post| post.moving.as_mut());
        if let Some(moving) = moving.filter(|moving| moving.load == *load)
            && let Some(sourced) = &mut moving.sourced
        {
            sourced.waits = false;
        }
    }

    /// Sends the loads down that wait for nothing, with what of them is in memory.
    pub(super) fn send_sourced(&mut self) {
        let cache = &mut self.cache;
        for (worker, post) in &mut self.posts {
            let Some(moving) = &mut post.moving else { continue };
            let is_due = |sourced: &mut Sourced| {
                !sourced.waits || !sourced.sources.iter().any(|(_, source)| cache.is_coming(source))
            };
            let Some(sourced) = moving.sourced.take_if(is_due) else {
                continue;
            };
            let (mut load, mut segments) = (sourced.load, BTreeMap::<String, Segment>::new());
            for (role, source) in sourced.sources {
                match cache.serve(&source, worker) {
                    Some(segment) => {
                        moving.segments.push(segment.id.clone());
                        segments.insert(role, segment);
                    }
                    None => moving.read.push(source),
                }
            }
            load.model.segments = segments;
            if let Some(handle) = &post.handle {
                handle.send_to(sourced.incarnation, Down::Load(load).into());
            }
        }
    }

    /// A load failed that took weights from memory: it is tried again from the files.
    pub(super) fn distrust(&mut self, model: &ModelId, load: &LoadId, segments: &[SegmentId]) {
        tracing::warn!("`{model}` was not loaded from memory ({load}); it is tried from its files");
        for segment in segments {
            self.cache.distrust(segment);
        }
    }

    /// Does what the cache says.
    pub(super) fn tend_cache(&mut self) {
        for step in self.cache.next() {
            match step {
                Step::Fill {
                    segment,
                    path,
                    source,
                } => {
                    let (internal, give_up) = (self.internal.clone(), Arc::clone(&self.cache_ends));
                    tokio::task::spawn_blocking(move || {
                        let outcome = segment::fill(&source, &path, &give_up);
                        let _ = internal.send(Internal::Filled { segment, outcome });
                    });
                }
                Step::Release { segment, worker } => {
                    let handle = self.posts.get(&worker).and_then(|post| post.handle.as_ref());
                    if let Some(handle) = handle {
                        handle.send(Down::Release { segment }.into());
                    }
                }
                Step::Free { segment, path } => {
                    let internal = self.internal.clone();
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = std::fs::remove_file(&path)
                            && error.kind() != std::io::ErrorKind::NotFound
                        {
                            tracing::error!("Failed to delete {}: {error}", path.display());
                        }
                        let _ = internal.send(Internal::Freed { segment });
                    });
                }
            }
        }
    }

    /// The workers are gone: nothing of it stays in memory.
    pub(super) async fn end_cache(&self) {
        self.cache_ends.store(true, Ordering::Relaxed);
        let Some(folder) = self.cache.folder() else { return };
        let deleted = tokio::task::spawn_blocking(move || segment::delete_folder(&folder)).await;
        if let Ok(Err(why)) = deleted {
            tracing::warn!("Weights stay in memory until the next start: {why}");
        }
    }

    /// A copy into memory has ended.
    pub(super) fn filled(&mut self, segment: &SegmentId, outcome: Result<u64, String>) {
        match &outcome {
            Ok(bytes) => tracing::info!("Keeping weights in memory as {segment}: {bytes} bytes"),
            Err(why) => tracing::warn!("Weights are not kept in memory: {why}"),
        }
        let state = match &outcome {
            Ok(_) => SegmentChange::Ready,
            Err(_) => SegmentChange::Failed,
        };
        let reason = outcome.as_ref().err().cloned();
        self.cache.filled(segment, outcome);
        self.tell_segment(segment, state, reason);
    }

    /// A segment's file is deleted.
    pub(super) fn freed(&mut self, segment: &SegmentId) {
        self.cache.freed(segment);
        self.tell_segment(segment, SegmentChange::Freed, None);
    }

    fn tell_segment(&self, segment: &SegmentId, state: SegmentChange, reason: Option<String>) {
        metrics::gauge!("calotype_weight_cache_bytes").set(self.cache.used_bytes() as f64);
        self.log.append(
            now_ms(),
            EventKind::Segment {
                segment: segment.to_string(),
                state,
                reason,
            },
        );
    }
}
