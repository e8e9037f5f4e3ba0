//! What computes here: the host itself, and the cards that their drivers show.

mod amd;
mod declared;
mod nvidia;

use std::path::Path;

pub use declared::Declared;
pub use nvidia::nvml_problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// A device of this host.
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
    /// Memory free when it was looked at; of a device that is only declared, all of it.
    pub free_bytes: u64,
    /// Per cent of the time that it was busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilisation_percent: Option<u32>,
    /// Degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Power drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_mw: Option<u32>,
}

/// The host's processor and memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The processor's name.
    pub name: String,
    /// Who made it.
    pub vendor: String,
    /// Logical cores.
    pub cores: usize,
    /// Memory in all.
    pub total_bytes: u64,
    /// Memory that programs can still take.
    pub free_bytes: u64,
}

impl HostFacts {
    /// Asks the system.
    pub fn read() -> Self {
        let what = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        // A system that does not tell is shown as one without figures.
        let system = System::new_with_specifics(what).ok();
        let cpu = system.as_ref().and_then(|system| system.cpus().first());
        let name = cpu
            .map(|cpu| cpu.brand().trim().to_owned())
            .filter(|name| !name.is_empty());
        Self {
            name: name.unwrap_or_else(|| "processor".into()),
            vendor: cpu.map(|cpu| cpu.vendor_id().to_owned()).unwrap_or_default(),
            cores: system.as_ref().map_or(1, |system| system.cpus().len()),
            total_bytes: system.as_ref().map_or(0, System::total_memory),
            free_bytes: system.as_ref().map_or(0, System::available_memory),
        }
    }
}

/// Where the system keeps files in memory, which processes share.
pub const SHARED_MEMORY: &str = "/dev/shm";

/// Free shared memory; `None` where the system has none.
pub fn shared_memory_free_bytes() -> Option<u64> {
    let facts = rustix::fs::statvfs(SHARED_MEMORY).ok()?;
    Some(facts.f_bavail.saturating_mul(facts.f_frsize))
}

/// Every device, the processor first. What is declared goes before what is found under the same name.
pub fn inventory(declared: &[Declared]) -> Vec<Device> {
    let host = HostFacts::read();
    let mut devices = vec![Device {
        id: "cpu0".into(),
        kind: "cpu".into(),
        name: host.name,
        vendor: (!host.vendor.is_empty()).then_some(host.vendor),
        uuid: None,
        driver: None,
        total_bytes: host.total_bytes,
        free_bytes: host.free_bytes,
        utilisation_percent: None,
        temperature_c: None,
        power_mw: None,
    }];
    devices.extend(nvidia::cards());
    devices.extend(amd::cards(Path::new("/sys")));
    let declared: Vec<Device> = declared.iter().map(Device::from).collect();
    devices.retain(|found| !declared.iter().any(|device| device.id == found.id));
    devices.extend(declared);
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_always_a_device_with_memory() {
        let devices = inventory(&[]);
        assert_eq!(
            (devices[0].id.as_str(), devices[0].kind.as_str()),
            ("cpu0", "cpu")
        );
        assert!(devices[0].total_bytes >= devices[0].free_bytes && devices[0].free_bytes > 0);
    }
}
