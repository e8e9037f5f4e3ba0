//! Which weights wait in host memory, once for all workers, and when they make room. Pure: `model::segment` copies, the
//! dispatcher does what `next` says.
//!
//! A segment holds what one component of a model has in its files. A worker that maps it takes the weights to its device
//! at the rate of the bus, where a file costs several times as long.
//!
//! ```text
//!  wanted ──▶ filling ──▶ ready ──▶ leaving ──▶ freeing ──▶ gone
//!                └──────── failed ──────────────▲
//! ```
//! A segment takes its room until every worker that maps it has released it or is dead, and its file is deleted.

mod source;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};

use calotype_protocol::{Segment, SegmentId};

use super::view::{CacheView, SegmentView};
pub(crate) use source::{Source, Stamp};

/// Sources that are remembered beside those that are held: what was wanted once, and what could not be copied. Beyond them
/// everything that is not held is forgotten, and looked at anew.
const REMEMBERED_MOST: usize = 4096;

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Copy a component's files; answered by `filled`.
    Fill {
        segment: SegmentId,
        path: PathBuf,
        source: Source,
    },
    /// Ask a worker to unmap it; answered by `released`, or by the worker's death.
    Release { segment: SegmentId, worker: String },
    /// Delete its file; answered by `freed`.
    Free { segment: SegmentId, path: PathBuf },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Filling,
    Ready,
    /// `told`: whether the workers that map it were asked to release it.
    Leaving {
        told: bool,
    },
    Freeing,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Ready => "ready",
            Self::Leaving { .. } | Self::Freeing => "leaving",
        }
    }
}

#[derive(Debug)]
struct Entry {
    source: Source,
    path: PathBuf,
    bytes: u64,
    state: State,
    mapped_by: BTreeSet<String>,
    last_use: u64,
}

/// The cache. One an engine; only the dispatcher changes it.
#[derive(Debug, Default)]
pub(crate) struct WeightCache {
    dir: PathBuf,
    budget_bytes: u64,
    entries: BTreeMap<SegmentId, Entry>,
    wanted: VecDeque<Source>,
    /// How often each was wanted.
    times: HashMap<Source, u32>,
    /// What could not be copied, or not be loaded from its copy.
    bad: HashSet<Source>,
    made: u64,
    uses: u64,
    hits: u64,
    misses: u64,
    evictions: u64,
}

impl WeightCache {
    /// An empty cache in a folder of shared memory; with a budget of 0 it never holds anything.
    pub(crate) fn new(dir: PathBuf, budget_bytes: u64) -> Self {
        Self {
            dir,
            budget_bytes,
            ..Self::default()
        }
    }

    /// Keeps what is remembered within its bound.
    fn forget(&mut self) {
        let held: HashSet<Source> = match self.times.len().max(self.bad.len()) {
            0..=REMEMBERED_MOST => return,
            _ => self.entries.values().map(|entry| entry.source.clone()).collect(),
        };
        self.times.retain(|source, _| held.contains(source));
        self.bad.retain(|source| held.contains(source));
    }

    /// Whether it can hold anything.
    pub(crate) fn is_on(&self) -> bool {
        self.budget_bytes > 0
    }

