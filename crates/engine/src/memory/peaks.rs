//! What jobs of a shape really took: corrects the estimate of the next one. Pure; the store keeps the figures.

use std::collections::HashMap;

/// Shapes whose figures are kept; beyond them the longest unmeasured is forgotten, and guessed again.
const KEPT_MOST: usize = 4096;

/// Measured working sets by shape of work.
#[derive(Debug, Clone, Default)]
pub struct Peaks {
    by_shape: HashMap<String, Peak>,
    measurements: u64,
}

#[derive(Debug, Clone, Copy)]
struct Peak {
    highest_bytes: u64,
    /// Number of the measurement.
    measured: u64,
}

impl Peaks {
    /// From the store.
    pub fn new(kept: impl IntoIterator<Item = (String, u64)>) -> Self {
        let mut peaks = Self::default();
        for (shape, bytes) in kept {
            peaks.measured(&shape, bytes);
        }
        peaks
    }

    /// The need of a shape: measured, with a twentieth to spare, or else the guess. The flag says which.
    pub fn need_bytes(&self, shape: &str, guess_bytes: u64) -> (u64, bool) {
        match self.by_shape.get(shape) {
            Some(peak) => (peak.highest_bytes.saturating_add(peak.highest_bytes / 20), true),
            None => (guess_bytes, false),
        }
    }

    /// Takes a measurement in; says whether it is news for the store.
    pub fn measured(&mut self, shape: &str, bytes: u64) -> bool {
        self.measurements += 1;
        let measured = self.measurements;
        if let Some(peak) = self.by_shape.get_mut(shape) {
            let is_news = bytes > peak.highest_bytes;
            peak.highest_bytes = bytes.max(peak.highest_bytes);
            peak.measured = measured;
            return is_news;
        }
        if self.by_shape.len() >= KEPT_MOST {
            let oldest = self.by_shape.iter().min_by_key(|(_, peak)| peak.measured);
            if let Some(oldest) = oldest.map(|(shape, _)| shape.clone()) {
                self.by_shape.remove(&oldest);
            }
        }
        let peak = Peak {
            highest_bytes: bytes,
            measured,
        };
        self.by_shape.insert(shape.to_owned(), peak);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measured_peak_replaces_the_guess_and_only_grows() {
        let mut peaks = Peaks::default();
        assert_eq!(peaks.need_bytes("a", 500), (500, false));
        assert!(peaks.measured("a", 100));
        assert!(!peaks.measured("a", 80));
        assert_eq!(peaks.need_bytes("a", 500), (105, true));
    }

    #[test]
    fn the_longest_unmeasured_shape_is_forgotten_when_there_are_too_many() {
        let mut peaks = Peaks::default();
        for shape in 0..KEPT_MOST {
            peaks.measured(&shape.to_string(), 1);
        }
        peaks.measured("0", 1);
        peaks.measured("one more", 1);
        assert_eq!(peaks.by_shape.len(), KEPT_MOST);
        assert!(peaks.need_bytes("0", 9).1 && !peaks.need_bytes("1", 9).1);
    }
}
