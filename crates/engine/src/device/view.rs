//! A device and its workers as clients see them, and one reading of its sensors.

use calotype_protocol::{Capabilities, ModelId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A device of this host. What never changes comes first; the figures are those of `read_at_ms`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// Kind and index, for instance `cpu0`.
    pub id: String,
    /// `cpu`, `cuda` or `rocm`; as it is declared also `xpu`, `mps` or `directml`.
    pub kind: String,
    /// As its maker calls it.
    pub name: String,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The driver's name for this very card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Driver with its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Memory in all.
    pub total_bytes: u64,
    /// Memory that the driver calls free; `null` for a device that is only declared, because no driver is asked.
    #[serde(default)]
    pub free_bytes: Option<u64>,
    /// Per cent of the time that it was busy: a card by its driver's own window, the host since the reading before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilisation_percent: Option<u32>,
    /// Degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Power drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_mw: Option<u32>,
    /// Clock of the compute units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u32>,
    /// Clock of its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// Why the driver holds the clocks down, for instance `sw_power_cap`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub throttle_reasons: Vec<String>,
    /// When these figures were read, in milliseconds since 1970; `null` for a device that nothing can read.
    #[serde(default)]
    pub read_at_ms: Option<u64>,
}

impl Device {
    /// The device with the figures of a reading.
    #[must_use]
    pub fn with(self, reading: Reading) -> Self {
        let Reading {
            at_ms,
            free_bytes,
            utilisation_percent,
            temperature_c,
            power_mw,
            clock_mhz,
            memory_clock_mhz,
            throttle_reasons,
        } = reading;
        Self {
            free_bytes,
            utilisation_percent,
            temperature_c,
            power_mw,
            clock_mhz,
            memory_clock_mhz,
            throttle_reasons,
            read_at_ms: Some(at_ms),
            ..self
        }
    }

    /// Its figures as they stand here; `None` for a device that nothing can read.
    pub fn reading(&self) -> Option<Reading> {
        Some(Reading {
            at_ms: self.read_at_ms?,
            free_bytes: self.free_bytes,
            utilisation_percent: self.utilisation_percent,
            temperature_c: self.temperature_c,
            power_mw: self.power_mw,
            clock_mhz: self.clock_mhz,
            memory_clock_mhz: self.memory_clock_mhz,
            throttle_reasons: self.throttle_reasons.clone(),
        })
    }
}

/// What a device's sensors said at one moment. What a driver does not tell is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Memory that the driver calls free.
    pub free_bytes: Option<u64>,
    /// Per cent of the time that it was busy.
    pub utilisation_percent: Option<u32>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Power drawn.
    pub power_mw: Option<u32>,
    /// Clock of the compute units.
    pub clock_mhz: Option<u32>,
    /// Clock of its memory.
    pub memory_clock_mhz: Option<u32>,
    /// Why the driver holds the clocks down.
    pub throttle_reasons: Vec<String>,
}

/// A device with its workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceView {
    /// What the host and the driver say.
    pub device: Device,
    /// `available`, `busy`, `offline`, or `unserved` where no runtime here can use it.
    pub state: String,
    /// Its workers, the preferred one first.
    pub workers: Vec<WorkerView>,
}

/// A worker of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerView {
    /// Its name.
    pub name: String,
    /// The runtime that it is of, `native` or `python`.
    pub runtime: String,
    /// `asleep` (started when it is needed), `starting`, `ready` or `gone`.
    pub state: String,
    /// Its process, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Time since its last sign of life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_beat_ms_ago: Option<u64>,
    /// How many processes it has had.
    pub incarnation: u64,
    /// Why the last process went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// Name and version of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// What it said it can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Models resident in it.
    pub resident: Vec<ModelId>,
    /// Jobs inside.
    pub jobs: Vec<String>,
}
