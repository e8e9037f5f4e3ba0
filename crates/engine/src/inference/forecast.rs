//! Where a plan would run now and what it would take there, for clients who ask before they submit. Pure.

use super::{AdapterNeed, ModelNeed, Needs, Plan, Warning, estimate};
use crate::error::Error;
use crate::memory::Peaks;
use crate::memory::memory_plan::{MemoryFeatures, Precision, Slicing, lora_on_device_bytes, on_device_bytes};
use crate::model::Catalogue;
use crate::view::{DeviceView, MemoryView, WorkerView};

/// What a plan would find.
pub(crate) struct Forecast {
    /// The worker; absent where none that could run it is ready.
    pub worker: Option<String>,
    /// Of its models on the device, with what LoRAs change of them.
    pub weights_bytes: u64,
    /// Beside them.
    pub working_set_bytes: u64,
    /// Whether that was measured.
    pub measured: bool,
    /// What would be done for memory, in words of a result's plan.
    pub memory_plan: Vec<String>,
    /// That it does not fit.
    pub warning: Option<Warning>,
}

/// Of a plan, as devices and memory are now.
pub(crate) fn forecast(
    plan: &Plan,
    catalogue: &Catalogue,
    peaks: &Peaks,
    devices: &[DeviceView],
    memory: &[MemoryView],
) -> Result<Forecast, Error> {
    let needs = Needs::of(plan, catalogue)?;
    let models = ModelNeed::all_of(plan, catalogue)?;
    let adapters = AdapterNeed::of(plan, catalogue)?;
    let found = found(&needs, devices);
    // Where no worker is ready: as on a processor, which is the last resort of every job.
    let (device_kind, runtime) = found.map_or(("cpu", "native"), |(device, worker)| {
        (device.device.kind.as_str(), worker.runtime.as_str())
    });
    let kind = estimate::worker_kind(runtime, device_kind);
    let working = |slicing| estimate::need_bytes(plan, needs.family(), device_kind, &kind, slicing, peaks);
    let precision = Precision::of(device_kind);
    let weights_bytes = ModelNeed::sum(&models, precision);
    let lora_bytes = adapters.map_or(0, |need| need.bytes(precision));
    let mut forecast = Forecast {
        worker: found.map(|(_, worker)| worker.name.clone()),
        weights_bytes: weights_bytes.saturating_add(lora_bytes),
        working_set_bytes: working(Slicing::default()).0,
        measured: working(Slicing::default()).1,
        memory_plan: Vec::new(),
        warning: None,
    };
    let Some((device, worker)) = found else {
        return Ok(forecast);
    };
    let plans = worker.capabilities.as_ref().map(|can| can.plans.as_slice());
    let budget = memory.iter().find(|view| view.device == device.device.id);
    let budget_bytes = budget.map_or(u64::MAX, |view| view.budget_bytes);
    let ways = MemoryFeatures::of(plans.unwrap_or_default());
    match ways.fastest_fit(
        weights_bytes,
        lora_bytes,
        |slicing| working(slicing).0,
        budget_bytes,
    ) {
        Ok(way) => {
            let lora_bytes = lora_on_device_bytes(lora_bytes, way.offload);
            forecast.weights_bytes = on_device_bytes(weights_bytes, way.offload).saturating_add(lora_bytes);
            (forecast.working_set_bytes, forecast.measured) = working(way.slicing);
            forecast.memory_plan = way.labels().map(str::to_owned).collect();
        }
        Err(need_bytes) => {
            forecast.warning = Some(Warning {
                field: "width".into(),
                message: format!(
                    "it needs {need_bytes} bytes of {}, whose budget is {budget_bytes}: a job would end as \
                     `does_not_fit`; ask for a smaller size or fewer images",
                    device.device.id
                ),
            });
        }
    }
    Ok(forecast)
}

/// As the dispatcher chooses: accelerators before processors.
fn found<'a>(needs: &Needs, devices: &'a [DeviceView]) -> Option<(&'a DeviceView, &'a WorkerView)> {
    let serves = |worker: &&WorkerView| {
        let can = worker.capabilities.as_ref();
        worker.state == "ready" && can.is_some_and(|can| needs.missing_feature(can).is_none())
    };
    let (processors, accelerators): (Vec<&DeviceView>, Vec<&DeviceView>) =
        devices.iter().partition(|device| device.device.kind == "cpu");
    accelerators
        .into_iter()
        .chain(processors)
        .find_map(|device| Some((device, device.workers.iter().find(serves)?)))
}
