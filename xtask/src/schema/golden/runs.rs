//! Golden conversations about one job: it runs, is held, and ends.

use std::collections::BTreeMap;

use calotype_protocol::schema::Line;
use calotype_protocol::{
    Adapter, Attempt, BlobRef, ControlImage, ControlMode, ControlUnit, Down, Dtype, Failure, Generate, Hires,
    JobId, LoadId, Mode, NoiseSource, Outcome, Phase, Preprocess, Progress, Run, RunResult, Sampler,
    Schedule, Span, Up, Upscaler, VaePlan, Work,
};

use super::failure;

pub(super) fn generate() -> Vec<Line> {
    let work = Generate {
        model: "calotype-tiny".into(),
        mode: Mode::Inpaint,
        prompt: vec![
            Span {
                text: "a red apple, ".into(),
                weight: 1.0,
            },
            Span {
                text: "3d".into(),
                weight: 1.25,
            },
        ],
        negative_prompt: vec![Span {
            text: "blurry".into(),
            weight: 1.0,
        }],
        width: 256,
        height: 256,
        steps: 4,
        guidance: 1.0,
        sampler: Sampler::Lcm,
        schedule: Schedule::Default,
        seeds: vec![1, u64::MAX],
        noise: NoiseSource::Philox,
        initial_noise: BlobRef {
            blob: 0,
            dtype: Dtype::F32,
            shape: vec![2, 4, 32, 32],
        },
        init_image: Some(BlobRef {
            blob: 1,
            dtype: Dtype::U8,
            shape: vec![256, 256, 3],
        }),
        mask: Some(BlobRef {
            blob: 2,
            dtype: Dtype::U8,
            shape: vec![256, 256],
        }),
        strength: 0.75,
        adapters: vec![Adapter {
            id: "lcm".into(),
            path: "/models/loras/lcm.safetensors".into(),
            weight: 1.0,
        }],
        control: vec![ControlUnit {
            model: "depth-net".into(),
            image: BlobRef {
                blob: 3,
                dtype: Dtype::U8,
                shape: vec![256, 256, 3],
            },
            weight: 0.5,
            start: 0.0,
            end: 1.0,
            mode: ControlMode::Control,
            preprocess: Some(Preprocess {
                model: "depth-anything".into(),
                into: ControlImage::Normal,
            }),
        }],
        refiner: None,
        hires: Some(Hires {
            width: 512,
            height: 512,
            steps: 10,
            strength: 0.5,
            upscaler: Upscaler::Lanczos,
        }),
        clip_skip: 0,
        preview_every: 2,
    };
    let run = Run {
        job: "job_1".into(),
        attempt: Attempt(1),
        step: "generate".into(),
        priority: 0,
        deadline_ms: Some(60_000),
        vae: VaePlan::Tiling,
        work: Work::Generate(work),
    };
    let image = |blob| BlobRef {
        blob,
        dtype: Dtype::U8,
        shape: vec![256, 256, 3],
    };
    vec![
        Line::Down(Down::Run(Box::new(run))),
        Line::Up(Up::Progress(Progress {
            job: "job_1".into(),
            attempt: Attempt(1),
            phase: Phase::Denoise,
            done: 2,
            total: 4,
            step_ms: 61.5,
        })),
        Line::Up(Up::Preview {
            job: "job_1".into(),
            attempt: Attempt(1),
            done: 2,
            image: image(0),
        }),
        Line::Up(Up::Result(Box::new(RunResult {
            job: "job_1".into(),
            attempt: Attempt(1),
            images: vec![image(0), image(1)],
            seeds: vec![1, u64::MAX],
            timings_ms: BTreeMap::from([(Phase::Denoise, 250.5)]),
            peak_bytes: 300_000_000,
            phase_peaks_bytes: BTreeMap::from([(Phase::Denoise, 250_000_000)]),
            batch_sizes: vec![2, 2, 2, 2],
            engine: "rten 0.27.0".into(),
            plan: vec!["graphs".into()],
        }))),
        Line::Up(Up::Failed {
            job: "job_2".into(),
            attempt: Attempt(3),
            failure: failure(Outcome::OutOfMemory),
        }),
    ]
}

pub(super) fn hold_and_drop() -> Vec<Line> {
    let (job, attempt) = (JobId("job_1".into()), Attempt(1));
    vec![
        Line::Down(Down::Pause {
            job: job.clone(),
            attempt,
            offload: true,
        }),
        Line::Up(Up::Paused {
            job: job.clone(),
            attempt,
            at_step: 2,
        }),
        Line::Down(Down::Resume {
            job: job.clone(),
            attempt,
        }),
        Line::Up(Up::Resumed {
            job: job.clone(),
            attempt,
            at_step: 2,
        }),
        Line::Down(Down::Cancel {
            job: job.clone(),
            attempt,
        }),
        Line::Up(Up::Cancelled {
            job,
            attempt,
            at_step: 3,
        }),
    ]
}

/// Each `pause` and each `resume` has one answer, in their order, until the job has ended; paused jobs of a model that is
/// unloaded fail.
pub(super) fn pauses() -> Vec<Line> {
    let (job, attempt) = (JobId("job_1".into()), Attempt(1));
    let pause = |offload| {
        let job = job.clone();
        Line::Down(Down::Pause {
            job,
            attempt,
            offload,
        })
    };
    let resume = || {
        let job = job.clone();
        Line::Down(Down::Resume { job, attempt })
    };
    let at_step = 2;
    let paused = || {
        let job = job.clone();
        Line::Up(Up::Paused {
            job,
            attempt,
            at_step,
        })
    };
    let resumed = || {
        let job = job.clone();
        Line::Up(Up::Resumed {
            job,
            attempt,
            at_step,
        })
    };
    let unload = LoadId("unload_1".into());
    vec![
        // Both within one tick.
        pause(true),
        resume(),
        paused(),
        resumed(),
        // Of a job that runs.
        resume(),
        resumed(),
        // Of a job that is paused.
        pause(false),
        pause(true),
        paused(),
        paused(),
        Line::Down(Down::Unload {
            unload: unload.clone(),
            model: Some("calotype-tiny".into()),
        }),
        Line::Up(Up::Failed {
            job: job.clone(),
            attempt,
            failure: Failure {
                outcome: Outcome::Failed,
                message: "the job's model was unloaded".into(),
                detail: None,
            },
        }),
        Line::Up(Up::Unloaded {
            unload,
            freed_bytes: 90_700_000,
        }),
        // It has ended: neither has an answer.
        resume(),
        pause(true),
    ]
}
