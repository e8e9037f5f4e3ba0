//! How long steps and loads take: learned from those that ended, for fairness and placement. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use calotype_protocol::ModelId;
use rustc_hash::FxHashMap;

/// Device time of one unit of work (a megapixel and sampler step) before anything was measured.
const GUESSED_UNIT_MS: f64 = 25.0;
/// Bytes a millisecond of a load before any was measured: a good disk.
const GUESSED_LOAD_BYTES_PER_MS: f64 = 1.0e6;
/// What a load takes beside its bytes, before any was measured.
const LOAD_BASE_MS: f64 = 50.0;
/// Weight of a new measurement in the running mean.
const NEW_WEIGHT: f64 = 0.3;
/// Models whose figures are kept; the rest are guessed.
const KEPT_MOST: usize = 4096;

/// Running means by model and kind of worker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Estimates {
    /// There are few kinds of workers, and many models.
    unit_ms: FxHashMap<ModelId, BTreeMap<Arc<str>, f64>>,
    load_bytes_per_ms: FxHashMap<Arc<str>, f64>,
}

impl Estimates {
    /// Device time that a step takes in a kind of worker, in milliseconds.
    pub(crate) fn run_ms(&self, model: &ModelId, kind: &Arc<str>, work_units: f64) -> f64 {
        let known = self.unit_ms.get(model).and_then(|kinds| kinds.get(kind));
        known.copied().unwrap_or(GUESSED_UNIT_MS) * work_units
    }

    /// Device time that a step takes wherever it was measured, else the guess.
    pub(crate) fn run_anywhere_ms(&self, model: &ModelId, work_units: f64) -> f64 {
        let known = self.unit_ms.get(model).into_iter().flat_map(BTreeMap::values);
        known.copied().reduce(f64::min).unwrap_or(GUESSED_UNIT_MS) * work_units
    }

    /// Time that a load of so many bytes takes in a kind of worker, in milliseconds.
    pub(crate) fn load_ms(&self, kind: &Arc<str>, bytes: u64) -> f64 {
        let rate = self
            .load_bytes_per_ms
            .get(kind)
            .copied()
            .unwrap_or(GUESSED_LOAD_BYTES_PER_MS);
        LOAD_BASE_MS + bytes as f64 / rate
    }

    /// A step has ended that had the device to itself for `device_ms` in all.
    pub(crate) fn ran(&mut self, model: &ModelId, kind: &Arc<str>, work_units: f64, device_ms: f64) {
        if work_units <= 0.0 || !device_ms.is_finite() || device_ms <= 0.0 {
            return;
        }
        if self.unit_ms.len() >= KEPT_MOST && !self.unit_ms.contains_key(model) {
            return;
        }
        let unit_ms = device_ms / work_units;
        let kinds = self.unit_ms.entry(model.clone()).or_default();
        let mean = kinds.entry(Arc::clone(kind)).or_insert(unit_ms);
        *mean = learned(*mean, unit_ms);
    }

    /// A load has ended.
    pub(crate) fn loaded(&mut self, kind: &Arc<str>, bytes: u64, ms: f64) {
        let moved_ms = (ms - LOAD_BASE_MS).max(1.0);
        if bytes > 0 {
            let rate = bytes as f64 / moved_ms;
            let mean = self.load_bytes_per_ms.entry(Arc::clone(kind)).or_insert(rate);
            *mean = learned(*mean, rate);
        }
    }
}

fn learned(mean: f64, measured: f64) -> f64 {
    mean + NEW_WEIGHT * (measured - mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_replaces_the_guess_and_follows_later_figures() {
        let (mut estimates, kind, model) = (Estimates::default(), Arc::from("a@cuda"), ModelId::from("m"));
        assert!((estimates.run_ms(&model, &kind, 2.0) - 2.0 * GUESSED_UNIT_MS).abs() < 1e-9);
        estimates.ran(&model, &kind, 2.0, 200.0);
        assert!((estimates.run_ms(&model, &kind, 1.0) - 100.0).abs() < 1e-9);
        for _ in 0..40 {
            estimates.ran(&model, &kind, 1.0, 50.0);
        }
        assert!((estimates.run_anywhere_ms(&model, 1.0) - 50.0).abs() < 0.1);
        estimates.ran(&model, &kind, 0.0, f64::NAN);
        assert!(estimates.run_ms(&model, &kind, 1.0).is_finite());
    }
}
