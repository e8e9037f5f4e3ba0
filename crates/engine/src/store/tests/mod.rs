//! Laws of the store, by subject.

mod artifacts;
mod disk;
mod jobs;
mod lost;
mod order;
mod rescue;
mod retention;
mod sweep;
mod together;
mod versions;

use std::path::Path;

use calotype_protocol::{JobId, Mode, Sampler, Schedule};

use super::*;
use crate::inference::{MaskTreatment, OutputFormat, Plan};
use crate::processing::job::{Class, ImageView, JobResult, JobState, Promise};

fn plan() -> Plan {
    Plan {
        model: "m".into(),
        vae: None,
        text_encoders: Vec::new(),
        preset: None,
        mode: Mode::TextToImage,
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 256,
        height: 256,
        steps: 4,
        guidance: 1.0,
        sampler: Sampler::Lcm,
        schedule: Schedule::Default,
        seeds: vec![u64::MAX],
        loras: Vec::new(),
        init_image: None,
        mask: None,
        strength: 1.0,
        clip_skip: 0,
        preview_every: 0,
        format: OutputFormat::Png,
        quality: 90,
        control: Vec::new(),
        refiner: None,
        hires: None,
        variation: None,
        mask_treatment: MaskTreatment::default(),
        embeddings: Vec::new(),
        latent_channels: 4,
        latent_factor: 8,
    }
}

fn new(id: &str, key: Option<&str>, digest: &str) -> NewJob {
    NewJob {
        id: id.into(),
        class: Class::Interactive,
        priority: 3,
        key: key.map(str::to_owned),
        key_digest: digest.into(),
        client: "ada".into(),
        plan: plan(),
        promise: Promise::Kept,
        created_at_ms: 7,
    }
}

fn cancelled() -> Finish {
    Finish {
        state: JobState::Cancelled,
        result: None,
        error: None,
        finished_at_ms: 9,
    }
}

/// A job that succeeded with one picture.
fn succeeded(artifact: &ArtifactHash, finished_at_ms: u64) -> Finish {
    let image = ImageView {
        artifact: artifact.clone(),
        media_type: "image/png".into(),
        size_bytes: 1,
        width: 8,
        height: 8,
        seed: u64::MAX,
    };
    Finish {
        state: JobState::Succeeded,
        result: Some(JobResult {
            images: vec![image],
            ..JobResult::default()
        }),
        error: None,
        finished_at_ms,
    }
}

impl Store {
    async fn finish(&self, job: &str, finish: Finish) -> Result<(), StoreError> {
        let job = job.into();
        self.write(vec![Write::Finish { job, finish }]).await
    }

    async fn state(&self, job: &str) -> JobState {
        self.job(&job.into()).await.unwrap().unwrap().state
    }
}

fn hold(job: &str, held: Held) -> Write {
    let job = job.into();
    Write::Hold { job, held }
}

fn claim(job: &str, attempt: u32) -> Write {
    Write::Claim {
        job: job.into(),
        attempt,
        worker: "cpu0".into(),
        at_ms: 8,
    }
}

fn requeue(job: &str, crashes: u32, held: Held) -> Write {
    let job = job.into();
    Write::Requeue { job, crashes, held }
}

/// A data directory as a server leaves it that is killed now: what it has written, and no more.
fn as_killed(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(dir, copy.path());
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file of a folder with its bytes.
fn contents(dir: &Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(contents(&entry.path()));
        } else {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    found
}
