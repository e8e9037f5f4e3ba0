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
    /// Product name.
    pub name: String,
    /// Manufacturer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Identifier that the driver gives this card; stays the same over restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Name and version of the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Size of its memory.
    pub total_bytes: u64,
    /// Memory that the driver calls free; `null` for a device that is only declared, because no driver is asked.
    #[serde(default)]
    pub free_bytes: Option<u64>,
    /// Per cent of the time that it was busy: for a card over its driver's window, for the host since the reading before.
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
    /// The device with the figures of this reading.
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

    /// The figures that it shows; `None` for a device without sensors.
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

/// The figures of a device's sensors at one moment. A figure that the driver does not have is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Milliseconds since 1970.
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
    /// Identity and figures, from the host and the driver.
    pub device: Device,
    /// `available`, `busy`, `offline`, or `unserved` where no runtime here can use it.
    pub state: String,
    /// The workers of this device, the preferred one first.
    pub workers: Vec<WorkerView>,
}

/// A worker of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerView {
    /// Device and runtime, for instance `cuda0-python`; logs and events call it so.
    pub name: String,
    /// `native` or `python`.
    pub runtime: String,
    /// `asleep` (started when it is needed), `starting`, `ready` or `gone`.
    pub state: String,
    /// Process id, while there is a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Milliseconds since its last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_beat_ms_ago: Option<u64>,
    /// Number of processes that it has had, the present one included.
    pub incarnation: u64,
    /// Why the last process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// Name and version of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Capabilities from its `ready` message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Models that are resident in it.
    pub resident: Vec<ModelId>,
    /// Jobs that run in it or are suspended in it.
    pub jobs: Vec<String>,
}
