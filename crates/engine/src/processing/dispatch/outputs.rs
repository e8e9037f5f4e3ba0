//! Outputs of a run, encoded and stored off the worker's path. Blocking.

use bytes::Bytes;
use calotype_imaging::{DecodeLimits, ImageError, Rgb, decode_gray, decode_rgb};

use super::core::{Outputs, StoreFault, StoreOutputsError, StoredOutputs, worker_timings};
use crate::artifact::{ArtifactHash, media_type};
use crate::artifact_cache::ArtifactCache;
use crate::error::{Code, Error};
use crate::inference::{self, MaskArea, Plan};
use crate::postprocessing;
use crate::processing::job::{ImageView, JobResult};
use crate::store::{Artifacts, StoreError};

/// Encodes and stores every picture, and keeps it in the cache for whoever waits for it. When the store is at fault the
/// outputs come back, to be stored later.
pub(super) fn store(
    artifacts: &Artifacts,
    cache: &ArtifactCache,
    plan: &Plan,
    model_name: &str,
    outputs: Box<Outputs>,
) -> Result<Box<StoredOutputs>, Box<StoreOutputsError>> {
    match store_images(artifacts, cache, plan, model_name, &outputs) {
        Ok(images) => {
            let Outputs { result, worker, .. } = *outputs;
            let result = JobResult {
                images,
                timings_ms: worker_timings(&result),
                peak_bytes: result.peak_bytes,
                batch_sizes: result.batch_sizes,
                engine: result.engine,
                plan: result.plan,
                worker,
            };
            Ok(Box::new(StoredOutputs { result }))
        }
        Err(Failed::Store(fault)) => Err(Box::new(StoreOutputsError::Store(fault, outputs))),
        Err(Failed::Wrong(error)) => Err(Box::new(StoreOutputsError::Wrong(error))),
    }
}

enum Failed {
    Wrong(Error),
    Store(StoreFault),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Wrong(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error.into())
    }
}

impl From<StoreError> for StoreFault {
    fn from(error: StoreError) -> Self {
        Self { error: error.into() }
    }
}

fn store_images(
    artifacts: &Artifacts,
    cache: &ArtifactCache,
    plan: &Plan,
    model_name: &str,
    outputs: &Outputs,
) -> Result<Vec<ImageView>, Failed> {
    let (result, blobs) = (&outputs.result, &outputs.blobs);
    let wrong = |what: String| {
        let message = format!("the worker's result is wrong: {what}");
        Error::new(Code::WorkerFailed, message)
    };
    if result.images.len() != plan.seeds.len() {
        let (images, seeds) = (result.images.len(), plan.seeds.len());
        return Err(wrong(format!("{images} images for {seeds} seeds")).into());
    }
    let (width, height) = plan.final_size();
    let shape = [height as usize, width as usize, 3];
    let mut views = Vec::with_capacity(result.images.len());
    for ((index, image), seed) in result.images.iter().enumerate().zip(&plan.seeds) {
        if image.shape != shape {
            return Err(wrong(format!("an image of shape {:?}, not {shape:?}", image.shape)).into());
        }
        let pixels = image.of(blobs).map_err(|error| wrong(error.to_string()))?;
        let picture = Rgb::new(width, height, pixels.to_vec())
            .map_err(|error| Error::new(Code::WorkerFailed, error.to_string()))?;
        let picture = composite(plan, artifacts, picture)?;
        let bytes = postprocessing::finish(plan, model_name, &result.engine, index, &picture)?;
        let artifact = artifacts.put_now(&bytes)?;
        let bytes = Bytes::from(bytes);
        cache.put(artifact.clone(), bytes.clone());
        views.push(ImageView {
            artifact,
            media_type: media_type(&bytes).to_owned(),
            size_bytes: bytes.len() as u64,
            width: picture.width,
            height: picture.height,
            seed: *seed,
        });
    }
    Ok(views)
}

/// The picture, pasted into the image that it is a part of where only a part was sampled.
fn composite(plan: &Plan, artifacts: &Artifacts, picture: Rgb) -> Result<Rgb, Failed> {
    let (MaskArea::Masked, Some(image), Some(mask)) =
        (plan.mask_treatment.area, &plan.init_image, &plan.mask)
    else {
        return Ok(picture);
    };
    let file = |hash: &ArtifactHash| -> Result<Vec<u8>, Failed> {
        let missing = || Error::new(Code::StoreFailed, format!("the input image {} is gone", hash.0));
        Ok(artifacts.read_now(hash)?.ok_or_else(missing)?)
    };
    let unreadable = |error: ImageError| Error::new(Code::ImageRefused, error.to_string());
    let limits = DecodeLimits::default();
    let image = decode_rgb(&file(image)?, &limits).map_err(unreadable)?;
    let mask = decode_gray(&file(mask)?, &limits).map_err(unreadable)?;
    Ok(inference::paste_back(plan, &image, &mask, &picture).unwrap_or(picture))
}
