//! What it says of itself, and of a job: always the same for the same seed.

use std::collections::BTreeMap;

use calotype_protocol::{
    Attempt, BlobRef, Capabilities, DeviceFacts, Dtype, Frame, Generate, Hello, InstanceId, Mode, PROTOCOL,
    Phase, Ready, RunResult, Sampler, Schedule, Up, Version,
};

use crate::fault::Fault;
use crate::options::Options;
use crate::work::Job;

pub(crate) fn result(job: &Job, attempt: Attempt, step_ms: f64) -> Frame<Up> {
    let (width, height) = (job.work.width as usize, job.work.height as usize);
    let blobs = job.pictures.clone();
    let images = (0..blobs.len())
        .map(|blob| BlobRef {
            blob,
            dtype: Dtype::U8,
            shape: vec![height, width, 3],
        })
        .collect();
    let message = Up::Result(Box::new(RunResult {
        job: job.job.clone(),
        attempt,
        images,
        seeds: job.work.seeds.clone(),
        timings_ms: BTreeMap::from([(Phase::Denoise, step_ms * f64::from(job.work.steps))]),
        peak_bytes: 2000,
        phase_peaks_bytes: BTreeMap::new(),
        batch_sizes: job.batch_sizes.clone(),
        engine: "fake".to_owned(),
        plan: Vec::new(),
    }));
    Frame { message, blobs }
}

/// The pictures of a job, made when it comes: between its last step and its result nothing is left to do.
pub(crate) fn pictures(work: &Generate) -> Vec<Vec<u8>> {
    let count = work.width as usize * work.height as usize * 3;
    work.seeds.iter().map(|seed| pixels(*seed, count)).collect()
}

pub(crate) fn preview(job: &Job) -> Frame<Up> {
    let image = BlobRef {
        blob: 0,
        dtype: Dtype::U8,
        shape: vec![8, 8, 3],
    };
    let seed = job.work.seeds.first().copied().unwrap_or(0);
    let message = Up::Preview {
        job: job.job.clone(),
        attempt: job.attempt,
        done: job.done,
        image,
    };
    Frame {
        message,
        blobs: vec![pixels(seed, 8 * 8 * 3)],
    }
}

/// Bytes of a SplitMix64 stream.
fn pixels(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

pub(crate) fn hello(fault: Fault) -> Hello {
    let major = if fault == Fault::WrongMajor {
        PROTOCOL.major + 1
    } else {
        PROTOCOL.major
    };
    Hello {
        protocol: Version {
            major,
            minor: PROTOCOL.minor,
        },
        worker: "fake 0.1.0".to_owned(),
        runtime: "fake".to_owned(),
        instance: InstanceId(format!("fake-{}", std::process::id())),
        pid: std::process::id(),
        libraries: BTreeMap::new(),
    }
}

pub(crate) fn ready(options: &Options) -> Ready {
    let offloads = options.offloads;
    let mut plans = vec!["vae_slicing", "vae_tiling", "attention_slicing"];
    if offloads {
        plans.extend(["offload_model", "offload_sequential"]);
    }
    Ready {
        device: DeviceFacts {
            name: "fake".to_owned(),
            total_bytes: options.total_bytes,
            free_bytes: options.total_bytes,
            dtypes: vec!["f32".to_owned()],
            compute_capability: None,
        },
        capabilities: Capabilities {
            engine: "fake".to_owned(),
            families: vec!["sd".to_owned()],
            formats: vec!["diffusers".to_owned(), "onnx".to_owned(), "checkpoint".to_owned()],
            work: vec!["generate".to_owned()],
            modes: Mode::ALL.to_vec(),
            samplers: Sampler::ALL.to_vec(),
            schedules: Schedule::ALL.to_vec(),
            adapters: vec!["lora".to_owned()],
            plans: plans.into_iter().map(str::to_owned).collect(),
            segments: offloads,
            loads_beside_runs: false,
            max_batch: options.max_batch,
            pauses: true,
            previews: true,
            max_edge: 4096,
        },
    }
}
