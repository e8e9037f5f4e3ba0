//! What there is in a virtual world: devices, models, jobs, and the demand that a job makes of the scheduler.

use std::sync::Arc;
use std::time::Duration;

use calotype_protocol::{Capabilities, Mode, ModelId, Sampler, Schedule};

use crate::inference::{ModelNeed, Needs, WorkShape};
use crate::processing::{Class, Demand};

/// Family, format and runtime that every virtual worker serves.
pub(super) const FAMILY: &str = "sd";
const FORMAT: &str = "diffusers";
/// Working set of a picture, as `inference::estimate` guesses it for CUDA: what room for runs is counted with.
const BYTES_A_PIXEL: u64 = 2048;
const BYTES_A_RUN: u64 = 128 << 20;

/// A virtual device with its one worker.
#[derive(Debug, Clone)]
pub(super) struct DeviceSpec {
    /// Work that it does a millisecond when one run is alone, in milliseconds of work.
    pub(super) speed: f64,
    /// Most runs at a time.
    pub(super) places: u32,
    /// What each further run in the batch adds to the throughput; 0 where the device is merely shared.
    pub(super) batching_gain: f64,
    pub(super) budget_bytes: u64,
    pub(super) load_bytes_per_ms: f64,
    pub(super) load_base_ms: f64,
    pub(super) loads_beside_runs: bool,
}

impl DeviceSpec {
    /// Memory for `rooms` models, and for runs of `edge` pixels in every place.
    pub(super) fn with_room(rooms: u64, model_bytes: u64, places: u32, edge: u32) -> Self {
        let run_bytes = BYTES_A_RUN + BYTES_A_PIXEL * u64::from(edge) * u64::from(edge);
        Self {
            speed: 1.0,
            places,
            batching_gain: 0.1,
            budget_bytes: rooms * model_bytes + u64::from(places) * run_bytes,
            load_bytes_per_ms: 1.0e6,
            load_base_ms: 50.0,
            loads_beside_runs: false,
        }
    }

    /// Work a millisecond with so many runs.
    pub(super) fn throughput(&self, runs: usize) -> f64 {
        self.speed * (1.0 + self.batching_gain * runs.saturating_sub(1) as f64)
    }

    /// Work a millisecond at most.
    pub(super) fn capacity(&self) -> f64 {
        self.throughput(self.places as usize)
    }

    pub(super) fn load_ms(&self, bytes: u64) -> f64 {
        self.load_base_ms + bytes as f64 / self.load_bytes_per_ms
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        Capabilities {
            engine: "virtual".into(),
            families: vec![FAMILY.into()],
            formats: vec![FORMAT.into()],
            modes: vec![Mode::TextToImage],
            samplers: vec![Sampler::Euler],
            schedules: vec![Schedule::Default],
            loads_beside_runs: self.loads_beside_runs,
            max_batch: self.places,
            pauses: true,
            max_edge: 16_384,
            ..Capabilities::default()
        }
    }
}

/// A virtual model.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) id: ModelId,
    pub(super) bytes: u64,
    /// Device time of a megapixel and sampler step at speed 1, in milliseconds.
    pub(super) unit_ms: f64,
}

impl Model {
    pub(super) fn new(name: &str, bytes: u64, unit_ms: f64) -> Self {
        Self {
            id: ModelId(name.to_owned()),
            bytes,
            unit_ms,
        }
    }
}

/// What a client submits.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) client: Arc<str>,
    pub(super) class: Class,
    /// By its index in the world.
    pub(super) model: usize,
    pub(super) edge: u32,
    pub(super) steps: u32,
    /// Whether a worker crashed with it before: it must be alone.
    pub(super) is_suspect: bool,
}

impl Job {
    /// A picture of 512 pixels in 20 steps, of somebody who waits for it.
    pub(super) fn of(model: usize) -> Self {
        Self {
            client: "client".into(),
            class: Class::Interactive,
            model,
            edge: 512,
            steps: 20,
            is_suspect: false,
        }
    }

    pub(super) fn by(self, client: &Arc<str>) -> Self {
        Self {
            client: Arc::clone(client),
            ..self
        }
    }

    pub(super) fn in_class(self, class: Class) -> Self {
        Self { class, ..self }
    }

    pub(super) fn sized(self, edge: u32, steps: u32) -> Self {
        Self { edge, steps, ..self }
    }

    /// Megapixels times sampler steps, the decoding counted as two.
    pub(super) fn work_units(&self) -> f64 {
        f64::from(self.edge) * f64::from(self.edge) / 1e6 * (f64::from(self.steps) + 2.0)
    }

    /// Device time alone at speed 1.
    pub(super) fn work_ms(&self, model: &Model) -> f64 {
        self.work_units() * model.unit_ms
    }

    pub(super) fn demand(&self, model: &Model) -> Demand {
        let needs = Needs {
            families: vec![FAMILY.into()],
            formats: vec![FORMAT.into()],
            mode: Mode::TextToImage,
            sampler: Sampler::Euler,
            schedule: Schedule::Default,
            adapters: Vec::new(),
            edge: self.edge,
        };
        let need = ModelNeed {
            model: model.id.clone(),
            single_bytes: model.bytes * 2,
            half_bytes: model.bytes,
        };
        let shape = WorkShape {
            family: FAMILY.into(),
            models: vec![model.id.clone()],
            width: self.edge,
            height: self.edge,
            images: 1,
            is_guided: true,
            mode: Mode::TextToImage,
        };
        Demand {
            needs: Arc::new(needs),
            models: Arc::from([need]),
            adapters: None,
            shape: Arc::new(shape),
            exclusive: self.is_suspect,
            refused_by: Vec::new(),
        }
    }
}

/// How long the parts of the engine take that are not devices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delays {
    /// From a write to its commit.
    pub(super) journal: Duration,
    /// From a claim in the journal to the work that goes down.
    pub(super) prepare: Duration,
    /// From a result to its stored pictures.
    pub(super) outputs: Duration,
}

impl Delays {
    pub(super) const USUAL: Self = Self {
        journal: Duration::from_millis(2),
        prepare: Duration::from_millis(1),
        outputs: Duration::from_millis(20),
    };
}

/// Numbers that look random and are the same in every run (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// At least 0, less than 1.
    pub(super) fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Less than `most`.
    pub(super) fn below(&mut self, most: usize) -> usize {
        (self.part() * most as f64) as usize
    }

    /// Time to the next arrival of a Poisson stream.
    pub(super) fn pause_ms(&mut self, mean_ms: f64) -> f64 {
        -(1.0 - self.part()).ln() * mean_ms
    }

    /// An index below `most` by Zipf's law: the second half as often as the first, the third a third as often.
    pub(super) fn zipf(&mut self, most: usize) -> usize {
        let whole: f64 = (1..=most).map(|rank| 1.0 / rank as f64).sum();
        let mut left = self.part() * whole;
        for index in 0..most {
            left -= 1.0 / (index + 1) as f64;
            if left < 0.0 {
                return index;
            }
        }
        most.saturating_sub(1)
    }
}

/// A span of milliseconds.
pub(super) fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64((ms / 1e3).max(0.0))
}
