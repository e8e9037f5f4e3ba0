//! Artifacts that were stored or read most recently, in memory within a bound of bytes: a client that fetches the picture
//! that was just made does not wait for the disk. Every entry is on disk as well, unless it was deleted meanwhile. An entry
//! can be missing but never wrong, because an address is the hash of its bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::artifact::ArtifactHash;

/// What the cache holds by default.
pub const BUDGET_BYTES: u64 = 64 << 20;

/// The cache. Cheap to clone; all clones are the same cache.
#[derive(Debug, Clone)]
pub struct ArtifactCache {
    entries: Arc<Mutex<Entries>>,
}

#[derive(Debug)]
struct Entries {
    budget_bytes: u64,
    used_bytes: u64,
    /// Counts every use; larger is later.
    uses: u64,
    by_hash: HashMap<ArtifactHash, (u64, Bytes)>,
    /// The same by their last use.
    by_use: BTreeMap<u64, ArtifactHash>,
}

impl Default for ArtifactCache {
    fn default() -> Self {
        Self::new(BUDGET_BYTES)
    }
}

impl ArtifactCache {
    /// An empty cache that holds at most `budget_bytes`.
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            entries: Arc::new(Mutex::new(Entries {
                budget_bytes,
                used_bytes: 0,
                uses: 0,
                by_hash: HashMap::new(),
                by_use: BTreeMap::new(),
            })),
        }
    }

    /// The bytes of an artifact, without a copy.
    pub fn get(&self, hash: &ArtifactHash) -> Option<Bytes> {
        let mut entries = self.entries();
        let used = entries.next_use();
        let (last, bytes) = entries.by_hash.get_mut(hash)?;
        let (before, bytes) = (std::mem::replace(last, used), bytes.clone());
        entries.by_use.remove(&before);
        entries.by_use.insert(used, hash.clone());
        Some(bytes)
    }

    /// Keeps an artifact that is on disk, in place of those that were used longest ago. One that is larger than a quarter
    /// of the budget is not kept: it would push out everything else.
    pub fn put(&self, hash: ArtifactHash, bytes: Bytes) {
        let mut entries = self.entries();
        let need_bytes = bytes.len() as u64;
        if need_bytes > entries.budget_bytes / 4 {
            return;
        }
        entries.remove(&hash);
        while entries.used_bytes + need_bytes > entries.budget_bytes {
            let Some((_, oldest)) = entries.by_use.first_key_value() else {
                break;
            };
            let oldest = oldest.clone();
            entries.remove(&oldest);
        }
        let used = entries.next_use();
        entries.used_bytes += need_bytes;
        entries.by_use.insert(used, hash.clone());
        entries.by_hash.insert(hash, (used, bytes));
    }

    /// Forgets an artifact whose file was deleted.
    pub fn forget(&self, hash: &ArtifactHash) {
        self.entries().remove(hash);
    }

    /// What it holds now.
    pub fn used_bytes(&self) -> u64 {
        self.entries().used_bytes
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Nothing between lock and unlock can panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    fn remove(&mut self, hash: &ArtifactHash) {
        if let Some((used, bytes)) = self.by_hash.remove(hash) {
            self.by_use.remove(&used);
            self.used_bytes -= bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(number: u8, length: usize) -> (ArtifactHash, Bytes) {
        let bytes = Bytes::from(vec![number; length]);
        (ArtifactHash::of(&bytes), bytes)
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let cache = ArtifactCache::new(400);
        let all: Vec<_> = (0..4).map(|number| bytes(number, 100)).collect();
        for (hash, bytes) in &all {
            cache.put(hash.clone(), bytes.clone());
        }
        assert_eq!(cache.get(&all[0].0).as_ref(), Some(&all[0].1));
        let (hash, new) = bytes(9, 50);
        cache.put(hash, new);
        let kept: Vec<bool> = all.iter().map(|(hash, _)| cache.get(hash).is_some()).collect();
        assert_eq!(kept, [true, false, true, true]);
        assert_eq!(cache.used_bytes(), 350);
    }

    #[test]
    fn an_answer_is_the_memory_that_was_put() {
        let cache = ArtifactCache::default();
        let (hash, picture) = bytes(1, 1000);
        cache.put(hash.clone(), picture.clone());
        assert_eq!(cache.get(&hash).unwrap().as_ptr(), picture.as_ptr());
    }

    #[test]
    fn one_that_is_too_large_pushes_nothing_out() {
        let cache = ArtifactCache::new(400);
        let (small, large) = (bytes(1, 100), bytes(2, 101));
        cache.put(small.0.clone(), small.1);
        cache.put(large.0.clone(), large.1);
        assert!(cache.get(&small.0).is_some() && cache.get(&large.0).is_none());
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_what_is_there_is_right(
            deeds in prop::collection::vec((0u8..12, 0usize..120, 0u8..3), 0..80),
        ) {
            let cache = ArtifactCache::new(300);
            for (number, length, deed) in deeds {
                let (hash, picture) = bytes(number, length);
                match deed {
                    0 => cache.put(hash.clone(), picture.clone()),
                    1 => cache.forget(&hash),
                    _ => {}
                }
                if let Some(found) = cache.get(&hash) {
                    prop_assert_eq!(found, picture);
                    prop_assert_ne!(deed, 1);
                }
                let entries = cache.entries();
                let sum: usize = entries.by_hash.values().map(|(_, bytes)| bytes.len()).sum();
                prop_assert_eq!(entries.used_bytes, sum as u64);
                prop_assert!(entries.used_bytes <= 300);
                prop_assert_eq!(entries.by_use.len(), entries.by_hash.len());
            }
        }
    }
}
