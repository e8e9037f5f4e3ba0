//! The options of `generate` that are about the picture, and the request that they make.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use calotype_engine::inference::{
    ControlRequest, GenerateRequest, HiresRequest, LoraRequest, MaskArea, OutputFormat, RefinerRequest,
};

use calotype_protocol::ControlMode;

use crate::exit_code::Failure;

/// What to draw, and how.
#[derive(Debug, clap::Args)]
pub struct PictureArgs {
    /// What to draw; `(words:1.2)` weighs more, `[words]` less.
    pub prompt: String,
    /// File to write; more images get -2, -3. By default named after the prompt.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What not to draw; has effect at guidance above 1.
    #[arg(long, value_name = "TEXT")]
    pub negative: Option<String>,
    /// Seed of the first image; random by default, and always told.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Model of the catalogue; see `calotype models`.
    #[arg(long)]
    pub model: Option<String>,
    /// VAE of the catalogue in place of the model's own.
    #[arg(long)]
    pub vae: Option<String>,
    /// Text encoder of the catalogue in place of the model's own; may be given several times.
    #[arg(long, value_name = "NAME")]
    pub text_encoder: Vec<String>,
    /// Preset of the model, for instance `fast` or `quality`.
    #[arg(long)]
    pub preset: Option<String>,
    /// LoRA with its weight; may be given several times.
    #[arg(long, value_name = "NAME[:WEIGHT]")]
    pub lora: Vec<String>,
    /// Size in pixels.
    #[arg(long, value_name = "WxH")]
    pub size: Option<String>,
    /// Sampling steps.
    #[arg(long)]
    pub steps: Option<u32>,
    /// Guidance scale.
    #[arg(long)]
    pub guidance: Option<f32>,
    /// Sampler, for instance `dpmpp_2m`.
    #[arg(long)]
    pub sampler: Option<String>,
    /// Schedule: `default` or `karras`.
    #[arg(long)]
    pub schedule: Option<String>,
    /// How many images; image i has seed + i.
    #[arg(long, short = 'n')]
    pub count: Option<u32>,
    /// Image to start from.
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,
    /// Where to repaint (white).
    #[arg(long, value_name = "FILE")]
    pub mask: Option<PathBuf>,
    /// How far from the image to go, 0 to 1.
    #[arg(long)]
    pub strength: Option<f32>,
    /// Layers of the text encoder to leave out.
    #[arg(long)]
    pub clip_skip: Option<u32>,
    /// png, jpeg or webp; by default from the name of the output.
    #[arg(long)]
    pub format: Option<String>,
    /// Quality of JPEG, 1 to 100.
    #[arg(long)]
    pub quality: Option<u8>,
    /// ControlNet with its image, then its preprocessor (`canny`, `lineart`, `scribble`, or by a network `depth`, `normal`,
    /// `softedge`, `pose`), weight, and what counts for more (`prompt` or `control`); may be given several times.
    #[arg(long, value_name = "MODEL=FILE[,PREPROCESSOR][,WEIGHT][,MODE]")]
    pub control: Vec<String>,
    /// Model that takes over after a share of the steps, 0.8 by default.
    #[arg(long, value_name = "MODEL[:SHARE]")]
    pub refiner: Option<String>,
    /// Second pass at so many times the size.
    #[arg(long, value_name = "SCALE")]
    pub hires: Option<f32>,
    /// How much of the schedule the second pass runs, 0 to 1.
    #[arg(long, value_name = "STRENGTH", requires = "hires")]
    pub hires_strength: Option<f32>,
    /// Seed of the noise that is mixed in.
    #[arg(long, value_name = "SEED")]
    pub variation_seed: Option<u64>,
    /// How much of that noise, 0 to 1.
    #[arg(long, value_name = "STRENGTH")]
    pub variation_strength: Option<f32>,
    /// Pixels by which the mask's border is softened.
    #[arg(long, value_name = "PIXELS")]
    pub mask_blur: Option<f32>,
    /// Pixels by which the mask grows; below 0 it shrinks.
    #[arg(long, value_name = "PIXELS", allow_hyphen_values = true)]
    pub mask_dilate: Option<i32>,
    /// Repaint where the mask is black.
    #[arg(long)]
    pub mask_invert: bool,
    /// `whole` image, or only the part around the mask at the full size (`masked`).
    #[arg(long, value_name = "AREA")]
    pub mask_area: Option<String>,
    /// Pixels around the mask that come along in the area `masked`.
    #[arg(long, value_name = "PIXELS")]
    pub mask_padding: Option<u32>,
}

fn invalid(field: &str, message: String) -> Failure {
    calotype_engine::Error::invalid(field, message).into()
}

impl PictureArgs {
    /// As a server takes it.
    pub fn request(&self) -> Result<GenerateRequest, Failure> {
        request(self)
    }
}

