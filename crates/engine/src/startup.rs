//! What an engine starts with: the workers that there can be, a ledger for each device, and the cache of weights.

use calotype_protocol::WorkerDevice;

use crate::config::{Config, Runtime, StartOnCpu};
use crate::device::Device;
use crate::memory::Ledger;
use crate::memory::weight_cache::WeightCache;
use crate::model::segment;
use crate::processing::WorkerSetup;
use crate::worker::{MemoryKillCounters, WorkerConfig, WorkerName};

/// The workers that there can be: one for each device and runtime that go together, accelerators first.
pub(crate) fn workers(config: &Config, devices: &[Device]) -> Vec<WorkerSetup> {
    let pairs = devices.iter().flat_map(|device| {
        config
            .runtimes
            .iter()
            .enumerate()
            .map(move |(order, runtime)| (device, order, runtime))
    });
    pairs
        .filter(|(device, _, runtime)| runtime.device_kinds.contains(&device.kind))
        .map(|(device, order, runtime)| {
            let is_cpu = device.kind == "cpu";
            WorkerSetup {
                device: device.id.clone(),
                runtime: runtime.name.clone(),
                rank: if is_cpu {
                    config.runtimes.len() + order
                } else {
                    order
                },
                config: worker_config(config, device, runtime),
                starts_when_needed: is_cpu && runtime.on_cpu == StartOnCpu::WhenNeeded,
                takes_segments: config.weight_cache_on_cpu || !is_cpu,
            }
        })
        .collect()
}

fn worker_config(config: &Config, device: &Device, runtime: &Runtime) -> WorkerConfig {
    let name = format!("{}-{}", device.id, runtime.name);
    let index = device
        .id
        .trim_start_matches(|letter: char| !letter.is_ascii_digit());
    WorkerConfig {
        scratch: config.data_dir.join("scratch").join(&name),
        name: WorkerName(name),
        program: runtime.program.clone(),
        args: runtime.args.clone(),
        env: environment(runtime, device),
        device: WorkerDevice {
            kind: device.kind.clone(),
            index: index.parse().unwrap_or(0),
            uuid: device.uuid.clone(),
        },
        threads: config.threads,
        timing: config.timing,
        memory_kills: MemoryKillCounters::of_this_system(),
    }
}

/// The environment of a worker. NVML lists cards in the order of the PCI bus; CUDA counts them so only when it is told to,
/// and the index that a worker gets must mean the card that the inventory shows under it.
fn environment(runtime: &Runtime, device: &Device) -> Vec<(String, String)> {
    let mut env = runtime.env.clone();
    if device.kind == "cuda" {
        env.push(("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()));
    }
    env
}

/// A ledger for each device. What the cache may hold is not the processor's to give, nor what an Apple GPU may: all of it
/// is memory of the host.
pub(crate) fn ledgers(config: &Config, devices: Vec<Device>, cache_bytes: u64) -> Vec<(Device, Ledger)> {
    let share_of = |device: &Device| share_of(device.total_bytes, config.memory_share);
    let of_the_host = devices.iter().filter(|device| device.kind == "mps").map(share_of);
    let elsewhere_bytes = of_the_host.fold(cache_bytes, u64::saturating_add);
    let ledger = |device: Device| {
        let share_bytes = share_of(&device);
        let taken_bytes = if device.kind == "cpu" { elsewhere_bytes } else { 0 };
        (device, Ledger::new(share_bytes.saturating_sub(taken_bytes)))
    };
    devices.into_iter().map(ledger).collect()
}

/// The cache of weights, which is off where no worker would take any from it, or there is no shared memory.
pub(crate) async fn weight_cache(
    config: &Config,
    devices: &[Device],
    workers: &[WorkerSetup],
) -> WeightCache {
    let host_bytes = devices
        .iter()
        .find(|device| device.kind == "cpu")
        .map_or(0, |host| host.total_bytes);
    let share_bytes = share_of(host_bytes, config.weight_cache_share);
    if share_bytes == 0 || !workers.iter().any(|worker| worker.takes_segments) {
        // What a server on this data directory left that was killed is not kept by one that uses no cache either.
        let data_dir = config.data_dir.clone();
        let cleared = tokio::task::spawn_blocking(move || segment::clear_folder(&data_dir)).await;
        if let Ok(Err(why)) = cleared {
            tracing::warn!("Weights of an earlier run stay in memory: {why}");
        }
        return WeightCache::default();
    }
    let data_dir = config.data_dir.clone();
    let prepared = tokio::task::spawn_blocking(move || segment::prepare_folder(&data_dir)).await;
    match prepared.map_err(|error| error.to_string()).flatten() {
        Ok((folder, room_bytes)) => WeightCache::new(folder, share_bytes.min(room_bytes)),
        Err(why) => {
            tracing::warn!("No weights are kept in memory, each load reads its files: {why}");
            WeightCache::default()
        }
    }
}

fn share_of(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share.clamp(0.0, 1.0)) as u64
}
