//! The host's processor and memory, from the system.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::sensors::ReadSensors;
use super::{Device, Reading};
use crate::clock::now_ms;

/// The host as a device.
const ID: &str = "cpu0";
/// The share of busy time since the reading before is only shown when that one is not older.
const WINDOW_MOST: Duration = Duration::from_secs(60);
/// Linux's drivers of processors' temperature sensors.
const THERMOMETERS: [&str; 4] = ["coretemp", "k10temp", "zenpower", "cpu_thermal"];

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

/// The host as a device, with its figures of now.
pub(super) fn device() -> Device {
    let host = HostFacts::read();
    Device {
        id: ID.into(),
        kind: "cpu".into(),
        name: host.name,
        vendor: (!host.vendor.is_empty()).then_some(host.vendor),
        total_bytes: host.total_bytes,
        free_bytes: Some(host.free_bytes),
        read_at_ms: Some(now_ms()),
        ..Device::unread()
    }
}

/// Reads the host's memory, load and temperature.
pub(super) struct HostSensors {
    system: Option<System>,
    read_before: Option<Instant>,
    hwmon: PathBuf,
}

impl HostSensors {
    pub(super) fn new() -> Self {
        Self {
            system: System::new_with_specifics(RefreshKind::nothing()).ok(),
            read_before: None,
            hwmon: PathBuf::from("/sys/class/hwmon"),
        }
    }
}

impl ReadSensors for HostSensors {
    fn read(&mut self) -> BTreeMap<String, Reading> {
        let Some(system) = &mut self.system else {
            return BTreeMap::new();
        };
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        system.refresh_cpu_usage();
        let before = self.read_before.replace(Instant::now());
        // The system counts busy time; a share needs two readings, near each other.
        let is_share = before.is_some_and(|before| before.elapsed() <= WINDOW_MOST);
        let reading = Reading {
            at_ms: now_ms(),
            free_bytes: Some(system.available_memory()),
            utilisation_percent: is_share.then(|| system.global_cpu_usage().round() as u32),
            temperature_c: temperature_c(&self.hwmon),
            ..Reading::default()
        };
        BTreeMap::from([(ID.to_owned(), reading)])
    }
}

/// The first sensor of the processor's own thermometer, which is that of the package.
fn temperature_c(hwmon: &Path) -> Option<u32> {
    let monitors = fs::read_dir(hwmon).ok()?.flatten();
    let mut thermometers = monitors.filter_map(|monitor| {
        let name = fs::read_to_string(monitor.path().join("name")).ok()?;
        if !THERMOMETERS.contains(&name.trim()) {
            return None;
        }
        let thousandths = fs::read_to_string(monitor.path().join("temp1_input")).ok()?;
        let thousandths: u32 = thousandths.trim().parse().ok()?;
        Some(thousandths / 1000)
    });
    thermometers.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_tells_its_free_memory_and_when_it_was_read() {
        let mut sensors = HostSensors::new();
        let reading = sensors.read().remove(ID).unwrap();
        let free_bytes = reading.free_bytes.unwrap();
        assert!(free_bytes > 0 && free_bytes <= HostFacts::read().total_bytes);
        assert!(reading.at_ms > 0);
        assert_eq!(reading.utilisation_percent, None, "a share needs two readings");
        let share = sensors.read().remove(ID).unwrap().utilisation_percent;
        assert!(share.is_some_and(|percent| percent <= 100), "{share:?}");
    }

    #[test]
    fn only_a_processors_thermometer_gives_its_temperature() {
        let hwmon = tempfile::tempdir().unwrap();
        for (folder, name, thousandths) in [
            ("hwmon0", "nvme\n", "91000\n"),
            ("hwmon1", "k10temp\n", "48375\n"),
        ] {
            let folder = hwmon.path().join(folder);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("name"), name).unwrap();
            fs::write(folder.join("temp1_input"), thousandths).unwrap();
        }
        assert_eq!(temperature_c(hwmon.path()), Some(48));
        fs::remove_file(hwmon.path().join("hwmon1/temp1_input")).unwrap();
        assert_eq!(temperature_c(hwmon.path()), None);
    }
}
