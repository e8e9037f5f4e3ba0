//! Weights on their way into workers: the files of a load looked at, what of them waits in host memory taken from there, and
//! the cache of weights tended. `memory::weight_cache` decides, `model::segment` copies; this carries both out for the driver.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use calotype_protocol::{Down, Failure, Frame, Load, LoadId, Loaded, Offload, Outcome, Segment, SegmentId};
use tokio::sync::mpsc;

use super::message::Internal;
use crate::memory::weight_cache::{Source, Step, WeightCache};
use crate::model::segment;
use crate::processing::schedule::WorkerId;

/// Longest look at the files of a model.
const LOOK_MOST: Duration = Duration::from_secs(5);
/// Longest that a load waits until its weights are in memory.
const COPY_MOST: Duration = Duration::from_secs(120);

/// A load between the core's decision and its end.
struct LoadUnderWay {
    worker: WorkerId,
    worker_name: String,
    incarnation: u64,
    offload: Offload,
    /// What of it comes from memory.
    segments: Vec<SegmentId>,
    /// What of it comes from files.
    read: Vec<Source>,
    prepared: Option<PreparedLoad>,
}

/// A load whose files were looked at, held until its weights are in memory.
struct PreparedLoad {
    load: Load,
    /// By role.
    sources: Vec<(String, Source)>,
    /// Whether it waits until they are in memory, if they will be there soon.
    waits: bool,
}

/// A line for a worker.
pub(super) struct Line {
    pub(super) worker: WorkerId,
    pub(super) incarnation: u64,
    pub(super) frame: Frame<Down>,
}

/// The cache and every load under way.
pub(super) struct Weights {
    cache: WeightCache,
    loads: HashMap<LoadId, LoadUnderWay>,
    /// Tells a copy that is being made that nobody wants it any more.
    is_ending: Arc<AtomicBool>,
    internal: mpsc::UnboundedSender<Internal>,
}

impl Weights {
    pub(super) fn new(cache: WeightCache, internal: mpsc::UnboundedSender<Internal>) -> Self {
        Self {
            cache,
            loads: HashMap::new(),
            is_ending: Arc::default(),
            internal,
        }
    }

    pub(super) fn cache(&self) -> &WeightCache {
        &self.cache
    }

    /// A load was decided. One that may come from memory is looked at first; else the line is answered at once.
    pub(super) fn load(
        &mut self,
        worker: WorkerId,
        worker_name: &str,
        incarnation: u64,
        load: Load,
        takes_segments: bool,
    ) -> Option<Line> {
        let under_way = LoadUnderWay {
            worker,
            worker_name: worker_name.to_owned(),
            incarnation,
            offload: load.plan.offload,
            segments: Vec::new(),
            read: Vec::new(),
            prepared: None,
        };
        self.loads.insert(load.load.clone(), under_way);
        if !takes_segments || !self.cache.is_on() {
            return Some(Line {
                worker,
                incarnation,
                frame: Down::Load(load).into(),
            });
        }
        let (internal, components) = (self.internal.clone(), load.model.components.clone());
        tokio::spawn(async move {
            let looked = tokio::task::spawn_blocking(move || segment::sources(&components));
            // A file system that does not answer is the worker's to wait for: it has a deadline, and dies alone.
            let sources = match tokio::time::timeout(LOOK_MOST, looked).await {
                Ok(Ok(sources)) => sources,
                Ok(Err(_)) | Err(_) => Vec::new(),
            };
            let load = Box::new(load);
            let _ = internal.send(Internal::FilesFound { load, sources });
        });
        None
    }

    /// The files of a load were looked at.
    pub(super) fn files_found(&mut self, load: Load, sources: Vec<(String, Source)>) {
        let Some(under_way) = self.loads.get_mut(&load.load) else {
            return;
        };
        // What waits on the host goes to the device again and again, and from page-locked memory in an eighth of the time.
        let mut waits = false;
        if under_way.offload != Offload::None {
            for (_, source) in &sources {
                if !self.cache.is_ready(source) {
                    self.cache.want(source.clone());
                    waits = true;
                }
            }
        }
        if waits {
            let (internal, load) = (self.internal.clone(), load.load.clone());
            tokio::spawn(async move {
                // A copy that does not come: the worker reads the files, with a deadline.
                tokio::time::sleep(COPY_MOST).await;
                let _ = internal.send(Internal::WaitedForCopies { load });
            });
        }
        under_way.prepared = Some(PreparedLoad { load, sources, waits });
    }

    /// A load shall not wait for its weights any longer.
    pub(super) fn waited(&mut self, load: &LoadId) {
        let under_way = self.loads.get_mut(load);
        if let Some(prepared) = under_way.and_then(|under_way| under_way.prepared.as_mut()) {
            prepared.waits = false;
        }
    }

