//! NVIDIA cards, where NVML's library is there: it is opened at run time, never linked.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;

use super::Device;

/// Why NVML shows no cards, in the driver's words; `None` where it answers. For `doctor`.
pub fn nvml_problem() -> Option<String> {
    Nvml::init().err().map(|error| error.to_string())
}

/// Cards that NVML sees; none where the library or a card is absent.
pub(super) fn cards() -> Vec<Device> {
    let Ok(nvml) = Nvml::init() else { return Vec::new() };
    let driver = nvml
        .sys_driver_version()
        .ok()
        .map(|version| format!("NVIDIA {version}"));
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| {
            let card = nvml.device_by_index(index).ok()?;
            let memory = card.memory_info().ok()?;
            Some(Device {
                id: format!("cuda{index}"),
                kind: "cuda".into(),
                name: card.name().unwrap_or_else(|_| "NVIDIA card".into()),
                vendor: Some("NVIDIA".into()),
                uuid: card.uuid().ok(),
                driver: driver.clone(),
                total_bytes: memory.total,
                free_bytes: memory.free,
                utilisation_percent: card.utilization_rates().ok().map(|rates| rates.gpu),
                temperature_c: card.temperature(TemperatureSensor::Gpu).ok(),
                power_mw: card.power_usage().ok(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_nvml_there_are_no_cards_and_a_reason() {
        assert_eq!(cards().is_empty(), nvml_problem().is_some());
    }
}
