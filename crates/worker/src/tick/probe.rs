//! What this device does, measured when asked.

use std::collections::BTreeMap;
use std::time::Instant;

use calotype_protocol::ProbeOp;

use super::{Loop, ms};
use crate::facts;
use crate::model::UnetInput;

impl Loop {
    pub(super) fn probe(&mut self, op: ProbeOp) -> BTreeMap<String, f64> {
        let (total, free) = facts::host_bytes();
        let mut figures = BTreeMap::from([
            ("total_bytes".to_owned(), total as f64),
            ("free_bytes".to_owned(), free as f64),
            ("used_bytes".to_owned(), facts::used_bytes() as f64),
        ]);
        if op == ProbeOp::Device {
            return figures;
        }
        let source = vec![1u8; 64 << 20];
        let mut target = vec![0u8; source.len()];
        target.copy_from_slice(&source);
        let started = Instant::now();
        target.copy_from_slice(std::hint::black_box(&source));
        std::hint::black_box(&target);
        figures.insert(
            "copy_bytes_per_s".into(),
            source.len() as f64 / started.elapsed().as_secs_f64(),
        );
        for model in &mut self.models {
            let bound = model.bind(self.engine.as_ref(), &[]);
            let embedding = bound.and_then(|bound| {
                model
                    .encode_text(&bound, &[], 0)
                    .map(|embedding| (bound, embedding))
            });
            let Ok((bound, embedding)) = embedding else {
                continue;
            };
            let latent = [model.latent_channels, 32, 32];
            let input = || UnetInput {
                sample: vec![0.5; latent.iter().product()],
                timesteps: vec![500.0],
                states: embedding.states.clone(),
                latent,
                context: [embedding.chunks * embedding.tokens, embedding.width],
            };
            // The first run makes buffers; the second is the rate.
            let mut step_ms = 0.0;
            for _ in 0..2 {
                let started = Instant::now();
                if model.run_unet(&bound, input()).is_err() {
                    break;
                }
                step_ms = ms(started);
            }
            figures.insert(format!("step_256_ms.{}", model.id), step_ms);
        }
        figures
    }
}