    /// The loads that wait for nothing any more, with what of them is in memory.
    pub(super) fn due_lines(&mut self) -> Vec<Line> {
        let cache = &mut self.cache;
        let mut lines = Vec::new();
        for under_way in self.loads.values_mut() {
            let is_due = |prepared: &mut PreparedLoad| {
                !prepared.waits || !prepared.sources.iter().any(|(_, source)| cache.is_coming(source))
            };
            let Some(prepared) = under_way.prepared.take_if(is_due) else {
                continue;
            };
            let (mut load, mut segments) = (prepared.load, BTreeMap::<String, Segment>::new());
            for (role, source) in prepared.sources {
                match cache.serve(&source, &under_way.worker_name) {
                    Some(segment) => {
                        under_way.segments.push(segment.id.clone());
                        segments.insert(role, segment);
                    }
                    None => under_way.read.push(source),
                }
            }
            load.model.segments = segments;
            lines.push(Line {
                worker: under_way.worker,
                incarnation: under_way.incarnation,
                frame: Down::Load(load).into(),
            });
        }
        lines
    }

    /// A model is loaded: the next time its files shall come from memory.
    pub(super) fn loaded(&mut self, loaded: &Loaded) {
        let Some(under_way) = self.loads.remove(&loaded.load) else {
            return;
        };
        tracing::info!(
            "`{}` took {} components from memory and {} from files",
            loaded.model,
            under_way.segments.len(),
            under_way.read.len()
        );
        // What waits on the host was wanted before it was loaded, and once.
        if under_way.offload == Offload::None {
            for source in under_way.read {
                self.cache.want(source);
            }
        }
    }

    /// A load failed; whether it had taken weights from memory, which are not trusted any more.
    pub(super) fn load_failed(&mut self, load: &LoadId, failure: &Failure) -> bool {
        let Some(under_way) = self.loads.remove(load) else {
            return false;
        };
        let from_memory = failure.outcome == Outcome::ModelLoad && !under_way.segments.is_empty();
        if from_memory {
            tracing::warn!("A model was not loaded from memory ({load}); it is tried from its files");
            for segment in &under_way.segments {
                self.cache.distrust(segment);
            }
        }
        from_memory
    }

    /// A worker has unmapped a segment.
    pub(super) fn released(&mut self, segment: &SegmentId, worker_name: &str) {
        self.cache.released(segment, worker_name);
    }

    /// A worker's process is dead: it maps nothing any more, and its loads are over.
    pub(super) fn worker_gone(&mut self, worker: WorkerId, worker_name: &str) {
        self.loads.retain(|_, under_way| under_way.worker != worker);
        self.cache.worker_gone(worker_name);
    }

    /// Does what the cache says; the segments that workers are to release, by the worker's name.
    pub(super) fn tend(&mut self) -> Vec<(String, Down)> {
        let mut lines = Vec::new();
        for step in self.cache.next() {
            match step {
                Step::Fill {
                    segment,
                    path,
                    source,
                } => {
                    let (internal, is_ending) = (self.internal.clone(), Arc::clone(&self.is_ending));
                    tokio::task::spawn_blocking(move || {
                        let outcome = segment::fill(&source, &path, &is_ending);
                        let _ = internal.send(Internal::SegmentFilled { segment, outcome });
                    });
                }
                Step::Release { segment, worker } => lines.push((worker, Down::Release { segment })),
                Step::Free { segment, path } => {
                    let internal = self.internal.clone();
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = std::fs::remove_file(&path)
                            && error.kind() != std::io::ErrorKind::NotFound
                        {
                            tracing::error!("Failed to delete {}: {error}", path.display());
                        }
                        let _ = internal.send(Internal::SegmentFreed { segment });
                    });
                }
            }
        }
        lines
    }

    /// A copy into memory has ended.
    pub(super) fn filled(&mut self, segment: &SegmentId, outcome: Result<u64, String>) {
        match &outcome {
            Ok(bytes) => tracing::info!("Keeping weights in memory as {segment}: {bytes} bytes"),
            Err(why) => tracing::warn!("Weights are not kept in memory: {why}"),
        }
        self.cache.filled(segment, outcome);
        self.count();
    }

    /// A segment's file is deleted.
    pub(super) fn freed(&mut self, segment: &SegmentId) {
        self.cache.freed(segment);
        self.count();
    }

    /// The workers are gone: nothing stays in memory.
    pub(super) async fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        let Some(folder) = self.cache.folder() else { return };
        let deleted = tokio::task::spawn_blocking(move || segment::delete_folder(&folder)).await;
        if let Ok(Err(why)) = deleted {
            tracing::warn!("Weights stay in memory until the next start: {why}");
        }
    }

    fn count(&self) {
        metrics::gauge!("calotype_weight_cache_bytes").set(self.cache.used_bytes() as f64);
    }
}
