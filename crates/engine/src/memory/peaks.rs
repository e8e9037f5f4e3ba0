//! What jobs of a shape really took: corrects the estimate of the next one. Pure; the store keeps the figures.

use std::collections::HashMap;
use std::sync::Arc;

use super::memory_plan::Slicing;

/// Measured working sets by shape of work.
#[derive(Debug, Clone, Default)]
pub struct Peaks {
    highest_bytes: HashMap<String, u64>,
}

impl Peaks {
    /// From the store.
    pub fn new(kept: impl IntoIterator<Item = (String, u64)>) -> Self {
        Self {
            highest_bytes: kept.into_iter().collect(),
        }
    }

    /// The need of a shape: measured, with a twentieth to spare, or else the guess. The flag says which.
    pub fn need_bytes(&self, shape: &str, guess_bytes: u64) -> (u64, bool) {
        match self.highest_bytes.get(shape) {
            Some(measured) => (measured.saturating_add(measured / 20), true),
            None => (guess_bytes, false),
        }
    }

    /// Takes a measurement in; says whether it is news for the store.
    pub fn measured(&mut self, shape: &str, bytes: u64) -> bool {
        let highest = self.highest_bytes.entry(shape.to_owned()).or_insert(0);
        let news = bytes > *highest;
        *highest = bytes.max(*highest);
        news
    }
}

/// What a job takes beside the weights, by what of it is done in slicing and by the kind of worker that runs it:
/// `python@cuda` takes other than `native@cpu`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkingSets {
    by_kind: Vec<(Arc<str>, ByPieces)>,
}

/// In the order of `Pieces::ALL`.
type ByPieces = [u64; Slicing::ALL.len()];

impl WorkingSets {
    /// In a worker of this kind; of one that nobody has spoken of, the most of all others.
    pub fn of(&self, kind: &str, slicing: Slicing) -> u64 {
        let in_pieces = |bytes: &ByPieces| bytes.get(slicing.index()).copied().unwrap_or(0);
        let own = self.by_kind.iter().find(|(known, _)| **known == *kind);
        let most = || self.by_kind.iter().map(|(_, bytes)| in_pieces(bytes)).max();
        own.map(|(_, bytes)| in_pieces(bytes)).or_else(most).unwrap_or(0)
    }
}

impl FromIterator<(Arc<str>, ByPieces)> for WorkingSets {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, ByPieces)>>(by_kind: I) -> Self {
        Self {
            by_kind: by_kind.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_of_an_unknown_kind_is_taken_for_the_hungriest() {
        let sliced = Slicing::ALL.map(|slicing| if slicing.attention { 1 } else { 3 });
        let sets = [("native@cpu".into(), [7; 6]), ("python@cuda".into(), sliced)];
        let sets: WorkingSets = sets.into_iter().collect();
        let of = |kind, attention| {
            let slicing = Slicing {
                attention,
                ..Slicing::default()
            };
            sets.of(kind, slicing)
        };
        assert_eq!((of("python@cuda", false), of("python@cuda", true)), (3, 1));
        assert_eq!(of("python@xpu", true), 7);
    }

    #[test]
    fn a_measured_peak_replaces_the_guess_and_only_grows() {
        let mut peaks = Peaks::default();
        assert_eq!(peaks.need_bytes("a", 500), (500, false));
        assert!(peaks.measured("a", 100));
        assert!(!peaks.measured("a", 80));
        assert_eq!(peaks.need_bytes("a", 500), (105, true));
    }
}