    /// The most that it may hold.
    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Its folder; none where it is off.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        self.is_on().then(|| self.dir.clone())
    }

    /// Room that is taken, by what leaves too.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes).sum()
    }

    /// The segment of a component, which the worker maps from now on. A copy of what the files were before leaves.
    pub(crate) fn serve(&mut self, source: &Source, worker: &str) -> Option<Segment> {
        self.uses += 1;
        let mut found = None;
        for (id, entry) in &mut self.entries {
            if entry.state != State::Ready {
                continue;
            }
            if entry.source == *source {
                entry.last_use = self.uses;
                entry.mapped_by.insert(worker.to_owned());
                found = Some(Segment {
                    id: id.clone(),
                    path: entry.path.display().to_string(),
                    bytes: entry.bytes,
                });
            } else if entry.source.is_of_the_same_files(source) {
                entry.state = State::Leaving { told: false };
            }
        }
        match found {
            Some(_) => self.hits += 1,
            None => self.misses += 1,
        }
        found
    }

    /// Whether a component will be in memory soon: its copy is being made, or is among the next, and nobody has to leave.
    pub(crate) fn is_coming(&self, source: &Source) -> bool {
        let wanted_bytes = self.wanted.iter().map(Source::bytes).fold(0, u64::saturating_add);
        let is_next = self.wanted.contains(source) && wanted_bytes <= self.free_bytes();
        is_next || self.stays(source) == Some(State::Filling)
    }

    /// Whether a worker could map a component now.
    pub(crate) fn is_ready(&self, source: &Source) -> bool {
        self.stays(source) == Some(State::Ready)
    }

    /// Whether a component's copy is made or being made, and not about to leave.
    fn stays(&self, source: &Source) -> Option<State> {
        let stays = |entry: &&Entry| matches!(entry.state, State::Ready | State::Filling);
        let mut staying = self.entries.values().filter(stays);
        staying
            .find(|entry| entry.source == *source)
            .map(|entry| entry.state)
    }

    fn free_bytes(&self) -> u64 {
        self.budget_bytes.saturating_sub(self.used_bytes())
    }

    /// A component shall come from memory: the next time that a worker takes it, or this time, if that waits.
    pub(crate) fn want(&mut self, source: Source) {
        if !self.is_on() || self.wanted.contains(&source) {
            return;
        }
        *self.times.entry(source.clone()).or_default() += 1;
        self.forget();
        self.wanted.push_back(source);
    }

    /// The copy is made, and is so large; or why not.
    pub(crate) fn filled(&mut self, segment: &SegmentId, outcome: Result<u64, String>) {
        let Some(entry) = self.entries.get_mut(segment) else {
            return;
        };
        match outcome {
            Ok(bytes) => {
                entry.bytes = bytes;
                if entry.state == State::Filling {
                    entry.state = State::Ready;
                }
            }
            Err(_) => {
                self.bad.insert(entry.source.clone());
                entry.state = State::Leaving { told: false };
            }
        }
    }

    /// A worker could not load from it: it leaves, and its files are not copied again.
    pub(crate) fn distrust(&mut self, segment: &SegmentId) {
        if let Some(entry) = self.entries.get_mut(segment) {
            self.bad.insert(entry.source.clone());
            if entry.state == State::Ready {
                entry.state = State::Leaving { told: false };
            }
        }
    }

    /// A worker has unmapped it.
    pub(crate) fn released(&mut self, segment: &SegmentId, worker: &str) {
        if let Some(entry) = self.entries.get_mut(segment) {
            entry.mapped_by.remove(worker);
        }
    }

    /// A worker is dead, and its mappings with it.
    pub(crate) fn worker_gone(&mut self, worker: &str) {
        for entry in self.entries.values_mut() {
            entry.mapped_by.remove(worker);
        }
    }

    /// Its file is deleted: the room is there.
    pub(crate) fn freed(&mut self, segment: &SegmentId) {
        self.entries.remove(segment);
    }

    /// What is to be done now; each step is told once.
    pub(crate) fn next(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        self.admit(&mut steps);
        for (id, entry) in &mut self.entries {
            let State::Leaving { told } = entry.state else {
                continue;
            };
            if entry.mapped_by.is_empty() {
                entry.state = State::Freeing;
                steps.push(Step::Free {
                    segment: id.clone(),
                    path: entry.path.clone(),
                });
            } else if !told {
                entry.state = State::Leaving { told: true };
                let releases = entry.mapped_by.iter().map(|worker| Step::Release {
                    segment: id.clone(),
                    worker: worker.clone(),
                });
                steps.extend(releases);
            }
        }
        steps
    }

    /// Begins the next copy that there is room for, or makes others leave for it. One copy at a time: several would
    /// take each other the disk.
    fn admit(&mut self, steps: &mut Vec<Step>) {
        while let Some(source) = self.wanted.front() {
            let states = || self.entries.values().map(|entry| entry.state);
            if states().any(|state| state == State::Filling) {
                return;
            }
            let bytes = source.bytes();
            if self.stays(source).is_some() || bytes > self.budget_bytes || self.bad.contains(source) {
                self.wanted.pop_front();
                continue;
            }
            let free_bytes = self.free_bytes();
            if bytes <= free_bytes {
                if let Some(source) = self.wanted.pop_front() {
                    steps.push(self.begin(source));
                }
                continue;
            }
            if self.make_room(bytes - free_bytes, source.clone()) {
                return;
            }
            self.wanted.pop_front();
        }
    }

    fn begin(&mut self, source: Source) -> Step {
        self.made += 1;
        self.uses += 1;
        let segment = SegmentId(format!("weights-{}", self.made));
        let path = self.dir.join(&segment.0);
        let entry = Entry {
            source: source.clone(),
            path: path.clone(),
            bytes: source.bytes(),
            state: State::Filling,
            mapped_by: BTreeSet::new(),
            last_use: self.uses,
        };
        self.entries.insert(segment.clone(), entry);
        Step::Fill {
            segment,
            path,
            source,
        }
    }

    /// Makes the longest unused leave until there is so much room. Only for what was wanted before: models that come by
    /// once in turn would push each other out for nothing.
    fn make_room(&mut self, short_bytes: u64, source: Source) -> bool {
        let is_leaving = |entry: &Entry| matches!(entry.state, State::Leaving { .. } | State::Freeing);
        let mut coming_bytes: u64 = self
            .entries
            .values()
            .filter(|entry| is_leaving(entry))
            .map(|entry| entry.bytes)
            .sum();
        if coming_bytes >= short_bytes {
            return true;
        }
        if self.times.get(&source).copied().unwrap_or(0) < 2 {
            return false;
        }
        let mut idle: Vec<&mut Entry> = self
            .entries
            .values_mut()
            .filter(|entry| entry.state == State::Ready)
            .collect();
        idle.sort_by_key(|entry| entry.last_use);
        for entry in idle {
            if coming_bytes >= short_bytes {
                break;
            }
            coming_bytes += entry.bytes;
            entry.state = State::Leaving { told: false };
            self.evictions += 1;
        }
        coming_bytes >= short_bytes
    }

    /// For people; `None` where it is off.
    pub(crate) fn view(&self) -> Option<CacheView> {
        self.is_on().then(|| CacheView {
            folder: shown(&self.dir),
            budget_bytes: self.budget_bytes,
            used_bytes: self.used_bytes(),
            hits: self.hits,
            misses: self.misses,
            evictions: self.evictions,
            segments: self
                .entries
                .iter()
                .map(|(id, entry)| SegmentView {
                    id: id.0.clone(),
                    state: entry.state.name().into(),
                    bytes: entry.bytes,
                    files: entry.source.files.iter().map(|file| shown(&file.path)).collect(),
                    mapped_by: entry.mapped_by.iter().cloned().collect(),
                })
                .collect(),
        })
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests;
