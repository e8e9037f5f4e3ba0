//! What computes here: the host itself, and the cards that their drivers show.

mod amd;
mod declared;
mod host;
mod nvidia;
mod sensors;
mod view;
mod visible;

use std::path::Path;

pub use declared::Declared;
pub use host::HostFacts;
pub use nvidia::nvml_problem;
pub use sensors::Sensors;
pub use view::{Device, DeviceView, Reading, WorkerView};

/// Where the system keeps files in memory, which processes share.
pub const SHARED_MEMORY: &str = "/dev/shm";

/// Free shared memory; `None` where the system has none.
pub fn shared_memory_free_bytes() -> Option<u64> {
    let facts = rustix::fs::statvfs(SHARED_MEMORY).ok()?;
    Some(facts.f_bavail.saturating_mul(facts.f_frsize))
}

impl Device {
    /// A device of which nothing is known yet.
    fn unread() -> Self {
        Self {
            id: String::new(),
            kind: String::new(),
            name: String::new(),
            vendor: None,
            uuid: None,
            driver: None,
            total_bytes: 0,
            free_bytes: None,
            utilisation_percent: None,
            temperature_c: None,
            power_mw: None,
            clock_mhz: None,
            memory_clock_mhz: None,
            throttle_reasons: Vec::new(),
            read_at_ms: None,
        }
    }
}

/// Every device, the processor first. What is declared goes before what is found under the same name. NVIDIA cards that
/// `CUDA_VISIBLE_DEVICES` hides from the workers are left out.
pub fn inventory(declared: &[Declared]) -> Vec<Device> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let mut devices = vec![host::device()];
    devices.extend(nvidia::cards(visible.as_deref()));
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
        let free_bytes = devices[0].free_bytes.unwrap();
        assert!(devices[0].total_bytes >= free_bytes && free_bytes > 0);
    }

    #[test]
    fn the_free_memory_of_a_declared_device_is_not_guessed() {
        let devices = inventory(&["xpu0=16GiB".parse().unwrap()]);
        let declared = devices.iter().find(|device| device.id == "xpu0").unwrap();
        assert_eq!((declared.total_bytes, declared.free_bytes), (16 << 30, None));
        assert_eq!(declared.read_at_ms, None);
        let json = serde_json::to_value(declared).unwrap();
        assert!(json["free_bytes"].is_null() && json.as_object().unwrap().contains_key("free_bytes"));
    }
}