fn request(args: &PictureArgs) -> Result<GenerateRequest, Failure> {
    let (width, height) = match &args.size {
        None => (None, None),
        Some(size) => {
            let sides = size
                .split_once(['x', 'X'])
                .and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
            let (width, height) = sides
                .ok_or_else(|| invalid("size", format!("`{size}` is no size; give for instance 256x256")))?;
            (Some(width), Some(height))
        }
    };
    let mut loras = Vec::new();
    for lora in &args.lora {
        let (name, weight) = match lora.rsplit_once(':') {
            None => (lora.as_str(), None),
            Some((name, weight)) => {
                let weight = weight.parse().map_err(|_| {
                    invalid(
                        "lora",
                        format!("`{weight}` is no weight; give for instance {name}:0.8"),
                    )
                })?;
                (name, Some(weight))
            }
        };
        loras.push(LoraRequest {
            name: name.to_owned(),
            weight,
        });
    }
    Ok(GenerateRequest {
        prompt: args.prompt.clone(),
        negative_prompt: args.negative.clone(),
        model: args.model.clone(),
        vae: args.vae.clone(),
        text_encoders: (!args.text_encoder.is_empty()).then(|| args.text_encoder.clone()),
        preset: args.preset.clone(),
        width,
        height,
        steps: args.steps,
        guidance: args.guidance,
        sampler: args.sampler.clone(),
        schedule: args.schedule.clone(),
        seed: args.seed,
        count: args.count,
        loras: (!loras.is_empty()).then_some(loras),
        init_image: file(args.init.as_deref())?,
        mask: file(args.mask.as_deref())?,
        strength: args.strength,
        clip_skip: args.clip_skip,
        format: format(args)?,
        quality: args.quality,
        control: units(&args.control)?,
        refiner: args.refiner.as_deref().map(refiner).transpose()?,
        hires: args.hires.map(|scale| HiresRequest {
            scale: Some(scale),
            strength: args.hires_strength,
            ..HiresRequest::default()
        }),
        variation_seed: args.variation_seed,
        variation_strength: args.variation_strength,
        mask_blur: args.mask_blur,
        mask_dilate: args.mask_dilate,
        mask_invert: args.mask_invert.then_some(true),
        mask_area: args.mask_area.as_deref().map(area).transpose()?,
        mask_padding: args.mask_padding,
        ..GenerateRequest::default()
    })
}

fn file(path: Option<&Path>) -> Result<Option<String>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let bytes = std::fs::read(path).map_err(|error| Failure::File {
        what: format!("read {}", path.display()),
        reason: error.to_string(),
    })?;
    Ok(Some(base64::engine::general_purpose::STANDARD.encode(bytes)))
}

fn format(args: &PictureArgs) -> Result<Option<OutputFormat>, Failure> {
    let extension = args
        .output
        .as_ref()
        .and_then(|path| path.extension())
        .and_then(|ext| ext.to_str());
    let Some(name) = args.format.as_deref().or(extension) else {
        return Ok(None);
    };
    match name.to_ascii_lowercase().as_str() {
        "png" => Ok(Some(OutputFormat::Png)),
        "jpg" | "jpeg" => Ok(Some(OutputFormat::Jpeg)),
        "webp" => Ok(Some(OutputFormat::Webp)),
        other => {
            let message = format!("`{other}` is no format that can be written; png, jpeg and webp are");
            Err(calotype_engine::Error::invalid("format", message).into())
        }
    }
}

fn mode(word: &str) -> Option<ControlMode> {
    match word {
        "balanced" => Some(ControlMode::Balanced),
        "prompt" => Some(ControlMode::Prompt),
        "control" => Some(ControlMode::Control),
        _ => None,
    }
}

/// `MODEL=FILE`, then a preprocessor, a weight and a mode in any order.
fn units(asked: &[String]) -> Result<Option<Vec<ControlRequest>>, Failure> {
    let unit = |text: &String| {
        let wrong = || {
            invalid(
                "control",
                format!("`{text}` is no unit; give for instance canny-sd15=house.png,canny,0.8"),
            )
        };
        let (model, rest) = text.split_once('=').ok_or_else(wrong)?;
        let mut parts = rest.split(',');
        let path = parts.next().filter(|path| !path.is_empty()).ok_or_else(wrong)?;
        let mut unit = ControlRequest {
            model: model.to_owned(),
            image: file(Some(Path::new(path)))?.unwrap_or_default(),
            ..ControlRequest::default()
        };
        for part in parts {
            match (part.parse(), mode(part)) {
                (Ok(weight), _) => unit.weight = Some(weight),
                (Err(_), Some(mode)) => unit.mode = Some(mode),
                (Err(_), None) => unit.preprocessor = Some(part.to_owned()),
            }
        }
        Ok(unit)
    };
    let units: Vec<ControlRequest> = asked.iter().map(unit).collect::<Result<_, Failure>>()?;
    Ok((!units.is_empty()).then_some(units))
}

fn refiner(text: &str) -> Result<RefinerRequest, Failure> {
    let (model, share) = match text.rsplit_once(':') {
        None => (text, None),
        Some((model, share)) => {
            let wrong = |_| {
                invalid(
                    "refiner",
                    format!("`{share}` is no share of the steps; give for instance {model}:0.8"),
                )
            };
            (model, Some(share.parse().map_err(wrong)?))
        }
    };
    Ok(RefinerRequest {
        model: model.to_owned(),
        switch_at: share,
    })
}

fn area(text: &str) -> Result<MaskArea, Failure> {
    match text {
        "whole" => Ok(MaskArea::Whole),
        "masked" => Ok(MaskArea::Masked),
        other => Err(invalid(
            "mask_area",
            format!("`{other}` is no area; `whole` and `masked` are"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_unit_is_read_from_one_option() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("a.png");
        std::fs::write(&image, b"x").unwrap();
        let text = |tail: &str| vec![format!("canny={}{tail}", image.display())];
        let unit = units(&text(",canny,prompt,0.8")).unwrap().unwrap().remove(0);
        assert_eq!((unit.model.as_str(), unit.weight), ("canny", Some(0.8)));
        assert_eq!(unit.mode, Some(ControlMode::Prompt));
        assert_eq!(unit.preprocessor.as_deref(), Some("canny"));
        assert!(units(&["canny".into()]).is_err() && units(&["canny=".into()]).is_err());
        assert!(units(&[]).unwrap().is_none());
        assert_eq!(refiner("xl:0.7").unwrap().switch_at, Some(0.7));
        assert!(refiner("xl:x").is_err() && area("half").is_err());
    }
}
