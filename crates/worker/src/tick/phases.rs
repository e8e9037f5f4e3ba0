//! What is done for one job alone: prepared before its first step, decoded and delivered after its last.

use std::collections::BTreeMap;
use std::time::Instant;

use calotype_protocol::{Blob, BlobRef, Dtype, Failure, Frame, Outcome, Phase, RunResult, Up, Work};

use super::{Loop, ms};
use crate::facts;
use crate::failure::{failure, invalid, unsupported};
use crate::job::{MAX_EDGE, Sampling, Stage};
use crate::pixels::{Image, numbers_of};

impl Loop {
    pub(super) fn prepare(&mut self, index: usize) {
        // Taken out for the time: preparing borrows the model, the engine and the job at once.
        let empty = Stage::Waiting {
            work: Box::new(Work::Embed(calotype_protocol::Embed {
                model: self.jobs[index].model.clone(),
                text: String::new(),
            })),
            blobs: Vec::new(),
        };
        let stage = std::mem::replace(&mut self.jobs[index].stage, empty);
        let Stage::Waiting { work, blobs } = stage else {
            return;
        };
        let done = match work.as_ref() {
            Work::Generate(_) => self.start(index, &work, &blobs),
            Work::Encode(work) => self.encode_alone(index, work, &blobs),
            Work::Decode(work) => self.decode_alone(index, work, &blobs),
            other => Err(unsupported(format!(
                "this worker generates, encodes and decodes; `{}` needs a worker that says so in `ready`",
                other.kind()
            ))),
        };
        if let Err(failure) = done {
            self.fail(index, failure);
        }
    }

    pub(super) fn start(&mut self, index: usize, work: &Work, blobs: &[Blob]) -> Result<(), Failure> {
        let Work::Generate(work) = work else { return Ok(()) };
        let at = self.model_index(&work.model)?;
        let started = Instant::now();
        let bound = self.models[at].bind(self.engine.as_ref(), &work.adapters)?;
        if !work.adapters.is_empty() {
            let bind_ms = ms(started);
            self.jobs[index].spend(Phase::Bind, bind_ms);
            self.progress(index, Phase::Bind, 1, 1, bind_ms);
        }
        let started = Instant::now();
        let sampling = Sampling::new(work, blobs, &mut self.models[at], self.engine.as_ref(), bound)?;
        let encode_ms = ms(started);
        self.jobs[index].stage = Stage::Sampling(Box::new(sampling));
        self.jobs[index].spend(Phase::Encode, encode_ms);
        self.progress(index, Phase::Encode, 1, 1, encode_ms);
        Ok(())
    }

    pub(super) fn encode_alone(
        &mut self,
        index: usize,
        work: &calotype_protocol::Encode,
        blobs: &[Blob],
    ) -> Result<(), Failure> {
        let at = self.model_index(&work.model)?;
        let started = Instant::now();
        let image = Image::of("the image", &work.image, blobs)?;
        let model = &self.models[at];
        let scale = model.scale;
        for edge in [image.width, image.height] {
            if edge == 0 || edge > MAX_EDGE as usize || edge % scale != 0 {
                return Err(invalid(format!(
                    "an edge of {edge} is not a multiple of {scale} up to {MAX_EDGE}"
                )));
            }
        }
        let latents = model.encode(
            self.engine.as_ref(),
            image.to_numbers(),
            image.height,
            image.width,
        )?;
        let shape = vec![
            1,
            model.latent_channels,
            image.height / scale,
            image.width / scale,
        ];
        let encode_ms = ms(started);
        self.jobs[index].spend(Phase::Encode, encode_ms);
        self.progress(index, Phase::Encode, 1, 1, encode_ms);
        let blob = latents.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.deliver(
            index,
            vec![BlobRef {
                blob: 0,
                dtype: Dtype::F32,
                shape,
            }],
            vec![blob],
            Vec::new(),
        );
        Ok(())
    }

    pub(super) fn decode_alone(
        &mut self,
        index: usize,
        work: &calotype_protocol::Decode,
        blobs: &[Blob],
    ) -> Result<(), Failure> {
        let at = self.model_index(&work.model)?;
        let started = Instant::now();
        let model = &self.models[at];
        let most = MAX_EDGE as usize / model.scale;
        let [images, channels, height, width] = work.latents.shape[..] else {
            return Err(invalid("the latents are not [images, channels, height, width]"));
        };
        let fits = |edge: usize| (1..=most).contains(&edge);
        if channels != model.latent_channels || !fits(height) || !fits(width) || !(1..=16).contains(&images) {
            return Err(invalid(format!(
                "latents of {:?} are not taken",
                work.latents.shape
            )));
        }
        let latents = numbers_of("the latents", &work.latents, blobs)?;
        let pictures = latents
            .chunks_exact(channels * height * width)
            .map(|latents| Ok(Image::from_tensor(&model.decode(latents, height, width)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        let decode_ms = ms(started);
        self.jobs[index].spend(Phase::Decode, decode_ms);
        self.progress(index, Phase::Decode, 1, 1, decode_ms);
        self.deliver_pictures(index, pictures, Vec::new());
        Ok(())
    }

    pub(super) fn finish(&mut self, index: usize) {
        let started = Instant::now();
        let decoded =
            self.model_index(&self.jobs[index].model)
                .and_then(|at| match &self.jobs[index].stage {
                    Stage::Sampling(sampling) => {
                        let seeds = sampling.seeds.clone();
                        let pictures = (0..seeds.len()).map(|seed| sampling.picture(&self.models[at], seed));
                        Ok((pictures.collect::<Result<Vec<_>, _>>()?, seeds))
                    }
                    Stage::Waiting { .. } => Err(failure(
                        Outcome::Failed,
                        "the job was decoded before it was sampled",
                    )),
                });
        match decoded {
            Ok((pictures, seeds)) => {
                let decode_ms = ms(started);
                self.jobs[index].spend(Phase::Decode, decode_ms);
                self.progress(index, Phase::Decode, 1, 1, decode_ms);
                self.deliver_pictures(index, pictures, seeds);
            }
            Err(failure) => self.fail(index, failure),
        }
    }

    pub(super) fn deliver_pictures(&mut self, index: usize, pictures: Vec<Image>, seeds: Vec<u64>) {
        let images = pictures
            .iter()
            .enumerate()
            .map(|(blob, picture)| picture.blob(blob))
            .collect();
        self.deliver(
            index,
            images,
            pictures.into_iter().map(|picture| picture.bytes).collect(),
            seeds,
        );
    }

    pub(super) fn deliver(&mut self, index: usize, images: Vec<BlobRef>, blobs: Vec<Blob>, seeds: Vec<u64>) {
        let job = self.jobs.remove(index);
        let result = RunResult {
            job: job.job,
            attempt: job.attempt,
            images,
            seeds,
            timings_ms: job.timings_ms,
            peak_bytes: facts::peak_bytes(),
            phase_peaks_bytes: BTreeMap::new(),
            batch_sizes: job.batch_sizes,
            engine: self.engine.name(),
            plan: Vec::new(),
        };
        (self.emit)(Frame {
            message: Up::Result(Box::new(result)),
            blobs,
        });
    }
}
