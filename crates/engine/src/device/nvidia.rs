//! NVIDIA cards, where NVML's library is there: it is opened at run time, never linked.

use std::collections::BTreeMap;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device as Card, Nvml};

use super::sensors::ReadSensors;
use super::visible::{Listed, Seen, seen};
use super::{Device, Reading};
use crate::clock::now_ms;

/// Why NVML shows no cards, in the driver's words; `None` where it answers. For `doctor`.
pub fn nvml_problem() -> Option<String> {
    Nvml::init().err().map(|error| error.to_string())
}

/// Cards that NVML lists and CUDA shows; none where the library or a card is absent. `visible` is the value of
/// `CUDA_VISIBLE_DEVICES`. The index in a device's id is the one that its worker uses.
pub(super) fn cards(visible: Option<&str>) -> Vec<Device> {
    let Ok(nvml) = Nvml::init() else { return Vec::new() };
    let driver = nvml
        .sys_driver_version()
        .ok()
        .map(|version| format!("NVIDIA {version}"));
    let cards: Vec<(Card<'_>, Vec<Card<'_>>)> = (0..nvml.device_count().unwrap_or(0))
        .filter_map(|index| {
            let card = nvml.device_by_index(index).ok()?;
            let slices = slices(&card);
            Some((card, slices))
        })
        .collect();
    let uuid = |card: &Card<'_>| card.uuid().unwrap_or_default();
    let listed: Vec<Listed> = cards
        .iter()
        .map(|(card, slices)| Listed {
            uuid: uuid(card),
            slices: slices.iter().map(uuid).collect(),
        })
        .collect();
    let shown = seen(visible, &listed).into_iter().filter_map(|seen| match seen {
        Seen::Card(card) => cards.get(card).map(|(card, _)| card),
        Seen::Slice(card, slice) => cards.get(card)?.1.get(slice),
    });
    shown
        .enumerate()
        .filter_map(|(index, card)| {
            let device = Device {
                id: format!("cuda{index}"),
                kind: "cuda".into(),
                name: card.name().unwrap_or_else(|_| "NVIDIA card".into()),
                vendor: Some("NVIDIA".into()),
                uuid: card.uuid().ok(),
                driver: driver.clone(),
                total_bytes: card.memory_info().ok()?.total,
                ..Device::unread()
            };
            Some(device.with(reading(card)?))
        })
        .collect()
}

fn slices<'nvml>(card: &Card<'nvml>) -> Vec<Card<'nvml>> {
    let most = card.mig_device_count().unwrap_or(0);
    (0..most)
        .filter_map(|index| card.mig_device_by_index(index).ok())
        .collect()
}

/// What a card says now; `None` where it does not answer.
fn reading(card: &Card<'_>) -> Option<Reading> {
    let reasons = card.current_throttle_reasons().ok();
    Some(Reading {
        at_ms: now_ms(),
        free_bytes: Some(card.memory_info().ok()?.free),
        utilisation_percent: card.utilization_rates().ok().map(|rates| rates.gpu),
        temperature_c: card.temperature(TemperatureSensor::Gpu).ok(),
        power_mw: card.power_usage().ok(),
        clock_mhz: card.clock_info(Clock::SM).ok(),
        memory_clock_mhz: card.clock_info(Clock::Memory).ok(),
        throttle_reasons: reasons.map(words).unwrap_or_default(),
    })
}

/// Reasons as words. A card that has nothing to do is not held down.
fn words(reasons: ThrottleReasons) -> Vec<String> {
    let held = reasons - ThrottleReasons::GPU_IDLE;
    held.iter_names().map(|(name, _)| name.to_lowercase()).collect()
}

/// Reads the cards that were found at the start, by their UUIDs.
pub(super) struct NvmlSensors {
    cards: Vec<(String, String)>,
    /// Open between two readings, because opening it costs more than a reading.
    nvml: Option<Nvml>,
}

impl NvmlSensors {
    /// For these devices: id and UUID.
    pub(super) fn new(cards: Vec<(String, String)>) -> Self {
        Self { cards, nvml: None }
    }
}

impl ReadSensors for NvmlSensors {
    fn read(&mut self) -> BTreeMap<String, Reading> {
        if self.nvml.is_none() {
            self.nvml = Nvml::init().ok();
        }
        let mut readings = BTreeMap::new();
        if let Some(nvml) = &self.nvml {
            for (id, uuid) in &self.cards {
                let found = nvml.device_by_uuid(uuid.as_str()).ok();
                if let Some(reading) = found.as_ref().and_then(reading) {
                    readings.insert(id.clone(), reading);
                }
            }
        }
        // A driver that was loaded anew answers only those who open it anew.
        if readings.is_empty() {
            self.nvml = None;
        }
        readings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_nvml_there_are_no_cards_and_a_reason() {
        assert_eq!(cards(None).is_empty(), nvml_problem().is_some());
    }

    #[test]
    fn a_card_without_work_is_not_told_as_held_down() {
        assert!(words(ThrottleReasons::GPU_IDLE).is_empty());
        let held = ThrottleReasons::GPU_IDLE | ThrottleReasons::SW_POWER_CAP;
        assert_eq!(words(held), ["sw_power_cap"]);
        let hot = ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::HW_SLOWDOWN;
        assert_eq!(words(hot), ["hw_slowdown", "hw_thermal_slowdown"]);
    }

    #[test]
    fn cards_that_do_not_answer_have_no_reading() {
        let mut sensors = NvmlSensors::new(vec![("cuda0".into(), "GPU-none".into())]);
        assert!(sensors.read().is_empty());
    }
}
